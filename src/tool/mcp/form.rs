//! What a server asks of a person in the middle of a call. A form can come twice: in the older revision of the protocol
//! the server is told that nobody is there, and asks again when the call is made again; in the newer one it hands out
//! where it stopped, and is given that back with the answers.

use std::{collections::BTreeMap, sync::Arc};

use rmcp::model::{ElicitRequestParams, ElicitResult, ElicitationAction, InputRequest, InputRequiredResult};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::{
    journal::{Filled, Form},
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

/// What a server asks, as a form; none where it is too large to be shown.
pub(super) fn form(asked: &ElicitRequestParams, sealed: &Sealed) -> Option<Form> {
    let shown = |text: &str| shown(&sealed.without(text));
    let (message, mut schema) = match asked {
        ElicitRequestParams::FormElicitationParams { message, requested_schema, .. } => {
            (shown(message), serde_json::to_value(requested_schema).ok()?)
        }
        ElicitRequestParams::UrlElicitationParams { message, url, .. } => {
            let nothing = json!({ "type": "object", "properties": {}, "additionalProperties": false });
            (format!("{}\n\nOpen this, and approve when it is done: {}", shown(message), shown(url)), nothing)
        }
        _ => return None,
    };
    sealed.hide(&mut schema);
    size::check("form", &schema, SCHEMA).is_ok().then(|| Form { message, schema: Arc::new(schema), resume: None })
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
        let form = form(&elicit.params, sealed).ok_or_else(|| unsupported("a form that cannot be shown"))?;
        forms.push((name, form));
    }
    let asked = forms.iter().map(|(name, form)| (name.clone(), takes_input(&form.schema))).collect();
    let resume = serde_json::to_value(Resume { state: result.request_state, asked }).ok().map(Arc::new);
    Ok(match <[_; 1]>::try_from(forms) {
        Ok([(_, form)]) => Form { resume, ..form },
        Err(forms) => together(&forms, resume),
    })
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

    #[test]
    fn a_server_that_wants_a_model_is_refused() {
        let sampling = json!({ "method": "sampling/createMessage", "params": { "messages": [], "maxTokens": 1 } });
        let result = json!({ "resultType": "input_required", "inputRequests": { "a": sampling } });
        assert!(
            matches!(required(wanted(result), &Sealed::default()), Err(ToolError::Failed(failure)) if failure.code == "mcp_unsupported")
        );
    }
}
