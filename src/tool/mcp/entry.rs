//! How a tenant registers a server, and what is kept of it.

use std::{collections::BTreeMap, time::Duration};

use reqwest::{Url, header::HeaderName};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::pin::{Listed, Pinned};
use crate::{
    journal::{ApprovalRule, Effect, fits},
    kernel::{Error, Result, Span, check_name},
    llm::DocumentKind,
};

/// Headers that a registration cannot set: they are the protocol's, or carry secrets, which are sealed.
const RESERVED: [&str; 14] = [
    "accept",
    "authorization",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "cookie",
    "host",
    "last-event-id",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Where an MCP server is, and what its tools may do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct McpServer {
    /// Where it answers over streamable HTTP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "https://mcp.example/mcp")]
    pub url: Option<String>,
    /// In place of `url`: a command that the operator has listed under `tools.mcp`, spoken to over standard input and
    /// output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    /// Headers of every request; none that are secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub headers: Option<BTreeMap<String, String>>,
    /// The sealed key that goes along.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<KeyUse>,
    /// The connection that it is called in the name of, to this very `url`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "github")]
    pub connection: Option<String>,
    /// The tools that may be used, by name or pattern; all when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_items = 128)]
    pub tools: Option<Vec<String>>,
    /// What repeating a call does to the world, by name or pattern of the tool. The longest that fits counts; `once` where
    /// none does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effects: Option<BTreeMap<String, Effect>>,
    /// Takes the server's word for it, where `effects` says nothing: `readOnlyHint` means `pure`, `idempotentHint`
    /// `repeatable`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust_hints: Option<bool>,
    /// The longest one call may take (`60s` when absent).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Span>,
    /// When a model's calls are held; the first rule that fits counts. The names in them are `mcp:{server}/{tool}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_items = 64)]
    pub approval: Option<Vec<ApprovalRule>>,
}

/// A sealed key, and where it goes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KeyUse {
    /// The key, as it was put under `/llm/keys`.
    #[schema(example = "our-github")]
    pub name: String,
    /// The header it goes into. `Authorization`, also where none is named, has it as a bearer token; any other as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "X-Api-Key")]
    pub header: Option<String>,
}

/// A server as it is kept: what was put, and what it was found to offer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct McpEntry {
    /// What was put.
    pub settings: McpServer,
    /// The revision of the protocol that it speaks.
    #[schema(example = "2026-07-28")]
    pub protocol: String,
    /// What it calls itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "github 1.4.0")]
    pub implementation: Option<String>,
    /// The tools that may be used, each pinned as it was listed.
    pub tools: Vec<Pinned>,
    /// Those that an earlier version had and this one does not, as they were pinned: should they come back, it is as that.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gone: Vec<Pinned>,
}

impl McpServer {
    /// Whether it can be put.
    ///
    /// # Errors
    /// Invalid (422), naming the field.
    pub fn check(&self) -> Result<()> {
        let is_url = |text: &String| text.len() <= 2048 && text.parse::<Url>().is_ok();
        let headers = self.headers.iter().flatten();
        let is_pattern = |text: &String| (1..=160).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
        let (tools, rules) = (self.tools.as_deref().unwrap_or_default(), self.approval.as_deref().unwrap_or_default());
        let time = self.timeout.map_or(Duration::from_secs(60), |span| span.0);
        let checks = [
            ("url", self.url.is_some() != self.command.is_some(), "a server has either a `url` or a `command`"),
            ("url", self.url.as_ref().is_none_or(is_url), "`url` is an http or https URL of 2,048 bytes at most"),
            (
                "command",
                self.command.is_none() || (self.headers.is_none() && self.key.is_none() && self.connection.is_none()),
                "a `command` takes no `headers`, `key` or `connection`: the operator sets its environment",
            ),
            (
                "headers",
                headers.clone().count() <= 16
                    && headers.clone().all(|(name, value)| {
                        is_free(name) && value.len() <= 1024 && value.bytes().all(|b| (0x20..0x7f).contains(&b))
                    }),
                "`headers` are 16 at most, of visible ASCII, without those of the protocol; secrets are sealed as a `key`",
            ),
            (
                "key.name",
                self.key.as_ref().is_none_or(|key| check_name(&key.name).is_ok()),
                "`key.name` is the name of a sealed key",
            ),
            (
                "key.header",
                self.key
                    .as_ref()
                    .and_then(|key| key.header.as_ref())
                    .is_none_or(|name| is_authorization(name) || is_free(name)),
                "`key.header` is the name of a header that is not the protocol's",
            ),
            (
                "connection",
                self.connection
                    .as_ref()
                    .is_none_or(|name| check_name(name).is_ok() && self.key.as_ref().is_none_or(|key| !key.header().1)),
                "`connection` is the name of a connection, and goes into `Authorization` where no `key` does",
            ),
            ("tools", tools.len() <= 128 && tools.iter().all(is_pattern), "`tools` are 128 names or patterns at most"),
            (
                "effects",
                self.effects.as_ref().is_none_or(|it| it.len() <= 128 && it.keys().all(is_pattern)),
                "`effects` are for 128 names or patterns at most",
            ),
            (
                "timeout",
                (Duration::from_secs(1)..=Duration::from_secs(3600)).contains(&time),
                "`timeout` is from 1s to 1h",
            ),
            (
                "approval",
                rules.len() <= 64
                    && rules.iter().all(|rule| !rule.tools.is_empty() && rule.tools.iter().all(is_pattern)),
                "`approval` has 64 rules at most, each for `tools` by name or pattern",
            ),
        ];
        match checks.into_iter().find(|(_, holds, _)| !holds) {
            None => Ok(()),
            Some((field, _, rule)) => Err(Error::invalid(field, rule)),
        }
    }

    /// Whether a tool of that name may be used.
    pub(super) fn allows(&self, tool: &str) -> bool {
        self.tools.as_ref().is_none_or(|allowed| allowed.iter().any(|pattern| fits(pattern, tool)))
    }

    /// What repeating a call of the tool does to the world.
    pub(super) fn effect(&self, tool: &Listed) -> Effect {
        let said = self.effects.iter().flatten().filter(|(pattern, _)| fits(pattern, &tool.name));
        let longest = said.max_by_key(|(pattern, _)| pattern.bytes().filter(|b| *b != b'*').count());
        match longest {
            Some((_, effect)) => *effect,
            None if self.trust_hints == Some(true) && tool.hints("readOnlyHint") => Effect::Pure,
            None if self.trust_hints == Some(true) && tool.hints("idempotentHint") => Effect::Repeatable,
            None => Effect::Once,
        }
    }
}

impl McpEntry {
    /// Puts back what was pinned before of the same server's tools, also of those that it hid for a while; those that have
    /// changed since, as they are now. To put a server again is not to approve of what its tools have become. Each of those
    /// comes with its pin.
    pub(super) fn keep_pins(&mut self, before: Self) -> Vec<(Pinned, Pinned)> {
        if !self.is_at_the_place_of(&before) {
            return vec![];
        }
        let mut changed = Vec::new();
        for pinned in before.tools.into_iter().chain(before.gone) {
            match self.tools.iter_mut().find(|tool| tool.tool.name == pinned.tool.name) {
                Some(tool) if tool.digest == pinned.digest => {}
                Some(tool) => changed.push((pinned.clone(), std::mem::replace(tool, pinned))),
                None => self.gone.push(pinned),
            }
        }
        changed
    }

    /// What is pinned of the tool of that name.
    pub(super) fn pinned(&self, tool: &str) -> Option<&Pinned> {
        self.tools.iter().find(|pinned| pinned.tool.name == tool)
    }

    /// Whether what was seen by that entry of a tool, pinned like this, is still of interest.
    pub(super) fn stands(&self, before: &Self, pinned: Option<&Pinned>) -> bool {
        let same = pinned.is_some_and(|was| self.pinned(&was.tool.name).is_some_and(|now| now.digest == was.digest));
        same && self.is_at_the_place_of(before)
    }

    fn is_at_the_place_of(&self, other: &Self) -> bool {
        let place = |settings: &McpServer| (settings.url.clone(), settings.command.clone());
        place(&self.settings) == place(&other.settings)
    }
}

/// Whether a header can be set.
fn is_free(name: &str) -> bool {
    let Ok(name) = name.parse::<HeaderName>() else { return false };
    !RESERVED.contains(&name.as_str()) && !name.as_str().starts_with("mcp-")
}

fn is_authorization(name: &str) -> bool {
    name.eq_ignore_ascii_case("authorization")
}

impl KeyUse {
    /// The header it goes into, and whether as a bearer token.
    pub(super) fn header(&self) -> (&str, bool) {
        let name = self.header.as_deref().unwrap_or("authorization");
        (name, is_authorization(name))
    }
}

impl DocumentKind for McpEntry {
    const KIND: &'static str = "mcp_server";
    const NOUN: &'static str = "MCP server";
    const PUT: &'static str = "mcp_server.put";
    const DELETE: &'static str = "mcp_server.delete";

    fn check(&self, _: &str) -> Result<()> {
        self.settings.check()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn server(body: Value) -> McpServer {
        serde_json::from_value(body).unwrap()
    }

    #[test]
    fn a_mistake_names_its_field() {
        let url = "https://mcp.example/mcp";
        for (body, field) in [
            (json!({}), "url"),
            (json!({ "url": url, "command": "x" }), "url"),
            (json!({ "url": "nowhere" }), "url"),
            (json!({ "command": "x", "headers": {} }), "command"),
            (json!({ "url": url, "headers": { "Authorization": "Bearer x" } }), "headers"),
            (json!({ "url": url, "headers": { "Cookie": "x" } }), "headers"),
            (json!({ "url": url, "headers": { "Mcp-Session-Id": "x" } }), "headers"),
            (json!({ "url": url, "headers": { "x": "a\nb" } }), "headers"),
            (json!({ "url": url, "key": { "name": "No Name" } }), "key.name"),
            (json!({ "url": url, "key": { "name": "k", "header": "Host" } }), "key.header"),
            (json!({ "url": url, "connection": "No Name" }), "connection"),
            (json!({ "url": url, "connection": "c", "key": { "name": "k" } }), "connection"),
            (json!({ "command": "x", "connection": "c" }), "command"),
            (json!({ "url": url, "tools": [""] }), "tools"),
            (json!({ "url": url, "timeout": "2h" }), "timeout"),
            (json!({ "url": url, "approval": [{ "tools": [] }] }), "approval"),
        ] {
            let error = server(body.clone()).check().expect_err(field);
            assert_eq!(error.members()["field"], field, "{body}");
        }
        let full = json!({ "url": url, "headers": { "X-Team": "a" }, "key": { "name": "k", "header": "X-Key" } });
        server(full).check().unwrap();
    }

    #[test]
    fn a_hint_helps_only_where_it_is_trusted_and_nothing_is_said() {
        let tool = |hints: Value| -> Listed {
            serde_json::from_value(json!({ "name": "issue_get", "inputSchema": {}, "annotations": hints })).unwrap()
        };
        let reads = tool(json!({ "readOnlyHint": true }));
        let url = "https://mcp.example/mcp";
        assert_eq!(server(json!({ "url": url })).effect(&reads), Effect::Once);
        let trusting = server(json!({ "url": url, "trustHints": true }));
        assert_eq!(trusting.effect(&reads), Effect::Pure);
        assert_eq!(trusting.effect(&tool(json!({ "idempotentHint": true }))), Effect::Repeatable);
        assert_eq!(trusting.effect(&tool(json!({}))), Effect::Once);
        let effects = json!({ "*": "pure", "issue_*": "repeatable", "issue_get": "once" });
        let said = server(json!({ "url": url, "trustHints": true, "effects": effects }));
        assert_eq!(said.effect(&reads), Effect::Once, "the longest that fits");
        let others: Listed = serde_json::from_value(json!({ "name": "issue_list", "inputSchema": {} })).unwrap();
        assert_eq!(said.effect(&others), Effect::Repeatable);
    }

    #[test]
    fn what_was_seen_by_an_entry_stands_only_for_the_same_pin_at_the_same_place() {
        let entry = |url: &str, description: &str| {
            let tool = json!({ "name": "send", "description": description, "inputSchema": {} });
            let tools = vec![serde_json::from_value::<Listed>(tool).unwrap().pin().unwrap()];
            let settings = server(json!({ "url": url }));
            McpEntry { settings, protocol: String::new(), implementation: None, tools, gone: vec![] }
        };
        let before = entry("https://a.example/", "Sends.");
        let stands = |now: McpEntry| now.stands(&before, before.pinned("send"));
        assert!(stands(entry("https://a.example/", "Sends.")));
        assert!(!stands(entry("https://a.example/", "Sends it.")), "somebody has approved meanwhile");
        assert!(!stands(entry("https://b.example/", "Sends.")), "it is another server");
        assert!(!before.stands(&before, None));
    }
}
