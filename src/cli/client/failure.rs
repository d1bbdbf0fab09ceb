use std::{fmt::Write as _, io, process::ExitCode};

use console::style;
use serde::Deserialize;

use super::text;

/// The exit codes, as `--help` shows them.
pub const EXIT_CODES: &str = "\
Exit codes of the client's commands:
  0    done; a watched run completed
  1    the watched run failed
  2    usage: an argument or a local file is wrong
  3    the watched run was cancelled
  4    the server cannot be reached, or is not available
  5    no valid token, or one that does not allow this
  6    the server refused the request, or answered something this version cannot read; access was not granted
  130  interrupted; a watched run goes on without the watcher";

/// Shorthand for what the client's commands return.
pub(in crate::cli) type Result<T, E = Failure> = std::result::Result<T, E>;

/// Why a command did not end well.
#[derive(Debug)]
pub(in crate::cli) enum Failure {
    /// An argument or a local file is wrong.
    Usage(String),
    /// The server cannot be reached.
    Unreachable { url: String, cause: String },
    /// The server said no.
    Refused(Box<Problem>),
    /// The server's answer makes no sense to this version.
    Unreadable(String),
    /// Whoever was asked to grant access did not.
    NotGranted(String),
    /// The watched run failed; the watcher has said so.
    RunFailed,
    /// The watched run was cancelled; the watcher has said so.
    RunCancelled,
    /// Ctrl-C.
    Interrupted,
    /// Whoever read our output has gone, which is their right.
    OutputClosed,
}

impl Failure {
    /// What `EXIT_CODES` promises.
    fn code(&self) -> u8 {
        match self {
            Self::OutputClosed => 0,
            Self::RunFailed => 1,
            Self::Usage(_) => 2,
            Self::RunCancelled => 3,
            Self::Unreachable { .. } => 4,
            Self::Refused(problem) => match problem.status {
                401 | 403 => 5,
                500.. => 4,
                _ => 6,
            },
            Self::Unreadable(_) | Self::NotGranted(_) => 6,
            Self::Interrupted => 130,
        }
    }

    /// Says it on stderr, in a few calm lines.
    pub(in crate::cli) fn report(&self) -> ExitCode {
        if let Some(lines) = self.lines() {
            let mut lines = lines.into_iter();
            if let Some(first) = lines.next() {
                eprintln!("{} {first}", style("error:").red().bold().for_stderr());
            }
            for line in lines {
                eprintln!("  {line}");
            }
        }
        ExitCode::from(self.code())
    }

    /// What there is to say about it; nothing where it has been said.
    pub(in crate::cli) fn lines(&self) -> Option<Vec<String>> {
        match self {
            Self::Usage(message) => Some(message.lines().map(text::safe).collect()),
            Self::Unreachable { url, cause } => {
                Some(vec![format!("{url} cannot be reached"), text::safe(cause), "is the server running?".to_owned()])
            }
            Self::Refused(problem) => Some(problem.lines()),
            Self::Unreadable(message) => {
                Some(vec!["the server's answer cannot be read".to_owned(), text::safe(message)])
            }
            Self::NotGranted(why) => Some(vec!["nothing was granted".to_owned(), text::safe(why)]),
            Self::RunFailed | Self::RunCancelled | Self::Interrupted | Self::OutputClosed => None,
        }
    }
}

/// Writing to our own stdout failed: the reader has gone, or the disk is full.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            Self::OutputClosed
        } else {
            Self::Usage(format!("the output cannot be written: {error}"))
        }
    }
}

/// An RFC 9457 problem, as far as a person wants to read it.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::cli) struct Problem {
    pub(in crate::cli) status: u16,
    pub(super) title: String,
    pub(super) detail: String,
    pub(super) field: Option<String>,
    pub(super) errors: Vec<Mistake>,
    /// `urn:fermata:request:…`
    pub(super) instance: Option<String>,
}

/// One of several things wrong with an input.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::cli) struct Mistake {
    #[serde(alias = "pointer", alias = "field")]
    pub(super) path: Option<String>,
    #[serde(alias = "detail")]
    pub(super) message: String,
    pub(super) line: Option<u64>,
    pub(super) column: Option<u64>,
}

impl Problem {
    /// From an answer that is no success.
    pub(in crate::cli) fn parse(status: u16, body: &[u8], request_id: Option<&str>) -> Self {
        let mut problem: Self = serde_json::from_slice(body).unwrap_or_default();
        problem.status = status;
        if problem.title.is_empty() {
            problem.title = format!("the server answered {status}");
            problem.detail = String::from_utf8_lossy(body).chars().take(300).collect();
        }
        problem.instance = request_id.map(str::to_owned).or(problem.instance);
        problem
    }

    fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!("{} ({})", text::safe(&self.title), self.status)];
        match &self.field {
            // The detail of several mistakes is the first of them.
            _ if !self.errors.is_empty() => lines.extend(self.errors.iter().map(Mistake::text)),
            Some(field) if !self.detail.contains(field.as_str()) => {
                lines.push(text::safe(&format!("{field}: {}", self.detail)));
            }
            _ => lines.extend(self.detail.lines().map(text::safe)),
        }
        let request = self.instance.as_deref().and_then(|instance| instance.rsplit(':').next());
        lines.extend(request.map(|id| text::safe(&format!("request {id}"))));
        lines
    }
}

impl Mistake {
    fn text(&self) -> String {
        let mut out = String::new();
        if let Some(line) = self.line {
            // Writing to a String does not fail.
            let _ = write!(out, "line {line}");
            if let Some(column) = self.column {
                let _ = write!(out, ", column {column}");
            }
            out.push_str(": ");
        }
        if let Some(path) = self.path.as_deref().filter(|path| !path.is_empty()) {
            let _ = write!(out, "{path}: ");
        }
        out.push_str(&self.message);
        text::safe(&out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_prints_each_mistake_where_it_is() {
        let body = br#"{"type":"https://x/problems/invalid-definition","title":"The workflow definition is not valid","status":422,
            "detail":"1 mistake","instance":"urn:fermata:request:req_1",
            "errors":[{"path":"steps[1].needs[0]","message":"no step is called `fetc`","line":7,"column":13}]}"#;
        let problem = Problem::parse(422, body, None);
        assert_eq!(
            problem.lines(),
            [
                "The workflow definition is not valid (422)",
                "line 7, column 13: steps[1].needs[0]: no step is called `fetc`",
                "request req_1",
            ]
        );
        assert_eq!(Failure::Refused(Box::new(problem)).code(), 6);
    }

    #[test]
    fn an_answer_that_is_no_problem_still_says_what_it_was() {
        let problem = Problem::parse(502, b"<h1>Bad gateway</h1>", Some("req_2"));
        assert_eq!(problem.lines(), ["the server answered 502 (502)", "<h1>Bad gateway</h1>", "request req_2"]);
        assert_eq!(Failure::Refused(Box::new(problem)).code(), 4);
        assert_eq!(Failure::Refused(Box::new(Problem::parse(403, b"", None))).code(), 5);
    }
}
