//! Secrets that went along with a call, taken out of everything the other side tells of it.

use std::borrow::Cow;

use memchr::memmem;
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

    /// The bytes without them.
    pub(super) fn without_in(&self, bytes: Vec<u8>) -> Vec<u8> {
        self.secrets().fold(bytes, |bytes, secret| {
            let mut places = memmem::find_iter(&bytes, secret).peekable();
            if places.peek().is_none() {
                drop(places);
                return bytes;
            }
            let (mut shown, mut end) = (Vec::with_capacity(bytes.len()), 0);
            for place in places {
                shown.extend_from_slice(bytes.get(end..place).unwrap_or_default());
                shown.extend_from_slice(PLACE.as_bytes());
                end = place + secret.len();
            }
            shown.extend_from_slice(bytes.get(end..).unwrap_or_default());
            shown
        })
    }

    /// Takes them out of bytes that come piece by piece.
    pub(super) fn veil(&self) -> Veil<'_> {
        Veil { sealed: self, held: Vec::new() }
    }

    fn secrets(&self) -> impl Iterator<Item = &[u8]> {
        self.0.iter().map(|secret| secret.expose_secret().as_bytes())
    }

    /// How many of the last bytes may be the beginning of a secret.
    fn begun(&self, bytes: &[u8]) -> usize {
        let begun = |secret: &[u8]| {
            let is_begun = |count: &usize| secret.get(..*count).is_some_and(|begin| bytes.ends_with(begin));
            (1..secret.len()).rev().find(is_begun).unwrap_or(0)
        };
        self.secrets().map(begun).max().unwrap_or(0)
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

/// What comes piece by piece, a secret perhaps in two of them.
#[derive(Debug)]
pub(super) struct Veil<'s> {
    sealed: &'s Sealed,
    held: Vec<u8>,
}

impl Veil<'_> {
    /// What can be shown with one more piece: all but what may be the beginning of a secret.
    pub(super) fn pass(&mut self, piece: &[u8]) -> Vec<u8> {
        self.held.extend_from_slice(piece);
        let mut shown = self.sealed.without_in(std::mem::take(&mut self.held));
        self.held = shown.split_off(shown.len() - self.sealed.begun(&shown));
        shown
    }

    /// What is left at the end of all.
    pub(super) fn end(self) -> Vec<u8> {
        self.held
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
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

    proptest! {
        #[test]
        fn what_comes_in_pieces_is_hidden_as_the_whole_is(
            parts in proptest::collection::vec(("[abc\n]{0,6}", any::<bool>()), 0..6),
            cut in 1..9_usize,
        ) {
            let key = "abcab\nca-sealed";
            let sealed = Sealed::new([key]);
            let whole: String = parts.iter().map(|(text, has)| format!("{text}{}", if *has { key } else { "" })).collect();
            let (mut veil, mut shown) = (sealed.veil(), Vec::new());
            for piece in whole.as_bytes().chunks(cut) {
                shown.extend(veil.pass(piece));
                // What is cut off now is no part of the key.
                let so_far = String::from_utf8(shown.clone()).unwrap();
                prop_assert!(sealed.without(&whole).starts_with(&so_far), "{so_far:?} of {whole:?}");
            }
            shown.extend(veil.end());
            let hidden = sealed.without(&whole).into_owned().into_bytes();
            prop_assert_eq!(&shown, &hidden);
            prop_assert_eq!(sealed.without_in(whole.into_bytes()), hidden);
        }
    }
}
