//! Traces, as a collector gets them.

use bytes::Bytes;
use fermata::{config::Settings, kernel::RunId};
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{AnyValue, KeyValue, any_value},
    trace::v1::Span,
};
use prost::Message;
use reqwest::Method;
use serde_json::{Value, json};

use crate::world::{APIS, KEY, Provider, Reply, Run, Turn, Upstream, World, within};

const COLLECTOR: &str = "/otel/v1/traces";
const GOAL: &str = "Refund the order of Zacharias";

/// A collector, and a world that exports to it.
async fn observed(change: impl FnOnce(&mut Settings)) -> (Upstream, World) {
    let collector = Upstream::start().await;
    collector.reply(COLLECTOR, Reply::Raw(200, vec![], Bytes::new()));
    let endpoint = collector.url("/otel/");
    let world = World::with(|settings| {
        settings.telemetry.endpoint = Some(endpoint);
        settings.llm.retry_initial_delay = 0.0;
        change(settings);
    })
    .await;
    (collector, world)
}

fn bodies(collector: &Upstream) -> Vec<Bytes> {
    collector.requests_to(COLLECTOR).into_iter().map(|arrived| arrived.body).collect()
}

fn exported(collector: &Upstream) -> Vec<ExportTraceServiceRequest> {
    bodies(collector).into_iter().map(|body| ExportTraceServiceRequest::decode(body).unwrap()).collect()
}

fn spans(collector: &Upstream) -> Vec<Span> {
    let resources = exported(collector).into_iter().flat_map(|request| request.resource_spans);
    let mut spans: Vec<_> = resources.flat_map(|one| one.scope_spans).flat_map(|one| one.spans).collect();
    spans.sort_by_key(|span| span.start_time_unix_nano);
    spans
}

fn named<'a>(spans: &'a [Span], name: &str) -> Vec<&'a Span> {
    spans.iter().filter(|span| span.name == name).collect()
}

fn plain(value: &AnyValue) -> Value {
    match value.value.as_ref().unwrap() {
        any_value::Value::StringValue(text) => json!(text),
        any_value::Value::BoolValue(truth) => json!(truth),
        any_value::Value::IntValue(number) => json!(number),
        any_value::Value::DoubleValue(number) => json!(number),
        any_value::Value::ArrayValue(list) => list.values.iter().map(plain).collect(),
        other => panic!("{other:?}"),
    }
}

fn fact(attributes: &[KeyValue], key: &str) -> Value {
    let mut found = attributes.iter().filter(|fact| fact.key == key);
    let value = found.next().map_or(Value::Null, |fact| plain(fact.value.as_ref().unwrap()));
    assert!(found.next().is_none(), "{key} is said twice");
    value
}

fn says(span: &Span, facts: Value) {
    for (key, value) in facts.as_object().unwrap() {
        assert_eq!(fact(&span.attributes, key), *value, "{key} of {}", span.name);
    }
}

fn trace_of(run: &Run) -> String {
    let id: RunId = run.id.parse().unwrap();
    id.uuid().simple().to_string()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// An agent makes one call and answers; what a collector got is there when this comes back.
async fn one_conversation(record_content: bool, api: &str) -> (Upstream, Upstream, Run, String) {
    let (provider, upstream) = (Provider::start().await, Upstream::start().await);
    let (collector, world) = observed(|settings| {
        settings.llm.providers = provider.settings().collect();
        settings.telemetry.record_content = record_content;
        settings.telemetry.service_name = "orders".to_owned();
    })
    .await;
    let config = json!({ "provider": api, "model": "m-1", "temperature": 0.5, "maxTokens": 200 });
    let free = json!([{ "tools": ["*"], "hold": false }]);
    let agent =
        json!({ "instructions": "You are Leporello.", "config": "c", "tools": ["http.request"], "approval": free });
    for (path, body) in [("/llm/configs/c", config), ("/agents/support", agent)] {
        world.admin().request(Method::PUT, path).json(&body).send().await.expect(201);
    }
    let arguments = json!({ "method": "POST", "url": upstream.url("/refund"), "json": { "amount": "seventeen" } });
    provider.script([Turn::call("http_request", arguments), Turn::say("Money is under way.")]);
    let run = world.operator().execute(json!({ "agent": "support", "goal": GOAL })).await;
    run.completes().await;
    let tenant = world.home().to_string();
    world.stop().await;
    (collector, upstream, run, tenant)
}

#[tokio::test]
async fn a_run_of_an_agent_is_a_trace_by_the_conventions() {
    let (collector, upstream, run, tenant) = one_conversation(false, "fake-anthropic").await;
    for request in exported(&collector) {
        let resource = request.resource_spans[0].resource.as_ref().unwrap();
        assert_eq!(fact(&resource.attributes, "service.name"), "orders");
    }
    let spans = spans(&collector);
    let (turns, chats) = (named(&spans, "invoke_agent support"), named(&spans, "chat m-1"));
    let calls = named(&spans, "execute_tool http.request");
    assert_eq!((turns.len(), chats.len(), calls.len()), (2, 2, 1), "{spans:#?}");
    let owner = |step: &str| {
        json!({ "fermata.run.id": run.id, "fermata.step.id": step, "fermata.step.attempt": 1,
            "fermata.tenant.id": tenant })
    };
    for (step, reason, turn, chat) in
        [("turn-1", "tool_call", turns[0], chats[0]), ("turn-2", "stop", turns[1], chats[1])]
    {
        assert_eq!(hex(&turn.trace_id), trace_of(&run));
        assert!(turn.parent_span_id.is_empty() && turn.kind == 1);
        says(turn, owner(step));
        says(
            turn,
            json!({ "gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "support",
            "gen_ai.agent.version": "1", "gen_ai.conversation.id": run.id, "fermata.step.outcome": "completed",
            "gen_ai.provider.name": "anthropic", "gen_ai.request.model": "m-1" }),
        );
        assert_eq!((&chat.trace_id, &chat.parent_span_id), (&turn.trace_id, &turn.span_id));
        assert!(chat.kind == 3 && chat.end_time_unix_nano > chat.start_time_unix_nano);
        says(chat, owner(step));
        says(
            chat,
            json!({ "gen_ai.operation.name": "chat", "gen_ai.provider.name": "anthropic", "gen_ai.conversation.id": run.id,
            "gen_ai.request.model": "m-1", "gen_ai.request.temperature": 0.5, "gen_ai.request.max_tokens": 200,
            "gen_ai.response.finish_reasons": [reason], "server.address": "127.0.0.1",
            "error.type": null }),
        );
        for tokens in ["gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens"] {
            assert!(fact(&chat.attributes, tokens).as_i64().unwrap() > 0);
        }
    }
    let [call] = calls[..] else { panic!("one call") };
    says(call, owner("call-1-1"));
    says(
        call,
        json!({ "gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "http.request",
        "gen_ai.tool.type": "function", "gen_ai.tool.call.id": "call-1-1", "fermata.step.outcome": "completed" }),
    );
    let heard = upstream.requests_to("/refund")[0].header("traceparent").unwrap().to_owned();
    assert_eq!(heard, format!("00-{}-{}-01", trace_of(&run), hex(&call.span_id)));
    for body in bodies(&collector) {
        let text = String::from_utf8_lossy(&body);
        for said in ["Zacharias", "Leporello", "seventeen", "under way", KEY] {
            assert!(!text.contains(said), "{said}");
        }
    }
}

#[tokio::test]
async fn what_is_said_is_recorded_only_on_demand_and_keys_never() {
    for (api, _) in APIS {
        let (collector, ..) = one_conversation(true, api).await;
        let spans = spans(&collector);
        let json = |span: &Span, key: &str| -> Value {
            let text = fact(&span.attributes, key);
            serde_json::from_str(text.as_str().unwrap_or_else(|| panic!("{key} of {}", span.name))).unwrap()
        };
        let [first, second] = named(&spans, "chat m-1")[..] else { panic!("two chats") };
        assert!(json(first, "gen_ai.system_instructions")[0]["content"].as_str().unwrap().contains("Leporello"));
        let asked = json!([{ "role": "user", "parts": [{ "type": "text", "content": GOAL }] }]);
        assert_eq!(json(first, "gen_ai.input.messages"), asked);
        let heard = json(second, "gen_ai.input.messages");
        assert_eq!(heard[1]["parts"].as_array().unwrap().last().unwrap()["name"], "http_request");
        let given = &heard[2]["parts"][0];
        assert_eq!((&given["type"], &given["id"]), (&json!("tool_call_response"), &json!("call-1-1")));
        let said = &json(second, "gen_ai.output.messages")[0];
        assert_eq!(said["finish_reason"], "stop");
        let words = json!({ "type": "text", "content": "Money is under way." });
        assert!(said["parts"].as_array().unwrap().contains(&words), "{said}");
        let [call] = named(&spans, "execute_tool http.request")[..] else { panic!("one call") };
        assert_eq!(json(call, "gen_ai.tool.call.arguments")["json"]["amount"], "seventeen");
        assert_eq!(json(call, "gen_ai.tool.call.result")["status"], 200);
        assert!(bodies(&collector).iter().all(|body| !String::from_utf8_lossy(body).contains(KEY)));
    }
}

#[tokio::test]
async fn what_is_no_chat_has_a_span_of_its_kind() {
    let provider = Provider::start().await;
    let (collector, world) = observed(|settings| settings.llm.providers = provider.settings().collect()).await;
    let config = json!({ "provider": "fake-openai", "model": "m-2" });
    world.admin().request(Method::PUT, "/llm/configs/c").json(&config).send().await.expect(201);
    let recording = json!({ "config": "c", "audio": "c291bmQ=", "mediaType": "audio/mpeg" });
    let steps = [
        ("llm.embed", "embeddings", json!({ "config": "c", "text": "a letter" })),
        ("speech.synthesize", "text_to_speech", json!({ "config": "c", "text": "Well." })),
        ("speech.transcribe", "speech_to_text", recording),
    ];
    for (tool, _, with) in &steps {
        let run = world.operator().start(json!([{ "id": "ask", "uses": tool, "with": with }])).await;
        run.completes().await;
    }
    let plan = json!({ "steps": [{ "id": "a", "uses": "data.transform", "with": { "value": 1 } }] });
    provider.script([Turn::call("plan", plan)]);
    world.operator().execute(json!({ "goal": "Compute" })).await.completes().await;
    world.stop().await;
    let spans = spans(&collector);
    let one = |name: &str| match named(&spans, name)[..] {
        [one] => one,
        _ => panic!("one {name}: {spans:#?}"),
    };
    for (tool, operation, _) in steps {
        let (call, asked) = (one(&format!("execute_tool {tool}")), one(&format!("{operation} m-2")));
        assert_eq!((&asked.parent_span_id, &asked.trace_id), (&call.span_id, &call.trace_id));
        let by = json!({ "gen_ai.operation.name": operation, "gen_ai.provider.name": "fake-openai", "gen_ai.request.model": "m-2" });
        says(asked, by);
    }
    let (plan, chat) = (one("plan"), named(&spans, "chat big")[0]);
    assert_eq!(chat.parent_span_id, plan.span_id);
    says(plan, json!({ "gen_ai.operation.name": "plan", "gen_ai.agent.name": null, "gen_ai.request.model": "big" }));
}

#[tokio::test]
async fn a_request_stands_in_its_callers_trace() {
    let (collector, world) = observed(|_| ()).await;
    let theirs = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let ask = |path: &'static str, parent: &'static str| {
        world.viewer().request(Method::GET, path).header("traceparent", parent).send()
    };
    let answer = ask("/workflow/runs/run_01jd0000000000000000000000?secret=ticket", theirs).await;
    assert_eq!(answer.status, 404);
    let ours = answer.header("traceparent").unwrap().to_owned();
    ask("/workflows", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00").await;
    world.nobody().get("/health/ready").await;
    world.viewer().get("/agents").await;
    let tenant = world.home().to_string();
    world.stop().await;
    let spans = spans(&collector);
    assert_eq!(
        spans.iter().map(|span| span.name.as_str()).collect::<Vec<_>>(),
        ["GET /workflow/runs/{id}", "GET /agents"]
    );
    let [asked, own] = &spans[..] else { panic!("two spans") };
    assert_eq!(hex(&asked.parent_span_id), "b7ad6b7169203331");
    assert_eq!(ours, format!("00-0af7651916cd43dd8448eb211c80319c-{}-01", hex(&asked.span_id)));
    assert!(asked.kind == 2 && own.parent_span_id.is_empty() && own.trace_id != asked.trace_id);
    says(
        asked,
        json!({ "http.request.method": "GET", "http.route": "/workflow/runs/{id}",
        "url.path": "/workflow/runs/run_01jd0000000000000000000000", "http.response.status_code": 404,
        "fermata.tenant.id": tenant, "fermata.request.id": answer.header("x-request-id").unwrap() }),
    );
    assert!(bodies(&collector).iter().all(|body| !String::from_utf8_lossy(body).contains("ticket")));
}

#[tokio::test]
async fn what_fails_says_with_what_code() {
    let provider = Provider::start().await;
    let (collector, world) = observed(|settings| settings.llm.providers = provider.settings().collect()).await;
    let config = json!({ "provider": "fake-openai", "model": "m" });
    world.admin().request(Method::PUT, "/llm/configs/c").json(&config).send().await.expect(201);
    provider.script([Turn::Status(503, vec![]), Turn::Status(401, vec![])]);
    let steps = json!([{ "id": "a", "uses": "llm.generate", "with": { "config": "c", "prompt": "Hello" } }]);
    let failed = world.operator().start(steps).await.wait_end().await;
    assert_eq!(failed["status"], "failed");
    world.stop().await;
    let spans = spans(&collector);
    let [call] = named(&spans, "execute_tool llm.generate")[..] else { panic!("one call") };
    says(call, json!({ "error.type": "model_key_refused", "fermata.step.outcome": "failed" }));
    let chats = named(&spans, "chat m");
    let codes = chats.iter().map(|chat| fact(&chat.attributes, "error.type")).collect::<Vec<_>>();
    assert_eq!(codes, ["model_unavailable", "model_key_refused"]);
    for span in chats.into_iter().chain([call]) {
        assert_eq!(span.status.as_ref().unwrap().code, 2);
    }
}

#[tokio::test]
async fn a_trace_outside_the_share_is_exported_nowhere_and_says_so() {
    let (collector, world) = observed(|settings| settings.telemetry.sample_ratio = 0.0).await;
    let upstream = Upstream::start().await;
    let steps = json!([{ "id": "a", "uses": "http.request", "with": { "url": upstream.url("/a") } }]);
    world.operator().start(steps).await.completes().await;
    world.stop().await;
    assert!(upstream.requests_to("/a")[0].header("traceparent").unwrap().ends_with("-00"));
    assert!(collector.requests().is_empty());
}

#[tokio::test]
async fn a_collector_that_hangs_or_is_away_holds_nothing_up() {
    let away = World::with(|settings| settings.telemetry.endpoint = Some("http://127.0.0.1:9".to_owned())).await;
    // So small a queue that it is soon full.
    let (collector, hung) = observed(|settings| settings.telemetry.record_content = true).await;
    collector.reply(COLLECTOR, Reply::Hang);
    for world in [away, hung] {
        let nobody = world.nobody();
        for _ in 0..300 {
            nobody.get("/agents").await.problem(401, "unauthenticated");
        }
        let steps = json!([{ "id": "a", "uses": "debug.echo", "with": { "value": 1 } }]);
        within("a run", world.operator().start(steps).await.completes()).await;
        within("the end of the process", world.stop()).await;
    }
    assert!(!collector.requests_to(COLLECTOR).is_empty());
}
