use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf};

use secrecy::SecretString;
use serde::Deserialize;

use super::llm::{CircuitBreakerSettings, JobSettings, LlmSettings};
use crate::kernel::Span;

/// Everything that can be set, by concern.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// `[http]`: the server and what it takes.
    pub http: HttpSettings,
    /// `[database]`: where the data is.
    pub database: DatabaseSettings,
    /// `[auth]`: whose tokens count.
    pub auth: AuthSettings,
    /// `[streams]`: event streams.
    pub streams: StreamSettings,
    /// `[worker]`: how much is carried out at once.
    pub worker: WorkerSettings,
    /// `[limits]`: sizes of what runs carry.
    pub limits: LimitSettings,
    /// `[retention]`: how long what is over is kept.
    pub retention: RetentionSettings,
    /// `[tools]`: what steps may do.
    pub tools: ToolSettings,
    /// `[llm]`: language models.
    pub llm: LlmSettings,
    /// `[circuit_breaker]`: when a model that fails is left alone.
    pub circuit_breaker: CircuitBreakerSettings,
    /// `[job]`: jobs, beyond the repetitions of single calls.
    pub job: JobSettings,
    /// `[vault]`: what seals tenants' secrets.
    pub vault: VaultSettings,
    /// `[oauth]`: connections to what is elsewhere.
    pub oauth: OauthSettings,
    /// `[telemetry]`: traces.
    pub telemetry: TelemetrySettings,
}

/// `[http]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HttpSettings {
    /// Address and port to listen on. Default `127.0.0.1:8080`.
    pub listen: SocketAddr,
    /// The URL under which clients reach this server, without a final slash, where it is not the listen
    /// address: behind a proxy, in links. Default: none.
    pub public_url: Option<String>,
    /// The largest request body, in bytes. Default 1 MiB.
    pub body_limit: usize,
    /// The deepest nesting of a JSON body. Default 64.
    pub depth_limit: usize,
    /// The longest a client may take to send a request's headers. Default `10s`.
    pub header_timeout: Span,
    /// The longest a client may take to send a request's body. Default `15s`.
    pub body_timeout: Span,
    /// The longest a request may take to be answered; a stream counts as answered when it opens.
    /// Above 60 s, because `Prefer: wait=60` must fit. Default `75s`.
    pub request_timeout: Span,
    /// Open connections at once; more wait to be accepted. Default 10,000.
    pub connections: usize,
    /// Requests at once on one HTTP/2 connection. Default 256.
    pub requests_per_connection: u32,
    /// Web origins that browsers may call from (`https://console.example`), or `*` alone. Default: none.
    pub cors_origins: Vec<String>,
    /// The longest that requests and steps in flight may take to finish after a stop signal. Default `20s`.
    pub drain_grace: Span,
}

/// `[database]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DatabaseSettings {
    /// The server's login, `postgres://fermata_app:…@host/db`; may pass through PgBouncer in transaction
    /// mode. Also read from `DATABASE_URL`. Default: none.
    pub url: Option<SecretString>,
    /// The owner's login, for `migrate`. Also `DATABASE_ADMIN_URL`. Default: none.
    pub admin_url: Option<SecretString>,
    /// A direct way to the server for what needs a session of its own (LISTEN, the lease's lock), where
    /// `url` goes through a pooler. Also `DATABASE_DIRECT_URL`. Default: `url`.
    pub direct_url: Option<SecretString>,
    /// Connections of the pool. Default 8.
    pub pool_size: u32,
    /// The longest to wait for a connection. Default `5s`.
    pub acquire_timeout: Span,
}

/// `[auth]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AuthSettings {
    /// The `iss` every token must have. Default `fermata`.
    pub issuer: String,
    /// The `aud` every token must name. Default `fermata`.
    pub audience: String,
    /// Shorthand for one HS256 key with the kid `main`: at least 32 bytes of it. Default: none.
    pub secret: Option<SecretString>,
    /// The keys tokens may be signed with, each with its kid (`[[auth.keys]]`). Default: none.
    pub keys: Vec<AuthKey>,
    /// The clock skew forgiven in `exp` and `nbf`. Default `30s`.
    pub leeway: Span,
}

/// `[[auth.keys]]`: one verification key.
#[derive(Clone, Debug, Deserialize)]
pub struct AuthKey {
    /// What tokens call it in their header.
    pub kid: String,
    /// Algorithm and key.
    #[serde(flatten)]
    pub material: KeyMaterial,
}

/// The one algorithm a key is good for, with the key.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "algorithm", deny_unknown_fields)]
pub enum KeyMaterial {
    /// HMAC with SHA-256.
    HS256 {
        /// At least 32 random bytes.
        secret: SecretString,
    },
    /// RSA PKCS#1 v1.5 with SHA-256.
    RS256 {
        /// PEM of the public key, 2048 bits or more.
        public_key: String,
    },
    /// ECDSA on P-256.
    ES256 {
        /// PEM of the public key.
        public_key: String,
    },
    /// Ed25519.
    EdDSA {
        /// PEM of the public key.
        public_key: String,
    },
}

/// `[streams]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StreamSettings {
    /// Open streams of one tenant on this process. Default 5,000.
    pub per_tenant: usize,
    /// Open streams of one token on this process. Default 2,000.
    pub per_token: usize,
    /// Bytes of events kept in memory for subscribers that lag a little, per process; beyond it they read
    /// the table. Default 32 MiB.
    pub buffer: usize,
    /// A comment is sent after this long without an event. Default `15s`.
    pub keep_alive: Span,
    /// What clients are told to wait before they reconnect. Default `1s`.
    pub retry: Span,
    /// The longest an event may be late when a notification is lost. Default `1s`.
    pub poll: Span,
}

/// `[worker]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WorkerSettings {
    /// Runs one worker holds at once. Default 256.
    pub runs: usize,
    /// Steps one worker carries out at once. Default 256.
    pub steps: usize,
    /// Runs of one tenant held at once, over all workers. Default 128.
    pub runs_per_tenant: usize,
    /// Steps of one tenant carried out at once by one worker. Default 128.
    pub steps_per_tenant: usize,
    /// Live runs one tenant may have, waiting ones counted. Default 100,000.
    pub live_runs_per_tenant: u64,
    /// A worker that has not been heard of for this long has lost its runs. Default `15s`.
    pub lease: Span,
    /// Work is looked for at least this often. Default `1s`.
    pub poll: Span,
}

/// `[limits]`: sizes in bytes of the JSON.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitSettings {
    /// One event; no less than this. Default 256 KiB.
    pub event: usize,
    /// The output of a step or a run. Default 1 MiB.
    pub output: usize,
    /// The arguments of one call; an approval's event carries them, so three quarters of `limits.event` at most.
    /// Default 192 KiB.
    pub arguments: usize,
    /// The input of a run. Default 512 KiB.
    pub input: usize,
    /// A workflow definition. Default 256 KiB.
    pub definition: usize,
    /// Steps of one plan. Default 1,000.
    pub steps: usize,
    /// Items of one `forEach`. Default 10,000.
    pub items: usize,
}

/// `[retention]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RetentionSettings {
    /// How long a run is kept after its end, an hour at least; then it is dropped with its events, steps and
    /// approvals. Default: none, which keeps runs for ever.
    pub runs: Option<Span>,
}

/// `[tools]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ToolSettings {
    /// Offers the `debug.*` tools. On in `dev`. Default false.
    pub debug: bool,
    /// Lets `http.request` reach loopback addresses. On in `dev`. Default false.
    pub loopback: bool,
    /// PEM file of certificate authorities trusted besides the system's, for outgoing calls. Default: none.
    pub ca_file: Option<PathBuf>,
    /// Commands that tenants may register as MCP servers, by name (`[tools.mcp.files]`), see [Tools](tools.md). Default: none.
    pub mcp: BTreeMap<String, McpCommand>,
}

/// `[tools.mcp.<name>]`: a command that speaks MCP over its standard input and output.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct McpCommand {
    /// The program.
    pub command: PathBuf,
    /// Its arguments.
    #[serde(default)]
    pub args: Vec<String>,
    /// Its environment, besides `PATH`: nothing else of the server's own is handed on.
    #[serde(default)]
    pub env: BTreeMap<String, SecretString>,
}

/// `[vault]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VaultSettings {
    /// What tenants' secrets are sealed with: at least 32 random bytes. Without it none are taken. Default: none.
    pub secret: Option<SecretString>,
    /// Secrets it had before: what was sealed with them can still be opened. Default: none.
    pub former: Vec<SecretString>,
}

/// `[oauth]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OauthSettings {
    /// Pages that providers may send people back to after they have granted access, each to the letter
    /// (`https://console.example/connected`); a person's own machine (`http://127.0.0.1:…`) is always one. Default: none.
    pub redirects: Vec<String>,
}

/// `[telemetry]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TelemetrySettings {
    /// The collector that traces are exported to by OTLP over HTTP (`http://collector:4318`); `/v1/traces` is appended. Also
    /// `OTEL_EXPORTER_OTLP_ENDPOINT`. Default: none, which exports nothing.
    pub endpoint: Option<String>,
    /// What this service is called in them. Also `OTEL_SERVICE_NAME`. Default `fermata`.
    pub service_name: String,
    /// The share of traces that is exported, from 0 to 1; a trace that a caller began is exported if the caller exports it.
    /// Default 1.0.
    pub sample_ratio: f64,
    /// Records on spans what is said: prompts and answers, and what tools are given and give. Default false.
    pub record_content: bool,
}

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

impl Default for HttpSettings {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            public_url: None,
            body_limit: MIB,
            depth_limit: 64,
            header_timeout: Span::seconds(10),
            body_timeout: Span::seconds(15),
            request_timeout: Span::seconds(75),
            connections: 10_000,
            requests_per_connection: 256,
            cors_origins: Vec::new(),
            drain_grace: Span::seconds(20),
        }
    }
}

impl HttpSettings {
    /// The URL clients are told: `public_url`, or the listen address.
    #[must_use]
    pub fn base_url(&self) -> String {
        match &self.public_url {
            Some(url) => url.trim_end_matches('/').to_owned(),
            None => format!("http://{}", self.listen),
        }
    }
}

impl Default for DatabaseSettings {
    fn default() -> Self {
        Self { url: None, admin_url: None, direct_url: None, pool_size: 8, acquire_timeout: Span::seconds(5) }
    }
}

impl Default for AuthSettings {
    fn default() -> Self {
        Self {
            issuer: "fermata".to_owned(),
            audience: "fermata".to_owned(),
            secret: None,
            keys: Vec::new(),
            leeway: Span::seconds(30),
        }
    }
}

impl Default for StreamSettings {
    fn default() -> Self {
        Self {
            per_tenant: 5_000,
            per_token: 2_000,
            buffer: 32 * MIB,
            keep_alive: Span::seconds(15),
            retry: Span::seconds(1),
            poll: Span::seconds(1),
        }
    }
}

impl Default for TelemetrySettings {
    fn default() -> Self {
        Self { endpoint: None, service_name: "fermata".to_owned(), sample_ratio: 1.0, record_content: false }
    }
}

impl Default for WorkerSettings {
    fn default() -> Self {
        Self {
            runs: 256,
            steps: 256,
            runs_per_tenant: 128,
            steps_per_tenant: 128,
            live_runs_per_tenant: 100_000,
            lease: Span::seconds(15),
            poll: Span::seconds(1),
        }
    }
}

impl LimitSettings {
    /// What an event says besides its payload takes less, in bytes.
    const ENVELOPE: usize = 1024;

    /// The most bytes of JSON that an event's payload may have.
    #[must_use]
    pub const fn payload(&self) -> usize {
        self.event.saturating_sub(Self::ENVELOPE)
    }
}

impl Default for LimitSettings {
    fn default() -> Self {
        Self {
            event: 256 * KIB,
            output: MIB,
            arguments: 192 * KIB,
            input: 512 * KIB,
            definition: 256 * KIB,
            steps: 1_000,
            items: 10_000,
        }
    }
}
