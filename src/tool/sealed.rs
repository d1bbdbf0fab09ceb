//! Secrets that went along with a call, taken out of everything the other side tells of it.

use std::borrow::Cow;

use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;

use super::ToolError;

/// The shortest secret that is looked for: shorter ones may be anything.
const TELLING: usize = 8;
/// What stands in its place.
const PLACE: &str = "[sealed key]";

/// What was shown to the other side of who calls.
#[derive(Clone, Debug, Default)]
pub(super) struct Sealed(Vec<SecretString>);

impl Sealed {
    /// These secrets.
    pub(super) fn new<'a>(secrets: impl IntoIterator<Item = &'a str>) -> Self {
        Self(secrets.into_iter().filter(|secret| secret.len() >= TELLING).map(SecretString::from).collect())
    }

    /// Whether there is nothing to look for.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The text without them.
    pub(super) fn without<'t>(&self, text: &'t str) -> Cow<'t, str> {
        self.0.iter().map(ExposeSecret::expose_secret).fold(Cow::Borrowed(text), |text, secret| {
            if text.contains(secret) { Cow::Owned(text.replace(secret, PLACE)) } else { text }
        })
    }

    /// Takes them out of a value, wherever they stand in it.
    pub(super) fn hide(&self, value: &mut Value) {
        if self.is_empty() {
            return;
        }
        match value {
            Value::String(text) => {
                if let Cow::Owned(hidden) = self.without(text) {
                    *text = hidden;
                }
            }
            Value::Array(items) => items.iter_mut().for_each(|item| self.hide(item)),
            Value::Object(members) => {
                if members.keys().any(|name| matches!(self.without(name), Cow::Owned(_))) {
                    let all = std::mem::take(members).into_iter();
                    members.extend(all.map(|(name, value)| (self.without(&name).into_owned(), value)));
                }
                members.values_mut().for_each(|member| self.hide(member));
            }
            _ => {}
        }
    }

    /// A failure without them.
    pub(super) fn hidden(&self, mut error: ToolError) -> ToolError {
        let (ToolError::Failed(failure) | ToolError::Unknown(failure)) = &mut error;
        if let Cow::Owned(hidden) = self.without(&failure.message) {
            failure.message = hidden;
        }
        if let Some(detail) = &mut failure.detail {
            self.hide(detail);
        }
        error
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_key_that_comes_back_is_hidden_wherever_it_stands() {
        let sealed = Sealed::new(["sk-12345678", "short", "token-abcdef"]);
        let mut value = json!({ "a": ["Bearer sk-12345678", 1, "short"], "sk-12345678": { "b": "xtoken-abcdefy" } });
        sealed.hide(&mut value);
        let hidden = json!({ "a": ["Bearer [sealed key]", 1, "short"], "[sealed key]": { "b": "x[sealed key]y" } });
        assert_eq!(value, hidden);
        let error = ToolError::unknown("x", "not sk-12345678").with(json!(["token-abcdef"]));
        let ToolError::Unknown(failure) = sealed.hidden(error) else { panic!("still unknown") };
        assert_eq!((&failure.message[..], *failure.detail.unwrap()), ("not [sealed key]", json!(["[sealed key]"])));
    }
}
