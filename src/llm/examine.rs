//! Whether an answer will do. What will not is asked for again, with the reason.

use jsonschema::Validator;
use serde_json::Value;

use super::{Answer, Expected, Prompt, Stop};
use crate::kernel::compile;

/// Why an answer will not do, as the model is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Objection(pub(super) String);

/// The most calls of one answer, and the most bytes of JSON that their arguments may have together.
const CALLS: usize = 64;
const ARGUMENTS: usize = 128 * 1024;

/// How many mistakes of one answer are named.
const NAMED: usize = 8;

/// Holds answers against what was asked for.
pub(super) struct Examiner<'a> {
    expected: &'a Expected,
    schema: Option<Validator>,
    tools: Vec<(&'a str, Validator)>,
}

impl<'a> Examiner<'a> {
    /// For the answers to one prompt.
    ///
    /// # Errors
    /// When a schema in the prompt is none; the message says whose.
    pub(super) fn new(expected: &'a Expected, prompt: &'a Prompt) -> Result<Self, String> {
        let compile = |whose: &str, schema: &Value| {
            compile(schema).map_err(|error| format!("the schema of {whose} is no JSON Schema: {error}"))
        };
        let schema = prompt.schema.as_ref().map(|schema| compile("the answer", schema)).transpose()?;
        let tools = prompt.tools.iter().map(|tool| {
            let whose = format!("the tool `{}`", tool.name);
            compile(&whose, &tool.arguments).map(|validator| (tool.name.as_str(), validator))
        });
        Ok(Self { expected, schema, tools: tools.collect::<Result<_, _>>()? })
    }

    /// Takes the JSON out of an answer that is to have some.
    pub(super) fn examine(&self, answer: &mut Answer) -> Result<(), Objection> {
        let object = |text: String| Err(Objection(text));
        match answer.stop {
            Stop::Filtered => return object("it was held back by the provider's filter".to_owned()),
            Stop::Length if !answer.calls.is_empty() || self.schema.is_some() => {
                return object("it was cut off at the most tokens allowed: say it in fewer words".to_owned());
            }
            Stop::Length | Stop::Done | Stop::Calls => {}
        }
        self.calls(answer)?;
        if !answer.calls.is_empty() {
            return Ok(());
        }
        let text = answer.text.trim();
        let least = self.expected.min_length.unwrap_or(1).max(1);
        let length = text.chars().count();
        if length < usize::try_from(least).unwrap_or(usize::MAX) {
            let found = if length == 0 { "it is empty".to_owned() } else { format!("it has {length} characters") };
            return object(format!("{found}; {least} at least are wanted"));
        }
        let lower = text.to_lowercase();
        if let Some(phrase) = self.expected.error_phrases.iter().find(|phrase| lower.contains(&phrase.to_lowercase())) {
            return object(format!("it says `{phrase}`, which counts as no answer"));
        }
        if let Some(schema) = &self.schema {
            let json = json_in(text).map_err(|error| Objection(format!("it is no JSON: {error}")))?;
            if let Some(mistakes) = mistakes(schema, &json) {
                return object(format!("it is not what the schema says: {mistakes}"));
            }
            answer.json = Some(json);
        }
        Ok(())
    }

    fn calls(&self, answer: &Answer) -> Result<(), Objection> {
        if answer.calls.len() > CALLS {
            return Err(Objection(format!("it has {} calls; {CALLS} are allowed", answer.calls.len())));
        }
        let bytes: usize = answer.calls.iter().map(|call| call.arguments.to_string().len()).sum();
        if bytes > ARGUMENTS {
            return Err(Objection(format!("the arguments of its calls take {bytes} bytes; {ARGUMENTS} are allowed")));
        }
        for call in &answer.calls {
            if self.tools.is_empty() {
                return Err(Objection(format!("there are no tools here, and it calls `{}`", call.name)));
            }
            // A tool that was not given is for the gate to forbid.
            let Some((_, schema)) = self.tools.iter().find(|(name, _)| *name == call.name) else { continue };
            // Arguments that were cut off arrive as the text they were.
            let whole = call.arguments.is_object();
            let mistakes =
                if whole { mistakes(schema, &call.arguments) } else { Some("they are no object".to_owned()) };
            if let Some(mistakes) = mistakes {
                return Err(Objection(format!("the arguments of `{}` will not do: {mistakes}", call.name)));
            }
        }
        Ok(())
    }
}

/// The JSON of an answer, out of the fence that models like to put around it.
fn json_in(text: &str) -> serde_json::Result<Value> {
    let inner = text.strip_prefix("```json").or_else(|| text.strip_prefix("```"));
    let inner = inner.and_then(|rest| rest.trim_end().strip_suffix("```"));
    serde_json::from_str(inner.unwrap_or(text).trim())
}

fn mistakes(schema: &Validator, value: &Value) -> Option<String> {
    let named: Vec<_> = schema
        .iter_errors(value)
        .take(NAMED)
        .map(|error| {
            let path = error.instance_path().to_string();
            if path.is_empty() { error.masked().to_string() } else { format!("{path}: {}", error.masked()) }
        })
        .collect();
    (!named.is_empty()).then(|| named.join("; "))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::llm::{ToolCall, ToolSpec, Usage};

    fn answer(text: &str, stop: Stop, calls: Vec<ToolCall>) -> Answer {
        Answer {
            text: text.to_owned(),
            json: None,
            reasoning: None,
            calls,
            thoughts: None,
            stop,
            usage: Usage::default(),
            cost: 0.0,
            spent: 0.0,
            asked: 0,
            config: "c@1".to_owned(),
            provider: "p".to_owned(),
            model: "m".to_owned(),
            reply: 1,
        }
    }

    fn prompt() -> Prompt {
        let arguments =
            Arc::new(json!({ "type": "object", "required": ["n"], "properties": { "n": { "type": "integer" } } }));
        let tool = ToolSpec { name: "count".to_owned(), description: String::new(), arguments };
        Prompt { tools: vec![tool], ..Prompt::default() }
    }

    fn objection(expected: &Expected, prompt: &Prompt, answer: &mut Answer) -> Option<String> {
        Examiner::new(expected, prompt).unwrap().examine(answer).err().map(|objection| objection.0)
    }

    #[test]
    fn words_are_held_against_what_is_expected() {
        let expected = Expected { min_length: Some(3), error_phrases: vec!["I cannot".to_owned()] };
        for (text, stop, wrong) in [
            ("yes", Stop::Done, None),
            ("", Stop::Done, Some("empty")),
            (" \n\t ", Stop::Done, Some("empty")),
            ("no", Stop::Done, Some("2 characters")),
            ("Sorry, i CANNOT help", Stop::Done, Some("counts as no answer")),
            ("a long story that", Stop::Length, None),
            ("hm hm", Stop::Filtered, Some("filter")),
        ] {
            let found = objection(&expected, &Prompt::default(), &mut answer(text, stop, vec![]));
            assert_eq!(found.is_some(), wrong.is_some(), "{text:?}: {found:?}");
            assert!(wrong.is_none_or(|wrong| found.as_ref().is_some_and(|found| found.contains(wrong))), "{found:?}");
        }
    }

    #[test]
    fn calls_are_held_against_the_tools_schemas() {
        let call =
            |name: &str, arguments| ToolCall { id: "1".to_owned(), name: name.to_owned(), arguments, signatures: None };
        for (call, stop, fine) in [
            (call("count", json!({ "n": 1 })), Stop::Calls, true),
            (call("count", json!({ "n": "one" })), Stop::Calls, false),
            (call("count", json!("{\"n\": ")), Stop::Calls, false),
            (call("other", json!({})), Stop::Calls, true),
            (call("count", json!({ "n": 1 })), Stop::Length, false),
        ] {
            let found = objection(&Expected::default(), &prompt(), &mut answer("", stop, vec![call.clone()]));
            assert_eq!(found.is_none(), fine, "{call:?}: {found:?}");
        }
        let count = |n: usize| vec![call("count", json!({ "n": 1 })); n];
        let large = vec![call("count", json!({ "n": 1, "more": "x".repeat(ARGUMENTS) }))];
        for (calls, fine) in [(count(CALLS), true), (count(CALLS + 1), false), (large, false)] {
            let found = objection(&Expected::default(), &prompt(), &mut answer("", Stop::Calls, calls));
            assert_eq!(found.is_none(), fine, "{found:?}");
        }
        let unasked = answer("", Stop::Calls, vec![call("count", json!({ "n": 1 }))]);
        assert!(objection(&Expected::default(), &Prompt::default(), &mut unasked.clone()).is_some());
    }

    #[test]
    fn json_is_taken_out_of_its_fence_and_held_against_the_schema() {
        let schema = Some(Arc::new(json!({ "type": "object", "required": ["a"] })));
        let prompt = Prompt { schema, ..Prompt::default() };
        for text in ["{\"a\": 1}", "```json\n{\"a\": 1}\n```", "```\n{\"a\": 1}```\n"] {
            let mut answer = answer(text, Stop::Done, vec![]);
            assert_eq!(objection(&Expected::default(), &prompt, &mut answer), None);
            assert_eq!(answer.json, Some(json!({ "a": 1 })));
        }
        for text in ["{\"b\": 1}", "{\"a\": ", "Here it is: {\"a\": 1}"] {
            assert!(
                objection(&Expected::default(), &prompt, &mut answer(text, Stop::Done, vec![])).is_some(),
                "{text}"
            );
        }
        let cut = objection(&Expected::default(), &prompt, &mut answer("{\"a\": 1}", Stop::Length, vec![]));
        assert!(cut.unwrap().contains("cut off"));
        let broken = Prompt { schema: Some(Arc::new(json!({ "type": 7 }))), ..Prompt::default() };
        assert!(Examiner::new(&Expected::default(), &broken).is_err());
    }
}
