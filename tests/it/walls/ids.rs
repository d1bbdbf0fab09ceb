//! Every place of every operation that takes text, given every kind of id of another tenant: the answer is the one
//! to an id that nobody has.

use std::sync::atomic::{AtomicU32, Ordering};

use fermata::{
    auth::{Permission, Role},
    kernel::{ApprovalId, RunId, TenantId},
};
use reqwest::Method;
use serde_json::{Value, json};

use super::requests::escaped;
use crate::world::{Answer, Client, Operation, Redactor, World, document};

/// An id of another tenant, and one of its kind that nobody has.
struct Kind {
    foreign: String,
    unknown: String,
}

/// One thing of each kind that has an id, and what the callers' tenant has been asked with.
async fn kinds(world: &World) -> Vec<Kind> {
    let (operator, now) = (world.operator(), world.now());
    operator
        .put_yaml("quiet-harbour", "name: quiet-harbour\nsteps: [{ id: a, uses: debug.echo, approval: {} }]")
        .await
        .expect(201);
    for (path, body) in models() {
        let put = world.admin().request(Method::PUT, &format!("{path}/quiet-harbour")).json(&body);
        put.send().await.expect(201);
    }
    let begin = operator.request(Method::POST, "/agent/execute").json(&json!({ "workflow": "quiet-harbour" }));
    let run = begin.key("a-key").send().await.expect(202)["runId"].as_str().unwrap().to_owned();
    let approval = operator.run(&run).hold().await;
    let cursor = operator.follow_tenant("?from=start").await.next().await.unwrap().id;
    let ticket = operator.request(Method::POST, "/workflow/events/ticket").send().await.expect(201);
    let ticket = ticket["url"].as_str().unwrap().rsplit_once('=').unwrap().1.to_owned();
    let uuid = |run: &str| run.parse::<RunId>().unwrap().uuid().simple().to_string();
    let (other_run, other_approval) = (RunId::new(now).to_string(), ApprovalId::new(now).to_string());
    let pairs = [
        (format!("p{}", uuid(&run)), format!("p{}", uuid(&other_run))),
        (run, other_run),
        (approval, other_approval),
        (world.home().to_string(), TenantId::new(now).to_string()),
        ("quiet-harbour".to_owned(), "empty-harbour".to_owned()),
        ("quiet-harbour@1".to_owned(), "empty-harbour@1".to_owned()),
        ("user_operator".to_owned(), "user_operatix".to_owned()),
        ("a-key".to_owned(), "b-key".to_owned()),
        (cursor.clone(), other_text(&cursor)),
        (ticket.clone(), other_text(&ticket)),
    ];
    pairs.into_iter().map(|(foreign, unknown)| Kind { foreign, unknown }).collect()
}

/// What is put by name about models, and a body that will do.
fn models() -> [(&'static str, Value); 4] {
    [
        ("/llm/configs", json!({ "provider": "openai", "model": "m" })),
        ("/llm/templates", json!({ "content": "words" })),
        ("/llm/keys", json!({ "secret": "sk-1" })),
        ("/agents", json!({ "instructions": "Help." })),
    ]
}

/// The same with another letter in the middle.
fn other_text(text: &str) -> String {
    let mut letters: Vec<char> = text.chars().collect();
    let middle = letters.len() / 2;
    letters[middle] = if letters[middle] == '0' { '1' } else { '0' };
    letters.into_iter().collect()
}

/// Where a request can carry an id.
#[derive(Clone, Debug)]
enum Place {
    Path,
    Query(&'static str),
    Header(&'static str),
    /// A member of the body, beside those of the example or alone.
    Body(Vec<String>, bool),
}

impl Place {
    fn all_of(operation: &Operation) -> Vec<Self> {
        let path = operation.path.contains('{').then_some(Self::Path);
        let mut places: Vec<_> = path.into_iter().collect();
        places.extend(operation.parameters("query").into_iter().map(Self::Query));
        places.extend(operation.parameters("header").into_iter().map(Self::Header));
        let schema = &operation.described["requestBody"]["content"]["application/json"]["schema"];
        for member in members(schema, 0) {
            places.extend([Self::Body(member.clone(), true), Self::Body(member, false)]);
        }
        places
    }
}

/// The members of such an object, and of those in it; none can lie deeper than this.
fn members(schema: &Value, depth: usize) -> Vec<Vec<String>> {
    let (Some(known), true) = (properties(schema), depth < 4) else { return vec![] };
    let below = |(name, schema): (&String, &Value)| {
        let mut inner = members(schema, depth + 1);
        inner.iter_mut().for_each(|path| path.insert(0, name.clone()));
        inner.push(vec![name.clone()]);
        inner
    };
    known.as_object().into_iter().flatten().flat_map(below).collect()
}

/// The properties of an object's schema, through what it refers to.
fn properties(schema: &Value) -> Option<&Value> {
    let refers = schema["$ref"].as_str().and_then(|reference| document().pointer(&reference[1..]));
    let choices = schema["oneOf"].as_array().into_iter().flatten();
    schema.get("properties").or_else(|| refers.into_iter().chain(choices).find_map(properties))
}

/// Somebody of another tenant who may do everything there.
struct Stranger {
    client: Client,
    /// A run and its approval, to be looked at.
    seen: (String, String),
    /// How many names of their own were given.
    names: AtomicU32,
}

impl Stranger {
    async fn of(world: &World) -> Self {
        let everything = Permission::ALL.iter().map(|permission| permission.name()).collect::<Vec<_>>().join(" ");
        let grant = world.grant(world.abroad(), "svc_abroad", vec![Role::Service], Some(&everything));
        let client = world.bearer(&grant);
        client.put_yaml("mine", "name: mine\nsteps: [{ id: a, uses: debug.echo }]").await.expect(201);
        for (path, body) in models() {
            client.request(Method::PUT, &format!("{path}/mine")).json(&body).send().await.expect(201);
        }
        Self { seen: Self::held(&client).await, client, names: AtomicU32::new(0) }
    }

    async fn held(client: &Client) -> (String, String) {
        let plan = json!([{ "id": "a", "uses": "debug.echo", "approval": { "selfApproval": true } }]);
        let run = client.start(plan).await;
        let approval = run.hold().await;
        (run.id, approval)
    }

    /// A thing of their own of the kind that the operation is about; where it acts, one that nobody has touched.
    async fn own(&self, operation: &Operation) -> String {
        let kind = operation.names().unwrap_or("runs");
        let acts = operation.method != "GET" && (operation.path.contains('{') || operation.id == "approveStep");
        let (run, approval) = match kind {
            "definitions" => return "mine".to_owned(),
            // A version or a deletion is to be the first of its name.
            "configs" | "templates" | "keys" | "agents" if acts => {
                let name = format!("mine-{:05}", self.names.fetch_add(1, Ordering::Relaxed));
                let put =
                    self.client.request(Method::PUT, &operation.path_with(|_| name.clone()).replace("/preview", ""));
                let body = models().into_iter().find(|(path, _)| operation.path.starts_with(path)).unwrap().1;
                if operation.method != "PUT" {
                    put.json(&body).send().await.expect(201);
                }
                return name;
            }
            "configs" | "templates" | "keys" | "agents" => return "mine".to_owned(),
            _ if acts => Self::held(&self.client).await,
            _ => self.seen.clone(),
        };
        if kind == "approvals" { approval } else { run }
    }

    /// A request that would do, but for the text that is put in one place.
    async fn ask(&self, prefix: &str, operation: &Operation, accept: &str, place: &Place, text: &str) -> Answer {
        let own = self.own(operation).await;
        let mut path = operation.path_with(|_| if matches!(place, Place::Path) { escaped(text) } else { own.clone() });
        let mut body = operation.body();
        if let Some(body) = body.as_mut().and_then(Value::as_object_mut) {
            body.entry("runId").and_modify(|run| *run = json!(own));
            // The example's is of another call.
            body.remove("digest");
        }
        match place {
            Place::Query(name) => path = format!("{path}?{name}={}", escaped(text)),
            Place::Body(_, false) => body = Some(json!({})),
            _ => {}
        }
        if let (Some(body), Place::Body(member, _)) = (&mut body, place) {
            *member.iter().fold(body, |value, name| {
                if !value.is_object() {
                    *value = json!({});
                }
                &mut value[name.as_str()]
            }) = json!(text);
        }
        let method: Method = operation.method.parse().unwrap();
        let mut request = self.client.request(method, &format!("{prefix}{path}"));
        request = request.header("x-request-id", "walk").header("accept", accept);
        if let Place::Header(name) = place {
            request = request.header(name, text);
        }
        match body {
            Some(body) => request.json(&body).opening().await,
            None => request.opening().await,
        }
    }
}

/// What the operation can answer with, as a caller asks for it.
fn accepts(operation: &Operation) -> Vec<&'static str> {
    let content = operation.described["responses"]["200"]["content"].as_object();
    let names: Vec<_> = content.into_iter().flatten().map(|(name, _)| name.as_str()).collect();
    if names.is_empty() { vec!["*/*"] } else { names }
}

/// Without the numbers of names that were given for the occasion.
fn nameless(text: &str) -> String {
    let mut parts = text.split("mine-");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| text + "mine-" + part.get(5..).unwrap_or_default())
}

/// To the byte, but for the text that was sent, the time of day and the place in the trace. What tells of things
/// of the caller's own has their ids and times.
fn told(answer: &Answer, sent: [&str; 2]) -> (u16, Vec<(String, String)>, String) {
    // What the caller has put under either name is listed for both.
    let swapped = |text: &str| nameless(&sent.iter().fold(text.to_owned(), |text, one| text.replace(one, "[sent]")));
    let headers =
        answer.headers.iter().filter(|(name, _)| !["date", "traceparent", "content-length"].contains(&name.as_str()));
    let mut headers: Vec<_> = headers
        .map(|(name, value)| (name.to_string(), swapped(&Redactor::default().text(value.to_str().unwrap()))))
        .collect();
    headers.sort();
    let body = match answer.status {
        404 => answer.text(),
        _ => Redactor::default().json(&answer.json()).to_string(),
    };
    (answer.status, headers, swapped(&body))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_another_tenants_is_the_same_as_what_is_not_there() {
    let world = World::new().await;
    let kinds = kinds(&world).await;
    let stranger = Stranger::of(&world).await;
    let (mut pairs, mut missing) = (0, 0);
    for operation in Operation::all().iter().filter(|operation| !operation.permissions.is_empty()) {
        for place in Place::all_of(operation) {
            // Under both of its paths where the path is what names the thing.
            let prefixes: &[_] = if matches!(place, Place::Path) { &["", "/v1"] } else { &[""] };
            for (prefix, accept) in
                prefixes.iter().flat_map(|prefix| accepts(operation).into_iter().map(move |a| (prefix, a)))
            {
                for Kind { foreign, unknown } in &kinds {
                    let there = stranger.ask(prefix, operation, accept, &place, foreign).await;
                    let nowhere = stranger.ask(prefix, operation, accept, &place, unknown).await;
                    assert_eq!(
                        told(&there, [foreign, unknown]),
                        told(&nowhere, [foreign, unknown]),
                        "{} with {foreign} in {place:?}",
                        there.to
                    );
                    pairs += 1;
                    missing += usize::from(there.status == 404);
                }
            }
        }
    }
    println!("{pairs} pairs of answers are the same, {missing} of them 404");
    assert!(missing > Operation::all().len());
    // A name that another tenant has is free.
    let put = async |name: &str| {
        let text = format!("name: {name}\nsteps: [{{ id: a, uses: debug.echo }}]");
        let answer = stranger.client.put_yaml(name, &text).await;
        assert_eq!(answer.expect(201)["version"], 1);
        told(&answer, [name, name]).2
    };
    assert_eq!(put("quiet-harbour").await, put("empty-harbour").await);
    // Nothing was done to what they asked for.
    let run = &kinds[1].foreign;
    assert_eq!(world.operator().run(run).event_names().await.last().unwrap(), "awaiting_approval");
    assert_eq!(world.operator().get("/workflow/definitions/quiet-harbour").await.expect(200)["version"], 1);
}
