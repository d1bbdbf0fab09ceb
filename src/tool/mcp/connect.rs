//! The way to a server: over HTTP through the tenant's door, or to a process that the operator has listed.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use chrono::TimeDelta;
use reqwest::{
    Url,
    header::{AUTHORIZATION, HeaderName, HeaderValue},
};
use rmcp::{
    model::ProtocolVersion,
    service::{ClientCacheConfig, ClientLifecycleMode, serve_client_with_lifecycle},
    transport::{
        StreamableHttpClientTransport, async_rw::AsyncRwTransport,
        streamable_http_client::StreamableHttpClientTransportConfig,
    },
};
use secrecy::{ExposeSecret, SecretString};

use super::{
    McpServer,
    ear::Ear,
    fault::{self, Other},
    process,
    session::Session,
};
use crate::{
    config::McpCommand,
    db::Database,
    http::{Outbound, Refusal},
    integration::{AccessToken, Connections},
    kernel::{Clock, Error, Problem, Result, TenantId},
    llm::Keys,
    tool::{ToolError, sealed::Sealed},
};

/// How long a server may take to become one, and then to list its tools to whoever registers it.
const PATIENCE: TimeDelta = TimeDelta::seconds(20);
/// More than an output may have, since what is too much is cut and not refused.
const BYTES_PER_OUTPUT: usize = 8;
/// The longest text of an error page that is read, in bytes.
const ERROR: usize = 4 * 1024;

/// What a tenant's servers may be shown of who calls.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// Keys that tenants have sealed.
    pub keys: Keys,
    /// What people have granted.
    pub connections: Connections,
}

/// Opens sessions.
#[derive(Debug)]
pub(super) struct Connector {
    pub(super) db: Database,
    pub(super) clock: Clock,
    pub(super) outbound: Arc<Outbound>,
    pub(super) credentials: Credentials,
    pub(super) commands: BTreeMap<String, McpCommand>,
    /// How large an output may be.
    pub(super) output: usize,
}

/// Whose server, and which.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target<'a> {
    pub(super) tenant: TenantId,
    pub(super) name: &'a str,
    pub(super) settings: &'a McpServer,
    /// The revision it was found to speak, if it was seen before.
    pub(super) protocol: Option<&'a str>,
}

impl Connector {
    /// A session with the server, before anything is asked of it, with the token that it wants.
    ///
    /// # Errors
    /// Why there is none; nothing was called.
    pub(super) async fn open(&self, target: Target<'_>, token: Option<AccessToken>) -> Result<Session, ToolError> {
        self.in_time(target, self.connect(target, token)).await
    }

    async fn connect(&self, target: Target<'_>, token: Option<AccessToken>) -> Result<Session, ToolError> {
        let shown = self.shown(target, token.as_ref()).await?;
        let sealed = shown.sealed.clone();
        let (ear, progress) = Ear::new(shown.sealed);
        let (service, process, host) = match (&target.settings.url, &target.settings.command) {
            (Some(url), _) => {
                let (transport, host) = self.http(target, url, shown.headers).await?;
                (serve_client_with_lifecycle(ear, transport, lifecycle(target.protocol)).await, None, host)
            }
            (None, Some(command)) => {
                let known = self.commands.get(command).ok_or_else(|| unlisted(command))?;
                let started = process::start(command, known, sealed.clone()).map_err(|error| {
                    tracing::warn!(%error, command, "an MCP server cannot be started");
                    ToolError::failed("mcp_unreachable", format!("the command `{command}` cannot be started"))
                })?;
                let (process, output, input) = started;
                let transport = AsyncRwTransport::new(output, input).with_max_line_length(self.most());
                (
                    serve_client_with_lifecycle(ear, transport, lifecycle(target.protocol)).await,
                    Some(process),
                    command.clone(),
                )
            }
            (None, None) => return Err(ToolError::failed("mcp_unreachable", "the server is nowhere")),
        };
        let service = match service {
            Ok(service) => service,
            Err(error) => {
                let error = fault::of_connection(Other { server: target.name, host: &host, sealed: &sealed }, &error);
                self.heed(target, token.as_ref(), &error).await;
                return Err(error);
            }
        };
        // What it lists is looked at when it is used, and not what it listed once.
        service.set_response_cache_config(ClientCacheConfig::disabled()).await;
        Ok(Session::new((target.name, host), (service, progress, process), token))
    }

    /// The token that the server is called with now, if it is called in anybody's name.
    ///
    /// # Errors
    /// `connection_required`, where somebody has to connect it first.
    pub(super) async fn token(&self, target: Target<'_>) -> Result<Option<AccessToken>, ToolError> {
        let (Some(name), Some(url)) = (&target.settings.connection, &target.settings.url) else { return Ok(None) };
        let token = async {
            self.credentials.connections.token(target.tenant, name, url).await.map_err(|error| match error {
                error if error.problem() == Problem::Conflict => {
                    ToolError::failed(fault::UNCONNECTED, error.detail().to_owned())
                }
                error => away(error),
            })
        };
        self.in_time(target, token).await.map(Some)
    }

    /// Sees to it that a token which was not accepted is not used again.
    pub(super) async fn heed(&self, target: Target<'_>, token: Option<&AccessToken>, error: &ToolError) {
        let (Some(name), Some(token)) = (&target.settings.connection, token) else { return };
        if matches!(error, ToolError::Failed(failure) if failure.code == fault::UNAUTHORIZED) {
            let told = self.credentials.connections.distrust(target.tenant, name, &token.secret).await;
            told.unwrap_or_else(|error| {
                tracing::warn!(?error, "a token that is not accepted any more may be used again")
            });
        }
    }

    /// What comes of it while there is still patience.
    pub(super) async fn in_time<T>(
        &self,
        target: Target<'_>,
        work: impl Future<Output = Result<T, ToolError>>,
    ) -> Result<T, ToolError> {
        let late = self.clock.now() + PATIENCE;
        tokio::select! {
            biased;
            done = work => done,
            () = self.clock.sleep_until(late) => {
                Err(ToolError::retryable("mcp_unreachable", format!("MCP server `{}` takes too long", target.name)))
            }
        }
    }

    fn most(&self) -> usize {
        self.output.saturating_mul(BYTES_PER_OUTPUT)
    }

    async fn http(
        &self,
        target: Target<'_>,
        url: &str,
        headers: HashMap<HeaderName, HeaderValue>,
    ) -> Result<(StreamableHttpClientTransport<reqwest::Client>, String), ToolError> {
        let parsed: Url = url.parse().map_err(|_| ToolError::failed("url_refused", "the `url` is none"))?;
        let door = self.outbound.door(target.tenant).await.map_err(away)?;
        door.vet(&parsed).map_err(|refusal| {
            let code = match refusal {
                Refusal::Url(_) => "url_refused",
                Refusal::Address(_) => "address_refused",
            };
            ToolError::failed(code, refusal.to_string())
        })?;
        let host = parsed.host_str().unwrap_or_default().to_owned();
        let mut config = StreamableHttpClientTransportConfig::with_uri(parsed.as_str())
            .custom_headers(headers)
            .max_json_response_size(self.most())
            .max_sse_event_size(self.most())
            .max_error_response_size(ERROR);
        config.channel_buffer_capacity = 4;
        Ok((StreamableHttpClientTransport::with_client(door.client().clone(), config), host))
    }

    /// What every request has with it, or the environment of the command has in it.
    async fn shown(&self, target: Target<'_>, token: Option<&AccessToken>) -> Result<Shown, ToolError> {
        let unusable =
            |name: &str| ToolError::failed("mcp_misconfigured", format!("the header `{name}` cannot be sent"));
        let (mut headers, mut secrets) = (HashMap::new(), vec![]);
        for (name, value) in target.settings.headers.iter().flatten() {
            let named: HeaderName = name.parse().map_err(|_| unusable(name))?;
            headers.insert(named, value.parse().map_err(|_| unusable(name))?);
        }
        if let Some(key) = &target.settings.key {
            let mut tx = self.db.tenant(target.tenant).await.map_err(away)?;
            let secret = self.credentials.keys.open(&mut tx, target.tenant, &key.name).await.map_err(away)?;
            let missing = || ToolError::failed("mcp_misconfigured", format!("there is no key `{}`", key.name));
            let secret = secret.ok_or_else(missing)?;
            let (name, bearer) = key.header();
            let value = sensitive(&secret, bearer).ok_or_else(|| unusable(name))?;
            headers.insert(name.parse().map_err(|_| unusable(name))?, value);
            secrets.push(secret);
        }
        if let Some(token) = token {
            let value = sensitive(&token.secret, true).ok_or_else(|| unusable("authorization"))?;
            headers.insert(AUTHORIZATION, value);
            secrets.push(token.secret.clone());
        }
        // Nobody says which of them are secret.
        let known = target.settings.command.as_ref().and_then(|command| self.commands.get(command));
        secrets.extend(known.iter().flat_map(|command| command.env.values().cloned()));
        Ok(Shown { headers, sealed: Sealed::new(secrets.iter().map(ExposeSecret::expose_secret)) })
    }
}

/// What a server is shown of who calls.
struct Shown {
    headers: HashMap<HeaderName, HeaderValue>,
    /// What is secret of it.
    sealed: Sealed,
}

fn sensitive(secret: &SecretString, bearer: bool) -> Option<HeaderValue> {
    let scheme = if bearer { "Bearer " } else { "" };
    let mut value: HeaderValue = format!("{scheme}{}", secret.expose_secret()).parse().ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// The handshake of the revision it speaks; whoever has not been met is asked for the newer one first.
fn lifecycle(protocol: Option<&str>) -> ClientLifecycleMode {
    match protocol {
        Some(known) if known < ProtocolVersion::NO_INITIALIZE.as_str() => ClientLifecycleMode::Initialize,
        _ => ClientLifecycleMode::Auto {
            preferred_versions: vec![ProtocolVersion::V_2026_07_28],
            legacy_version: Some(ProtocolVersion::V_2025_11_25),
        },
    }
}

fn unlisted(command: &str) -> ToolError {
    ToolError::failed("mcp_misconfigured", format!("the operator lists no command `{command}`"))
}

/// Something of ours is away.
fn away(error: Error) -> ToolError {
    match error.problem() {
        Problem::Unavailable => ToolError::retryable("unavailable", error.detail().to_owned()),
        _ => {
            tracing::error!(?error, "an MCP server cannot be called");
            ToolError::retryable("internal", error.detail().to_owned())
        }
    }
}
