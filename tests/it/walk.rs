//! Every operation, walked through from the description: nobody gets in without a token, without the
//! permission, or from another tenant.

use std::collections::HashMap;

use fermata::{
    auth::Permission,
    kernel::{ApprovalId, RunId},
};
use reqwest::Method;
use serde_json::{Value, json};

use crate::world::{Answer, Client, Operation, World};

/// Operations that anybody may call. This list may only shrink.
const PUBLIC: [&str; 4] = ["definitionSchema", "health", "measurements", "ready"];

/// Operations that name a thing which another tenant may have too. This list may only shrink.
const OWN_NAMES: [&str; 1] = ["putDefinition"];

/// A run that waits, its approval and its definition: one thing of each kind that paths name.
struct Things {
    by_kind: HashMap<&'static str, (String, String)>,
}

impl Things {
    /// Each with an id of its kind that nobody has.
    async fn make(world: &World) -> Self {
        let definition = "name: held\nsteps: [{ id: a, uses: debug.echo, approval: {} }]";
        world.operator().put_yaml("held", definition).await.expect(201);
        let run = world.operator().execute(json!({ "workflow": "held" })).await;
        let approval = run.hold().await;
        let by_kind = HashMap::from([
            ("runs", (run.id, RunId::new(world.now()).to_string())),
            ("approvals", (approval, ApprovalId::new(world.now()).to_string())),
            ("definitions", ("held".to_owned(), "unheard".to_owned())),
        ]);
        Self { by_kind }
    }

    /// The real and the unknown thing an operation's path can name.
    fn of(&self, operation: &Operation) -> (String, String) {
        let kind = operation.names().unwrap_or("runs");
        self.by_kind.get(kind).unwrap_or_else(|| panic!("give the walk a thing for {}", operation.path)).clone()
    }
}

async fn call(client: &Client, operation: &Operation, path: &str, body: Option<&Value>) -> Answer {
    let method: Method = operation.method.parse().unwrap();
    let request = client
        .request(method, path)
        .header("x-request-id", "walk")
        .header("accept", "application/json, text/event-stream");
    match body {
        Some(body) => request.json(body).send().await,
        None => request.send().await,
    }
}

fn bare_and_versioned(path: &str) -> [String; 2] {
    [path.to_owned(), format!("/v1{path}")]
}

fn secured() -> impl Iterator<Item = &'static Operation> {
    Operation::all().iter().filter(|operation| !PUBLIC.contains(&operation.id))
}

#[tokio::test]
async fn every_operation_wants_a_token_and_the_permission() {
    let world = World::new().await;
    let things = Things::make(&world).await;
    for operation in secured() {
        let path = operation.path_with(|_| things.of(operation).0);
        let [permission] = operation.permissions[..] else { panic!("{} needs no one permission", operation.id) };
        let others = Permission::ALL.iter().map(|other| other.name()).filter(|other| *other != permission);
        let without = world.service(&others.collect::<Vec<_>>().join(" "));
        for path in bare_and_versioned(&path) {
            let answer = call(&world.nobody(), operation, &path, operation.body().as_ref()).await;
            answer.problem(401, "unauthenticated");
            assert_eq!(answer.header("www-authenticate"), Some(r#"Bearer realm="fermata""#), "{}", answer.to);

            let answer = call(&without, operation, &path, operation.body().as_ref()).await;
            let problem = answer.problem(403, "forbidden");
            assert_eq!(problem["permission"], permission, "{}", answer.to);
        }
    }
}

#[tokio::test]
async fn what_is_another_tenants_is_the_same_as_what_is_not_there() {
    let world = World::new().await;
    let things = Things::make(&world).await;
    let everything = Permission::ALL.iter().map(|permission| permission.name()).collect::<Vec<_>>().join(" ");
    let grant = world.grant(world.abroad(), "svc_abroad", vec![fermata::auth::Role::Service], Some(&everything));
    let stranger = world.bearer(&grant);
    for operation in secured().filter(|operation| operation.path.contains('{') && !OWN_NAMES.contains(&operation.id)) {
        let (real, unknown) = things.of(operation);
        let foreign = operation.path_with(|_| real.clone());
        let nowhere = operation.path_with(|_| unknown.clone());
        for (foreign, nowhere) in bare_and_versioned(&foreign).iter().zip(bare_and_versioned(&nowhere)) {
            let first = call(&stranger, operation, foreign, operation.body().as_ref()).await;
            first.problem(404, "not-found");
            assert_same(&first, &call(&stranger, operation, &nowhere, operation.body().as_ref()).await);
        }
    }
    // Ids in bodies and queries too.
    let (run, unknown) = things.by_kind["runs"].clone();
    for (method, path, body) in [
        ("POST", "/agent/execute", Some(json!({ "runId": run }))),
        ("POST", "/agent/approve", Some(json!({ "runId": run, "stepId": "a", "approval": { "status": "approved" } }))),
        ("GET", &format!("/approvals?runId={run}"), None),
    ] {
        let operation =
            Operation { id: "", method: method.to_owned(), path: "", permissions: vec![], described: &Value::Null };
        let first = call(&stranger, &operation, path, body.as_ref()).await;
        assert!(first.status == 404 || first.json()["items"] == json!([]), "{}: {}", first.to, first.text());
        let swap = |text: &str| text.replace(&run, &unknown);
        let body = body.map(|body| serde_json::from_str(&swap(&body.to_string())).unwrap());
        assert_same(&first, &call(&stranger, &operation, &swap(path), body.as_ref()).await);
    }
    assert_eq!(world.operator().run(&run).get().await["status"], "awaiting_approval");
}

/// To the byte, but for the time of day and the place in the trace.
fn assert_same(one: &Answer, other: &Answer) {
    assert_eq!((one.status, one.text()), (other.status, other.text()), "{} and {}", one.to, other.to);
    let told = |answer: &Answer| {
        let mut headers = answer.headers.clone();
        headers.remove("date");
        headers.remove("traceparent");
        headers
    };
    assert_eq!(told(one), told(other), "{} and {}", one.to, other.to);
}

#[test]
fn the_exceptions_are_operations() {
    for id in PUBLIC.iter().chain(&OWN_NAMES) {
        assert!(Operation::all().iter().any(|operation| operation.id == *id), "there is no operation {id}");
    }
    let open: Vec<_> =
        Operation::all().iter().filter(|operation| operation.permissions.is_empty()).map(|o| o.id).collect();
    assert_eq!(
        {
            let mut open = open;
            open.sort_unstable();
            open
        },
        PUBLIC
    );
}
