use std::{
    collections::{BTreeSet, HashMap, HashSet},
    io,
    sync::{Arc, LazyLock, Mutex, PoisonError},
};

use minijinja::{Error, ErrorKind, Expression};
use serde_json::Value;

use super::{
    Context, TemplateError,
    engine::{ENGINE, FILTERS, FUNCTIONS, TESTS},
    scan::{self, Part},
    value::{Budget, MAX_RENDERED, Omit, lower, write_text},
};

/// Compiled templates kept at once, over all definitions.
const CACHED: usize = 4096;
/// The longest template that is kept, in bytes.
const CACHED_BYTES: usize = 8 * 1024;

/// The names a template uses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// The steps named as `steps.id` or `steps["id"]`.
    pub steps: BTreeSet<String>,
    /// `steps` itself is used, so that nobody can tell which step is meant.
    pub any_step: bool,
    /// First names that are not `steps`: `input`, `item` …
    pub roots: BTreeSet<String>,
}

/// A template, ready to run.
#[derive(Debug)]
pub(super) struct Compiled {
    body: Body,
    pub(super) names: Names,
}

#[derive(Debug)]
enum Body {
    /// One whole expression: keeps its type.
    Whole(Code),
    /// Text with expressions in it.
    Mixed(Vec<Piece>),
    /// Text with statements in it, for the engine's own renderer.
    Rich(String),
}

#[derive(Debug)]
enum Piece {
    Text(String),
    Code(Code),
}

#[derive(Debug)]
struct Code {
    expression: Expression<'static, 'static>,
    /// Where it begins in the template.
    offset: usize,
}

static CACHE: LazyLock<Mutex<HashMap<Box<str>, Arc<Compiled>>>> = LazyLock::new(Mutex::default);

/// Compiles a text that is a template, or finds it compiled.
pub(super) fn text(source: &str) -> Result<Arc<Compiled>, TemplateError> {
    let cache = || CACHE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(compiled) = cache().get(source) {
        return Ok(Arc::clone(compiled));
    }
    let compiled = Arc::new(compile(source)?);
    if source.len() <= CACHED_BYTES {
        let mut cache = cache();
        if cache.len() >= CACHED {
            // Everything in use is compiled again within one round of runs.
            cache.clear();
        }
        cache.insert(source.into(), Arc::clone(&compiled));
    }
    Ok(compiled)
}

/// Compiles a condition, which is one expression with or without its braces.
pub(super) fn condition(source: &str) -> Result<Arc<Compiled>, TemplateError> {
    let trimmed = source.trim();
    if !trimmed.starts_with("{{") {
        let back = |error: TemplateError| TemplateError::new(error.message, error.offset.saturating_sub(3));
        return text(&format!("{{{{ {trimmed} }}}}")).map_err(back).and_then(whole);
    }
    text(trimmed).and_then(whole)
}

fn whole(compiled: Arc<Compiled>) -> Result<Arc<Compiled>, TemplateError> {
    match compiled.body {
        Body::Whole(_) => Ok(compiled),
        Body::Mixed(_) | Body::Rich(_) => Err(TemplateError::new("a condition is one single expression", 0)),
    }
}

fn compile(source: &str) -> Result<Compiled, TemplateError> {
    // A block scalar of YAML ends with a line break that nobody means.
    let meant = source.trim_end_matches('\n');
    let cut = scan::cut(source)?;
    let mut names = Names::default();
    for part in &cut.parts {
        if let Part::Expression(range) | Part::Statement(range) = part {
            check_vocabulary(source.get(range.clone()).unwrap_or_default(), range.start)?;
        }
    }
    if cut.rich {
        names.read(&rich_names(source, &cut.parts)?);
        return Ok(Compiled { body: Body::Rich(source.to_owned()), names });
    }
    let mut pieces = Vec::with_capacity(cut.parts.len());
    for part in cut.parts {
        match part {
            Part::Expression(range) => {
                let (offset, body) = (range.start, source.get(range).unwrap_or_default());
                let compiled = |text: String| ENGINE.compile_expression_owned(text).map_err(|e| explain(&e, offset));
                names.read(&compiled(named(body))?.undeclared_variables(true));
                pieces.push(Piece::Code(Code { expression: compiled(body.to_owned())?, offset }));
            }
            Part::Text(range) | Part::Statement(range) => {
                pieces.push(Piece::Text(source.get(range).unwrap_or_default().to_owned()));
            }
        }
    }
    let is_whole = meant.starts_with("{{") && meant.ends_with("}}");
    let body = match (pieces.pop(), pieces.pop(), pieces.is_empty()) {
        (Some(Piece::Code(code)), None, true) => Body::Whole(code),
        (Some(Piece::Text(_)), Some(Piece::Code(code)), true) if is_whole => Body::Whole(code),
        (last, before, _) => {
            pieces.extend(before);
            pieces.extend(last);
            Body::Mixed(pieces)
        }
    };
    Ok(Compiled { body, names })
}

/// Checks a template with statements and gives the names in it.
fn rich_names(source: &str, parts: &[Part]) -> Result<HashSet<String>, TemplateError> {
    ENGINE.template_from_str(source).map_err(|e| explain(&e, 0))?;
    let mut text = String::with_capacity(source.len());
    let mut copied = 0;
    for part in parts {
        if let Part::Expression(range) | Part::Statement(range) = part {
            text.push_str(source.get(copied..range.start).unwrap_or_default());
            text.push_str(&named(source.get(range.clone()).unwrap_or_default()));
            copied = range.end;
        }
    }
    text.push_str(source.get(copied..).unwrap_or_default());
    let template = ENGINE.template_from_str(&text).map_err(|e| explain(&e, 0))?;
    Ok(template.undeclared_variables(true))
}

/// Marks the ids that [`named`] put in place of `["id"]`.
const QUOTED: &str = "_quoted_";

/// Rewrites `steps["some-id"]` to a dotted name, which the engine's analysis of names can follow.
fn named(code: &str) -> String {
    let mut out = String::with_capacity(code.len());
    let (mut copied, mut last) = (0, [""; 3]);
    for token in scan::tokens(code) {
        if token.text == "]" && last.first() == Some(&"steps") && last.get(1) == Some(&"[") {
            let id = last.get(2).and_then(|quoted| quoted.get(1..quoted.len().saturating_sub(1))).unwrap_or_default();
            let quoted = last.get(2).is_some_and(|text| text.starts_with(['"', '\'']));
            if quoted && !id.is_empty() && !id.contains('\\') {
                let kept = code.get(copied..token.at).and_then(|text| text.rfind('[')).map_or(token.at, |n| copied + n);
                out.push_str(code.get(copied..kept).unwrap_or_default());
                out.push('.');
                out.push_str(QUOTED);
                id.bytes().for_each(|byte| out.push_str(&format!("{byte:02x}")));
                copied = token.at + 1;
            }
        }
        last = [last[1], last[2], token.text];
    }
    out.push_str(code.get(copied..).unwrap_or_default());
    out
}

impl Names {
    /// Whether what it gives is known with the run's input: it uses nothing else.
    #[must_use]
    pub fn are_of_input(&self) -> bool {
        let of_input = |root: &String| matches!(root.as_str(), "input" | "omit");
        self.steps.is_empty() && !self.any_step && self.roots.iter().all(of_input)
    }

    /// Takes in the dotted names of the engine's analysis.
    fn read(&mut self, dotted: &HashSet<String>) {
        for name in dotted {
            let mut parts = name.split('.');
            match (parts.next(), parts.next()) {
                (Some("steps"), Some(id)) => {
                    self.steps.insert(unquote(id));
                }
                (Some("steps"), None) => self.any_step = true,
                (Some(root), _) if !FUNCTIONS.contains(&root) => {
                    self.roots.insert(root.to_owned());
                }
                _ => {}
            }
        }
    }
}

fn unquote(id: &str) -> String {
    let Some(hex) = id.strip_prefix(QUOTED) else { return id.to_owned() };
    let byte = |pair: &[u8]| std::str::from_utf8(pair).ok().and_then(|pair| u8::from_str_radix(pair, 16).ok());
    let bytes = hex.as_bytes().chunks(2).filter_map(byte).collect::<Vec<_>>();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Finds filters and tests that do not exist, which the engine would only notice when it runs them.
fn check_vocabulary(code: &str, offset: usize) -> Result<(), TemplateError> {
    let mut before = [""; 2];
    for token in scan::tokens(code) {
        let word = token.text.starts_with(|c: char| c.is_ascii_alphabetic());
        let unknown = match before {
            [_, "|"] if word && !FILTERS.contains(&token.text) => Some("filter"),
            [_, "is"] if word && token.text != "not" && !TESTS.contains(&token.text) => Some("test"),
            ["is", "not"] if word && !TESTS.contains(&token.text) => Some("test"),
            _ => None,
        };
        if let Some(kind) = unknown {
            return Err(TemplateError::new(format!("there is no {kind} `{}`", token.text), offset + token.at));
        }
        before = [before[1], token.text];
    }
    Ok(())
}

impl Compiled {
    /// Runs it. There is nothing where it says `omit`.
    pub(super) fn render(&self, context: &Context, budget: &mut Budget) -> Result<Option<Value>, TemplateError> {
        let rendered = match &self.body {
            Body::Whole(code) => {
                let value = code.expression.eval(context.root()).map_err(|e| explain(&e, code.offset))?;
                if Omit::is(&value) {
                    return Ok(None);
                }
                lower(&value, budget).map_err(|e| code.explain_result(&e))?
            }
            Body::Mixed(pieces) => Value::String(mixed(pieces, context, budget)?),
            Body::Rich(source) => Value::String(rich(source, context, budget)?),
        };
        Ok(Some(rendered))
    }
}

fn mixed(pieces: &[Piece], context: &Context, budget: &mut Budget) -> Result<String, TemplateError> {
    let mut out = String::new();
    for piece in pieces {
        match piece {
            Piece::Text(text) => {
                budget.spend(text.len()).map_err(|e| explain(&e, 0))?;
                out.push_str(text);
            }
            Piece::Code(code) => {
                let value = code.expression.eval(context.root()).map_err(|e| explain(&e, code.offset))?;
                write_text(&value, budget, &mut out).map_err(|e| code.explain_result(&e))?;
            }
        }
    }
    Ok(out)
}

fn rich(source: &str, context: &Context, budget: &mut Budget) -> Result<String, TemplateError> {
    let template = ENGINE.template_from_str(source).map_err(|e| explain(&e, 0))?;
    let mut sink = Sink(Vec::new());
    template.render_captured_to(context.root(), &mut sink).map_err(|e| explain(&e, 0))?;
    budget.spend(sink.0.len()).map_err(|e| explain(&e, 0))?;
    String::from_utf8(sink.0).map_err(|_| TemplateError::new("the result is not a text", 0))
}

/// Takes what a rendering writes, up to the cap.
struct Sink(Vec<u8>);

impl io::Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_RENDERED {
            return Err(io::Error::other(format!("the result is over {MAX_RENDERED} bytes")));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Code {
    /// An expression that gives nothing is as wrong as one that fails.
    fn explain_result(&self, error: &Error) -> TemplateError {
        explain(error, self.offset)
    }
}

/// The engine's failure in a sentence, at its place in the template.
fn explain(error: &Error, base: usize) -> TemplateError {
    let message = match (error.kind(), error.detail()) {
        (ErrorKind::OutOfFuel, _) => "it takes too long to compute".to_owned(),
        (ErrorKind::UndefinedError, None) => "it gives nothing: what it names is not there".to_owned(),
        (kind, None) => kind.to_string(),
        (ErrorKind::SyntaxError | ErrorKind::InvalidOperation, Some(detail)) => detail.to_owned(),
        (kind, Some(detail)) => format!("{kind}: {detail}"),
    };
    let source = std::error::Error::source(error).map(|source| format!(": {source}")).unwrap_or_default();
    TemplateError::new(message + &source, base + error.range().map_or(0, |range| range.start))
}
