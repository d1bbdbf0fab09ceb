//! What a case is played on: a model, the outside, an agent between them, and the way by which the order comes.

use reqwest::Method;
use serde_json::{Value, json};

use super::{Attempt, Leak, Way, cases::Case, doors::Elsewhere};
use crate::world::{Mcp, Provider, REVISIONS, Reply, Run, Turn, Upstream, World};

/// What the run's input holds, which nothing may be rendered into.
pub const HUSH: &str = "hush-hush";

pub struct Stage<'a> {
    pub world: &'a World,
    pub case: &'a Case,
    pub upstream: Upstream,
    pub provider: Provider,
    /// The MCP server, where the order comes from one.
    pub server: Option<Mcp>,
    /// The hold of another run that the order is about, where it is.
    pub elsewhere: Option<Elsewhere>,
    order: String,
    tag: String,
}

impl<'a> Stage<'a> {
    pub async fn new(world: &'a World, case: &'a Case) -> Self {
        let (provider, upstream) = (Provider::start().await, Upstream::start().await);
        let elsewhere = match case.attempt {
            Attempt::Decide(_) => Some(Elsewhere::held(world, &upstream).await),
            _ => None,
        };
        let mut order = case.order.replace("{api}", world.url());
        if let Some(elsewhere) = &elsewhere {
            order = order.replace("{approval}", &elsewhere.approval).replace("{run}", &elsewhere.run.id);
        }
        let tag = format!("n{:08x}", rand::random::<u32>());
        let mut stage = Self { world, case, upstream, provider, server: None, elsewhere, order, tag };
        let config = json!({ "provider": case.api, "model": "m", "endpoint": stage.provider.url() });
        stage.put(&format!("/llm/configs/{}", stage.tag), &config).await;
        stage.prepare_way().await;
        stage.put_agent(&stage.deputy(), &["http.request"], json!([])).await;
        let tools = [vec![stage.reader().0], stage.tools()].concat();
        let tools: Vec<_> = tools.iter().map(String::as_str).collect();
        let free = json!([{ "tools": ["http.*"], "hold": false }]);
        let rules = match case.attempt {
            Attempt::Decide(_) => free,
            Attempt::Tell(Leak::Read | Leak::Deletion) => json!([{ "tools": ["http.*"] }]),
            _ => json!([]),
        };
        stage.put_agent(&stage.clerk(), &tools, rules).await;
        stage
    }

    async fn put(&self, path: &str, body: &Value) {
        let answer = self.world.admin().request(Method::PUT, path).json(body).send().await;
        assert!([200, 201].contains(&answer.status), "{}", answer.text());
    }

    /// Puts an agent of this stage's model.
    pub async fn put_agent(&self, name: &str, tools: &[&str], rules: Value) {
        let body = json!({ "instructions": "Read.", "config": self.tag, "tools": tools, "approval": rules });
        self.put(&format!("/agents/{name}"), &body).await;
    }

    /// The agent that reads the order.
    pub fn clerk(&self) -> String {
        format!("clerk-{}", self.tag)
    }

    /// An agent that may act.
    pub fn deputy(&self) -> String {
        format!("deputy-{}", self.tag)
    }

    /// What a model knows a tool of the MCP server by.
    pub fn mcp_alias(&self, tool: &str) -> String {
        format!("mcp_{}_{tool}", self.tag)
    }

    /// The arguments of a refund.
    pub fn refund(&self, order: u32) -> Value {
        json!({ "method": "POST", "url": self.upstream.url("/refund"), "json": { "order": order } })
    }

    async fn prepare_way(&mut self) {
        match self.case.way {
            Way::Transform => {}
            Way::Http => {
                self.upstream.reply("/note", Reply::Json(200, json!({ "note": self.order })));
                let tool = json!({ "description": "Reads a note", "method": "GET", "url": self.upstream.url("/note"),
                    "arguments": { "type": "object", "properties": {} } });
                self.put(&format!("/tools/http/notes.{}", self.tag), &tool).await;
            }
            Way::McpText | Way::McpError | Way::McpRefusal | Way::McpTool => {
                let server = Mcp::start(REVISIONS[usize::from(self.case.api.ends_with('i'))]).await;
                match self.case.way {
                    Way::McpTool => server.change("echo", "description", json!(self.order)),
                    _ => server.says(&self.order),
                }
                let effects = json!({ "echo": "pure", "fail": "pure", "refuse": "pure" });
                self.put(&format!("/tools/mcp/{}", self.tag), &json!({ "url": server.url(), "effects": effects }))
                    .await;
                self.server = Some(server);
            }
            Way::Child => self.put_agent(&format!("reader-{}", self.tag), &[], json!([])).await,
        }
    }

    /// The tool by which the order comes, and the answers of the model until it has.
    fn reader(&self) -> (String, Vec<Turn>) {
        let mcp = |tool: &str| {
            (format!("mcp:{}/{tool}", self.tag), vec![Turn::call(&self.mcp_alias(tool), json!({ "text": "the note" }))])
        };
        match self.case.way {
            Way::Transform => {
                let call = Turn::call("data_transform", json!({ "value": self.order }));
                ("data.transform".to_owned(), vec![call])
            }
            Way::Http => (format!("notes.{}", self.tag), vec![Turn::call(&format!("notes_{}", self.tag), json!({}))]),
            Way::McpText | Way::McpTool => mcp("echo"),
            Way::McpError => mcp("fail"),
            Way::McpRefusal => mcp("refuse"),
            Way::Child => {
                let call = Turn::call(&format!("agent_reader-{}", self.tag), json!({ "goal": "Read the note" }));
                (format!("agent:reader-{}", self.tag), vec![call, Turn::say(&self.order)])
            }
        }
    }

    /// What the clerk was given besides.
    fn tools(&self) -> Vec<String> {
        match self.case.attempt {
            Attempt::NotGiven | Attempt::Inside | Attempt::OtherAgent => vec![],
            Attempt::ActMcp => vec![format!("mcp:{}/hang", self.tag)],
            Attempt::Deputy => vec![format!("agent:{}", self.deputy())],
            _ => vec!["http.request".to_owned()],
        }
    }

    /// Begins the run: the order is read first, and then the model goes on like this.
    pub async fn run(&self, obeying: Vec<Turn>) -> Run {
        self.provider.script(self.reader().1.into_iter().chain(obeying));
        let body = json!({ "agent": self.clerk(), "goal": "Read the note", "input": { "secret": HUSH } });
        self.world.operator().execute(body).await
    }

    /// The order did reach the model, and outside happened what somebody consented to: these paths and bodies, to the
    /// letter, and nothing else.
    pub async fn is_as_it_should_be(&self, allowed: &[(&str, Value)], what: &str) {
        let asked = self.provider.asked();
        let heard = |question: &crate::world::Asked| match self.case.way {
            Way::McpTool => hears(&question.body["tools"], &self.order),
            _ => hears(&json!(question.outputs()), &self.order),
        };
        assert!(asked.iter().any(heard), "{what}: the model was not given it: {asked:#?}");
        let sent: Vec<_> = self.upstream.requests().into_iter().filter(|request| request.path != "/note").collect();
        let bodies: Vec<_> = sent.iter().map(|request| (request.path.as_str(), request.json())).collect();
        assert_eq!(bodies, allowed, "{what}");
        for request in sent {
            assert_eq!((request.method.as_str(), request.query.as_deref()), ("POST", None), "{what}");
            assert_eq!(request.header("x-override"), None, "{what}");
        }
    }
}

/// Whether the text stands somewhere in it, also in JSON that is text in it.
fn hears(question: &Value, text: &str) -> bool {
    match question {
        Value::String(said) => {
            said.contains(text) || serde_json::from_str::<Value>(said).is_ok_and(|inner| hears(&inner, text))
        }
        Value::Array(all) => all.iter().any(|one| hears(one, text)),
        Value::Object(all) => all.values().any(|one| hears(one, text)),
        _ => false,
    }
}
