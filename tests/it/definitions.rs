//! Definitions over the wire: versions, refusals that point to the place, and runs by name.

use serde_json::json;

use crate::world::World;

const ONE: &str = "name: greet\nsteps:\n  - id: hello\n    uses: debug.echo\n    with: { value: \"Hello {{ input.who }}\" }\noutput: \"{{ steps.hello.output }}\"\n";

#[tokio::test]
async fn a_put_makes_the_next_version_and_versions_stay() {
    let world = World::new().await;
    let client = world.operator();
    let first = client.put_yaml("greet", ONE).await;
    assert_eq!(first.expect(201)["version"], 1);
    assert_eq!(first.header("location"), Some("/workflow/definitions/greet?version=1"));
    assert_eq!(client.put_yaml("greet", ONE).await.expect(200)["version"], 1);
    let two = ONE.replace("Hello", "Good day");
    assert_eq!(client.put_yaml("greet", &two).await.expect(201)["version"], 2);

    for (name, said) in [("greet", "Good day Ada"), ("greet@1", "Hello Ada"), ("greet@2", "Good day Ada")] {
        let run = client.execute(json!({ "workflow": name, "input": { "who": "Ada" } })).await;
        let done = run.completes().await;
        assert_eq!(done["output"], said);
        assert_eq!(done["workflow"], if name == "greet" { "greet@2" } else { name });
    }
    client.post("/agent/execute", &json!({ "workflow": "greet@3" })).await.problem(404, "not-found");
    client.get("/workflow/definitions/greet?version=3").await.problem(404, "not-found");
    let versions = client.get("/workflow/definitions/greet/versions").await.expect(200);
    let numbers: Vec<_> = versions["items"].as_array().unwrap().iter().map(|item| item["version"].clone()).collect();
    assert_eq!(numbers, [2, 1]);
}

#[tokio::test]
async fn every_mistake_is_named_with_its_place() {
    let world = World::new().await;
    let client = world.operator();
    for (text, path, line) in [
        ("name: bad\nsteps:\n  - id: a\n    uses: no.tool\n", "steps[0].uses", 4),
        ("name: bad\nsteps:\n  - id: a\n    uses: debug.echo\n    needs: [b]\n", "steps[0].needs[0]", 5),
        (
            "name: bad\nsteps:\n  - id: a\n    uses: debug.echo\n    with: { value: \"{{ 1 + }}\" }\n",
            "steps[0].with.value",
            5,
        ),
        (
            "name: bad\nsteps:\n  - id: a\n    uses: debug.echo\n    with: { value: \"{{ steps.b.output }}\" }\n",
            "steps[0].with.value",
            5,
        ),
        ("name: bad\nsteps:\n  - id: a\n    uses: debug.echo\n    surprise: 1\n", "steps[0].surprise", 5),
        ("name: bad\nsteps:\n  - id: a\n    uses: debug.echo\n  - id: a\n    uses: debug.echo\n", "steps[1].id", 5),
    ] {
        let problem = client.put_yaml("bad", text).await.problem(422, "invalid-definition");
        let errors = problem["errors"].as_array().unwrap();
        let found =
            errors.iter().any(|error| error["path"] == path && error["line"] == line && error["column"].is_u64());
        assert!(found, "{text}\n{problem:#}");
    }
    let cycle =
        "name: bad\nsteps:\n  - { id: a, uses: debug.echo, needs: [b] }\n  - { id: b, uses: debug.echo, needs: [a] }\n";
    let problem = client.put_yaml("bad", cycle).await.problem(422, "invalid-definition");
    assert!(problem.to_string().contains("a") && !problem["errors"].as_array().unwrap().is_empty(), "{problem}");
    client.put_yaml("other", ONE).await.problem(422, "invalid-definition");
    client.get("/workflow/definitions/bad").await.problem(404, "not-found");
}

#[tokio::test]
async fn text_that_is_no_definition_is_refused() {
    let world = World::new().await;
    let client = world.operator();
    let deep = format!("name: bad\nsteps: {}{}\n", "[".repeat(100_000), "]".repeat(100_000));
    // Each line ten of the line before: small to send, endless to read.
    let mut bomb = "name: bad\na0: &a0 [x]\n".to_owned();
    for level in 1..12 {
        let before = format!("*a{}", level - 1);
        bomb.push_str(&format!("a{level}: &a{level} [{}]\n", vec![before; 10].join(", ")));
    }
    bomb.push_str("steps: *a11\n");
    let large = format!("name: bad\n# {}\n", "x".repeat(300 * 1024));
    for text in [
        "",
        "- a",
        "name: bad",
        "name: [",
        "\t",
        "name: bad\nsteps: []",
        "name: bad\r\nsteps: [{id: \"a\\r\\nb\", uses: debug.echo}]",
        "name: bad\nname: bad\nsteps: []",
        &deep,
        &bomb,
        &large,
    ] {
        let answer = client.put_yaml("bad", text).await;
        assert!((400..500).contains(&answer.status), "{:.80}: {}", text, answer.text());
        assert_eq!(answer.header("content-type"), Some("application/problem+json"));
    }
    let nul = "name: bad\nsteps: [{ id: a, uses: debug.echo, with: { value: \"\\0\" } }]";
    let answer = client.put_yaml("bad", nul).await;
    assert!((400..500).contains(&answer.status), "{}", answer.text());
    for name in ["Bad", "a b", "a/b", "-", &"x".repeat(200)] {
        let path = name.replace(' ', "%20").replace('/', "%2F");
        let answer = client.put_yaml(&path, &ONE.replace("greet", name)).await;
        assert!([400, 404, 422].contains(&answer.status), "{name}: {}", answer.text());
    }
}

#[tokio::test]
async fn an_input_must_fit_its_schema() {
    let world = World::new().await;
    let client = world.operator();
    let text = "name: typed\ninput: { type: object, required: [account], properties: { account: { type: string } } }\nsteps: [{ id: a, uses: debug.echo }]\n";
    client.put_yaml("typed", text).await.expect(201);
    for input in [json!({}), json!({ "account": 7 }), json!([]), json!(null)] {
        let answer = client.post("/agent/execute", &json!({ "workflow": "typed", "input": input })).await;
        let problem = answer.problem(422, "invalid-input");
        assert!(problem["field"].as_str().is_some_and(|field| field.starts_with("input")), "{problem}");
    }
    client.execute(json!({ "workflow": "typed", "input": { "account": "acme" } })).await.completes().await;
}
