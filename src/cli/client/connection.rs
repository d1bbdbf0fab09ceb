use std::{
    env, fs,
    path::{Path, PathBuf},
};

use clap::{Args, ValueEnum};
use reqwest::Url;
use secrecy::SecretString;
use serde::Deserialize;

use super::failure::{Failure, Result};

/// Which server, and as whom.
#[derive(Debug, Args)]
#[command(next_help_heading = "Where to talk to")]
pub(in crate::cli) struct Connection {
    /// The server [else the `baseUrl` of dev.json]
    #[arg(long, env = "FERMATA_URL", value_name = "URL")]
    url: Option<String>,
    /// The bearer token [else one of dev.json]
    #[arg(long, env = "FERMATA_TOKEN", value_name = "JWT", hide_env_values = true)]
    token: Option<String>,
    /// Use this token of dev.json, whatever `--token` says
    #[arg(long = "as", value_enum, value_name = "ROLE")]
    role: Option<Role>,
    /// Where dev.json is [else `.fermata` here or in a parent folder]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

/// The tokens that `fermata dev` hands out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum Role {
    /// Everything
    Owner,
    /// Everything but billing
    Admin,
    /// Starts and steers runs
    Operator,
    /// Decides
    Approver,
    /// Reads
    Viewer,
}

/// A server, and the token for it.
#[derive(Clone, Debug)]
pub(in crate::cli) struct Target {
    pub(in crate::cli) base: Url,
    pub(in crate::cli) token: SecretString,
    /// Where the token came from, when `fermata dev` wrote it: a restart may have written another.
    dev: Option<(PathBuf, Role)>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Dev {
    base_url: String,
    tokens: Tokens,
}

#[derive(Deserialize)]
struct Tokens {
    owner: SecretString,
    admin: SecretString,
    operator: SecretString,
    approver: SecretString,
    viewer: SecretString,
}

impl Connection {
    /// Finds the server and the token; `role` is the one of dev.json when none is asked for.
    pub(in crate::cli) fn target(&self, role: Role) -> Result<Target> {
        let here = env::current_dir().unwrap_or_default();
        self.target_from(role, &here)
    }

    fn target_from(&self, role: Role, here: &Path) -> Result<Target> {
        // A variable that is set but empty says nothing.
        let url = self.url.as_deref().filter(|url| !url.is_empty());
        let token = self.token.as_deref().filter(|token| !token.is_empty() && self.role.is_none());
        if let (Some(url), Some(token)) = (url, token) {
            return Target::new(url, token);
        }
        let url = url.map(base_url).transpose()?;
        let Some(path) = self.dev_json(here) else {
            return Err(match url {
                Some(_) => usage("a token is needed: give --token, or set FERMATA_TOKEN"),
                None => usage(
                    "no server is named: run `fermata dev` (and call from the folder it runs in, or give \
                     --data-dir), or give --url and --token",
                ),
            });
        };
        let role = self.role.unwrap_or(role);
        let target = Target::dev(path, role)?;
        match (url, token) {
            (None, Some(token)) => Ok(Target { token: token.into(), dev: None, ..target }),
            // A token goes to the server it is for and to no other.
            (Some(base), None) if base != target.base => Err(usage(&format!(
                "{base} is not the server of dev.json ({}): give --token for it, or leave --url out",
                target.base
            ))),
            _ => Ok(target),
        }
    }

    fn dev_json(&self, here: &Path) -> Option<PathBuf> {
        match &self.data_dir {
            Some(dir) => Some(dir.join("dev.json")),
            None => here.ancestors().map(|dir| dir.join(".fermata/dev.json")).find(|path| path.is_file()),
        }
    }
}

impl Target {
    /// The server at `url`, spoken to with `token`.
    pub(super) fn new(url: &str, token: &str) -> Result<Self> {
        Ok(Self { base: base_url(url)?, token: token.into(), dev: None })
    }

    fn dev(path: PathBuf, role: Role) -> Result<Self> {
        let shown = path.display();
        let text = fs::read_to_string(&path).map_err(|e| usage(&format!("{shown}: {e}; is `fermata dev` running?")))?;
        let dev: Dev = serde_json::from_str(&text).map_err(|e| usage(&format!("{shown}: {e}")))?;
        let Tokens { owner, admin, operator, approver, viewer } = dev.tokens;
        let token = match role {
            Role::Owner => owner,
            Role::Admin => admin,
            Role::Operator => operator,
            Role::Approver => approver,
            Role::Viewer => viewer,
        };
        Ok(Self { base: base_url(&dev.base_url)?, token, dev: Some((path, role)) })
    }

    /// What dev.json says now, after a restart of `fermata dev`; the same target where it says nothing new.
    pub(super) fn again(&self) -> Self {
        self.dev.as_ref().and_then(|(path, role)| Self::dev(path.clone(), *role).ok()).unwrap_or_else(|| self.clone())
    }

    /// Where `fermata dev` keeps everything, when the token is one of its.
    pub(in crate::cli) fn data_dir(&self) -> Option<&Path> {
        self.dev.as_ref().and_then(|(path, _)| path.parent())
    }

    /// The URL of a path under the server's own, which may have a prefix.
    pub(super) fn at(&self, path: &[&str]) -> Result<Url> {
        let mut url = self.base.clone();
        match url.path_segments_mut() {
            Ok(mut segments) => segments.pop_if_empty().extend(path),
            Err(()) => return Err(usage(&format!("{} is no URL of a server", self.base))),
        };
        Ok(url)
    }
}

fn base_url(text: &str) -> Result<Url> {
    let url = Url::parse(text).map_err(|e| usage(&format!("`{text}` is no URL such as http://127.0.0.1:8080: {e}")))?;
    if matches!(url.scheme(), "http" | "https") {
        Ok(url)
    } else {
        Err(usage(&format!("`{text}` is no URL such as http://127.0.0.1:8080")))
    }
}

fn usage(message: &str) -> Failure {
    Failure::Usage(message.to_owned())
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    const DEV: &str = r#"{"baseUrl":"http://127.0.0.1:8080","tenantId":"tnt_x",
        "tokens":{"owner":"o","admin":"m","operator":"p","approver":"a","viewer":"v"}}"#;

    fn connection(url: Option<&str>, token: Option<&str>, role: Option<Role>) -> Connection {
        Connection { url: url.map(Into::into), token: token.map(Into::into), role, data_dir: None }
    }

    #[test]
    fn dev_json_is_found_in_a_parent_folder_and_its_tokens_stay_at_home() {
        let root = env::temp_dir().join(format!("fermata-connection-{}", std::process::id()));
        let deep = root.join("a/b");
        fs::create_dir_all(&deep).unwrap();
        fs::create_dir_all(root.join(".fermata")).unwrap();
        fs::write(root.join(".fermata/dev.json"), DEV).unwrap();
        let token = |c: Connection| c.target_from(Role::Operator, &deep).map(|t| t.token.expose_secret().to_owned());

        assert_eq!(token(connection(None, None, None)).unwrap(), "p");
        assert_eq!(token(connection(Some(""), Some(""), None)).unwrap(), "p");
        assert_eq!(token(connection(None, Some("mine"), None)).unwrap(), "mine");
        assert_eq!(token(connection(None, Some("mine"), Some(Role::Viewer))).unwrap(), "v");
        assert_eq!(token(connection(Some("http://127.0.0.1:8080/"), None, None)).unwrap(), "p");
        assert!(matches!(token(connection(Some("https://elsewhere"), None, None)), Err(Failure::Usage(_))));
        assert!(matches!(
            token(connection(Some("https://elsewhere"), None, Some(Role::Owner))),
            Err(Failure::Usage(_))
        ));
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn paths_go_under_the_servers_prefix_and_cannot_leave_it() {
        let connection = connection(Some("https://host/fermata/"), Some("t"), None);
        let target = connection.target_from(Role::Operator, Path::new("/")).unwrap();
        assert_eq!(
            target.at(&["workflow", "definitions", "a/../b?c"]).unwrap().as_str(),
            "https://host/fermata/workflow/definitions/a%2F..%2Fb%3Fc"
        );
    }
}
