use std::collections::HashMap;

use serde_json::Value;

/// Gives what differs from one time to the next a name that does not: `run_1`, `[time]`. One redactor gives
/// one id the same name everywhere.
#[derive(Default)]
pub struct Redactor {
    ids: HashMap<String, String>,
    counts: HashMap<String, usize>,
}

/// TypeIDs end in this many characters after the prefix.
const SUFFIX: usize = 26;

impl Redactor {
    /// The same JSON without what differs.
    pub fn json(&mut self, value: &Value) -> Value {
        match value {
            Value::Object(members) => members
                .iter()
                .map(|(name, value)| match (name.as_str(), value) {
                    ("durationMs", Value::Number(_)) => (name.clone(), "[ms]".into()),
                    (_, value) => (name.clone(), self.json(value)),
                })
                .collect(),
            Value::Array(items) => items.iter().map(|item| self.json(item)).collect(),
            Value::String(text) => self.text(text).into(),
            other => other.clone(),
        }
    }

    /// The same text without what differs.
    pub fn text(&mut self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        let mut word = String::new();
        for c in text.chars() {
            if c.is_ascii_alphanumeric() || "_:.-+".contains(c) {
                word.push(c);
            } else {
                out.push_str(&self.word(&word));
                word.clear();
                out.push(c);
            }
        }
        out.push_str(&self.word(&word));
        out
    }

    fn word(&mut self, word: &str) -> String {
        if word.len() > 19 && chrono::DateTime::parse_from_rfc3339(word).is_ok() {
            return "[time]".to_owned();
        }
        if let Some(digest) = word.strip_prefix("sha256:") {
            assert_eq!(digest.len(), 64, "{word}");
            return "sha256:[digest]".to_owned();
        }
        // An id may follow other words: `urn:fermata:request:req_…`.
        let (before, id) = match word.rsplit_once(':') {
            Some((before, id)) => (format!("{before}:"), id),
            None => (String::new(), word),
        };
        match id.split_once('_') {
            Some((kind, suffix)) if suffix.len() == SUFFIX && kind.chars().all(|c| c.is_ascii_lowercase()) => {
                format!("{before}{}", self.name(id, kind))
            }
            _ => word.to_owned(),
        }
    }

    fn name(&mut self, id: &str, kind: &str) -> String {
        if let Some(known) = self.ids.get(id) {
            return known.clone();
        }
        let count = self.counts.entry(kind.to_owned()).or_default();
        *count += 1;
        let name = format!("{kind}_{count}");
        self.ids.insert(id.to_owned(), name.clone());
        name
    }
}
