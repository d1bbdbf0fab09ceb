//! A server that is a process of this machine: its environment is what the operator gives it, its standard error goes to
//! the log, and it goes when its session does.

use std::{io, process::Stdio, time::Duration};

use rustix::process::{Pid, Signal, kill_process_group};
use secrecy::ExposeSecret;
use tokio::{
    io::AsyncReadExt,
    process::{Child, ChildStderr, ChildStdin, ChildStdout, Command},
};

use crate::{config::McpCommand, tool::sealed::Sealed};

/// How long it may take to end by itself, and again when it is told to.
const GRACE: Duration = Duration::from_secs(2);
/// The longest line of its standard error that is logged, in bytes.
const LINE: usize = 2000;

/// The process, with all that it started.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    group: Option<Pid>,
}

/// Starts it; what is written to the second is read by it, and the first is what it writes. What is sealed of its
/// environment is not logged.
pub(super) fn start(
    name: &str,
    command: &McpCommand,
    sealed: Sealed,
) -> io::Result<(Process, ChildStdout, ChildStdin)> {
    let mut child = Command::new(&command.command)
        .args(&command.args)
        .env_clear()
        .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
        .envs(command.env.iter().map(|(name, value)| (name, value.expose_secret())))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // A group of its own, so that what it starts ends with it.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()?;
    let group = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    let missing = || io::Error::other("a stream of the process is missing");
    let (input, output) = (child.stdin.take().ok_or_else(missing)?, child.stdout.take().ok_or_else(missing)?);
    if let Some(errors) = child.stderr.take() {
        tokio::spawn(log(name.to_owned(), errors, sealed));
    }
    Ok((Process { child, group }, output, input))
}

async fn log(name: String, mut errors: ChildStderr, sealed: Sealed) {
    let (mut veil, mut line, mut piece) = (sealed.veil(), Vec::new(), [0; LINE]);
    while let Ok(read @ 1..) = errors.read(&mut piece).await {
        // Hidden before it is cut into lines: a secret may go over their ends.
        write(&name, &mut line, veil.pass(piece.get(..read).unwrap_or_default()));
    }
    write(&name, &mut line, veil.end());
    write(&name, &mut line, vec![b'\n']);
}

/// Logs the lines that are whole, or long enough, and keeps the rest for what follows.
fn write(name: &str, line: &mut Vec<u8>, said: Vec<u8>) {
    for byte in said {
        line.push(byte);
        if byte == b'\n' || line.len() == LINE {
            let said = String::from_utf8_lossy(line).trim_end().to_owned();
            line.clear();
            if !said.is_empty() {
                tracing::info!(server = name, said, "an MCP server");
            }
        }
    }
}

impl Process {
    /// Waits for its end, which the end of its input tells it to come to, and helps it along.
    pub(super) async fn end(mut self) {
        for signal in [Signal::TERM, Signal::KILL] {
            if tokio::time::timeout(GRACE, self.child.wait()).await.is_ok() {
                break;
            }
            self.signal(signal);
        }
    }

    fn signal(&self, signal: Signal) {
        if let Some(group) = self.group {
            let _ = kill_process_group(group, signal);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // What it started may outlive it.
        self.signal(Signal::KILL);
    }
}
