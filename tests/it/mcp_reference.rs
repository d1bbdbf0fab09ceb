//! The reference server of the protocol's own people, as a process and over HTTP. It comes from npm: where that or node
//! is not to be had, these tests say so and do nothing.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use fermata::config::McpCommand;
use reqwest::Method;
use secrecy::SecretString;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    sync::OnceCell,
};

use crate::world::{Run, World, within};

const PACKAGE: &str = "@modelcontextprotocol/server-everything";
const VERSION: &str = "2026.8.31";

/// How long npm may take.
const PATIENCE: Duration = Duration::from_secs(240);

/// The server's script, fetched once; or why there is none.
async fn script() -> Result<&'static Path, &'static str> {
    static SCRIPT: OnceCell<Result<PathBuf, String>> = OnceCell::const_new();
    SCRIPT.get_or_init(fetched).await.as_deref().map_err(String::as_str)
}

async fn fetched() -> Result<PathBuf, String> {
    let node = Command::new("node").arg("--version").stdout(Stdio::null()).status().await;
    node.map_err(|error| format!("there is no node: {error}"))?;
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("server-everything-{VERSION}"));
    let script = place.join("node_modules").join(PACKAGE).join("dist/index.js");
    if script.exists() {
        return Ok(script);
    }
    let package = format!("{PACKAGE}@{VERSION}");
    let mut npm = Command::new("npm");
    npm.args(["install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix"]).arg(&place).arg(package);
    let installed = tokio::time::timeout(PATIENCE, npm.kill_on_drop(true).output()).await;
    let output =
        installed.map_err(|_| "npm takes too long".to_owned())?.map_err(|e| format!("there is no npm: {e}"))?;
    match output.status.success() {
        true => Ok(script),
        false => Err(format!("npm fails: {}", String::from_utf8_lossy(&output.stderr))),
    }
}

/// Says so where everybody sees it: what a test that passes prints is kept back, and what it writes is not.
fn skipped(why: &str) {
    use std::io::Write;
    let line = format!("\nSKIPPED, since {PACKAGE} is not to be had here: {}\n", why.trim());
    std::io::stderr().write_all(line.as_bytes()).unwrap();
}

macro_rules! script_or_skip {
    () => {
        match script().await {
            Ok(script) => script,
            Err(why) => return skipped(why),
        }
    };
}

async fn run(world: &World, tool: &str, with: Value) -> Run {
    let step = json!({ "id": "call", "uses": format!("mcp:everything/{tool}"), "with": with });
    world.operator().start(json!([step])).await
}

/// What the server can be asked, whatever the way to it.
async fn drive(world: &World, settings: Value) {
    let mut body = json!({ "effects": { "*": "pure", "trigger-elicitation-request": "once" } });
    body.as_object_mut().unwrap().extend(settings.as_object().unwrap().clone());
    let put = world.operator().request(Method::PUT, "/tools/mcp/everything").json(&body).send().await;
    let view = put.expect(201);
    assert_eq!(view["body"]["protocol"], "2025-11-25", "it speaks the older revision");
    let sum = run(world, "get-sum", json!({ "a": 2, "b": 40 })).await;
    sum.completes().await;
    let text = sum.step("call").await["output"]["text"].clone();
    assert!(text.as_str().unwrap().contains("42"), "{text}");
    let image = run(world, "get-tiny-image", json!({})).await;
    image.completes().await;
    let output = image.step("call").await["output"].clone();
    assert_eq!((&output["parts"][0]["type"], &output["parts"][0]["mimeType"]), (&json!("image"), &json!("image/png")));
    let weather = run(world, "get-structured-content", json!({ "location": "Chicago" })).await;
    weather.completes().await;
    assert!(weather.step("call").await["output"]["structured"]["temperature"].is_number());
    let long = run(world, "trigger-long-running-operation", json!({ "duration": 1, "steps": 4 })).await;
    assert!(long.wait_for("tool.progress").await.data["payload"]["fraction"].is_number());
    long.completes().await;

    let asks = run(world, "trigger-elicitation-request", json!({})).await;
    let asked = asks.wait_for("awaiting_approval").await.data["payload"].clone();
    assert_eq!(asked["question"], "input", "{asked:#}");
    assert!(asked["form"]["schema"]["properties"]["name"].is_object(), "{asked:#}");
    let fill = json!({ "status": "approved", "arguments": { "name": "Ada Lovelace", "check": true } });
    world.approver().decide(asked["approvalId"].as_str().unwrap(), &fill).await.expect(200);
    asks.completes().await;
    let text = asks.step("call").await["output"]["text"].clone();
    assert!(text.as_str().unwrap().contains("Ada Lovelace"), "{text}");
}

/// The server over HTTP; it ends with the test.
async fn serve(script: &Path) -> (Child, String) {
    let port = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
    let mut node = Command::new("node");
    node.arg(script).arg("streamableHttp").env("PORT", port.to_string()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut server = node.spawn().unwrap();
    let mut lines = BufReader::new(server.stderr.take().unwrap()).lines();
    let ready = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            if line.contains("listening") {
                return;
            }
        }
        panic!("the reference server does not listen");
    };
    within("the reference server listens", ready).await;
    // What it says later is read, so that it is never kept waiting.
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    (server, format!("http://127.0.0.1:{port}/mcp"))
}

#[tokio::test]
async fn the_reference_server_is_driven_over_http() {
    let script = script_or_skip!();
    let world = World::new().await;
    let (_server, url) = serve(script).await;
    drive(&world, json!({ "url": url })).await;
}

#[tokio::test]
async fn the_reference_server_is_driven_as_a_process_that_the_operator_lists() {
    let script = script_or_skip!();
    let world = World::with(|settings| {
        let command = McpCommand {
            command: "node".into(),
            args: vec![script.display().to_string(), "stdio".to_owned()],
            env: BTreeMap::from([("ONLY_THIS".to_owned(), SecretString::from("given"))]),
        };
        settings.tools.mcp.insert("everything".to_owned(), command);
    })
    .await;
    drive(&world, json!({ "command": "everything" })).await;
    let run = run(&world, "get-env", json!({})).await;
    run.completes().await;
    let text = run.step("call").await["output"]["text"].as_str().unwrap().to_owned();
    let environment: BTreeMap<String, Value> = serde_json::from_str(&text).unwrap();
    let names: Vec<_> = environment.keys().map(String::as_str).collect();
    assert_eq!(names, ["ONLY_THIS", "PATH"], "nothing of the server's own environment is handed on");
    world.stop().await;
}
