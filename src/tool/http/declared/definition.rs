use std::collections::{BTreeMap, HashSet};

use reqwest::header::{HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::address::{Address, is_place};
use crate::{
    journal::{ApprovalTerms, Effect},
    kernel::{Error, Result, Span, compile, is_name},
    llm::DocumentKind,
    tool::{fits, http::request},
};

/// An HTTP tool: one request, with places for the arguments of a call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpTool {
    /// What it does, for a person or a model.
    #[schema(min_length = 1, max_length = 2000, example = "Refunds an order")]
    pub description: String,
    /// The method.
    pub method: HttpMethod,
    /// Where it goes, with places for arguments in the path and the query.
    #[schema(max_length = 2048, example = "https://shop.example/orders/{order}/refunds")]
    pub url: String,
    /// JSON Schema of the arguments, whose `properties` name them.
    #[schema(value_type = Object)]
    pub arguments: Value,
    /// The arguments that go into the query: a list repeats its name, null leaves it out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 64)]
    pub query: Vec<String>,
    /// Headers. One that is `{name}` is that argument, and left out where that is.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(example = json!({"X-Shop": "{shop}"}))]
    pub headers: BTreeMap<String, String>,
    /// The argument that is the whole JSON body. When absent, the body of a POST, PUT or PATCH is an object of all
    /// arguments that have no other place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    /// The sealed key it shows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<ToolKey>,
    /// JSON Schema of the body of the response.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub output: Option<Value>,
    /// What repeating a call does to the world.
    pub effect: Effect,
    /// What a call touches, as an approver is shown.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 32)]
    pub scope: Vec<String>,
    /// What a call costs, in the tenant's unit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0)]
    pub cost: Option<f64>,
    /// Whether a model's calls are held. When absent, those whose repetition would do something again are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approval: Option<ToolApproval>,
    /// The longest one attempt may take (60 s when absent).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Span>,
    /// The statuses that are no failure; all below 400 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_items = 1, max_items = 32)]
    pub expect: Option<Vec<u16>>,
}

/// A method of HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum HttpMethod {
    /// Reads.
    Get,
    /// Reads the head.
    Head,
    /// Asks what can be done.
    Options,
    /// Puts in place.
    Put,
    /// Deletes.
    Delete,
    /// Does something.
    Post,
    /// Changes.
    Patch,
}

impl HttpMethod {
    /// As it is sent.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Options => "OPTIONS",
            Self::Put => "PUT",
            Self::Delete => "DELETE",
            Self::Post => "POST",
            Self::Patch => "PATCH",
        }
    }

    /// Whether its requests have a body.
    pub(super) const fn has_body(self) -> bool {
        matches!(self, Self::Put | Self::Post | Self::Patch)
    }

    /// What repeating such a request does, where nobody says otherwise.
    pub(super) fn effect(self) -> Effect {
        request::effect(&json!({ "method": self.name() }))
    }
}

/// A sealed key and how it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ToolKey {
    /// The name it was sealed under (`PUT /llm/keys/{name}`).
    #[schema(example = "shop")]
    pub name: String,
    /// The header that is the key; `Authorization: Bearer <key>` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "X-Api-Key")]
    pub header: Option<String>,
}

impl ToolKey {
    /// Its header and what stands there before the key.
    pub(super) fn place(&self) -> Result<(HeaderName, &'static str), &'static str> {
        match &self.header {
            None => Ok((reqwest::header::AUTHORIZATION, "Bearer ")),
            Some(name) => request::secret_header(name).map(|name| (name, "")),
        }
    }
}

/// What becomes of a model's calls.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ToolApproval {
    /// Whether they are held (they are when absent).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold: Option<bool>,
    /// What an approver is shown, and until when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terms: Option<ApprovalTerms>,
}

/// The argument that a header's value means, if it means one.
pub(super) fn argument_of(value: &str) -> Option<&str> {
    value.strip_prefix('{')?.strip_suffix('}').filter(|name| is_place(name))
}

impl HttpTool {
    /// The arguments that have a place of their own, as often as they have one.
    pub(super) fn placed<'a>(&'a self, address: &'a Address) -> impl Iterator<Item = &'a str> {
        let named = self.query.iter().map(String::as_str);
        let headers = self.headers.values().filter_map(|value| argument_of(value));
        address.names().chain(named).chain(headers).chain(self.body.as_deref())
    }

    fn check_places(&self) -> Result<(), (&'static str, String)> {
        let address = Address::read(&self.url).map_err(|rule| ("url", rule.to_owned()))?;
        let is_declared = |name: &str| self.arguments.pointer("/properties").is_some_and(|all| all.get(name).is_some());
        let required = self.arguments.get("required").and_then(Value::as_array);
        let is_required = |name: &str| required.is_some_and(|names| names.iter().any(|other| other == name));
        let fields = [
            ("query", self.query.iter().map(String::as_str).collect::<Vec<_>>()),
            ("headers", self.headers.values().filter_map(|value| argument_of(value)).collect()),
            ("body", self.body.as_deref().into_iter().collect()),
        ];
        // One argument may stand in the URL twice.
        let in_url: HashSet<_> = address.names().collect();
        for name in &in_url {
            if !is_declared(name) || !is_required(name) {
                return Err(("url", format!("`{name}` is in `url`, so `arguments` declare and require it")));
            }
        }
        let mut seen = in_url;
        for (field, name) in fields.iter().flat_map(|(field, names)| names.iter().map(move |name| (*field, *name))) {
            if !is_declared(name) {
                return Err((
                    field,
                    format!("`{name}` is in `{field}`, so `arguments` declare it in their `properties`"),
                ));
            }
            if !seen.insert(name) {
                return Err((field, format!("`{name}` has two places, and needs one")));
            }
        }
        Ok(())
    }

    fn check_headers(&self) -> Result<(), (&'static str, String)> {
        let mut names = HashSet::new();
        for (name, value) in &self.headers {
            let parsed = request::header(name).map_err(|rule| ("headers", format!("{name:?} {rule}")))?;
            if matches!(parsed.as_str(), "authorization" | "cookie") {
                let rule = "would be there for all to read: seal a key, and name it in `key`";
                return Err(("headers", format!("`{name}` {rule}")));
            }
            if HeaderValue::from_str(value).is_err() {
                return Err(("headers", format!("`{name}` is text of visible ASCII characters on one line")));
            }
            if !names.insert(parsed) {
                return Err(("headers", format!("`{name}` is given twice")));
            }
        }
        let Some(key) = &self.key else { return Ok(()) };
        if !is_name(&key.name) {
            return Err(("key.name", "`key.name` is the name of a sealed key".to_owned()));
        }
        let (place, _) = key.place().map_err(|rule| ("key.header", format!("`key.header` {rule}")))?;
        if names.contains(&place) {
            return Err(("key.header", format!("`{place}` is in `headers` already")));
        }
        Ok(())
    }
}

fn is_small(tool: &HttpTool) -> bool {
    serde_json::to_value(tool).is_ok_and(|tool| fits(&tool, SIZE))
}

/// The largest definition, in bytes of JSON.
const SIZE: usize = 64 * 1024;

/// The longest an attempt may be given.
const LONGEST: Span = Span::seconds(3600);

impl DocumentKind for HttpTool {
    const KIND: &'static str = "http_tool";
    const NOUN: &'static str = "tool";
    const PUT: &'static str = "tool.http.put";
    const DELETE: &'static str = "tool.http.delete";

    fn check(&self, _: &str) -> Result<()> {
        let schema = |field: &'static str, schema: &Value| {
            compile(schema).map(drop).map_err(|why| (field, format!("`{field}` is no JSON Schema (2020-12): {why}")))
        };
        let terms = self.approval.as_ref().and_then(|approval| approval.terms.as_ref());
        let is_amount = |amount: Option<f64>| amount.is_none_or(|amount| amount.is_finite() && amount >= 0.0);
        let is_short = |text: &String| (1..=200).contains(&text.chars().count());
        let rules = [
            (
                "description",
                (1..=2000).contains(&self.description.chars().count()),
                "`description` has 1 to 2,000 characters",
            ),
            (
                "arguments",
                self.arguments.get("type").is_some_and(|kind| kind == "object"),
                "`arguments` are a JSON Schema of `type: object`",
            ),
            ("query", self.query.len() <= 64, "`query` has 64 names at most"),
            ("headers", self.headers.len() <= 32, "`headers` are 32 at most"),
            (
                "body",
                self.body.is_none() || self.method.has_body(),
                "`body` is for POST, PUT and PATCH: others have none",
            ),
            ("cost", is_amount(self.cost), "`cost` is a number from 0"),
            ("approval.terms.cost", is_amount(terms.and_then(|terms| terms.cost)), "`cost` is a number from 0"),
            (
                "approval.terms.expires",
                terms.and_then(|terms| terms.expires).is_none_or(|span| !span.0.is_zero()),
                "`expires` is longer than nothing",
            ),
            (
                "scope",
                self.scope.len() <= 32 && self.scope.iter().all(is_short),
                "`scope` has 32 texts at most, of 1 to 200 characters",
            ),
            (
                "timeout",
                self.timeout.is_none_or(|span| (Span::seconds(1)..=LONGEST).contains(&span)),
                "`timeout` is from `1s` to `1h`",
            ),
            (
                "expect",
                self.expect.as_ref().is_none_or(|all| {
                    (1..=32).contains(&all.len()) && all.iter().all(|status| (100..=599).contains(status))
                }),
                "`expect` has 1 to 32 statuses from 100 to 599",
            ),
            (
                "output",
                self.output.as_ref().is_none_or(serde_json::Value::is_object),
                "`output` is a JSON Schema: an object",
            ),
            ("url", self.url.len() <= 2048, "`url` has 2,048 bytes at most"),
            ("arguments", is_small(self), "the tool, with its schemas, takes at most 64 KiB of JSON"),
        ];
        let broken = rules.into_iter().find(|(_, holds, _)| !holds).map(|(field, _, rule)| (field, rule.to_owned()));
        broken
            .map_or(Ok(()), Err)
            .and_then(|()| schema("arguments", &self.arguments))
            .and_then(|()| self.output.as_ref().map_or(Ok(()), |output| schema("output", output)))
            .and_then(|()| self.check_places())
            .and_then(|()| self.check_headers())
            .map_err(|(field, rule)| Error::invalid(field, rule))
    }
}
