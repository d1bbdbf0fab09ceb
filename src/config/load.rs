use std::path::Path;

use figment::{
    Figment, Profile,
    providers::{Env, Format, Serialized, Toml},
};
use thiserror::Error;

use super::Settings;

/// A setting that cannot be used, named.
#[derive(Debug, Error)]
#[error("setting `{setting}` ({source_name}): {reason}")]
pub struct SettingError {
    setting: String,
    source_name: String,
    reason: String,
}

/// Variables with the prefix that are not settings: the log filter, and what the client commands read.
const NOT_SETTINGS: [&str; 3] = ["log", "url", "token"];

/// Secrets and addresses are taken as text, whatever they look like: a secret of digits is not a number.
const TEXT: [&str; 6] =
    ["auth.secret", "auth.issuer", "auth.audience", "database.url", "database.admin_url", "database.direct_url"];

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
    extract(environment(Figment::new().merge(toml.profile(Profile::Default))))
}

fn environment(figment: Figment) -> Figment {
    let figment =
        figment.merge(prefixed().filter(|key| !NOT_SETTINGS.contains(&key.as_str()) && !is_text(key.as_str())));
    let texts = prefixed().filter(|key| is_text(key.as_str()));
    let bare = Env::raw().only(&["DATABASE_URL", "DATABASE_ADMIN_URL", "DATABASE_DIRECT_URL"]).map(section);
    // The prefixed name wins over the bare one, as the more particular.
    [bare, texts]
        .into_iter()
        .flat_map(|env| env.iter().collect::<Vec<_>>())
        .fold(figment, |figment, (key, value)| figment.merge(Serialized::default(key.as_str(), value)))
}

/// `FERMATA_HTTP_BODY_LIMIT` → `http.body_limit`.
fn prefixed() -> Env {
    Env::prefixed("FERMATA_").map(section)
}

fn section(key: &figment::value::UncasedStr) -> figment::value::Uncased<'_> {
    key.as_str().to_ascii_lowercase().replacen('_', ".", 1).into()
}

fn is_text(key: &str) -> bool {
    TEXT.contains(&key)
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
    use super::*;

    fn read(toml: &str) -> Result<Settings, SettingError> {
        extract(Figment::new().merge(Toml::string(toml)))
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

    #[test]
    fn a_variable_names_section_and_setting() {
        assert_eq!(section("HTTP_BODY_LIMIT".into()).as_str(), "http.body_limit");
        assert_eq!(section("DATABASE_URL".into()).as_str(), "database.url");
    }
}
