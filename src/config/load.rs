use std::{convert::Infallible, ffi::OsString, path::Path};

use figment::{
    Figment, Metadata, Profile, Provider,
    providers::{Format, Toml},
    value::{Dict, Map, Value},
};
use thiserror::Error;

use super::{Settings, llm};
use crate::kernel::Span;

/// A setting that cannot be used, named.
#[derive(Debug, Error)]
#[error("setting `{setting}` ({source_name}): {reason}")]
pub struct SettingError {
    setting: String,
    source_name: String,
    reason: String,
}

/// Variables with the prefix that are not settings: the log filter, and what the client commands read.
const NOT_SETTINGS: [&str; 3] = ["LOG", "URL", "TOKEN"];

/// Names that count without the prefix, because everybody uses them, and what they set.
const BARE: [(&str, &str); 18] = [
    ("DATABASE_URL", "database.url"),
    ("DATABASE_ADMIN_URL", "database.admin_url"),
    ("DATABASE_DIRECT_URL", "database.direct_url"),
    ("OPENAI_API_KEY", "llm.providers.openai.key"),
    ("ANTHROPIC_API_KEY", "llm.providers.anthropic.key"),
    ("GEMINI_API_KEY", "llm.providers.gemini.key"),
    ("LLM_DEFAULT_TIMEOUT_SECONDS", "llm.default_timeout_seconds"),
    ("LLM_MAX_RETRIES", "llm.max_retries"),
    ("LLM_RETRY_INITIAL_DELAY", "llm.retry_initial_delay"),
    ("LLM_RETRY_MAX_DELAY", "llm.retry_max_delay"),
    ("CIRCUIT_BREAKER_FAILURE_THRESHOLD", "circuit_breaker.failure_threshold"),
    ("CIRCUIT_BREAKER_SUCCESS_THRESHOLD", "circuit_breaker.success_threshold"),
    ("CIRCUIT_BREAKER_TIMEOUT_SECONDS", "circuit_breaker.timeout_seconds"),
    ("JOB_DEFAULT_MAX_RETRIES", "job.default_max_retries"),
    ("JOB_RETRY_DELAY_MIN", "job.retry_delay_min"),
    ("JOB_RETRY_DELAY_MAX", "job.retry_delay_max"),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "telemetry.endpoint"),
    ("OTEL_SERVICE_NAME", "telemetry.service_name"),
];

/// Secrets and addresses are taken as text, whatever they look like: a secret of digits is not a number.
const TEXT: [&str; 12] = [
    "auth.secret",
    "auth.issuer",
    "auth.audience",
    "database.url",
    "database.admin_url",
    "database.direct_url",
    "llm.providers.openai.key",
    "llm.providers.anthropic.key",
    "llm.providers.gemini.key",
    "vault.secret",
    "telemetry.endpoint",
    "telemetry.service_name",
];

/// Bounds of how long runs are kept: who follows one has to have the time to come back, and the calendar ends.
const LEAST_KEPT: Span = Span::seconds(3600);
const MOST_KEPT: Span = Span::seconds(100 * 366 * 24 * 3600);

/// The least room that an event has, in bytes: outputs and arguments that travel in one are not shortened.
const LEAST_EVENT: usize = 256 * 1024;

/// Reads the settings: defaults, then `file` (where it exists, or must exist because it was named), then
/// the environment.
///
/// # Errors
/// When a setting is unknown or has an impossible value; the message names it and where it was found.
pub fn load(file: Option<&Path>) -> Result<Settings, SettingError> {
    let toml = match file {
        Some(path) if !path.is_file() => {
            return Err(SettingError {
                setting: "--config".to_owned(),
                source_name: path.display().to_string(),
                reason: "there is no such file".to_owned(),
            });
        }
        Some(path) => Toml::file_exact(path),
        None => Toml::file("fermata.toml"),
    };
    let figment = environment(usual().merge(toml.profile(Profile::Default)), std::env::vars_os().filter_map(readable));
    let settings = extract(figment)?;
    check(&settings)?;
    Ok(settings)
}

/// What is there before any layer: defaults that are laid over one by one.
fn usual() -> Figment {
    Figment::new().merge(Toml::string(llm::PROVIDERS).profile(Profile::Default))
}

/// The environment's part. An empty variable is as good as none; `FERMATA_DATABASE_URL` wins over the bare
/// name as the more particular.
fn environment(figment: Figment, variables: impl Iterator<Item = (String, String)>) -> Figment {
    let (bare, prefixed): (Vec<_>, Vec<_>) =
        variables.filter_map(|(name, text)| Variable::read(name, text)).partition(|v| bare(&v.name).is_some());
    bare.into_iter().chain(prefixed).fold(figment, Figment::merge)
}

/// One variable that sets something.
struct Variable {
    name: String,
    key: String,
    text: String,
}

impl Variable {
    fn read(name: String, text: String) -> Option<Self> {
        let setting = if bare(&name).is_some() { name.as_str() } else { name.strip_prefix("FERMATA_")? };
        let spelled = || setting.to_ascii_lowercase().replacen('_', ".", 1);
        let key = bare(setting).map_or_else(spelled, str::to_owned);
        (!text.is_empty() && !NOT_SETTINGS.contains(&setting)).then_some(Self { name, key, text })
    }
}

/// What a name sets that counts without the prefix.
fn bare(name: &str) -> Option<&'static str> {
    BARE.iter().find(|(bare, _)| *bare == name).map(|(_, key)| *key)
}

impl Provider for Variable {
    fn metadata(&self) -> Metadata {
        Metadata::named(format!("variable {}", self.name))
    }

    fn data(&self) -> figment::Result<Map<Profile, Dict>> {
        let value = match TEXT.contains(&self.key.as_str()) {
            true => Value::from(self.text.clone()),
            false => self.text.parse().unwrap_or_else(|never: Infallible| match never {}),
        };
        let dict = figment::util::nest(&self.key, value).into_dict().unwrap_or_default();
        Ok(Profile::Default.collect(dict))
    }
}

/// A variable that is not UTF-8 is none of ours.
fn readable((name, text): (OsString, OsString)) -> Option<(String, String)> {
    Some((name.into_string().ok()?, text.into_string().ok()?))
}

/// What a type cannot say.
fn check(settings: &Settings) -> Result<(), SettingError> {
    let Settings { http, database, auth, worker, streams, limits, retention, llm, circuit_breaker, job, .. } = settings;
    let telemetry = &settings.telemetry;
    let is_time = |seconds: f64| (0.0..=86_400.0).contains(&seconds);
    let kept = retention.runs.unwrap_or(MOST_KEPT);
    let is_url = |url: &Option<String>| {
        url.as_deref().is_none_or(|url| url.starts_with("http://") || url.starts_with("https://"))
    };
    let rules = [
        ("http.public_url", is_url(&http.public_url), "write `https://host/prefix`"),
        ("http.body_limit", http.body_limit > 0, "it is above 0"),
        ("http.depth_limit", (1..=100).contains(&http.depth_limit), "it is from 1 to 100"),
        ("http.connections", http.connections > 0, "it is above 0"),
        ("http.requests_per_connection", http.requests_per_connection > 0, "it is above 0"),
        ("http.request_timeout", http.request_timeout > Span::seconds(60), "it is above 60s"),
        ("database.pool_size", database.pool_size > 1, "it is above 1"),
        ("auth.leeway", auth.leeway <= Span::seconds(300), "it is 5m at most"),
        ("worker.runs", worker.runs > 0, "it is above 0"),
        ("worker.steps", worker.steps > 0, "it is above 0"),
        ("worker.runs_per_tenant", worker.runs_per_tenant > 0, "it is above 0"),
        ("worker.steps_per_tenant", worker.steps_per_tenant > 0, "it is above 0"),
        ("worker.lease", worker.lease > Span::seconds(0), "it is above 0s"),
        ("worker.poll", worker.poll > Span::seconds(0), "it is above 0s"),
        ("streams.poll", streams.poll > Span::seconds(0), "it is above 0s"),
        ("streams.keep_alive", streams.keep_alive > Span::seconds(0), "it is above 0s"),
        ("limits.event", limits.event >= LEAST_EVENT, "it is 262144 at least"),
        (
            "limits.arguments",
            limits.arguments <= limits.event / 4 * 3,
            "it is three quarters of `limits.event` at most",
        ),
        ("llm.default_timeout_seconds", (1..=3600).contains(&llm.default_timeout_seconds), "it is from 1 to 3600"),
        ("llm.max_retries", llm.max_retries <= 20, "it is 20 at most"),
        ("llm.retry_initial_delay", is_time(llm.retry_initial_delay), "it is from 0 to 86400"),
        ("llm.retry_max_delay", is_time(llm.retry_max_delay), "it is from 0 to 86400"),
        ("llm.concurrency", llm.concurrency > 0, "it is above 0"),
        ("job.default_max_retries", job.default_max_retries <= 20, "it is 20 at most"),
        ("job.retry_delay_min", is_time(job.retry_delay_min), "it is from 0 to 86400"),
        ("job.retry_delay_max", is_time(job.retry_delay_max), "it is from 0 to 86400"),
        ("job.retry_delay_min", job.retry_delay_min <= job.retry_delay_max, "it is no more than `job.retry_delay_max`"),
        ("circuit_breaker.failure_threshold", circuit_breaker.failure_threshold > 0, "it is above 0"),
        ("circuit_breaker.success_threshold", circuit_breaker.success_threshold > 0, "it is above 0"),
        ("circuit_breaker.timeout_seconds", is_time(circuit_breaker.timeout_seconds), "it is from 0 to 86400"),
        ("telemetry.endpoint", is_url(&telemetry.endpoint), "write `http://host:4318`"),
        ("telemetry.sample_ratio", (0.0..=1.0).contains(&telemetry.sample_ratio), "it is from 0 to 1"),
        (
            "retention.runs",
            (LEAST_KEPT..=MOST_KEPT).contains(&kept),
            "it is from 1h to 100years; leave it out to keep runs",
        ),
    ];
    match rules.into_iter().find(|(_, holds, _)| !holds) {
        None => Ok(()),
        Some((setting, _, rule)) => Err(SettingError {
            setting: setting.to_owned(),
            source_name: "all layers together".to_owned(),
            reason: rule.to_owned(),
        }),
    }
}

fn extract(figment: Figment) -> Result<Settings, SettingError> {
    figment.extract().map_err(|error| {
        let found = match &error.kind {
            figment::error::Kind::UnknownField(field, _) => Some((*field).clone()),
            _ => None,
        };
        let mut path = error.path.clone();
        path.extend(found.filter(|field| path.last() != Some(field)));
        SettingError {
            setting: if path.is_empty() { "?".to_owned() } else { path.join(".") },
            source_name: error.metadata.as_ref().map_or_else(|| "default".to_owned(), |m| m.name.to_string()),
            reason: error.kind.to_string(),
        }
    })
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    fn read(toml: &str) -> Result<Settings, SettingError> {
        extract(usual().merge(Toml::string(toml)))
    }

    #[test]
    fn an_empty_file_gives_the_defaults() {
        let settings = read("").expect("defaults");
        assert_eq!(settings.http.body_limit, 1024 * 1024);
        assert_eq!(settings.http.listen.port(), 8080);
    }

    #[test]
    fn keys_of_every_kind_are_read() {
        let settings = read(
            "[[auth.keys]]\nkid = 'a'\nalgorithm = 'HS256'\nsecret = '0123'\n\
             [[auth.keys]]\nkid = 'b'\nalgorithm = 'EdDSA'\npublic_key = 'PEM'\n",
        )
        .expect("keys");
        assert_eq!(settings.auth.keys.len(), 2);
    }

    #[test]
    fn a_mistake_names_its_setting() {
        for (toml, name) in [
            ("[http]\nbody_limt = 1", "http.body_limt"),
            ("[htp]\nlisten = 'x'", "htp"),
            ("[http]\nlisten = 'nowhere'", "http.listen"),
            ("[streams]\nkeep_alive = 'often'", "streams.keep_alive"),
        ] {
            let error = read(toml).expect_err(toml).to_string();
            assert!(error.contains(&format!("`{name}`")), "{error}");
        }
    }

    fn read_variables(variables: &[(&str, &str)]) -> Result<Settings, SettingError> {
        let variables = variables.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned()));
        extract(environment(usual().merge(Toml::string("[http]\nbody_limit = 7")), variables))
    }

    /// A name that counts without the prefix, its default, something else, and how the settings say it.
    type Bare = (&'static str, &'static str, &'static str, fn(&Settings) -> String);

    #[test]
    fn what_is_done_about_models_and_jobs_is_set_under_the_names_that_everybody_knows() {
        let known: [Bare; 10] = [
            ("LLM_DEFAULT_TIMEOUT_SECONDS", "120", "7", |it| it.llm.default_timeout_seconds.to_string()),
            ("LLM_MAX_RETRIES", "3", "7", |it| it.llm.max_retries.to_string()),
            ("LLM_RETRY_INITIAL_DELAY", "1.0", "7.5", |it| format!("{:?}", it.llm.retry_initial_delay)),
            ("LLM_RETRY_MAX_DELAY", "60.0", "7.5", |it| format!("{:?}", it.llm.retry_max_delay)),
            ("CIRCUIT_BREAKER_FAILURE_THRESHOLD", "5", "7", |it| it.circuit_breaker.failure_threshold.to_string()),
            ("CIRCUIT_BREAKER_SUCCESS_THRESHOLD", "2", "7", |it| it.circuit_breaker.success_threshold.to_string()),
            ("CIRCUIT_BREAKER_TIMEOUT_SECONDS", "60.0", "7.5", |it| {
                format!("{:?}", it.circuit_breaker.timeout_seconds)
            }),
            ("JOB_DEFAULT_MAX_RETRIES", "3", "7", |it| it.job.default_max_retries.to_string()),
            ("JOB_RETRY_DELAY_MIN", "5.0", "7.5", |it| format!("{:?}", it.job.retry_delay_min)),
            ("JOB_RETRY_DELAY_MAX", "300.0", "777.5", |it| format!("{:?}", it.job.retry_delay_max)),
        ];
        for (name, usual, other, said) in known {
            assert_eq!(said(&read_variables(&[]).expect("defaults")), usual, "{name}");
            assert_eq!(said(&read_variables(&[(name, other)]).expect(name)), other, "{name}");
        }
    }

    #[test]
    fn the_environment_wins_and_text_stays_text() {
        let settings = read_variables(&[
            ("FERMATA_HTTP_BODY_LIMIT", "9"),
            ("FERMATA_HTTP_CORS_ORIGINS", "[\"https://a.example\"]"),
            ("FERMATA_AUTH_SECRET", "12345678901234567890"),
            ("FERMATA_DATABASE_URL", "postgres://particular"),
            ("DATABASE_URL", "postgres://bare"),
            ("DATABASE_ADMIN_URL", ""),
            ("FERMATA_LOG", "debug"),
            ("HOME", "/root"),
        ])
        .expect("settings");
        assert_eq!((settings.http.body_limit, settings.http.cors_origins.len()), (9, 1));
        let text = |secret: Option<secrecy::SecretString>| secret.map(|s| s.expose_secret().to_owned());
        assert_eq!(text(settings.auth.secret).as_deref(), Some("12345678901234567890"));
        assert_eq!(text(settings.database.url).as_deref(), Some("postgres://particular"));
        assert!(settings.database.admin_url.is_none());
    }

    #[test]
    fn a_key_in_the_environment_is_laid_over_its_provider() {
        let settings = read_variables(&[
            ("OPENAI_API_KEY", "123"),
            ("ANTHROPIC_API_KEY", "456"),
            ("GEMINI_API_KEY", "true"),
            ("LLM_MAX_RETRIES", "7"),
            ("FERMATA_CIRCUIT_BREAKER_TIMEOUT_SECONDS", "1.5"),
            ("FERMATA_LLM_PROVIDERS", "{local={api=\"openai\",url=\"http://127.0.0.1:11434/v1/\",keyless=true}}"),
        ])
        .expect("settings");
        let providers = settings.llm.providers;
        for (name, key) in
            [("openai", Some("123")), ("anthropic", Some("456")), ("gemini", Some("true")), ("local", None)]
        {
            assert_eq!(providers[name].key.as_ref().map(ExposeSecret::expose_secret), key, "{name}");
        }
        assert_eq!(providers["openai"].url, "https://api.openai.com/v1/");
        assert!(providers["local"].keyless && providers.len() == 5);
        assert_eq!((settings.llm.max_retries, settings.circuit_breaker.timeout_seconds), (7, 1.5));
    }

    #[test]
    fn a_wrong_variable_is_named() {
        for (name, text, setting) in [
            ("FERMATA_HTTP_BODY_LIMIT", "much", "http.body_limit"),
            ("FERMATA_HTTP_BODY_LIMT", "1", "http.body_limt"),
            ("FERMATA_NONSENSE", "1", "nonsense"),
        ] {
            let error = read_variables(&[(name, text)]).expect_err(name).to_string();
            assert!(error.contains(&format!("`{setting}` (variable {name})")), "{error}");
        }
    }

    #[test]
    fn impossible_values_are_refused() {
        assert!(check(&Settings::default()).is_ok());
        let error = check(&read("[http]\nrequest_timeout = '5s'").expect("read")).expect_err("too short");
        assert!(error.to_string().contains("http.request_timeout"), "{error}");
        // A worker that may hold nothing, or never looks, would sit there in silence.
        for idle in ["worker.runs_per_tenant = 0", "worker.poll = '0s'", "streams.poll = '0s'"] {
            let error = check(&read(idle).expect(idle)).expect_err(idle).to_string();
            assert!(error.contains(idle.split(' ').next().unwrap_or_default()), "{error}");
        }
        for wrong in [
            "telemetry.sample_ratio = 1.1",
            "telemetry.endpoint = 'collector:4318'",
            "job.retry_delay_min = 301.0",
            "limits.event = 200000",
            "limits.arguments = 250000",
        ] {
            let error = check(&read(wrong).expect(wrong)).expect_err(wrong).to_string();
            assert!(error.contains(wrong.split(' ').next().unwrap_or_default()), "{error}");
        }
        for (kept, usable) in [("90d", true), ("1h", true), ("59m", false), ("0s", false), ("200years", false)] {
            let settings = read(&format!("[retention]\nruns = '{kept}'")).expect(kept);
            assert_eq!(check(&settings).is_ok(), usable, "{kept}");
        }
    }
}
