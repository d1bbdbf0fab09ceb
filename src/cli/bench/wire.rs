//! Plain HTTP/1.1 over one kept connection, as cheap as it gets: the load comes from the machine that is being
//! measured. What the server sends is read into one buffer for all connections.

use std::{cell::RefCell, future::poll_fn, net::SocketAddr, pin::Pin, sync::Arc, task::Poll, time::Duration};

use memchr::memmem;
use reqwest::Url;
use tokio::{
    io::{AsyncRead, ReadBuf},
    net::{TcpStream, lookup_host},
    time::timeout,
};

use super::frames::{Broken, Chunks, Event, Frames};
use crate::cli::client::failure::{Failure, Problem, Result};

/// The longest anything may keep a client waiting.
const PATIENCE: Duration = Duration::from_secs(75);

const BUFFER: usize = 64 * 1024;

thread_local! {
    static INPUT: RefCell<Vec<u8>> = RefCell::new(vec![0; BUFFER]);
}

/// The server that is measured.
#[derive(Debug)]
pub(super) struct Site {
    base: Url,
    address: SocketAddr,
    authority: String,
}

impl Site {
    /// Looks the address up, once.
    pub(super) async fn find(base: &Url) -> Result<Self> {
        let (Some(host), "http") = (base.host_str(), base.scheme()) else {
            return Err(Failure::Usage(format!("{base}: the load is plain HTTP; name the server itself, not a proxy")));
        };
        let port = base.port_or_known_default().unwrap_or(80);
        let unreachable = |cause: String| Failure::Unreachable { url: base.to_string(), cause };
        let mut found =
            lookup_host((host.trim_matches(['[', ']']), port)).await.map_err(|e| unreachable(e.to_string()))?;
        let address = found.next().ok_or_else(|| unreachable("the name has no address".to_owned()))?;
        Ok(Self { base: base.clone(), address, authority: format!("{host}:{port}") })
    }

    /// A request as it is written. `headers` are whole lines.
    pub(super) fn request(&self, what: &str, token: &str, headers: &str, body: &[u8]) -> Vec<u8> {
        let (method, path) = what.split_once(' ').unwrap_or(("GET", what));
        let prefix = self.base.path().trim_end_matches('/');
        let mut out = format!(
            "{method} {prefix}{path} HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {token}\r\n{headers}",
            self.authority
        )
        .into_bytes();
        if !body.is_empty() {
            let length = format!("content-type: application/json\r\ncontent-length: {}\r\n", body.len());
            out.extend_from_slice(length.as_bytes());
        }
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(body);
        out
    }

    fn unreachable(&self, cause: impl ToString) -> Failure {
        Failure::Unreachable { url: self.base.to_string(), cause: cause.to_string() }
    }
}

/// One connection at a time.
#[derive(Debug)]
pub(super) struct Wire {
    site: Arc<Site>,
    socket: Option<TcpStream>,
}

/// The events of an answer.
#[derive(Debug, Default)]
pub(super) struct Stream {
    chunks: Chunks,
    frames: Frames,
    /// What came with the answer's head.
    early: Vec<u8>,
}

/// What stands before a body.
#[derive(Debug)]
struct Head {
    status: u16,
    /// None for chunks.
    length: Option<usize>,
    closes: bool,
}

impl Wire {
    pub(super) fn new(site: &Arc<Site>) -> Self {
        Self { site: Arc::clone(site), socket: None }
    }

    /// Breaks the connection off, whatever is on it.
    pub(super) fn cut(&mut self) {
        self.socket = None;
    }

    /// Sends a request and reads the whole answer.
    pub(super) async fn call(&mut self, request: &[u8]) -> Result<Vec<u8>> {
        let site = Arc::clone(&self.site);
        let answer = async {
            let (head, mut body) = self.send(request).await?;
            self.rest(&head, &mut body).await?;
            Ok((head.status, body))
        };
        let (status, body) = within(answer, &site).await.inspect_err(|_| self.socket = None)?;
        if (200..300).contains(&status) { Ok(body) } else { Err(refusal(status, &body)) }
    }

    /// Opens a stream; none when there is nothing more to come.
    pub(super) async fn open(&mut self, request: &[u8]) -> Result<Option<Stream>> {
        let site = Arc::clone(&self.site);
        let answer = async {
            let (head, mut early) = self.send(request).await?;
            if head.status == 200 && head.length.is_none() {
                return Ok(Some(Stream { early, ..Stream::default() }));
            }
            self.rest(&head, &mut early).await?;
            if head.status == 204 { Ok(None) } else { Err(refusal(head.status, &early)) }
        };
        within(answer, &site).await.inspect_err(|_| self.socket = None)
    }

    /// Waits for the next bytes of the stream and tells of the events in them; false when it is over. How long
    /// it may take is the caller's to say: a timer for every few bytes would be most of the work.
    pub(super) async fn read(&mut self, stream: &mut Stream, mut tell: impl FnMut(Event<'_>)) -> Result<bool> {
        let Stream { chunks, frames, early } = stream;
        if chunks.over() {
            return Ok(false);
        }
        let mut take = |bytes: &[u8]| chunks.feed(bytes, &mut |data| frames.feed(data, &mut tell)).map(drop);
        let taken = if early.is_empty() {
            self.receive(take).await.inspect_err(|_| self.socket = None)?
        } else {
            take(&std::mem::take(early))
        };
        taken.map_err(|Broken| Failure::Unreadable("a stream whose chunks are broken".to_owned()))?;
        Ok(!stream.chunks.over())
    }

    /// Sends a request and reads the head of the answer, and with it some of what follows.
    async fn send(&mut self, request: &[u8]) -> Result<(Head, Vec<u8>)> {
        if !self.socket.as_ref().is_some_and(is_quiet) {
            let socket = TcpStream::connect(self.site.address).await.map_err(|e| self.site.unreachable(e))?;
            socket.set_nodelay(true).map_err(|e| self.site.unreachable(e))?;
            self.socket = Some(socket);
        }
        self.write(request).await?;
        let mut input = Vec::new();
        loop {
            self.receive(|bytes| input.extend_from_slice(bytes)).await?;
            if let Some(end) = memmem::find(&input, b"\r\n\r\n") {
                let head = Head::read(input.get(..end).unwrap_or_default())
                    .ok_or_else(|| Failure::Unreadable("an answer that is not HTTP/1.1".to_owned()))?;
                input.drain(..end + 4);
                return Ok((head, input));
            }
        }
    }

    /// Reads on to the body's end.
    async fn rest(&mut self, head: &Head, body: &mut Vec<u8>) -> Result<()> {
        match head.length {
            Some(length) => {
                while body.len() < length {
                    self.receive(|bytes| body.extend_from_slice(bytes)).await?;
                }
            }
            None => {
                let (mut chunks, mut whole) = (Chunks::default(), Vec::new());
                let mut take = |bytes: &[u8]| {
                    chunks.feed(bytes, &mut |data| whole.extend_from_slice(data))?;
                    Ok(chunks.over())
                };
                let broken = |Broken| Failure::Unreadable("an answer whose chunks are broken".to_owned());
                let mut over = take(body).map_err(broken)?;
                while !over {
                    over = self.receive(&mut take).await?.map_err(broken)?;
                }
                *body = whole;
            }
        }
        if head.closes {
            self.socket = None;
        }
        Ok(())
    }

    async fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        let Some(socket) = &self.socket else { return Err(self.site.unreachable("not connected")) };
        while !bytes.is_empty() {
            socket.writable().await.map_err(|e| self.site.unreachable(e))?;
            match socket.try_write(bytes) {
                Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(self.site.unreachable(error)),
            }
        }
        Ok(())
    }

    /// Waits for bytes and hands them on; that no more will come is a failure.
    async fn receive<T>(&mut self, mut take: impl FnMut(&[u8]) -> T) -> Result<T> {
        let Some(socket) = &mut self.socket else { return Err(self.site.unreachable("not connected")) };
        let mut read = |cx: &mut std::task::Context<'_>| {
            INPUT.with_borrow_mut(|input| {
                let mut input = ReadBuf::new(input);
                match Pin::new(&mut *socket).poll_read(cx, &mut input) {
                    Poll::Pending => Poll::Pending,
                    Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                    Poll::Ready(Ok(())) if input.filled().is_empty() => {
                        Poll::Ready(Err(std::io::ErrorKind::UnexpectedEof.into()))
                    }
                    Poll::Ready(Ok(())) => Poll::Ready(Ok(take(input.filled()))),
                }
            })
        };
        poll_fn(&mut read).await.map_err(|e| self.site.unreachable(e))
    }
}

impl Head {
    fn read(head: &[u8]) -> Option<Self> {
        let mut lines = std::str::from_utf8(head).ok()?.split("\r\n");
        let status = lines.next()?.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
        // Without a body there need be no length: 204 has neither.
        let mut head = Self { status, length: Some(0), closes: false };
        for (name, value) in lines.filter_map(|line| line.split_once(':')) {
            let value = value.trim();
            match name.to_ascii_lowercase().as_str() {
                "content-length" => head.length = Some(value.parse().ok()?),
                "transfer-encoding" => head.length = None,
                "connection" => head.closes = value.eq_ignore_ascii_case("close"),
                _ => {}
            }
        }
        Some(head)
    }
}

/// Whether a kept connection can take the next request: nothing has come on it, and no end either.
fn is_quiet(socket: &TcpStream) -> bool {
    matches!(socket.try_read(&mut [0]), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
}

async fn within<T>(answer: impl Future<Output = Result<T>>, site: &Site) -> Result<T> {
    let late = |_| site.unreachable(format!("nothing came for {} s", PATIENCE.as_secs()));
    timeout(PATIENCE, answer).await.map_err(late).flatten()
}

fn refusal(status: u16, body: &[u8]) -> Failure {
    Failure::Refused(Box::new(Problem::parse(status, body, None)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_says_how_long_its_body_is() {
        let head = Head::read(b"HTTP/1.1 202 Accepted\r\nContent-Length: 17\r\nconnection: close").unwrap();
        assert_eq!((head.status, head.length, head.closes), (202, Some(17), true));
        let head = Head::read(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked").unwrap();
        assert_eq!((head.status, head.length, head.closes), (200, None, false));
        assert_eq!(Head::read(b"HTTP/1.1 204 No Content").unwrap().length, Some(0));
        assert!(Head::read(b"SSH-2.0").is_none());
    }
}
