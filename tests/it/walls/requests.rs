//! Requests made from the API's description: such as it allows, almost such, and such as it does not.

use proptest::{
    collection::vec,
    option::weighted,
    prelude::{Just, Strategy, any, prop_oneof},
    sample::select,
    strategy::{BoxedStrategy, Union},
};
use reqwest::Method;
use serde_json::{Value, json};

use crate::world::{Answer, Client, Operation, document};

/// Words that mean something somewhere, and some that mean trouble.
const WORDS: [&str; 44] = [
    "a",
    "b",
    "crm-sync",
    "crm-sync@1",
    "crm-sync@0",
    "@",
    "debug.echo",
    "debug.fail",
    "debug.emit",
    "data.transform",
    "time.wait",
    "workflow.run",
    "http.request",
    "http://127.0.0.1:9/",
    "http://[::1",
    "approved",
    "denied",
    "ms",
    "value",
    "for",
    "{{ input }}",
    "{{ input.a.b }}",
    "{{ steps.a.output }}",
    "{{ 1 / 0 }}",
    "{{",
    "{% for x in range(9) %}",
    "true",
    "1s",
    "500ms",
    "-1s",
    "99999999999999999h",
    "2026-11-21T09:00:00Z",
    "9999999-01-01T00:00:00Z",
    "evt_1",
    "evt_9223372036854775808",
    "p00000000000000000000000000000000",
    "sha256:",
    "",
    " ",
    "nul \0 in it",
    "\r\nX-A: 1",
    "💥",
    "\u{feff}\u{202e}",
    "' or 1=1 --",
];

/// The tools there are, so that some plans are carried out.
const TOOLS: [&str; 6] = ["debug.echo", "debug.echo", "debug.fail", "data.transform", "time.wait", "workflow.run"];

/// Values that few places take.
fn odd() -> BoxedStrategy<Value> {
    let odd = [
        json!(null),
        json!(-1),
        json!(1e300),
        json!(u64::MAX),
        json!(""),
        json!([]),
        json!({}),
        json!([[{}]]),
        json!(true),
        json!("x".repeat(5_000)),
        json!({ "unheard": { "of": 1 } }),
        json!("\0"),
    ];
    prop_oneof![select(odd.to_vec()), word().prop_map(Value::String)].boxed()
}

fn word() -> BoxedStrategy<String> {
    prop_oneof![4 => select(&WORDS[..]).prop_map(str::to_owned), 1 => any::<String>()].boxed()
}

/// Any JSON, not very deep.
fn anything() -> BoxedStrategy<Value> {
    let leaf = prop_oneof![odd(), any::<i64>().prop_map(Value::from), any::<f64>().prop_map(Value::from)];
    leaf.prop_recursive(4, 16, 4, |inner| {
        let members = vec((word(), inner.clone()), 0..4).prop_map(|members| members.into_iter().collect());
        prop_oneof![vec(inner, 0..4).prop_map(Value::Array), members.prop_map(Value::Object)]
    })
    .boxed()
}

/// What such a schema describes.
fn fitting(schema: &'static Value) -> BoxedStrategy<Value> {
    if let Some(reference) = schema["$ref"].as_str() {
        return fitting(document().pointer(&reference[1..]).unwrap());
    }
    if let Some(choices) = schema["oneOf"].as_array() {
        return Union::new(choices.iter().map(fitting)).boxed();
    }
    if let Some(values) = schema["enum"].as_array() {
        return select(values.clone()).boxed();
    }
    match &schema["type"] {
        Value::String(kind) => of_type(kind, schema),
        Value::Array(kinds) => Union::new(kinds.iter().map(|kind| of_type(kind.as_str().unwrap(), schema))).boxed(),
        _ => anything(),
    }
}

fn of_type(kind: &str, schema: &'static Value) -> BoxedStrategy<Value> {
    match kind {
        "null" => Just(Value::Null).boxed(),
        "boolean" => any::<bool>().prop_map(Value::Bool).boxed(),
        "integer" => {
            let (least, most) = (schema["minimum"].as_i64(), schema["maximum"].as_i64());
            (least.unwrap_or(-2)..=most.unwrap_or(i32::MAX.into())).prop_map(Value::from).boxed()
        }
        "number" => (schema["minimum"].as_f64().unwrap_or(-1e9)..1e9).prop_map(Value::from).boxed(),
        "array" if schema["items"].is_object() => vec(fitting(&schema["items"]), 0..4).prop_map(Value::Array).boxed(),
        "array" => vec(anything(), 0..4).prop_map(Value::Array).boxed(),
        "object" => object(schema),
        _ => text(schema).prop_map(Value::String).boxed(),
    }
}

fn object(schema: &'static Value) -> BoxedStrategy<Value> {
    let Some(known) = schema["properties"].as_object() else {
        return vec((word(), anything()), 0..3).prop_map(|members| members.into_iter().collect()).boxed();
    };
    let required = schema["required"].as_array().into_iter().flatten().collect::<Vec<_>>();
    let members: Vec<_> = known
        .iter()
        .map(|(name, schema)| {
            let fits = if name == "uses" { select(&TOOLS[..]).prop_map(Value::from).boxed() } else { fitting(schema) };
            let fits = fits.prop_map(move |value| (name.clone(), value));
            if required.contains(&&json!(name)) { fits.prop_map(Some).boxed() } else { weighted(0.12, fits).boxed() }
        })
        .collect();
    members.prop_map(|members| Value::Object(members.into_iter().flatten().collect())).boxed()
}

fn text(schema: &'static Value) -> BoxedStrategy<String> {
    if let Some(pattern) = schema["pattern"].as_str() {
        // Without its anchors, which a generator has no use for.
        let pattern = pattern.trim_start_matches('^').trim_end_matches('$');
        return proptest::string::string_regex(pattern).unwrap().boxed();
    }
    if schema["format"] == "date-time" {
        return select(vec!["2026-11-21T09:00:00Z", "1970-01-01T00:00:00.000+14:00"]).prop_map(str::to_owned).boxed();
    }
    let most = schema["maxLength"].as_u64().map_or(usize::MAX, |most| usize::try_from(most).unwrap());
    word().prop_map(move |word| word.chars().take(most).collect()).boxed()
}

/// The same with one thing wrong somewhere: a value, a member too many or too few.
fn almost(value: BoxedStrategy<Value>) -> BoxedStrategy<Value> {
    (value, any::<usize>(), odd(), 0..4_u8)
        .prop_map(|(mut value, place, odd, how)| {
            let places = places(&value, String::new());
            let place = value.pointer_mut(&places[place % places.len()]).unwrap();
            match (place, how) {
                (Value::Object(members), 0) => drop(members.insert("unheardOf".to_owned(), odd)),
                (Value::Object(members), 1) if !members.is_empty() => {
                    let name = members.keys().next().unwrap().clone();
                    members.remove(&name);
                }
                (place, _) => *place = odd,
            }
            value
        })
        .boxed()
}

/// Pointers to the value and to everything in it.
fn places(value: &Value, here: String) -> Vec<String> {
    let below = match value {
        Value::Object(members) => members
            .iter()
            .flat_map(|(name, value)| places(value, format!("{here}/{}", name.replace('~', "~0").replace('/', "~1"))))
            .collect(),
        Value::Array(items) => {
            items.iter().enumerate().flat_map(|(at, value)| places(value, format!("{here}/{at}"))).collect()
        }
        _ => vec![],
    };
    std::iter::once(here).chain(below).collect()
}

/// A request to be sent.
#[derive(Clone, Debug)]
pub struct Shot {
    pub operation: &'static Operation,
    /// With its query.
    path: String,
    headers: Vec<(&'static str, String)>,
    body: Body,
    /// Without a token it is refused whatever it says.
    nobody: bool,
}

/// What a request carries.
#[derive(Clone, Debug)]
enum Body {
    Nothing,
    Json(Value),
    Raw(&'static str, Vec<u8>),
}

impl Shot {
    /// Requests to an operation; where it names a thing, to one of these more often than not.
    pub fn strategy(operation: &'static Operation, things: &[String]) -> BoxedStrategy<Self> {
        let things = things.to_vec();
        let name = prop_oneof![6 => select(things), 1 => word(), 1 => "[a-z]{3}_[0-7][0-9a-hjkmnp-tv-z]{25}"];
        let all = operation.described["parameters"].as_array().into_iter().flatten();
        let (in_query, others): (Vec<_>, Vec<_>) = all.partition(|parameter| parameter["in"] == "query");
        let in_header = others.into_iter().filter(|parameter| parameter["in"] == "header");
        let query: Vec<_> = in_query.into_iter().map(|one| weighted(0.2, parameter(one))).collect();
        let stray = weighted(0.02, (Just("unheardOf"), word()));
        let headers: Vec<_> = in_header.map(|one| weighted(0.3, header(one))).collect();
        let accept =
            select(vec!["application/json", "text/event-stream", "*/*", "text/html;q=2", "", "application/json;q=0"]);
        (name, query, stray, headers, weighted(0.4, accept), body(operation), weighted(0.03, Just(())))
            .prop_map(move |(name, query, stray, headers, accept, body, nobody)| {
                let mut name = name;
                // A definition's name stands in the path and in the body.
                if let (Body::Json(Value::Object(members)), "PUT", true) =
                    (&body, &*operation.method, name != "crm-sync")
                {
                    name = members.get("name").and_then(Value::as_str).map_or(name, str::to_owned);
                }
                let query = query.into_iter().chain([stray]).flatten();
                let query: Vec<_> = query.map(|(name, value)| format!("{name}={}", escaped(&value))).collect();
                let mut path = operation.path_with(|_| escaped(&name));
                if !query.is_empty() {
                    path = format!("{path}?{}", query.join("&"));
                }
                let accept = accept.map(|kind| ("accept", kind.to_owned()));
                let headers = headers.into_iter().flatten().chain(accept).collect();
                Self { operation, path, headers, body, nobody: nobody.is_some() }
            })
            .boxed()
    }

    /// Its body, where that is JSON.
    pub fn json(&self) -> Option<&Value> {
        match &self.body {
            Body::Json(value) => Some(value),
            _ => None,
        }
    }

    pub async fn send(&self, caller: &Client, nobody: &Client) -> Answer {
        let method: Method = self.operation.method.parse().unwrap();
        let mut request = if self.nobody { nobody } else { caller }.request(method, &self.path);
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        match &self.body {
            Body::Nothing => request,
            Body::Json(value) => request.json(value),
            Body::Raw(kind, bytes) => request.header("content-type", kind).body(bytes.clone()),
        }
        .opening()
        .await
    }
}

fn parameter(described: &'static Value) -> BoxedStrategy<(&'static str, String)> {
    let name = described["name"].as_str().unwrap();
    let fits = fitting(&described["schema"]);
    prop_oneof![3 => fits, 1 => odd()]
        .prop_map(move |value| (name, value.as_str().map_or_else(|| value.to_string(), str::to_owned)))
        .boxed()
}

/// Such values as a header can carry; and nobody waits for long.
fn header(described: &'static Value) -> BoxedStrategy<(&'static str, String)> {
    let name = described["name"].as_str().unwrap();
    if name == "Prefer" {
        return select(vec!["wait=0", "wait=-1", "wait=61", "respond-async", "wait", "wait=0, wait=0", ";;"])
            .prop_map(move |value| (name, value.to_owned()))
            .boxed();
    }
    parameter(described)
        .prop_map(|(name, value)| (name, value.chars().filter(|c| (' '..='~').contains(c)).take(300).collect()))
        .boxed()
}

fn body(operation: &'static Operation) -> BoxedStrategy<Body> {
    let content = &operation.described["requestBody"]["content"];
    let raw = prop_oneof![
        (select(vec!["application/json", "text/plain", "application/yaml", ";"]), vec(any::<u8>(), 0..40)),
        (Just("application/json"), word().prop_map(String::into_bytes)),
    ]
    .prop_map(|(kind, bytes)| Body::Raw(kind, bytes));
    let schema = &content["application/json"]["schema"];
    if schema.is_null() {
        return prop_oneof![8 => Just(Body::Nothing), 1 => raw].boxed();
    }
    let example = Just(operation.body().unwrap()).boxed();
    let json = prop_oneof![
        2 => example.clone(),
        2 => almost(example),
        4 => fitting(schema),
        4 => almost(fitting(schema)),
        1 => anything(),
    ]
    .prop_map(Body::Json);
    if content["application/yaml"].is_null() {
        return prop_oneof![18 => json, 1 => raw, 1 => Just(Body::Nothing)].boxed();
    }
    // JSON is YAML.
    let yaml = almost(fitting(schema)).prop_map(|value| Body::Raw("application/yaml", value.to_string().into_bytes()));
    prop_oneof![12 => json, 6 => yaml, 1 => raw, 1 => Just(Body::Nothing)].boxed()
}

/// As it is written into a URL.
pub fn escaped(text: &str) -> String {
    let byte =
        |byte: u8| if byte.is_ascii_alphanumeric() { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    text.bytes().map(byte).collect()
}
