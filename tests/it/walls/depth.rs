//! A hundred thousand levels where a few are meant: in definitions, in templates, and in what a service answers.
//! (In bodies: `input`.)

use serde_json::json;

use crate::world::{Reply, Upstream, World};

const DEPTH: usize = 100_000;

/// A run that says this.
fn echo(value: &str) -> serde_json::Value {
    json!({ "plan": [{ "id": "a", "uses": "debug.echo", "with": { "value": value } }] })
}

#[tokio::test]
async fn a_definition_or_template_a_hundred_thousand_levels_deep_is_refused() {
    let world = World::new().await;
    let client = world.operator();
    for (open, close) in [("[", "]"), ("{a: ", "}"), ("[{a: ", "}]"), ("[", ""), ("? ", "")] {
        let text = format!("name: deep\nsteps: {}{}", open.repeat(DEPTH / 2), close.repeat(DEPTH / 2));
        let answer = client.put_yaml("deep", &text).await;
        assert!([400, 413, 422].contains(&answer.status), "{open}: {}", answer.text());
    }
    // What the engine reads by recursion, from levels enough to break any stack down to what is allowed.
    for (open, close) in [
        ("(", ")"),
        ("[", "]"),
        ("{'a': ", "}"),
        ("a[", "]"),
        ("f(", ")"),
        ("not ", ""),
        ("-", ""),
        ("a.", ""),
        ("1 if 1 else ", ""),
        ("1 and ", ""),
        ("1 in ", ""),
        ("1 == ", ""),
        ("'' is string or ", ""),
    ] {
        for depth in [DEPTH, 10_000, 1_000, 500, 250, 120, 60, 30] {
            let value = format!("{{{{ {}1{} }}}}", open.repeat(depth), close.repeat(depth));
            let answer = client.post("/agent/execute", &echo(&value)).await;
            assert!([202, 400, 413, 422].contains(&answer.status), "{open} × {depth}: {:.300}", answer.text());
            assert!(answer.status != 202 || depth < DEPTH / 10, "{open} × {depth}");
        }
    }
    for (open, close) in [("{% if 1 %}", "{% endif %}"), ("{% for a in [1] %}", "{% endfor %}")] {
        for depth in [10_000, 300, 60] {
            let value = format!("{}{}", open.repeat(depth), close.repeat(depth));
            let answer = client.post("/agent/execute", &echo(&value)).await;
            assert!([202, 400, 413, 422].contains(&answer.status), "{open} × {depth}: {:.300}", answer.text());
        }
    }
    for chain in ["{% elif 1 %}", "{{ 1 }}"] {
        for length in [10_000, 400, 300] {
            let value = format!("{{% if 0 %}}{}{{% endif %}}", chain.repeat(length));
            let answer = client.post("/agent/execute", &echo(&value)).await;
            assert!([202, 400, 413, 422].contains(&answer.status), "{chain} × {length}: {:.300}", answer.text());
        }
    }
    world.nobody().get("/health/ready").await.expect(200);
}

#[tokio::test]
async fn an_answer_a_hundred_thousand_levels_deep_harms_nobody() {
    let (world, upstream) = (World::new().await, Upstream::start().await);
    for (path, open, close) in [("/lists", "[", "]"), ("/objects", "{\"a\":", "}")] {
        let deep = format!("{}1{}", open.repeat(DEPTH), close.repeat(DEPTH));
        upstream.reply(path, Reply::Raw(200, vec![("content-type", "application/json".to_owned())], deep.into()));
        let get = json!({ "method": "GET", "url": upstream.url(path) });
        let run = world.operator().start(json!([{ "id": "a", "uses": "http.request", "with": get }])).await;
        run.completes().await;
        // What is too deep to be read as JSON is a text.
        assert!(run.step("a").await["output"]["body"].is_string(), "{path}");
    }
    world.operator().start(json!([{ "id": "a", "uses": "debug.echo" }])).await.completes().await;
}
