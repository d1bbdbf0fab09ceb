//! Every operation, walked through from the description: nobody gets in without a token or without the permission.

use std::collections::HashMap;

use fermata::auth::Permission;
use reqwest::Method;
use serde_json::{Value, json};

use crate::world::{Answer, Client, Operation, World};

/// Operations that anybody may call. This list may only shrink.
const PUBLIC: [&str; 4] = ["definitionSchema", "health", "measurements", "ready"];

/// A run that waits, its approval and its definition: one thing of each kind that paths name.
struct Things {
    by_kind: HashMap<&'static str, String>,
}

impl Things {
    async fn make(world: &World) -> Self {
        let definition = "name: held\nsteps: [{ id: a, uses: debug.echo, approval: {} }]";
        world.operator().put_yaml("held", definition).await.expect(201);
        let run = world.operator().execute(json!({ "workflow": "held" })).await;
        let approval = run.hold().await;
        let mut by_kind = HashMap::from([("jobs", run.id.clone()), ("tasks", run.id.clone()), ("runs", run.id)]);
        by_kind.insert("approvals", approval);
        by_kind.insert("tools", "debug.echo".to_owned());
        by_kind.extend(
            ["definitions", "configs", "templates", "keys", "agents", "http", "mcp", "integrations"]
                .map(|kind| (kind, "held".to_owned())),
        );
        Self { by_kind }
    }

    /// The thing an operation's path can name.
    fn of(&self, operation: &Operation) -> String {
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
        let path = operation.path_with(|_| things.of(operation));
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

#[test]
fn the_exceptions_are_operations() {
    for id in PUBLIC {
        assert!(Operation::all().iter().any(|operation| operation.id == id), "there is no operation {id}");
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
