//! Bad input, over every operation of the description: always a 4xx with a problem that says where, never a
//! 5xx, and the server goes on.

use jsonschema::JsonType;
use reqwest::Method;
use serde_json::{Map, Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::world::{Answer, Client, Operation, World, faults, within};

/// Ids and names that no path takes, as a URL writes them.
const WRONG_SEGMENTS: [&str; 12] = [
    "wf_01kahx3c5qf8k9z4v7t2m6w8np",
    "run_",
    "run_01KAHX3C5QF8K9Z4V7T2M6W8NP",
    "run_8zzzzzzzzzzzzzzzzzzzzzzzzz",
    "01kahx3c5qf8k9z4v7t2m6w8np",
    "019a4f2e-0000-7000-8000-000000000000",
    "a%00b",
    "%FF%FE",
    "a%0D%0AX-Injected:%201",
    "..%2F..%2Fetc",
    "%F0%9F%98%80_01kahx3c5qf8k9z4v7t2m6w8np",
    "' or 1=1 --",
];

/// Values that most fields cannot have.
fn odd_values() -> Vec<Value> {
    vec![
        Value::Null,
        json!(true),
        json!(-1),
        json!(1e300),
        json!(18_446_744_073_709_551_615_u64),
        json!(""),
        json!("\r\nX-Injected: 1"),
        json!("x".repeat(100_000)),
        json!([]),
        json!([[{}]]),
        json!({}),
        json!({ "unheard": { "of": 1 } }),
    ]
}

/// An operation and somebody who may call it on things that are there.
struct Target {
    operation: &'static Operation,
    client: Client,
    path: String,
}

impl Target {
    async fn all(world: &World) -> Vec<Self> {
        let text = "name: held\nsteps: [{ id: a, uses: debug.echo, approval: { selfApproval: true } }]";
        world.owner().put_yaml("held", text).await.expect(201);
        let run = world.owner().execute(json!({ "workflow": "held" })).await;
        let approval = run.hold().await;
        let thing = |operation: &Operation| match operation.names() {
            Some("approvals") => approval.clone(),
            Some("definitions") => "held".to_owned(),
            _ => run.id.clone(),
        };
        let target = |operation: &'static Operation| Self {
            path: operation.path_with(|_| thing(operation)),
            client: world.owner(),
            operation,
        };
        Operation::all().iter().map(target).collect()
    }

    async fn all_with_json(world: &World) -> Vec<Self> {
        let mut all = Self::all(world).await;
        all.retain(|target| target.operation.body().is_some());
        all
    }

    async fn send(&self, kind: Option<&str>, body: impl Into<bytes::Bytes>) -> Answer {
        let method: Method = self.operation.method.parse().unwrap();
        let request = self.client.request(method, &self.path).body(body);
        match kind {
            Some(kind) => request.header("content-type", kind).send().await,
            None => request.send().await,
        }
    }

    async fn json(&self, body: impl Into<bytes::Bytes>) -> Answer {
        self.send(Some("application/json"), body).await
    }
}

/// Refused as the caller's mistake, with a problem.
#[track_caller]
fn refused(answer: &Answer, statuses: &[u16]) -> Value {
    let problem = answer.json();
    assert!(statuses.contains(&answer.status), "{}: {}", answer.to, answer.text());
    assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{}", answer.to);
    assert_eq!(problem["status"], answer.status, "{}", answer.to);
    assert!(problem["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{}: {problem}", answer.to);
    problem
}

async fn still_answers(world: &World) {
    world.nobody().get("/health/ready").await.expect(200);
}

#[tokio::test]
async fn bodies_that_cannot_be_read() {
    let world = World::new().await;
    for target in Target::all_with_json(&world).await {
        for body in ["{", "{]", "{\"a\":1,}", "nul", "{\"a\":1} {", "{'a':1}", "\u{feff}{}", "{\"a\":\"\\ud800\"}"] {
            let problem = refused(&target.json(body).await, &[400, 422]);
            let placed = ["line", "field", "errors"].iter().any(|member| !problem[member].is_null());
            assert!(placed, "{} {body}: {problem}", target.operation.id);
        }
        for body in ["[]", "\"text\"", "7", "null"] {
            refused(&target.json(body).await, &[400, 422]);
        }
        refused(&target.json(b"{\"goal\":\"\xff\xfe\"}".as_slice()).await, &[400, 422]);
        for open in ["[", "{\"a\":"] {
            refused(&target.json(open.repeat(100_000)).await, &[400, 422]);
            let body = format!("{{\"input\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
            refused(&target.json(body).await, &[400, 422]);
        }
        let huge = format!("{{\"goal\":\"{}\"}}", "x".repeat(2 << 20));
        refused(&target.json(huge).await, &[413]);
    }
    still_answers(&world).await;
}

#[tokio::test]
async fn bodies_of_another_kind() {
    let world = World::new().await;
    for target in Target::all_with_json(&world).await {
        for kind in [
            Some("text/plain"),
            Some("application/x-www-form-urlencoded"),
            Some("application/json-seq"),
            Some(";"),
            None,
        ] {
            refused(&target.send(kind, "{\"a\":1}").await, &[415]);
        }
    }
    still_answers(&world).await;
}

#[tokio::test]
async fn fields_that_nobody_knows_and_text_the_database_cannot_hold() {
    let world = World::new().await;
    for target in Target::all_with_json(&world).await {
        let mut body = target.operation.body().unwrap();
        body["unheardOf"] = json!(1);
        let problem = refused(&target.json(body.to_string()).await, &[422]);
        assert!(problem.to_string().contains("unheardOf"), "{}: {problem}", target.operation.id);

        let mut body = target.operation.body().unwrap();
        body["unheardOf"] = json!("nul \0 in it");
        let problem = refused(&target.json(body.to_string()).await, &[400, 422]);
        let placed = problem["field"] == "unheardOf" || problem["errors"][0]["column"].is_u64();
        assert!(placed, "{}: {problem}", target.operation.id);

        let twice = "{\"a\":1,\"a\":2}";
        refused(&target.json(twice).await, &[400, 422]);
    }
    still_answers(&world).await;
}

/// Every place in `body` where an object has a field: its path and its value's schema, as far as known.
fn places(body: &Value, at: &[String]) -> Vec<Vec<String>> {
    let Value::Object(members) = body else { return vec![] };
    let inner = members.iter().flat_map(|(name, value)| {
        let here = [at, std::slice::from_ref(name)].concat();
        let below = places(value, &here);
        std::iter::once(here).chain(below)
    });
    inner.collect()
}

/// What an object at that place has in it, without its names.
fn listed(body: &Value, path: &[String]) -> Option<Value> {
    let there = path.iter().try_fold(body, |value, name| value.get(name))?;
    there.as_object().map(|members| members.values().cloned().collect())
}

fn replaced(body: &Value, path: &[String], value: &Value) -> Value {
    let mut changed = body.clone();
    let mut place = &mut changed;
    for name in path {
        place = &mut place[name.as_str()];
    }
    *place = value.clone();
    changed
}

#[tokio::test]
async fn values_of_the_wrong_type_are_named() {
    let world = World::new().await;
    for target in Target::all_with_json(&world).await {
        let operation = target.operation;
        let content = &operation.described["requestBody"]["content"]["application/json"];
        let body = with_all_fields(operation, &content["schema"]);
        for path in places(&body, &[]) {
            for value in odd_values().into_iter().chain(listed(&body, &path)) {
                let changed = replaced(&body, &path, &value);
                let wrong = !faults(&content["schema"], &changed).is_empty();
                let answer = target.json(changed.to_string()).await;
                assert!(answer.status < 500, "{} {changed:.300}: {}", answer.to, answer.text());
                // A digest that is not the held call's is told before anything about its arguments.
                let stale = answer.status == 409 && operation.id == "decideApproval" && path == ["arguments"];
                if wrong && !stale && !lenient(&path, &value) {
                    let problem = refused(&answer, &[400, 413, 422]);
                    let named = problem.to_string().contains(path.last().unwrap().as_str());
                    assert!(
                        named,
                        "{} with {path:?} = {:.80}: {:.600}",
                        operation.id,
                        value.to_string(),
                        problem.to_string()
                    );
                }
            }
        }
    }
    still_answers(&world).await;
}

/// The example with every top-level field that the schema knows; a run is begun by what it is to be, as its
/// id goes with nothing else.
fn with_all_fields(operation: &Operation, schema: &Value) -> Value {
    let mut body = operation.body().unwrap();
    if operation.id == "executeRun" {
        body = json!({ "workflow": "held", "input": { "a": { "b": 1 } } });
    }
    let schema = match schema["$ref"].as_str() {
        Some(reference) => crate::world::document().pointer(&reference[1..]).unwrap(),
        None => schema,
    };
    let known = schema["properties"].as_object().cloned().unwrap_or_else(Map::new);
    for name in known.keys() {
        if body.get(name).is_none() {
            body[name] = Value::Null;
        }
    }
    body
}

/// Where more is taken than is described, on purpose: a plan may be the list of steps alone.
fn lenient(path: &[String], value: &Value) -> bool {
    let kind = JsonType::from(value);
    path == ["plan"] && kind == JsonType::Array
}

#[tokio::test]
async fn other_arguments_than_the_tool_takes() {
    let world = World::new().await;
    let run = world
        .operator()
        .start(json!([{ "id": "a", "uses": "debug.sleep", "with": { "ms": 1 }, "approval": {} }]))
        .await;
    let approval = run.hold().await;
    for arguments in
        [json!(true), json!([1]), json!("ms"), json!({ "ms": -1 }), json!({ "ms": 1, "more": 2 }), json!({})]
    {
        let body = json!({ "status": "approved", "arguments": arguments });
        let problem = world.approver().decide(&approval, &body).await.problem(422, "invalid-input");
        assert!(problem["field"].as_str().unwrap().starts_with("arguments"), "{arguments}: {problem}");
    }
    let body = json!({ "status": "denied", "arguments": { "ms": 2 } });
    assert_eq!(world.approver().decide(&approval, &body).await.problem(422, "invalid-input")["field"], "arguments");
    let body = json!({ "status": "approved", "arguments": { "ms": 2 } });
    world.approver().decide(&approval, &body).await.expect(200);
    run.completes().await;
    assert_eq!(run.step("a").await["arguments"], json!({ "ms": 2 }));
}

#[tokio::test]
async fn wrong_ids_and_names_in_paths() {
    let world = World::new().await;
    let mut targets = Target::all(&world).await;
    targets.retain(|target| target.operation.path.contains('{'));
    // What is put under a name that will do would be there for the others.
    targets.sort_by_key(|target| target.operation.method == "PUT");
    for target in &targets {
        let long = "x".repeat(5_000);
        for segment in WRONG_SEGMENTS.iter().map(|s| s.replace(' ', "%20")).chain([long]) {
            let path = target.operation.path_with(|_| segment.clone());
            let method: Method = target.operation.method.parse().unwrap();
            let mut request = target.client.request(method, &path);
            if let Some(body) = target.operation.body() {
                request = request.json(&body);
            }
            let answer = request.send().await;
            assert!(answer.header("x-injected").is_none());
            // It is a name that is free; a definition's has to be the one in its text, and a server of tools has to be there.
            if !["putDefinition", "putMcpServer"].contains(&target.operation.id)
                && target.operation.method == "PUT"
                && fermata::kernel::is_name(&segment)
            {
                answer.expect(201);
                continue;
            }
            let problem = refused(&answer, &[400, 404, 422]);
            if answer.status == 400 && !segment.contains("%00") {
                let name = target.operation.parameters("path")[0];
                assert_eq!(problem["field"], name, "{}: {problem}", answer.to);
            }
        }
    }
    still_answers(&world).await;
}

#[tokio::test]
async fn wrong_parameters() {
    let world = World::new().await;
    for target in Target::all(&world).await.iter().filter(|target| target.operation.method == "GET") {
        if target.operation.permissions.is_empty() {
            continue;
        }
        let known = target.operation.parameters("query");
        // A page where there is one: a stream would not take a page's parameters.
        let get = async |query: &str| {
            let request = target.client.request(Method::GET, &format!("{}?{query}", target.path));
            let paged = known.contains(&"limit") && !query.contains("lastEventId") && !query.contains("ticket");
            request.header("accept", if paged { "application/json" } else { "*/*" }).send().await
        };
        if !known.is_empty() {
            let problem = refused(&get("unheardOf=1").await, &[400]);
            assert_eq!(problem["field"], "unheardOf", "{}", target.operation.id);
        }
        for name in &known {
            let wrong: &[&str] = match *name {
                "limit" => &["0", "201", "-1", "65536", "1e2", "ten", "", "%F0%9F%98%80"],
                "cursor" => &["x", "p", "pzz", "evt_x", "evt_-1", "evt_9999999999999999999999999", "%0D%0A", "p%27"],
                "lastEventId" => {
                    &["x", "evt_", "evt_-1", "evt_1.5", "evt_99999999", "evt_99999999999999999999999", "7"]
                }
                "version" => &["0x1", "-", "one", "99999999999"],
                "status" | "from" | "runId" | "types" => &["unheard", "%0D%0A", "run_x", "%27"],
                _ => &[],
            };
            for value in wrong {
                let answer = get(&format!("{name}={value}")).await;
                let problem = refused(&answer, &[400, 409, 422]);
                let named = problem["field"] == *name
                    || problem["detail"].as_str().unwrap().contains(name)
                    || *name == "cursor"
                    || *name == "lastEventId";
                assert!(named, "{}: {problem}", answer.to);
            }
            let twice = get(&format!("{name}=1&{name}=1")).await;
            refused(&twice, &[400, 422]);
        }
    }
    still_answers(&world).await;
}

#[tokio::test]
async fn a_cursor_that_lies_shows_nothing_foreign() {
    let world = World::new().await;
    let stranger = world.stranger().start(json!([{ "id": "a", "uses": "debug.echo" }])).await;
    stranger.completes().await;
    let mine = world.operator().start(json!([{ "id": "a", "uses": "debug.echo" }])).await;
    mine.completes().await;
    for cursor in ["pffffffffffffffffffffffffffffffff", "p00000000000000000000000000000000"] {
        for path in ["/workflow/runs", "/approvals", "/workflow/definitions"] {
            let page = world.operator().get(&format!("{path}?cursor={cursor}")).await.expect(200);
            // What the server brings along is nobody's.
            let items = page["items"].as_array().unwrap().iter().filter(|item| item["createdBy"] != "system");
            for item in items {
                assert_eq!(item["runId"], mine.id, "{path}");
            }
        }
    }
    // A tenant's place in its stream is of no use to another.
    let mut follow = world.stranger().follow_tenant("?from=start").await;
    let place = follow.next().await.unwrap().id;
    let answer = world.operator().get(&format!("/workflow/events?lastEventId={place}")).await;
    answer.problem(400, "malformed-cursor");
}

#[tokio::test]
async fn wrong_headers() {
    let world = World::new().await;
    let client = world.operator();
    let body = json!({ "plan": [{ "id": "a", "uses": "debug.echo" }] });
    for key in ["", " ", "with space", &"x".repeat(256)] {
        let answer = client.request(Method::POST, "/agent/plan").json(&body).key(key).send().await;
        assert_eq!(answer.problem(400, "malformed-request")["field"], "Idempotency-Key");
    }
    let twice = client.request(Method::POST, "/agent/plan").json(&body).key("a").key("b").send().await;
    assert_eq!(twice.problem(400, "malformed-request")["field"], "Idempotency-Key");
    let run = client.start(json!([{ "id": "a", "uses": "debug.echo", "approval": {} }])).await;
    for last in ["evt_x", "evt_1, evt_2", "\u{e9}vt_1", "evt_18446744073709551616"] {
        let request = client.request(Method::GET, &run.path("/events")).header("last-event-id", last);
        refused(&request.send().await, &[400, 409]);
    }
    for token in ["", "x", "a.b.c", "..", &"x".repeat(9_000)] {
        let answer = client.with_token(token).get("/workflow/runs").await;
        answer.problem(401, "unauthenticated");
    }
    for header in ["Basic dXNlcjpwYXNz", "Bearer", "Bearer  ", "bearer\tx", "Token x"] {
        let answer = world.nobody().request(Method::GET, "/workflow/runs").header("authorization", header).send().await;
        answer.problem(401, "unauthenticated");
    }
    // What is no request id is not echoed.
    let answer = client.request(Method::GET, "/workflow/runs").header("x-request-id", "<script>").send().await;
    assert!(answer.header("x-request-id").unwrap().starts_with("req_"));
    still_answers(&world).await;
}

#[tokio::test]
async fn wrong_methods_and_paths() {
    let world = World::new().await;
    for target in Target::all(&world).await {
        let taken: Vec<_> =
            Operation::all().iter().filter(|o| o.path == target.operation.path).map(|o| o.method.as_str()).collect();
        for method in ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"] {
            if taken.contains(&method) {
                continue;
            }
            for prefix in ["", "/v1"] {
                let request = target.client.request(method.parse().unwrap(), &format!("{prefix}{}", target.path));
                let answer = request.send().await;
                answer.problem(405, "method-not-allowed");
                let allowed = answer.header("allow").unwrap_or_default();
                assert!(taken.iter().all(|method| allowed.contains(method)), "{}: {allowed}", answer.to);
            }
        }
    }
    for path in [
        "/",
        "/v1",
        "/v1/",
        "/v2/health",
        "/v1/v1/health",
        "/workflow",
        "/workflow/runs/",
        "//health",
        "/health/",
        "/%00",
        "/agent/plan/x",
        "/docs/problems/unheard-of",
        "/docs/problems/..%2fREADME",
    ] {
        let answer = world.owner().get(path).await;
        refused(&answer, &[400, 404]);
    }
    still_answers(&world).await;
}

/// What a client library would never send, byte for byte.
async fn raw(world: &World, bytes: &[u8]) -> String {
    let address = world.url().strip_prefix("http://").unwrap();
    let mut socket = TcpStream::connect(address).await.unwrap();
    socket.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    // The server may close before it has read everything.
    let _ = within("an answer to raw bytes", socket.read_to_end(&mut answer)).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn bytes_that_are_no_request() {
    let world = World::new().await;
    let token = world.operator().token().to_owned();
    for request in [
        "GET /health HTTP/1.1\r\nHost: x\r\nX-A: \0\r\nConnection: close\r\n\r\n".to_owned(),
        "GET /health\0 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".to_owned(),
        "GET /health HTTP/1.1\r\nHost: x\r\nBad Name: 1\r\nConnection: close\r\n\r\n".to_owned(),
        format!("GET /health HTTP/1.1\r\nHost: x\r\nX-A: {}\r\nConnection: close\r\n\r\n", "x".repeat(1 << 20)),
        format!("GET /{} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "x".repeat(1 << 20)),
        format!("GET /health HTTP/1.1\r\n{}Connection: close\r\n\r\n", "X-A: 1\r\n".repeat(10_000)),
        format!(
            "POST /agent/plan HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\nContent-Length: -1\r\n\r\n{{}}"
        ),
        format!(
            "POST /agent/plan HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{{}}\r\n0\r\n\r\n"
        ),
        "\r\n\r\n\r\n\0\0\0".to_owned(),
    ] {
        let answer = raw(&world, request.as_bytes()).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{:.60} → {answer:.200}", request);
    }
    still_answers(&world).await;
}
