use std::io::{self, Write as _};

use super::{failure::Result, text};

/// Writes lines to stdout; a reader that has gone is no panic.
pub(in crate::cli) fn lines<S: AsRef<str>>(lines: impl IntoIterator<Item = S>) -> Result<()> {
    let mut out = io::stdout().lock();
    for line in lines {
        writeln!(out, "{}", line.as_ref())?;
    }
    Ok(out.flush()?)
}

/// Writes one line to stdout.
pub(in crate::cli) fn line(text: &str) -> Result<()> {
    lines([text])
}

/// Writes what somebody else wrote: to a program as it is, to a terminal without what would move its cursor.
pub(super) fn document(document: &str) -> Result<()> {
    if !console::user_attended() {
        return line(document);
    }
    let harmless = |line: &str| line.split('\t').map(text::safe).collect::<Vec<_>>().join("\t");
    lines(document.lines().map(harmless))
}

/// A word to the person at the terminal; scripts don't get it.
pub(in crate::cli) fn hint(text: &str) {
    if console::user_attended_stderr() {
        eprintln!("{}", console::style(text).dim().for_stderr());
    }
}
