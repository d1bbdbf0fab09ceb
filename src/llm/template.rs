use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::document::DocumentKind;
use crate::kernel::{
    Error, Result,
    template::{self, Context},
};

/// Words for a model, with places for what is different each time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PromptTemplate {
    /// The words, a template of minijinja over its variables.
    #[schema(example = "Answer {{ customer }} in {{ language }}: {{ prompt }}", min_length = 1, max_length = 65_536)]
    pub content: String,
    /// The variables it may use, by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variables: Option<BTreeMap<String, Variable>>,
    /// What it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 2000)]
    pub description: Option<String>,
}

/// A variable of a template.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Variable {
    /// What it says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// What it is when nobody says; without it the variable must be given.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Value>)]
    pub default: Option<Value>,
}

/// A question in the words of a template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Worded {
    /// Who the model is to be, where the template says that.
    pub system: Option<String>,
    /// What it is asked.
    pub text: String,
}

const LONGEST: usize = 65_536;
const MOST_VARIABLES: usize = 64;

impl DocumentKind for PromptTemplate {
    const KIND: &'static str = "template";
    const NOUN: &'static str = "prompt template";
    const PUT: &'static str = "llm.template.put";
    const DELETE: &'static str = "llm.template.delete";

    fn check(&self, _: &str) -> Result<()> {
        if self.content.is_empty() || self.content.len() > LONGEST {
            return Err(Error::invalid("content", format!("`content` has 1 to {LONGEST} bytes")));
        }
        if self.description.as_ref().is_some_and(|text| text.chars().count() > 2000) {
            return Err(Error::invalid("description", "`description` has more than 2,000 characters"));
        }
        let variables = self.variables();
        if variables.clone().count() > MOST_VARIABLES {
            return Err(Error::invalid("variables", format!("`variables` has more than {MOST_VARIABLES} names")));
        }
        if let Some(name) = variables.clone().map(|(name, _)| name).find(|name| !is_variable(name)) {
            let detail = format!("`{name}` is no name of a variable: write letters, digits and `_`");
            return Err(Error::invalid("variables", detail));
        }
        let names = template::check(&self.content).map_err(|error| {
            Error::invalid("content", format!("byte {}: {error}", error.offset())).with("offset", error.offset())
        })?;
        let mut used: BTreeSet<&str> = names.roots.iter().map(String::as_str).collect();
        if names.any_step || !names.steps.is_empty() {
            used.insert("steps");
        }
        match used.into_iter().find(|name| !self.declares(name)) {
            Some(name) => Err(Error::invalid("content", format!("`{name}` is not among the variables: declare it"))),
            None => Ok(()),
        }
    }
}

impl PromptTemplate {
    /// The words with these variables in their places.
    ///
    /// # Errors
    /// Invalid, when one is missing or unknown, or the template fails over them.
    pub fn render(&self, given: &Map<String, Value>) -> Result<String> {
        if let Some(name) = given.keys().find(|name| !self.declares(name)) {
            let known = self.variables().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ");
            return Err(Error::invalid(
                &format!("variables.{name}"),
                format!("there is no variable `{name}`: {known}"),
            ));
        }
        let mut values = Map::new();
        for (name, variable) in self.variables() {
            let value = given.get(name).or(variable.default.as_ref()).cloned().ok_or_else(|| {
                Error::invalid(&format!("variables.{name}"), format!("the variable `{name}` has to be given"))
            })?;
            values.insert(name.clone(), value);
        }
        let context = Context::Variables(Arc::new(Value::Object(values)));
        template::render_text(&self.content, &context)
            .map_err(|error| Error::invalid("variables", format!("the template fails: {error}")))
    }

    /// A prompt in its words. They are the question where they have a place for the prompt (the variable `prompt`), or where
    /// nothing is asked; else they say who the model is to be, and the prompt is the question as it stands.
    ///
    /// # Errors
    /// As with [`render`](Self::render).
    pub fn word(&self, variables: &Map<String, Value>, prompt: Option<&str>) -> Result<Worded> {
        let Some(prompt) = prompt else { return Ok(Worded { system: None, text: self.render(variables)? }) };
        let mut variables = variables.clone();
        if self.declares("prompt") {
            variables.insert("prompt".to_owned(), Value::from(prompt));
        }
        let words = self.render(&variables)?;
        if self.places("prompt") {
            return Ok(Worded { system: None, text: words });
        }
        Ok(Worded { system: Some(words), text: prompt.to_owned() })
    }

    fn variables(&self) -> impl Iterator<Item = (&String, &Variable)> + Clone {
        self.variables.iter().flatten()
    }

    /// Whether its words have a place for that variable.
    fn places(&self, name: &str) -> bool {
        template::check(&self.content).is_ok_and(|names| names.roots.iter().any(|root| root == name))
    }

    fn declares(&self, name: &str) -> bool {
        self.variables.as_ref().is_some_and(|variables| variables.contains_key(name))
    }
}

fn is_variable(name: &str) -> bool {
    let mut bytes = name.bytes();
    name.len() <= 63
        && bytes.next().is_some_and(|first| first.is_ascii_alphabetic() || first == b'_')
        && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn template(content: &str, variables: Value) -> PromptTemplate {
        serde_json::from_value(json!({ "content": content, "variables": variables })).unwrap()
    }

    fn rendered(template: &PromptTemplate, given: &Value) -> Result<String> {
        template.check("t").and_then(|()| template.render(given.as_object().unwrap()))
    }

    #[test]
    fn variables_take_their_places() {
        let greet = template(
            "{% if polite %}Dear {% endif %}{{ name }}, {{ facts }}",
            json!({ "name": {}, "polite": { "default": true }, "facts": { "default": [1, "a"] } }),
        );
        assert_eq!(rendered(&greet, &json!({ "name": "Ada" })).unwrap(), "Dear Ada, [1,\"a\"]");
        assert_eq!(rendered(&greet, &json!({ "name": "Ada", "polite": false, "facts": 2 })).unwrap(), "Ada, 2");
        let whole = template("{{ n }}", json!({ "n": {} }));
        assert_eq!(rendered(&whole, &json!({ "n": 7 })).unwrap(), "7");
        assert_eq!(rendered(&template("no places", json!({})), &json!({})).unwrap(), "no places");
    }

    #[test]
    fn a_template_without_a_place_for_the_prompt_says_who_the_model_is() {
        let given = json!({ "shop": "Hem" });
        let word = |template: &PromptTemplate, prompt| {
            let Worded { system, text } = template.word(given.as_object().unwrap(), prompt).unwrap();
            (system, text)
        };
        let asks = template("For {{ shop }}: {{ prompt }}", json!({ "shop": {}, "prompt": { "default": "Hi" } }));
        assert_eq!(word(&asks, Some("Hello")), (None, "For Hem: Hello".to_owned()));
        assert_eq!(word(&asks, None), (None, "For Hem: Hi".to_owned()));
        let is = template("You answer for {{ shop }}.", json!({ "shop": {} }));
        assert_eq!(word(&is, Some("Hello")), (Some("You answer for Hem.".to_owned()), "Hello".to_owned()));
        assert_eq!(word(&is, None), (None, "You answer for Hem.".to_owned()));
        let unused = template("You answer for {{ shop }}.", json!({ "shop": {}, "prompt": {} }));
        assert_eq!(word(&unused, Some("Hello")), (Some("You answer for Hem.".to_owned()), "Hello".to_owned()));
    }

    #[test]
    fn what_is_missing_unknown_or_undeclared_is_named() {
        let greet = template("{{ name }}", json!({ "name": {} }));
        for (template, given, field) in [
            (&greet, json!({}), "variables.name"),
            (&greet, json!({ "name": "a", "nmae": "b" }), "variables.nmae"),
            (&template("{{ other }}", json!({ "name": {} })), json!({}), "content"),
            (&template("{{ steps.a }}", json!({})), json!({}), "content"),
            (&template("{{ name", json!({ "name": {} })), json!({}), "content"),
            (&template("", json!({})), json!({}), "content"),
            (&template("{{ a }}", json!({ "a b": {}, "a": {} })), json!({}), "variables"),
            (&template("{{ name.first }}", json!({ "name": {} })), json!({ "name": {} }), "variables"),
        ] {
            let error = rendered(template, &given).unwrap_err();
            assert_eq!(error.members()["field"], field, "{error}");
        }
    }
}
