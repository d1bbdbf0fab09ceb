//! Text for a terminal. What a server, a tool or a model wrote is shown, never obeyed: control and
//! direction-changing characters come out as their escapes, so that no argument can repaint the screen or
//! read other than it is.

use std::fmt::Write as _;

use chrono::TimeDelta;
use console::measure_text_width;
use serde_json::Value;

/// The text with everything that moves a cursor or reorders letters written as `\u{..}`.
pub(super) fn safe(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if obeyed(c) {
            // Writing to a String does not fail.
            let _ = write!(out, "\\u{{{:x}}}", u32::from(c));
        } else {
            out.push(c);
        }
    }
    out
}

fn obeyed(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// JSON over several lines, each safe to show.
pub(super) fn json_lines(value: &Value) -> Vec<String> {
    serde_json::to_string_pretty(value).unwrap_or_default().lines().map(safe).collect()
}

/// JSON on one line, cut to `most` characters.
pub(super) fn json_line(value: &Value, most: usize) -> String {
    cut(&safe(&value.to_string()), most)
}

/// At most `most` characters; a cut shows.
pub(super) fn cut(text: &str, most: usize) -> String {
    if text.chars().count() <= most { text.to_owned() } else { text.chars().take(most).chain(['…']).collect() }
}

/// Breaks a line without styles into pieces no wider than `width` columns, losing nothing.
pub(super) fn wrap(line: &str, width: usize) -> Vec<String> {
    let mut pieces = Vec::new();
    let (mut piece, mut used) = (String::new(), 0);
    for c in line.chars() {
        let wide = measure_text_width(c.encode_utf8(&mut [0; 4]));
        if used + wide > width.max(2) {
            pieces.push(std::mem::take(&mut piece));
            used = 0;
        }
        piece.push(c);
        used += wide;
    }
    pieces.push(piece);
    pieces
}

/// A length of time for a person: `850 ms`, `12.3 s`, `3 m 05 s`, `4 h 02 m`, `3 d 4 h`.
pub(super) fn duration(length: TimeDelta) -> String {
    let ms = length.num_milliseconds().max(0);
    let s = ms / 1000;
    match s {
        0 => format!("{ms} ms"),
        1..60 => format!("{s}.{} s", ms % 1000 / 100),
        _ => whole_duration(length),
    }
}

/// The same in whole seconds, for what ticks.
pub(super) fn whole_duration(length: TimeDelta) -> String {
    let s = length.num_seconds().max(0);
    match s {
        0..60 => format!("{s} s"),
        60..3600 => format!("{} m {:02} s", s / 60, s % 60),
        3600..86_400 => format!("{} h {:02} m", s / 3600, s % 3600 / 60),
        _ => format!("{} d {} h", s / 86_400, s % 86_400 / 3600),
    }
}

/// The rows of a table as lines: columns as wide as their widest cell, the last one free.
pub(in crate::cli) fn table(rows: &[Vec<String>]) -> Vec<String> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    let widths: Vec<usize> = (0..columns)
        .map(|i| {
            rows.iter().filter_map(|row| row.get(i)).map(|cell| measure_text_width(cell)).max().unwrap_or_default()
        })
        .collect();
    rows.iter()
        .map(|row| {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(cell);
                line.extend(std::iter::repeat_n(' ', width + 2 - measure_text_width(cell)));
            }
            line.trim_end().to_owned()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn nothing_written_by_others_is_obeyed() {
        assert_eq!(safe("a\u{1b}[2Jb\u{9b}c\u{202e}d"), "a\\u{1b}[2Jb\\u{9b}c\\u{202e}d");
        assert_eq!(safe("Grüße, 世界"), "Grüße, 世界");
    }

    #[test]
    fn durations_read_well() {
        let shown = |ms| duration(TimeDelta::milliseconds(ms));
        assert_eq!(
            [shown(850), shown(12_340), shown(185_000), shown(14_520_000), shown(-5)],
            ["850 ms", "12.3 s", "3 m 05 s", "4 h 02 m", "0 ms"]
        );
    }

    proptest! {
        #[test]
        fn wrapping_loses_nothing_and_keeps_the_width(line in "\\PC{0,80}", width in 2_usize..40) {
            let pieces = wrap(&line, width);
            prop_assert_eq!(pieces.concat(), line);
            for piece in pieces {
                prop_assert!(piece.chars().count() <= 1 || measure_text_width(&piece) <= width);
            }
        }
    }
}
