//! What an operation of an OpenAPI document says of a tool. Pure: the document is all there is, nothing is fetched.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{
    address::is_place,
    definition::HttpMethod,
    reader::{Reader, invalid},
};
use crate::kernel::{Error, Result};

/// The longest description, in characters.
const DESCRIPTION: usize = 2000;
/// The longest URL of a server, and default of a variable in it, in bytes.
const URL: usize = 2048;
/// The argument that is the whole body.
const BODY: &str = "body";

/// What an object's schema may say and still have its properties stand among the other arguments.
const FLAT: [&str; 6] = ["type", "properties", "required", "additionalProperties", "description", "title"];

/// What was found; a caller's own words come over it.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Derived {
    pub(super) description: Option<String>,
    pub(super) method: Option<HttpMethod>,
    pub(super) url: Option<String>,
    pub(super) arguments: Option<Value>,
    pub(super) query: Vec<String>,
    pub(super) headers: BTreeMap<String, String>,
    pub(super) body: Option<String>,
    pub(super) output: Option<Value>,
}

/// Reads an operation.
///
/// # Errors
/// Invalid (422): what of the document is not there, refers elsewhere or cannot be sent.
pub(super) fn derive(document: &Value, operation: &str, server: Option<&str>) -> Result<Derived> {
    let version = document.get("openapi").and_then(Value::as_str).unwrap_or_default();
    if !version.starts_with("3.") {
        return Err(invalid("`openapi` is an OpenAPI document of version 3, as JSON"));
    }
    let mut reader = Reader::new(document);
    let found = find(&mut reader, operation)?;
    let method = HttpMethod::deserialize(Value::from(found.method.to_ascii_uppercase()))
        .map_err(|_| invalid(format!("`{operation}` is a {}, which no tool sends", found.method)))?;
    let mut derived = Derived {
        description: Some(description(&found)),
        method: Some(method),
        url: Some(format!("{}{}", base(&found, document, server)?, found.path)),
        ..Derived::default()
    };
    let mut arguments = Arguments::default();
    for parameter in parameters(&mut reader, &found)? {
        arguments.add(&mut reader, &mut derived, parameter)?;
    }
    arguments.add_body(&mut reader, &mut derived, &found, method)?;
    derived.arguments = Some(arguments.schema());
    derived.output = output(&mut reader, &found)?;
    Ok(derived)
}

/// An operation and what is around it.
struct Found<'d> {
    path: String,
    method: String,
    item: &'d Value,
    operation: &'d Value,
}

fn find<'d>(reader: &mut Reader<'d>, id: &str) -> Result<Found<'d>> {
    let paths = reader.document.get("paths").and_then(Value::as_object);
    let mut known = Vec::new();
    for (path, item) in paths.into_iter().flatten() {
        let item = reader.followed(item)?;
        for (method, operation) in item.as_object().into_iter().flatten() {
            match operation.get("operationId").and_then(Value::as_str) {
                Some(name) if name == id => {
                    let (path, method) = (path.clone(), method.clone());
                    return Ok(Found { path, method, operation, item });
                }
                Some(name) => known.push(name.to_owned()),
                None => {}
            }
        }
    }
    known.truncate(20);
    let detail = format!("the document has no operation `{id}`; there are {}", known.join(", "));
    Err(Error::invalid("operationId", detail))
}

fn description(found: &Found<'_>) -> String {
    let text = |name: &str| found.operation.get(name).and_then(Value::as_str).map(str::trim).filter(|t| !t.is_empty());
    let said = [text("summary"), text("description")].into_iter().flatten().collect::<Vec<_>>().join("\n\n");
    if said.is_empty() {
        format!("{} {}", found.method.to_ascii_uppercase(), found.path)
    } else {
        said.chars().take(DESCRIPTION).collect()
    }
}

/// Where the operation's path begins.
fn base(found: &Found<'_>, document: &Value, server: Option<&str>) -> Result<String> {
    let first = |of: &Value| of.get("servers")?.get(0).cloned();
    let url = match server {
        Some(server) => server.to_owned(),
        None => {
            let server = first(found.operation).or_else(|| first(found.item)).or_else(|| first(document));
            let server = server.unwrap_or_default();
            let mut url = server.get("url").and_then(Value::as_str).unwrap_or_default().to_owned();
            for (name, variable) in server.get("variables").and_then(Value::as_object).into_iter().flatten() {
                let usual = variable.get("default").and_then(Value::as_str).unwrap_or_default();
                // It is put in as often as the URL names it.
                if url.len() > URL || usual.len() > URL {
                    let detail = format!("the document's server has a URL or default longer than {URL} bytes");
                    return Err(Error::invalid("server", detail));
                }
                url = url.replace(&format!("{{{name}}}"), usual);
            }
            url
        }
    };
    if url.starts_with("https://") || url.starts_with("http://") {
        return Ok(url.trim_end_matches('/').to_owned());
    }
    Err(Error::invalid("server", "the document names no server by an absolute URL: give it as `server`"))
}

/// Those of the operation, and those of its path that it does not say anew.
fn parameters<'d>(reader: &mut Reader<'d>, found: &Found<'d>) -> Result<Vec<&'d Value>> {
    let mut all: Vec<&Value> = Vec::new();
    for place in [found.operation, found.item] {
        for parameter in place.get("parameters").and_then(Value::as_array).into_iter().flatten() {
            let parameter = reader.followed(parameter)?;
            let is_same =
                |other: &&Value| other.get("name") == parameter.get("name") && other.get("in") == parameter.get("in");
            if !all.iter().any(is_same) {
                all.push(parameter);
            }
        }
    }
    Ok(all)
}

/// The arguments as they come together.
#[derive(Default)]
struct Arguments {
    properties: Map<String, Value>,
    required: Vec<Value>,
    /// What the body says of further members.
    others: Option<Value>,
}

impl Arguments {
    fn add(&mut self, reader: &mut Reader<'_>, derived: &mut Derived, parameter: &Value) -> Result<()> {
        let text = |name: &str| parameter.get(name).and_then(Value::as_str).unwrap_or_default();
        let (name, place) = (text("name").to_owned(), text("in"));
        let required = place == "path" || parameter.get("required") == Some(&Value::Bool(true));
        let style = parameter.get("style").and_then(Value::as_str);
        let exploded = parameter.get("explode") != Some(&Value::Bool(false));
        let is_sent = match place {
            "path" => style.is_none_or(|style| style == "simple"),
            "query" => style.is_none_or(|style| style == "form") && exploded,
            // What these say is said otherwise (OpenAPI, Parameter Object).
            "header" if ["accept", "content-type", "authorization"].contains(&&*name.to_ascii_lowercase()) => {
                return Ok(());
            }
            "header" => is_place(&name),
            _ => false,
        };
        let schema = parameter.get("schema").filter(|_| is_sent);
        let Some(schema) = schema else {
            let detail = format!("the parameter `{name}` (in {place}) is needed, and sent in a way that no tool sends");
            return if required { Err(invalid(detail)) } else { Ok(()) };
        };
        let mut schema = reader.plain(schema)?;
        if let (Some(said), Some(fields)) = (parameter.get("description"), schema.as_object_mut()) {
            fields.entry("description").or_insert_with(|| said.clone());
        }
        if self.properties.insert(name.clone(), schema).is_some() {
            return Err(invalid(format!("two parameters are called `{name}`")));
        }
        match place {
            "query" => derived.query.push(name.clone()),
            "header" => drop(derived.headers.insert(name.clone(), format!("{{{name}}}"))),
            _ => {}
        }
        self.required.extend(required.then_some(Value::String(name)));
        Ok(())
    }

    fn add_body(
        &mut self,
        reader: &mut Reader<'_>,
        derived: &mut Derived,
        found: &Found<'_>,
        method: HttpMethod,
    ) -> Result<()> {
        let Some(body) = found.operation.get("requestBody") else { return Ok(()) };
        let body = reader.followed(body)?;
        let required = body.get("required") == Some(&Value::Bool(true));
        let Some(schema) = json_of(body).filter(|_| method.has_body()) else {
            let detail = "the operation needs a body that is no JSON, or that its method does not have";
            return if required { Err(invalid(detail)) } else { Ok(()) };
        };
        let schema = reader.plain(&schema)?;
        match schema.as_object().filter(|schema| self.takes_in(schema, required)) {
            Some(schema) => self.take_in(schema),
            None if self.properties.contains_key(BODY) => {
                return Err(invalid("a parameter is called `body`, and the body cannot be told from it"));
            }
            None => {
                self.properties.insert(BODY.to_owned(), schema);
                self.required.extend(required.then(|| json!(BODY)));
                derived.body = Some(BODY.to_owned());
            }
        }
        Ok(())
    }

    /// Whether the body's members can stand among the other arguments.
    fn takes_in(&self, schema: &Map<String, Value>, required: bool) -> bool {
        let members = schema.get("properties").and_then(Value::as_object);
        schema.get("type").is_some_and(|kind| kind == "object")
            && schema.keys().all(|keyword| FLAT.contains(&keyword.as_str()))
            && members.is_some_and(|members| members.keys().all(|name| !self.properties.contains_key(name)))
            // Left out as a whole, it would not need what it requires.
            && (required || !schema.contains_key("required"))
    }

    fn take_in(&mut self, schema: &Map<String, Value>) {
        let members = schema.get("properties").and_then(Value::as_object).into_iter().flatten();
        let is_read = |member: &Value| member.get("readOnly") == Some(&Value::Bool(true));
        let (read, sent): (Vec<_>, Vec<_>) = members.partition(|(_, member)| is_read(member));
        let needed = schema.get("required").and_then(Value::as_array).into_iter().flatten();
        self.required
            .extend(needed.filter(|name| !read.iter().any(|(other, _)| name.as_str() == Some(other))).cloned());
        self.properties.extend(sent.into_iter().map(|(name, member)| (name.clone(), member.clone())));
        self.others = schema.get("additionalProperties").filter(|others| **others != Value::Bool(false)).cloned();
    }

    fn schema(self) -> Value {
        let others = self.others.unwrap_or(Value::Bool(false));
        let mut schema = json!({ "type": "object", "properties": self.properties, "additionalProperties": others });
        if let Some(fields) = schema.as_object_mut().filter(|_| !self.required.is_empty()) {
            fields.insert("required".to_owned(), Value::Array(self.required));
        }
        schema
    }
}

/// The schema of what is JSON, in a body.
fn json_of(body: &Value) -> Option<Value> {
    let content = body.get("content")?.as_object()?;
    let is_json = |kind: &str| {
        let kind = kind.split(';').next().unwrap_or_default().trim();
        kind == "application/json" || kind.ends_with("+json")
    };
    let media = content.iter().find(|(kind, _)| is_json(kind)).map(|(_, media)| media)?;
    Some(media.get("schema").cloned().unwrap_or_else(|| json!({})))
}

/// The schema of what a success gives.
fn output(reader: &mut Reader<'_>, found: &Found<'_>) -> Result<Option<Value>> {
    let all = found.operation.get("responses").and_then(Value::as_object);
    let success = all.into_iter().flatten().find(|(status, _)| status.starts_with('2')).map(|(_, response)| response);
    let Some(success) = success else { return Ok(None) };
    let Some(schema) = json_of(reader.followed(success)?) else { return Ok(None) };
    reader.plain(&schema).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The detail of the refusal of an operation whose body has that schema.
    fn refused(schema: Value, schemas: Value) -> String {
        let body = json!({ "content": { "application/json": { "schema": schema } } });
        let document = json!({
            "openapi": "3.1.0",
            "servers": [{ "url": "https://a.example" }],
            "paths": { "/x": { "post": { "operationId": "x", "requestBody": body } } },
            "components": { "schemas": schemas },
        });
        derive(&document, "x", None).unwrap_err().detail().to_owned()
    }

    #[test]
    fn what_a_document_comes_to_is_bounded() {
        // Each refers to the next twice, and says nothing else.
        let next = |n: usize| json!({ "$ref": format!("#/components/schemas/s{}", n + 1) });
        let twice = (0..40).map(|n| (format!("s{n}"), json!({ "properties": { "a": next(n), "b": next(n) } })));
        let detail = refused(next(0), Value::Object(twice.collect()));
        assert!(detail.contains("deeper than") || detail.contains("more than"), "{detail}");
        let wide = (0..8).map(|n| {
            let members = (0..20).map(|m| (m.to_string(), next(n)));
            (format!("s{n}"), json!({ "properties": Value::Object(members.collect()) }))
        });
        let schemas: Map<_, _> = wide.chain([("s8".to_owned(), json!({ "type": "string" }))]).collect();
        assert!(refused(next(0), Value::Object(schemas)).contains("more than 4000 values"));
        let long = json!({ "long": { "description": "x".repeat(100_000) } });
        let often = |with: Value| {
            let members = (0..1000).map(|n| (n.to_string(), with.clone()));
            json!({ "properties": Value::Object(members.collect()) })
        };
        let refers = json!({ "$ref": "#/components/schemas/long" });
        assert!(refused(often(refers.clone()), long).contains("more than 262144 bytes of text"));
        let name = "x".repeat(100_000);
        for schema in [json!({ "properties": { (&name): true } }), json!({ "default": { (&name): 1 } })] {
            assert!(refused(often(refers.clone()), json!({ "long": schema })).contains("bytes of text"));
        }
        let itself = json!({ "$ref": format!("#/components/schemas/{name}") });
        let circle = json!({ "long": itself, (&name): { "items": itself } });
        assert!(refused(often(refers), circle).contains("bytes of text"));
        let deep = (0..50).fold(json!({}), |inner, _| json!({ "items": inner }));
        assert!(refused(deep, json!({})).contains("deeper than 32 levels"));
        let circle = json!({ "a": { "$ref": "#/components/schemas/a" } });
        assert!(
            derive(&json!({ "openapi": "3.1.0", "paths": { "/x": { "$ref": "#/paths/~1x" } } }), "x", None).is_err()
        );
        assert!(refused(json!({ "$ref": "#/components/schemas/b" }), circle).contains("is not in the document"));
        assert!(refused(json!({ "$ref": "https://x.example/" }), json!({})).contains("elsewhere"));
    }

    #[test]
    fn a_servers_url_is_bounded_with_what_is_put_into_it() {
        let mut document = json!({
            "openapi": "3.1.0",
            "servers": [{ "url": "https://a.example/{a}{a}", "variables": { "a": { "default": "v2" } } }],
            "paths": { "/x": { "get": { "operationId": "x" } } },
        });
        assert_eq!(derive(&document, "x", None).unwrap().url.as_deref(), Some("https://a.example/v2v2/x"));
        document["servers"][0]["variables"]["a"]["default"] = json!("v".repeat(3000));
        assert!(derive(&document, "x", None).unwrap_err().detail().contains("2048 bytes"));
    }
}
