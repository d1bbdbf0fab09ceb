use reqwest::Url;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::kernel::{Actor, ConnectionId, Error, Result, Timestamp, wire_time};

/// What access is wanted to, and as whom.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ConnectionBody {
    /// The resource that access is wanted to (RFC 8707), which says itself who grants it (RFC 9728). The tokens go there and
    /// nowhere else.
    #[schema(example = "https://mcp.example/mcp")]
    pub url: String,
    /// The scopes that are asked for; when absent those that the resource says it needs.
    #[serde(default)]
    #[schema(max_items = 64, example = json!(["issues:read", "issues:write"]))]
    pub scopes: Option<Vec<String>>,
    /// The client that was registered with the provider beforehand; when absent one is registered on the way (RFC 7591).
    #[serde(default)]
    pub client: Option<ClientBody>,
}

/// A client that was registered beforehand.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClientBody {
    /// Its id.
    #[schema(example = "fermata-acme")]
    pub id: String,
    /// The authorization server it is registered with. Should the resource name another, that one gets nothing.
    #[schema(example = "https://login.example")]
    pub issuer: String,
    /// Its secret, where it has one. Nobody can read it back; left out, the one that was put for the same client stays.
    #[serde(default)]
    #[schema(value_type = Option<String>, write_only, min_length = 1, max_length = 8192)]
    pub secret: Option<SecretString>,
}

/// How far a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ConnectionStatus {
    /// Nobody has granted anything yet.
    Pending,
    /// It can be used.
    Connected,
    /// The provider does not renew the grant any more: somebody has to connect it again.
    Broken,
}

/// A connection as anybody may see it: never a token or a secret.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Connection {
    /// Its id; a name that is deleted and put again has another.
    #[schema(value_type = String, example = "conn_01m7yxb98verw8yhje1y22jsgh")]
    pub connection_id: ConnectionId,
    /// Its name, by which MCP servers mean it.
    #[schema(example = "github")]
    pub name: String,
    /// What it is access to.
    pub url: String,
    /// How far it is.
    pub status: ConnectionStatus,
    /// The scopes that are asked for, where they were named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scopes: Option<Vec<String>>,
    /// The client that was registered beforehand.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client: Option<Client>,
    /// Who has granted what, if anybody has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grant: Option<GrantSummary>,
    /// Who put it first.
    pub created_by: Actor,
    /// When.
    #[schema(value_type = String, format = DateTime)]
    #[serde(with = "wire_time")]
    pub created_at: Timestamp,
    /// When it was put, connected or broken last.
    #[schema(value_type = String, format = DateTime)]
    #[serde(with = "wire_time")]
    pub updated_at: Timestamp,
}

/// A client that was registered beforehand, without its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Client {
    /// Its id.
    pub id: String,
    /// The authorization server it is registered with.
    pub issuer: String,
}

/// What was granted.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct GrantSummary {
    /// The authorization server that granted it.
    pub issuer: String,
    /// The scopes that it covers.
    pub scopes: Vec<String>,
    /// Who connected it: what is done with it is done in the name of whoever signed in then.
    pub connected_by: Actor,
    /// When.
    #[schema(value_type = String, format = DateTime)]
    #[serde(with = "wire_time")]
    pub connected_at: Timestamp,
}

impl ConnectionBody {
    /// Whether it can be put, with its URL as URLs are compared.
    ///
    /// # Errors
    /// Invalid (422), naming the field.
    pub(super) fn check(self) -> Result<Self> {
        let is_word =
            |text: &str, most: usize| (1..=most).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
        let client = self.client.as_ref();
        let secret = client.and_then(|client| client.secret.as_ref()).map(ExposeSecret::expose_secret);
        let scopes = self.scopes.as_deref().unwrap_or_default();
        let url = read_url(&self.url);
        let checks = [
            (
                "url",
                url.is_some(),
                "`url` is an http or https URL of 2,048 bytes at most, without a fragment, a user or a password",
            ),
            (
                "scopes",
                scopes.len() <= 64 && scopes.iter().all(|scope| is_word(scope, 256)),
                "`scopes` are 64 at most, each of 1 to 256 visible ASCII characters",
            ),
            (
                "client.id",
                client.is_none_or(|it| is_word(&it.id, 2048)),
                "`client.id` has 1 to 2,048 visible ASCII characters",
            ),
            (
                "client.issuer",
                client.is_none_or(|it| read_url(&it.issuer).is_some()),
                "`client.issuer` is the URL of an authorization server",
            ),
            (
                "client.secret",
                secret.is_none_or(|secret| is_word(secret, 8192)),
                "`client.secret` has 1 to 8,192 visible ASCII characters",
            ),
        ];
        match (checks.into_iter().find(|(_, holds, _)| !holds), url) {
            (None, Some(url)) => Ok(Self { url, ..self }),
            (Some((field, _, rule)), _) => Err(Error::invalid(field, rule)),
            (None, None) => Err(Error::invalid("url", "`url` is a URL")),
        }
    }

    pub(super) fn known_client(&self) -> Option<Client> {
        self.client.as_ref().map(|client| Client { id: client.id.clone(), issuer: client.issuer.clone() })
    }
}

impl Connection {
    /// Whether a grant for one is a grant for the other.
    pub(super) fn is_for_the_same(&self, other: &Self) -> bool {
        (self.connection_id, &self.url, &self.client) == (other.connection_id, &other.url, &other.client)
    }
}

/// A URL that requests can go to, as the parser writes it.
fn read_url(text: &str) -> Option<String> {
    let url: Url = (text.len() <= 2048).then(|| text.parse().ok()).flatten()?;
    let plain = url.fragment().is_none() && url.username().is_empty() && url.password().is_none();
    (plain && matches!(url.scheme(), "http" | "https") && url.has_host()).then(|| url.to_string())
}

/// Whether both name the same resource.
pub(super) fn is_same(url: &str, other: &str) -> bool {
    read_url(url).is_some_and(|url| read_url(other) == Some(url))
}

/// Whether a provider may send people back there: to a page that the operator has listed, or to the person's own machine
/// (RFC 8252, section 7.3), by address and not by name.
pub(super) fn is_way_back(url: &str, listed: &[String]) -> bool {
    let own = |url: &str| {
        let url: Url = url.parse().ok()?;
        let loopback = matches!(url.host_str(), Some("127.0.0.1" | "[::1]"));
        Some(
            loopback
                && url.scheme() == "http"
                && url.port().is_some()
                && url.query().is_none()
                && url.fragment().is_none(),
        )
    };
    listed.iter().any(|one| one == url) || own(url) == Some(true)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_mistake_names_its_field() {
        let check = |body: Value| serde_json::from_value::<ConnectionBody>(body).unwrap().check();
        let url = "https://mcp.example/mcp";
        for (body, field) in [
            (json!({ "url": "nowhere" }), "url"),
            (json!({ "url": "ftp://mcp.example/" }), "url"),
            (json!({ "url": "https://a:b@mcp.example/" }), "url"),
            (json!({ "url": "https://mcp.example/#here" }), "url"),
            (json!({ "url": url, "scopes": ["a b"] }), "scopes"),
            (json!({ "url": url, "client": { "id": "", "issuer": url } }), "client.id"),
            (json!({ "url": url, "client": { "id": "x", "issuer": "login" } }), "client.issuer"),
            (json!({ "url": url, "client": { "id": "x", "issuer": url, "secret": "" } }), "client.secret"),
        ] {
            assert_eq!(check(body.clone()).unwrap_err().members()["field"], field, "{body}");
        }
        assert_eq!(check(json!({ "url": "HTTPS://MCP.example:443" })).unwrap().url, "https://mcp.example/");
    }

    #[test]
    fn people_are_sent_back_to_their_own_machine_or_a_listed_page_and_nowhere_else() {
        let listed = ["https://console.example/connected".to_owned()];
        for (url, allowed) in [
            ("https://console.example/connected", true),
            ("https://console.example/connected/", false),
            ("https://console.example/connected?x=1", false),
            ("https://console.example.evil.example/connected", false),
            ("http://127.0.0.1:4711/callback", true),
            ("http://[::1]:4711/callback", true),
            ("http://127.0.0.1/callback", false),
            ("https://127.0.0.1:4711/callback", false),
            ("http://localhost:4711/callback", false),
            ("http://127.0.0.1:4711@evil.example:80/callback", false),
            ("http://10.0.0.1:4711/callback", false),
            ("javascript:alert(1)", false),
            ("", false),
        ] {
            assert_eq!(is_way_back(url, &listed), allowed, "{url}");
        }
    }

    #[test]
    fn only_the_same_resource_is_the_same() {
        assert!(is_same("https://mcp.example:443/mcp", "https://MCP.example/mcp"));
        for other in ["https://mcp.example/mcp/", "http://mcp.example/mcp", "https://mcp.example/mcp?x", "mcp"] {
            assert!(!is_same("https://mcp.example/mcp", other), "{other}");
        }
        assert!(!is_same("nowhere", "nowhere"));
    }
}
