//! Cuts a template into text and code without running it, and keeps out what could grow without bound:
//! the engine's fuel counts instructions, not bytes.

use std::ops::Range;

use super::TemplateError;

/// `~`, `+` and `*` in one string; each can copy the texts it joins.
const MAX_JOINS: usize = 64;
/// `*` alone, which can repeat a text.
const MAX_PRODUCTS: usize = 8;
/// Words, quoted texts and signs in the code of one string. The engine reads and compiles chains of operators,
/// branches and calls by recursion, whose depth they bound with the next.
const MAX_TOKENS: usize = 1_000;
/// Brackets within brackets.
const MAX_BRACKETS: usize = 32;
/// Loops within loops.
const MAX_LOOPS: usize = 3;

/// A stretch of a template, by byte range of its source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// Outside any braces.
    Text(Range<usize>),
    /// The inside of `{{ }}`.
    Expression(Range<usize>),
    /// The inside of `{% %}`.
    Statement(Range<usize>),
}

/// A template, cut.
#[derive(Debug)]
pub(super) struct Cut {
    pub(super) parts: Vec<Part>,
    /// It has statements, comments or whitespace control, which only the engine's own renderer knows.
    pub(super) rich: bool,
}

/// Whether a string is a template at all.
pub(super) fn is_template(source: &str) -> bool {
    source.contains("{{") || source.contains("{%")
}

/// Cuts `source` and checks its bounds.
pub(super) fn cut(source: &str) -> Result<Cut, TemplateError> {
    let mut cut = Cut { parts: Vec::new(), rich: false };
    let (mut at, mut limits, mut loops) = (0, Limits::default(), 0_usize);
    while let Some(open) = next_opening(source, at) {
        if open > at {
            cut.parts.push(Part::Text(at..open));
        }
        let kind = source.as_bytes().get(open + 1).copied().unwrap_or_default();
        if kind == b'#' {
            let end = source.get(open..).and_then(|rest| rest.find("#}"));
            at = open + end.ok_or_else(|| TemplateError::new("`{#` is never closed", open))? + 2;
            cut.rich = true;
            continue;
        }
        let closing = if kind == b'{' { "}}" } else { "%}" };
        let (inner, after, controlled) = code(source, open, closing)?;
        let body = source.get(inner.clone()).unwrap_or_default();
        limits.count(body, inner.start)?;
        cut.rich |= controlled || kind == b'%';
        at = after;
        if kind == b'{' {
            cut.parts.push(Part::Expression(inner));
            continue;
        }
        if statement(body, inner.start, &mut loops)? == "raw" {
            at = raw_end(source, after).ok_or_else(|| TemplateError::new("`{% raw %}` is never closed", open))?;
        }
        cut.parts.push(Part::Statement(inner));
    }
    if at < source.len() {
        cut.parts.push(Part::Text(at..source.len()));
    }
    Ok(cut)
}

fn next_opening(source: &str, from: usize) -> Option<usize> {
    let rest = source.get(from..)?;
    rest.as_bytes().windows(2).position(|two| matches!(two, b"{{" | b"{%" | b"{#")).map(|found| from + found)
}

/// The inside of the code that opens at `open`, where the source goes on, and whether `-` or `+` trims.
fn code(source: &str, open: usize, closing: &str) -> Result<(Range<usize>, usize, bool), TemplateError> {
    let bytes = source.as_bytes();
    let mut start = open + 2;
    let mut controlled = matches!(bytes.get(start), Some(b'-' | b'+'));
    start += usize::from(controlled);
    let (mut at, mut depth) = (start, 0_isize);
    while let Some(&byte) = bytes.get(at) {
        let rest = bytes.get(at..).unwrap_or_default();
        if depth == 0 {
            if rest.starts_with(closing.as_bytes()) {
                return Ok((start..at, at + 2, controlled));
            }
            if matches!(byte, b'-' | b'+') && rest.get(1..).unwrap_or_default().starts_with(closing.as_bytes()) {
                controlled = true;
                return Ok((start..at, at + 3, controlled));
            }
        }
        match byte {
            b'"' | b'\'' => {
                at = quote_end(bytes, at).ok_or_else(|| TemplateError::new("a text is never closed", at))?
            }
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth -= 1,
            _ => {}
        }
        at += 1;
    }
    let opening = if closing == "}}" { "`{{`" } else { "`{%`" };
    Err(TemplateError::new(format!("{opening} is never closed"), open))
}

/// Where the quoted text that opens at `open` closes.
fn quote_end(bytes: &[u8], open: usize) -> Option<usize> {
    let quote = bytes.get(open)?;
    let mut at = open + 1;
    loop {
        match bytes.get(at)? {
            b'\\' => at += 2,
            byte if byte == quote => return Some(at),
            _ => at += 1,
        }
    }
}

fn raw_end(source: &str, from: usize) -> Option<usize> {
    let mut at = from;
    loop {
        let open = at + source.get(at..)?.find("{%")?;
        let body = source.get(open + 2..)?.trim_start_matches(['-', '+']).trim_start();
        let close = open + source.get(open..)?.find("%}")? + 2;
        if body.starts_with("endraw") {
            return Some(close);
        }
        at = open + 2;
    }
}

/// Checks one `{% %}` and gives its keyword.
fn statement<'s>(body: &'s str, offset: usize, loops: &mut usize) -> Result<&'s str, TemplateError> {
    let trimmed = body.trim();
    let end = trimmed.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(trimmed.len());
    let (keyword, rest) = trimmed.split_at(end);
    match keyword {
        "for" => {
            *loops += 1;
            if *loops > MAX_LOOPS {
                return Err(TemplateError::new(format!("loops nest at most {MAX_LOOPS} deep"), offset));
            }
            if tokens(rest).any(|token| matches!(token.text, "~" | "+" | "*")) {
                return Err(TemplateError::new("what a loop goes over cannot be built with `~`, `+` or `*`", offset));
            }
        }
        "endfor" => *loops = loops.saturating_sub(1),
        "if" | "elif" | "else" | "endif" | "raw" | "endraw" => {}
        other => {
            let message = format!("there is no statement `{other}`: only if, elif, else, for and raw");
            return Err(TemplateError::new(message, offset));
        }
    }
    Ok(keyword)
}

#[derive(Default)]
struct Limits {
    tokens: usize,
    joins: usize,
    products: usize,
}

impl Limits {
    fn count(&mut self, body: &str, offset: usize) -> Result<(), TemplateError> {
        let mut brackets = 0_usize;
        for token in tokens(body) {
            let refuse = |message: String| Err(TemplateError::new(message, offset + token.at));
            self.tokens += 1;
            match token.text {
                "(" | "[" | "{" => brackets += 1,
                ")" | "]" | "}" => brackets = brackets.saturating_sub(1),
                _ => {}
            }
            if self.tokens > MAX_TOKENS {
                return refuse(format!("too long: at most {MAX_TOKENS} words and signs of code in one text"));
            }
            if brackets > MAX_BRACKETS {
                return refuse(format!("brackets nest at most {MAX_BRACKETS} deep"));
            }
            self.joins += usize::from(matches!(token.text, "~" | "+" | "*"));
            self.products += usize::from(token.text == "*");
            if self.joins > MAX_JOINS || self.products > MAX_PRODUCTS {
                return refuse(format!(
                    "too long to compute: at most {MAX_JOINS} of `~`, `+`, `*` and {MAX_PRODUCTS} of `*`"
                ));
            }
        }
        Ok(())
    }
}

/// A word, a quoted text or one other character of code.
#[derive(Clone, Copy, Debug)]
pub(super) struct Token<'s> {
    pub(super) text: &'s str,
    pub(super) at: usize,
}

/// The tokens of a piece of code; whitespace is left out.
pub(super) fn tokens(code: &str) -> impl Iterator<Item = Token<'_>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let rest = code.get(at..)?;
        at += rest.len() - rest.trim_start().len();
        let rest = code.get(at..)?;
        let first = rest.chars().next()?;
        let length = match first {
            '"' | '\'' => quote_end(rest.as_bytes(), 0).map_or(rest.len(), |end| end + 1),
            c if is_word(c) => rest.find(|c| !is_word(c)).unwrap_or(rest.len()),
            c => c.len_utf8(),
        };
        let token = Token { text: rest.get(..length)?, at };
        at += length;
        Some(token)
    })
}

pub(super) fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn braces_in_texts_and_maps_do_not_end_an_expression() -> Result<(), TemplateError> {
        let source = r#"a{{ {"x": "}}"} }}b"#;
        let cut = cut(source)?;
        assert_eq!(cut.parts, [Part::Text(0..1), Part::Expression(3..16), Part::Text(18..19)]);
        assert!(!cut.rich);
        Ok(())
    }

    #[test]
    fn what_grows_without_bound_is_refused() {
        for source in [
            "{% set x = 'a' %}",
            "{% for x in [input.a ~ input.a] %}{{ x }}{% endfor %}",
            "{{ a * a * a * a * a * a * a * a * a * a }}",
            "{% include 'x' %}",
        ] {
            assert!(cut(source).is_err(), "{source}");
        }
    }

    #[test]
    fn a_raw_block_hides_what_is_in_it() -> Result<(), TemplateError> {
        let cut = cut("{% raw %}{{ not code {% endraw %}!")?;
        assert_eq!(cut.parts.last(), Some(&Part::Text(33..34)));
        Ok(())
    }

    proptest! {
        #[test]
        fn cutting_never_panics_and_covers_only_the_source(source in "[{}%#'\"\\\\a-c~ \\-é]{0,40}") {
            if let Ok(cut) = cut(&source) {
                for part in cut.parts {
                    let (Part::Text(range) | Part::Expression(range) | Part::Statement(range)) = part;
                    prop_assert!(source.get(range).is_some());
                }
            }
        }
    }
}
