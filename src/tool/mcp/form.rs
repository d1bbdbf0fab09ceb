//! What a server asks of a person in the middle of a call. A form can come twice: in the older revision of the protocol
//! the server is told that nobody is there, and asks again when the call is made again; in the newer one it hands out
//! where it stopped, and is given that back with the answers.

use std::{collections::BTreeMap, sync::Arc};

use reqwest::Url;
use rmcp::model::{
    ElicitRequestParams, ElicitResult, ElicitationAction, InputRequest, InputRequiredResult, PrimitiveSchemaDefinition,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{fault, pin::has_nul};
use crate::{
    journal::{Filled, Form},
    kernel::compile,
    tool::{ToolError, sealed::Sealed, size},
};

/// The longest message that is shown, in characters.
const MESSAGE: usize = 4000;
/// The largest schema of a form, and the most that a server may want back, in bytes of JSON.
const SCHEMA: usize = 32 * 1024;
const STATE: usize = 64 * 1024;
/// Questions of one answer.
const QUESTIONS: usize = 8;

/// Where a server stopped, for the newer revision.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Resume {
    /// What it wants back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) state: Option<String>,
    /// What it asked, by its own names; whether for anything to be filled in.
    asked: BTreeMap<String, bool>,
}

/// What a server asks, as a form.
///
/// # Errors
/// Why nobody could fill it in.
pub(super) fn form(asked: &ElicitRequestParams, sealed: &Sealed) -> Result<Form, String> {
    let shown = |text: &str| shown(&sealed.without(text));
    let (message, mut schema) = match asked {
        ElicitRequestParams::FormElicitationParams { message, requested_schema, .. } => {
            (shown(message), serde_json::to_value(requested_schema).map_err(|error| error.to_string())?)
        }
        ElicitRequestParams::UrlElicitationParams { message, url, .. } => {
            let is_page = url.parse().is_ok_and(|url: Url| matches!(url.scheme(), "http" | "https"));
            is_page.then_some(()).ok_or("its link is no http or https URL")?;
            let nothing = json!({ "type": "object", "properties": {}, "additionalProperties": false });
            (format!("{}\n\nOpen this, and approve when it is done: {}", shown(message), shown(url)), nothing)
        }
        _ => return Err("it is neither a form nor a link".to_owned()),
    };
    sealed.hide(&mut schema);
    if size::check("form", &schema, SCHEMA).is_err() || has_nul(&schema) {
        return Err(format!("its schema takes more than {SCHEMA} bytes of JSON, nests too deep or has a NUL in it"));
    }
    compile(&schema).map_err(|why| format!("its schema is of no use: {why}"))?;
    match unanswerable(&schema) {
        None => Ok(Form { message, schema: Arc::new(schema), resume: None }),
        Some(why) => Err(why),
    }
}

/// Why nothing fits a schema, although it is one.
fn unanswerable(schema: &Value) -> Option<String> {
    let described = |name: &str| schema["properties"].get(name).is_some();
    let mut required = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
    if let Some(name) = required.find(|name| !described(name)) {
        return Some(format!("it requires `{name}`, which it does not describe"));
    }
    let crossed = |property: &Value| {
        let at = |bound: &str| property.get(bound).and_then(Value::as_f64);
        let bounds = [("minLength", "maxLength"), ("minimum", "maximum"), ("minItems", "maxItems")];
        bounds.into_iter().any(|(least, most)| at(least).zip(at(most)).is_some_and(|(least, most)| least > most))
    };
    let choices = |property: &Value| property.get("enum").or(property.pointer("/items/enum")).cloned();
    let none = |property: &Value| crossed(property) || choices(property).is_some_and(|choices| choices == json!([]));
    let mut properties = schema["properties"].as_object().into_iter().flatten();
    properties.find(|(_, property)| none(property)).map(|(name, _)| format!("nothing fits its `{name}`"))
}

/// Why a question that could not be read is none that the protocol allows.
pub(super) fn unreadable(asked: &Value, sealed: &Sealed) -> String {
    let properties = asked.pointer("/requestedSchema/properties").and_then(Value::as_object);
    let is_plain = |property: &Value| PrimitiveSchemaDefinition::deserialize(property).is_ok();
    match properties.into_iter().flatten().find(|(_, property)| !is_plain(property)) {
        Some((name, _)) => {
            format!("its `{}` is no text, number, yes or no, or choice", sealed.without(name))
        }
        None => "it is neither a flat form nor a link".to_owned(),
    }
}

fn shown(text: &str) -> String {
    text.replace('\0', "\u{fffd}").chars().take(MESSAGE).collect()
}

/// The answer to a question of the older revision.
pub(super) fn answer(filled: &Filled) -> ElicitResult {
    let accepted = ElicitResult::new(ElicitationAction::Accept);
    if takes_input(&filled.form.schema) { accepted.with_content(Value::clone(&filled.input)) } else { accepted }
}

fn takes_input(schema: &Value) -> bool {
    schema.get("properties").and_then(Value::as_object).is_none_or(|properties| !properties.is_empty())
}

/// What a server of the newer revision needs before it goes on, as one form.
///
/// # Errors
/// `mcp_unsupported`, where it asks for what nobody fills in.
pub(super) fn required(result: InputRequiredResult, sealed: &Sealed) -> Result<Form, ToolError> {
    let unsupported = |what: &str| ToolError::failed("mcp_unsupported", format!("the server asks for {what}"));
    let requests = result.input_requests.unwrap_or_default();
    if requests.len() > QUESTIONS || result.request_state.as_ref().is_some_and(|state| state.len() > STATE) {
        return Err(unsupported("more than can be kept for it"));
    }
    let mut forms = Vec::with_capacity(requests.len());
    for (name, request) in requests {
        let InputRequest::Elicitation(elicit) = request else {
            return Err(unsupported("something other than a form: this client lends it no model and no files"));
        };
        let form = form(&elicit.params, sealed).map_err(|why| unfit(&why))?;
        forms.push((name, form));
    }
    let asked = forms.iter().map(|(name, form)| (name.clone(), takes_input(&form.schema))).collect();
    let resume = serde_json::to_value(Resume { state: result.request_state, asked }).ok();
    if resume.as_ref().is_some_and(has_nul) {
        return Err(unsupported("something with a NUL in it, which cannot be kept"));
    }
    let resume = resume.map(Arc::new);
    Ok(match <[_; 1]>::try_from(forms) {
        Ok([(_, form)]) => Form { resume, ..form },
        Err(forms) => together(&forms, resume),
    })
}

/// The failure of a call that needs something which could not be read; none, where it needs nothing.
pub(super) fn unread(result: &Value, sealed: &Sealed) -> Option<ToolError> {
    (result["resultType"] == "input_required").then_some(())?;
    let questions = result["inputRequests"].as_object().into_iter().flatten();
    let bad = questions.map(|(_, request)| request).find(|request| InputRequest::deserialize(*request).is_err())?;
    Some(unfit(&unreadable(&bad["params"], sealed)))
}

fn unfit(why: &str) -> ToolError {
    let why = fault::excerpt(why);
    ToolError::failed("mcp_unsupported", format!("the server asks for a form that nobody can fill in: {why}"))
}

/// Several questions at once: a form with each as a part.
fn together(forms: &[(String, Form)], resume: Option<Arc<Value>>) -> Form {
    let message = forms.iter().map(|(name, form)| format!("{name}: {}", form.message)).collect::<Vec<_>>().join("\n");
    let parts: Map<_, _> = forms.iter().map(|(name, form)| (name.clone(), Value::clone(&form.schema))).collect();
    let names: Vec<_> = parts.keys().cloned().collect();
    let schema = json!({ "type": "object", "required": names, "properties": parts });
    Form { message, schema: Arc::new(schema), resume }
}

/// Where the call goes on, and with which answers; nothing where it begins.
pub(super) fn resumed(filled: &[Filled]) -> Option<(Option<String>, BTreeMap<String, Value>)> {
    let last = filled.last()?;
    let resume = Resume::deserialize(&**last.form.resume.as_ref()?).ok()?;
    let several = resume.asked.len() > 1;
    let answer = |(name, takes_input): (String, bool)| {
        let whole = &*last.input;
        let content = if several { whole.get(&name).cloned().unwrap_or_default() } else { whole.clone() };
        let answer = match takes_input {
            true => json!({ "action": "accept", "content": content }),
            false => json!({ "action": "accept" }),
        };
        (name, answer)
    };
    Some((resume.state, resume.asked.into_iter().map(answer).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(value: Value) -> InputRequiredResult {
        serde_json::from_value(value).unwrap()
    }

    fn question(message: &str) -> Value {
        let schema = json!({ "type": "object", "properties": { "name": { "type": "string" } }, "required": ["name"] });
        let params = json!({ "mode": "form", "message": message, "requestedSchema": schema });
        json!({ "method": "elicitation/create", "params": params })
    }

    #[test]
    fn what_was_filled_in_goes_back_with_what_the_server_wanted_back() {
        let result = json!({ "resultType": "input_required", "requestState": "s", "inputRequests": { "who": question("Who?") } });
        let form = required(wanted(result), &Sealed::default()).unwrap();
        assert_eq!((form.message.as_str(), &form.schema["required"]), ("Who?", &json!(["name"])));
        let filled = Filled { form, input: Arc::new(json!({ "name": "Ada" })) };
        let (state, answers) = resumed(&[filled]).unwrap();
        assert_eq!(state.as_deref(), Some("s"));
        assert_eq!(json!(answers), json!({ "who": { "action": "accept", "content": { "name": "Ada" } } }));
    }

    #[test]
    fn several_questions_are_one_form() {
        let requests = json!({ "a": question("A?"), "b": question("B?") });
        let result = json!({ "resultType": "input_required", "inputRequests": requests });
        let form = required(wanted(result), &Sealed::default()).unwrap();
        assert_eq!(form.message, "a: A?\nb: B?");
        let input = json!({ "a": { "name": "x" }, "b": { "name": "y" } });
        let (state, answers) = resumed(&[Filled { form, input: Arc::new(input) }]).unwrap();
        assert_eq!((state, &answers["b"]["content"]), (None, &json!({ "name": "y" })));
    }

    #[test]
    fn a_link_is_shown_and_nothing_is_filled_in() {
        let asked = json!({ "mode": "url", "message": "Sign in", "url": "https://x.example/in", "elicitationId": "1" });
        let form = form(&serde_json::from_value(asked).unwrap(), &Sealed::default()).unwrap();
        assert!(form.message.contains("Sign in") && form.message.contains("https://x.example/in"));
        let answer = answer(&Filled { form, input: Arc::new(json!({})) });
        assert_eq!(serde_json::to_value(answer).unwrap(), json!({ "action": "accept" }));
    }

    fn refused(result: Result<Form, ToolError>) -> String {
        match result {
            Err(ToolError::Failed(failure)) if failure.code == "mcp_unsupported" => failure.message,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_form_may_have_all_that_the_protocol_knows() {
        let titled = json!([{ "const": "a", "title": "A" }]);
        let schema = json!({
            "$schema": "http://json-schema.org/draft-07/schema#",
            "type": "object",
            "properties": {
                "text": { "type": "string", "title": "T", "minLength": 1, "maxLength": 9, "format": "date-time" },
                "number": { "type": "number", "minimum": 0.5, "maximum": 0.5, "default": 0.5 },
                "whole": { "type": "integer", "minimum": -1 },
                "yes": { "type": "boolean", "default": true },
                "one": { "type": "string", "enum": ["a"], "enumNames": ["A"] },
                "titled": { "type": "string", "oneOf": titled },
                "many": { "type": "array", "items": { "type": "string", "enum": ["a"] }, "minItems": 1, "maxItems": 1 },
                "several": { "type": "array", "items": { "anyOf": titled } },
            },
            "required": ["text", "many"],
        });
        let asked = json!({ "message": "Fill in", "requestedSchema": schema });
        let form = form(&serde_json::from_value(asked).unwrap(), &Sealed::default()).unwrap();
        assert_eq!(*form.schema, schema);
    }

    #[test]
    fn a_form_that_nobody_can_fill_in_is_refused_with_the_reason() {
        let name = |property: Value| json!({ "type": "object", "properties": { "name": property } });
        for (schema, why) in [
            (json!({ "type": "object", "properties": {}, "required": ["name"] }), "it requires `name`"),
            (name(json!({ "type": "string", "oneOf": [] })), "at /properties/name/oneOf"),
            (name(json!({ "type": "string", "title": "\0" })), "a NUL"),
            (name(json!({ "type": "string", "enum": [] })), "nothing fits its `name`"),
            (name(json!({ "type": "array", "items": { "type": "string", "enum": [] } })), "nothing fits its `name`"),
            (name(json!({ "type": "string", "minLength": 2, "maxLength": 1 })), "nothing fits its `name`"),
            (name(json!({ "type": "integer", "minimum": 2, "maximum": 1 })), "nothing fits its `name`"),
        ] {
            let mut question = question("Who?");
            question["params"]["requestedSchema"] = schema.clone();
            let result = json!({ "resultType": "input_required", "inputRequests": { "who": question } });
            let message = refused(required(wanted(result), &Sealed::default()));
            assert!(message.contains(why), "{schema}: {message}");
        }
        let state = json!({ "resultType": "input_required", "requestState": "\0", "inputRequests": { "who": question("Who?") } });
        assert!(refused(required(wanted(state), &Sealed::default())).contains("a NUL"));
        let link = json!({ "mode": "url", "message": "Sign in", "url": "javascript:alert(1)", "elicitationId": "1" });
        form(&serde_json::from_value(link).unwrap(), &Sealed::default()).unwrap_err();
    }

    #[test]
    fn what_is_no_flat_form_is_refused_with_the_place() {
        let nested = json!({ "type": "object", "properties": { "name": { "type": "string" } } });
        for (schema, why) in [
            (json!({ "type": "object", "properties": { "who": nested } }), "its `who` is no text"),
            (json!({ "type": "object", "properties": { "who": { "type": "array", "items": nested } } }), "its `who`"),
            (json!({ "type": "object", "properties": { "who": { "$ref": "#/a" } } }), "its `who`"),
            (json!({ "type": "array" }), "neither a flat form nor a link"),
            (json!("name"), "neither a flat form nor a link"),
        ] {
            let mut question = question("Who?");
            question["params"]["requestedSchema"] = schema.clone();
            let result = json!({ "resultType": "input_required", "inputRequests": { "who": question } });
            assert!(serde_json::from_value::<InputRequiredResult>(result.clone()).is_err(), "{schema}");
            let message = refused(unread(&result, &Sealed::default()).map_or_else(|| panic!("{result}"), Err));
            assert!(message.contains(why), "{schema}: {message}");
        }
        assert!(unread(&json!({ "resultType": "complete" }), &Sealed::default()).is_none());
    }

    #[test]
    fn a_server_that_wants_a_model_is_refused() {
        let sampling = json!({ "method": "sampling/createMessage", "params": { "messages": [], "maxTokens": 1 } });
        let result = json!({ "resultType": "input_required", "inputRequests": { "a": sampling } });
        assert!(
            matches!(required(wanted(result), &Sealed::default()), Err(ToolError::Failed(failure)) if failure.code == "mcp_unsupported")
        );
    }
}
