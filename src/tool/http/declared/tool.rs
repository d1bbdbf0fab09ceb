use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use reqwest::header::{HeaderName, HeaderValue};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Map, Value, json};

use super::{
    address::Address,
    definition::{HttpTool, argument_of},
};
use crate::{
    db::Database,
    http::Outbound,
    journal::{ApprovalRule, ApprovalTerms, Effect},
    kernel::{Problem, Result, TenantId},
    llm::{Document, Keys, shelf},
    tool::{Call, Outcome, Source, Tool, ToolError, http::Sender, sealed::Sealed},
};

/// The HTTP tools that tenants have declared.
#[derive(Clone)]
pub struct HttpTools {
    ground: Arc<Ground>,
}

/// What every declared tool leans on.
struct Ground {
    db: Database,
    keys: Keys,
    sender: Sender,
}

impl HttpTools {
    /// Out of `db`, with the tenants' sealed `keys`, through `outbound`; an output has at most so many bytes.
    #[must_use]
    pub fn new(db: Database, keys: Keys, outbound: Arc<Outbound>, output_limit: usize) -> Self {
        Self { ground: Arc::new(Ground { db, keys, sender: Sender::new(outbound, output_limit) }) }
    }
}

impl std::fmt::Debug for HttpTools {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HttpTools").finish_non_exhaustive()
    }
}

#[async_trait]
impl Source for HttpTools {
    async fn tools(&self, tenant: TenantId) -> Result<Vec<Arc<dyn Tool>>> {
        let mut tx = self.ground.db.tenant(tenant).await?;
        let found = shelf::all::<HttpTool>(&mut tx, vec![]).await?;
        let tools = found.into_iter().filter_map(|document| Declared::new(document, &self.ground));
        Ok(tools.map(|tool| Arc::new(tool) as Arc<dyn Tool>).collect())
    }
}

/// One of them.
struct Declared {
    ground: Arc<Ground>,
    name: String,
    version: String,
    definition: HttpTool,
    address: Address,
    rule: ApprovalRule,
}

impl Declared {
    /// None, if it would not pass the checks of today.
    fn new(document: Document<HttpTool>, ground: &Arc<Ground>) -> Option<Self> {
        let Document { name, version, body: definition, .. } = document;
        let (address, rule) = (Address::read(&definition.url).ok()?, rule(&name, &definition));
        Some(Self { ground: Arc::clone(ground), version: version.to_string(), name, definition, address, rule })
    }

    fn cost(&self) -> Option<f64> {
        self.rule.terms.as_ref().and_then(|terms| terms.cost)
    }

    /// The sealed key of the tool, opened for this call.
    async fn secret(&self, call: &Call) -> Result<Option<(HeaderName, SecretString)>, ToolError> {
        let Some(key) = &self.definition.key else { return Ok(None) };
        let (header, before) = key.place().map_err(|rule| ToolError::failed("unusable_key", rule))?;
        let opened = call.patiently(|| async {
            let mut tx = self.ground.db.tenant(call.tenant_id).await?;
            self.ground.keys.open(&mut tx, call.tenant_id, &key.name).await
        });
        let opened = opened.await.map_err(|error| match error.problem() {
            Problem::Unavailable => ToolError::retryable("unavailable", error.detail()),
            _ => {
                tracing::error!(%error, ?error, tool = self.name, "a sealed key cannot be opened");
                ToolError::failed("unusable_key", format!("the key `{}` cannot be opened", key.name))
            }
        })?;
        let missing = || ToolError::failed("unknown_key", format!("there is no sealed key `{}`", key.name));
        let secret = opened.ok_or_else(missing)?;
        Ok(Some((header, SecretString::from(format!("{before}{}", secret.expose_secret())))))
    }
}

/// What the tool itself says of consent to its calls.
fn rule(name: &str, definition: &HttpTool) -> ApprovalRule {
    let approval = definition.approval.clone();
    let hold = approval.as_ref().map(|approval| approval.hold.unwrap_or(true));
    let terms = approval.and_then(|approval| approval.terms).unwrap_or_default();
    let scope = if terms.scope.is_empty() { definition.scope.clone() } else { terms.scope };
    let terms = ApprovalTerms { scope, cost: terms.cost.or(definition.cost), ..terms };
    ApprovalRule { tools: vec![name.to_owned()], hold, terms: Some(terms), ..ApprovalRule::default() }
}

#[async_trait]
impl Tool for Declared {
    fn name(&self) -> &str {
        &self.name
    }

    fn version(&self) -> &str {
        &self.version
    }

    fn description(&self) -> &str {
        &self.definition.description
    }

    fn arguments(&self) -> Value {
        self.definition.arguments.clone()
    }

    fn output(&self) -> Value {
        let mut body = self.definition.output.clone().unwrap_or_else(|| json!({ "description": "JSON or text." }));
        // What it refers to is in itself.
        if let Some(fields) = body.as_object_mut().filter(|_| self.definition.output.is_some()) {
            fields.entry("$id").or_insert_with(|| json!(format!("urn:fermata:tool:{}", self.name)));
        }
        json!({
            "type": "object",
            "required": ["status", "body"],
            "properties": {
                "status": { "type": "integer" },
                "body": body,
                "encoding": { "const": "base64", "description": "Where the body is neither JSON nor text." }
            }
        })
    }

    fn effect(&self, _: &Value) -> Effect {
        self.definition.effect
    }

    fn rule(&self) -> Option<&ApprovalRule> {
        Some(&self.rule)
    }

    fn touches(&self, _: &Value) -> Option<String> {
        Some(format!("{} {}", self.definition.method.name(), self.definition.url))
    }

    fn timeout(&self) -> Duration {
        self.definition.timeout.map_or(Duration::from_secs(60), |span| span.0)
    }

    async fn call(&self, call: Call) -> Result<Outcome, ToolError> {
        let asked = asked(&self.definition, &self.address, &call.arguments)?;
        let secret = self.secret(&call).await?;
        let header = secret.as_ref().map(|(name, text)| secret_value(text).map(|value| (name.clone(), value)));
        let key = secret.as_ref().map(|(_, text)| text.expose_secret()).unwrap_or_default();
        let sealed = Sealed::new([key.strip_prefix("Bearer ").unwrap_or(key)]);
        match self.ground.sender.send(&call, &asked, header.transpose()?, &sealed).await {
            Ok(mut output) => {
                sealed.hide(&mut output);
                Ok(Outcome::Done { output: plain(output), cost: self.cost() })
            }
            Err(error) => Err(sealed.hidden(error)),
        }
    }
}

fn secret_value(text: &SecretString) -> Result<HeaderValue, ToolError> {
    let value = HeaderValue::from_str(text.expose_secret());
    let mut value = value.map_err(|_| ToolError::failed("unusable_key", "the key cannot be sent in a header"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// The arguments of `http.request` that the tool's come to. Pure.
fn asked(tool: &HttpTool, address: &Address, arguments: &Value) -> Result<Value, ToolError> {
    let none = Map::new();
    let given = arguments.as_object().unwrap_or(&none);
    let url = address.with(given)?;
    let placed: Vec<_> = tool.placed(address).collect();
    let rest = given.iter().filter(|(name, _)| !placed.contains(&name.as_str()));
    let rest: Map<String, Value> = rest.map(|(name, value)| (name.clone(), value.clone())).collect();
    let mut query: Map<String, Value> =
        tool.query.iter().filter_map(|name| Some((name.clone(), given.get(name)?.clone()))).collect();
    let headers = tool.headers.iter().filter_map(|(name, value)| {
        let value = match argument_of(value) {
            Some(argument) => given.get(argument).filter(|value| !value.is_null())?.clone(),
            None => Value::from(value.as_str()),
        };
        Some((name.clone(), value))
    });
    let headers: Map<String, Value> = headers.collect();
    let declared = tool.arguments.get("properties").and_then(Value::as_object).unwrap_or(&none);
    let body = match &tool.body {
        Some(name) => given.get(name).cloned(),
        None if !tool.method.has_body() => None,
        // An object that may have members is sent also where it has none.
        None if rest.is_empty() && declared.keys().all(|name| placed.contains(&name.as_str())) => None,
        None => Some(Value::Object(rest.clone())),
    };
    if tool.body.is_some() || !tool.method.has_body() {
        query.extend(rest);
    }
    // Some servers tell no upper case from lower, and take the last of two.
    let taken = Address::query(&url);
    let is_taken = |name: &str| taken.iter().any(|taken| taken.eq_ignore_ascii_case(name));
    if let Some((name, _)) = query.iter().find(|(name, value)| !value.is_null() && is_taken(name)) {
        let message = format!("`{name}` stands in the query of the tool's URL already");
        return Err(ToolError::failed("invalid_arguments", message));
    }
    let mut asked = json!({ "method": tool.method.name(), "url": url, "headers": headers, "query": query });
    if let Some(fields) = asked.as_object_mut() {
        fields.extend(body.map(|body| ("json".to_owned(), body)));
        fields.extend(tool.expect.as_ref().map(|expect| ("expect".to_owned(), json!(expect))));
    }
    Ok(asked)
}

/// What a model or a later step is interested in.
fn plain(mut output: Value) -> Value {
    let mut take = |name: &str| output.get_mut(name).map(Value::take).unwrap_or_default();
    let mut plain = json!({ "status": take("status"), "body": take("body") });
    if take("encoding") == "base64"
        && let Some(fields) = plain.as_object_mut()
    {
        fields.insert("encoding".to_owned(), json!("base64"));
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tool(body: Value) -> HttpTool {
        let mut whole = json!({ "description": "d", "method": "POST", "url": "https://a.example/x", "effect": "once",
            "arguments": { "type": "object", "properties": {} } });
        whole.as_object_mut().unwrap().extend(body.as_object().unwrap().clone());
        serde_json::from_value(whole).unwrap()
    }

    fn asked_of(body: Value, arguments: Value) -> Value {
        let tool = tool(body);
        asked(&tool, &Address::read(&tool.url).unwrap(), &arguments).unwrap()
    }

    #[test]
    fn every_argument_goes_to_its_place_and_the_rest_into_the_body() {
        let declared = json!({ "type": "object", "properties":
            { "id": {}, "notify": {}, "tags": {}, "shop": {}, "amount": {}, "note": {} }, "required": ["id"] });
        let body = json!({ "url": "https://a.example/{id}?n={notify}", "query": ["tags"], "arguments": declared,
            "headers": { "x-shop": "{shop}", "x-api": "7", "x-braces": "{a b}" }, "expect": [200] });
        let all = json!({ "id": 7, "notify": true, "tags": ["a", "b"], "shop": "s", "amount": 5, "note": null });
        let whole = asked_of(body.clone(), all);
        let expected = json!({ "method": "POST", "url": "https://a.example/7?n=true", "query": { "tags": ["a", "b"] },
            "headers": { "x-shop": "s", "x-api": "7", "x-braces": "{a b}" }, "expect": [200],
            "json": { "amount": 5, "note": null } });
        assert_eq!(whole, expected);
        let few = asked_of(body, json!({ "id": 7, "notify": 1 }));
        assert_eq!((&few["json"], &few["query"]), (&json!({}), &json!({})));
        assert_eq!(few["headers"], json!({ "x-api": "7", "x-braces": "{a b}" }));
    }

    #[test]
    fn what_has_no_place_is_the_query_where_there_is_no_body_or_it_is_taken() {
        let declared = json!({ "type": "object", "properties": { "a": {}, "b": {} } });
        let read = asked_of(json!({ "method": "GET", "arguments": declared }), json!({ "a": 1, "b": "x" }));
        assert_eq!((&read["query"], read.get("json")), (&json!({ "a": 1, "b": "x" }), None));
        let whole = asked_of(json!({ "body": "a", "arguments": declared }), json!({ "a": [1], "b": "x" }));
        assert_eq!((&whole["query"], &whole["json"]), (&json!({ "b": "x" }), &json!([1])));
        assert_eq!(asked_of(json!({}), json!({})).get("json"), None, "what takes nothing sends nothing");
    }

    #[test]
    fn what_the_url_says_of_its_query_is_said_once() {
        let tool = tool(json!({ "method": "GET", "url": "https://a.example/x?mo%64e=dry&n={n}",
            "arguments": { "type": "object", "properties": { "n": {} }, "required": ["n"] } }));
        let asked = |name: &str| {
            let given = Map::from_iter([("n".to_owned(), json!("a&mode=dry")), (name.to_owned(), json!("wet"))]);
            asked(&tool, &Address::read(&tool.url).unwrap(), &given.into())
        };
        for name in ["mode", "Mode", "N"] {
            let refused = asked(name);
            let is_refused = matches!(&refused, Err(ToolError::Failed(failure)) if failure.code == "invalid_arguments");
            assert!(is_refused, "{name}: {refused:?}");
        }
        let nothing = Map::from_iter([("n".to_owned(), json!("1")), ("mode".to_owned(), json!(null))]);
        assert!(super::asked(&tool, &Address::read(&tool.url).unwrap(), &nothing.into()).is_ok(), "null is nothing");
        let more = asked("more").unwrap();
        assert_eq!(
            (&more["url"], &more["query"]),
            (&json!("https://a.example/x?mo%64e=dry&n=a%26mode%3Ddry"), &json!({ "more": "wet" }))
        );
    }

    #[test]
    fn a_tools_own_terms_are_those_of_its_approval_and_its_facts() {
        let of = |body| rule("t", &tool(body));
        let plain = of(json!({ "scope": ["orders"], "cost": 2 }));
        let terms = plain.terms.unwrap();
        assert_eq!((plain.hold, terms.scope, terms.cost), (None, vec!["orders".to_owned()], Some(2.0)));
        assert_eq!(of(json!({ "approval": {} })).hold, Some(true));
        let free = of(json!({ "approval": { "hold": false, "terms": { "cost": 3, "reason": "r" } }, "cost": 2 }));
        let terms = free.terms.unwrap();
        assert_eq!((free.hold, terms.cost, terms.reason.as_deref()), (Some(false), Some(3.0), Some("r")));
    }
}
