use std::sync::LazyLock;

use serde_json::{Value, json};

use super::document;

/// One operation of the API's description.
#[derive(Debug)]
pub struct Operation {
    pub id: &'static str,
    /// In upper case.
    pub method: String,
    /// With parameters in braces.
    pub path: &'static str,
    /// What its bearer must be allowed; empty where it takes no bearer.
    pub permissions: Vec<&'static str>,
    pub described: &'static Value,
}

impl Operation {
    /// Every one of them.
    pub fn all() -> &'static [Self] {
        static ALL: LazyLock<Vec<Operation>> = LazyLock::new(|| {
            let paths = document()["paths"].as_object().unwrap();
            paths
                .iter()
                .flat_map(|(path, item)| {
                    item.as_object().unwrap().iter().filter_map(|(m, op)| Operation::read(path, m, op))
                })
                .collect()
        });
        &ALL
    }

    fn read(path: &'static str, method: &str, described: &'static Value) -> Option<Self> {
        let id = described["operationId"].as_str()?;
        let permissions =
            described["x-permissions"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        Some(Self { id, method: method.to_ascii_uppercase(), path, permissions, described })
    }

    /// Its path with every parameter replaced by what `fill` makes of its name.
    pub fn path_with(&self, fill: impl Fn(&str) -> String) -> String {
        let parts = self.path.split('/').map(|part| match part.strip_prefix('{').and_then(|p| p.strip_suffix('}')) {
            Some(name) => fill(name),
            None => part.to_owned(),
        });
        parts.collect::<Vec<_>>().join("/")
    }

    /// The kind of thing its path names, where it names one: the part before the first parameter.
    pub fn names(&self) -> Option<&'static str> {
        let (before, _) = self.path.split_once("/{")?;
        before.rsplit('/').next()
    }

    /// A body it would take: the example of its JSON, which `{}` is in the worst case.
    pub fn body(&self) -> Option<Value> {
        let content = &self.described["requestBody"]["content"]["application/json"];
        content.is_object().then(|| content.get("example").cloned().unwrap_or(json!({})))
    }

    /// The names of its parameters in this place (`query`, `header` or `path`).
    pub fn parameters(&self, place: &str) -> Vec<&'static str> {
        let all = self.described["parameters"].as_array().into_iter().flatten();
        all.filter(|parameter| parameter["in"] == place).filter_map(|parameter| parameter["name"].as_str()).collect()
    }
}
