//! A model for the bench: it speaks OpenAI's chat completions over HTTP, so many words a second, and what it says follows
//! from what it is asked. It does not begin before everybody has asked, so that all are spoken to at once.

use std::{sync::Arc, time::Duration};

use memchr::memmem;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    time::{Instant, sleep_until},
};

use crate::cli::client::failure::{Failure, Result};

/// The tool it calls in its first turn.
pub(super) const TOOL: &str = "debug.echo";

/// How it speaks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Model {
    /// Words of an answer.
    pub(super) words: u32,
    /// Words a second.
    pub(super) rate: u32,
    /// Those who ask.
    pub(super) crowd: u16,
}

/// How many have asked in each of the two turns.
type Asked = Arc<[watch::Sender<u16>; 2]>;

#[derive(Deserialize)]
struct Question {
    messages: Vec<Value>,
}

impl Model {
    /// Serves it from a port of this machine; returns the URL to call it at.
    pub(super) async fn serve(self) -> Result<String> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.map_err(Failure::from)?;
        let address = listener.local_addr().map_err(Failure::from)?;
        let asked = Asked::default();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let asked = Arc::clone(&asked);
                // A caller that goes away is the server's to tell of.
                tokio::spawn(async move { drop(self.answer(socket, &asked).await) });
            }
        });
        Ok(format!("http://{address}/v1/"))
    }

    /// One of the words that the run of that goal hears in that turn.
    fn word(goal: &str, turn: u8, place: u32) -> String {
        format!("{goal}.{turn}.{place} ")
    }

    /// All of them.
    pub(super) fn text(self, goal: &str, turn: u8) -> String {
        (0..self.words).map(|place| Self::word(goal, turn, place)).collect()
    }

    /// The time from the first word to the last.
    pub(super) fn span(self) -> Duration {
        Duration::from_secs(1) * self.words.saturating_sub(1) / self.rate
    }

    async fn answer(self, mut socket: TcpStream, [first, second]: &[watch::Sender<u16>; 2]) -> std::io::Result<()> {
        socket.set_nodelay(true)?;
        let Some(question) = read(&mut socket).await? else { return Ok(()) };
        let of = |role: &str| question.messages.iter().find(|message| message.get("role") == Some(&json!(role)));
        let goal = of("user").and_then(|asked| asked.get("content")?.as_str()).unwrap_or_default();
        let (turn, asked) = if of("tool").is_some() { (2, second) } else { (1, first) };
        asked.send_if_modified(|count| {
            *count += 1;
            *count >= self.crowd
        });
        // The sender is there for as long as this is.
        drop(asked.subscribe().wait_for(|count| *count >= self.crowd).await);
        socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n").await?;
        let begun = Instant::now();
        for place in 0..self.words {
            sleep_until(begun + Duration::from_secs(1) * place / self.rate).await;
            let delta = json!({ "content": Self::word(goal, turn, place) });
            socket.write_all(frame(&json!({ "choices": [{ "index": 0, "delta": delta }] })).as_bytes()).await?;
        }
        socket.write_all(self.end(turn).as_bytes()).await?;
        socket.shutdown().await
    }

    /// The end of an answer; of the first, with a call.
    fn end(self, turn: u8) -> String {
        let call = json!({ "index": 0, "id": "call", "type": "function",
            "function": { "name": TOOL.replace('.', "_"), "arguments": "{\"value\":1}" } });
        let (delta, reason) =
            if turn == 1 { (json!({ "tool_calls": [call] }), "tool_calls") } else { (json!({}), "stop") };
        let usage = json!({ "prompt_tokens": 10, "completion_tokens": self.words, "total_tokens": 10 + self.words });
        [
            frame(&json!({ "choices": [{ "index": 0, "delta": delta }] })),
            frame(&json!({ "choices": [{ "index": 0, "delta": {}, "finish_reason": reason }] })),
            frame(&json!({ "choices": [], "usage": usage })),
            "data: [DONE]\n\n".to_owned(),
        ]
        .concat()
    }
}

fn frame(data: &Value) -> String {
    format!("data: {data}\n\n")
}

/// Reads a request to the end of its JSON; none where there is none.
async fn read(socket: &mut TcpStream) -> std::io::Result<Option<Question>> {
    let mut input = Vec::new();
    while socket.read_buf(&mut input).await? > 0 {
        let body = memmem::find(&input, b"\r\n\r\n").and_then(|end| input.get(end + 4..));
        if let Some(question) = body.and_then(|body| serde_json::from_slice(body).ok()) {
            return Ok(Some(question));
        }
    }
    Ok(None)
}
