//! Where a data directory's cluster lies: in it, unless the identity that runs the server cannot get there.

use std::{
    fs::{self, DirBuilder},
    os::unix::{
        fs::{DirBuilderExt, MetadataExt, symlink},
        net::UnixListener,
    },
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use super::{data_dir::DataDir, identity::Identity, orphan};
use crate::db::Failure;

/// The file that clients connect to is named after this port; nothing listens on a network.
pub(super) const PORT: u16 = 5432;

/// The folders of one cluster.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// What the server may enter: the data directory or its stand-in.
    pub(super) base: PathBuf,
    /// The cluster.
    pub(super) pg: PathBuf,
    /// The server's own words.
    pub(super) log: PathBuf,
}

impl Place {
    /// Finds the place, and makes a stand-in where the server cannot enter the data directory; a link then
    /// says where it is.
    ///
    /// # Errors
    /// When folders cannot be made, or an old server in the way cannot be stopped.
    pub(super) async fn of(dir: &DataDir, identity: &Identity) -> Result<Self, Failure> {
        let link = dir.path().join("pg");
        let base = match fs::read_link(&link) {
            Ok(target) => target.parent().unwrap_or(&target).to_owned(),
            Err(_) if identity.can_enter(dir.path()).await => dir.path().to_owned(),
            Err(_) => stand_in(dir.path(), &link, identity).await?,
        };
        Ok(Self { pg: base.join("pg"), base, log: dir.path().join("postgres.log") })
    }

    /// The major version of PostgreSQL that made the cluster, if there is one.
    pub(super) fn version(&self) -> Option<u32> {
        fs::read_to_string(self.pg.join("PG_VERSION")).ok()?.trim().parse().ok()
    }

    /// A private folder for the socket. Its path may be 107 bytes at most, so it may have to be under the
    /// machine's temporary folder; what a dead server left there is removed.
    ///
    /// # Errors
    /// When there is no folder that is short enough, allows sockets and is nobody else's.
    pub(super) fn socket_dir(&self, identity: &Identity) -> Result<PathBuf, Failure> {
        let name = format!("fermata-{}", short_hash(&self.base));
        let candidates = [self.base.join("run"), std::env::temp_dir().join(&name), Path::new("/tmp").join(&name)];
        let mut refusal = None;
        for dir in candidates {
            match private(&dir, identity).and_then(|()| accepts_sockets(&dir)) {
                Ok(()) => return Ok(dir),
                Err(why) => {
                    drop(fs::remove_dir(&dir));
                    refusal = Some(why);
                }
            }
        }
        Err(refusal.unwrap_or_else(|| Failure::Server("there is no folder for a socket".to_owned())))
    }
}

async fn stand_in(data_dir: &Path, link: &Path, identity: &Identity) -> Result<PathBuf, Failure> {
    if link.exists() {
        return Err(Failure::Server(format!(
            "the server cannot enter {} any more: move it where it can, or start as the user it belongs to",
            link.display()
        )));
    }
    let base = Path::new("/var/lib/fermata").join(short_hash(data_dir));
    // Without the link it belongs to a data directory that was deleted.
    if base.exists() {
        orphan::stop(&base.join("pg")).await?;
        fs::remove_dir_all(&base).map_err(Failure::at("remove", &base))?;
    }
    DirBuilder::new().recursive(true).mode(0o711).create(&base).map_err(Failure::at("make", &base))?;
    if !identity.can_enter(&base).await {
        return Err(Failure::Server(format!(
            "the server can enter neither {} nor {}: choose a --data-dir it can enter",
            data_dir.display(),
            base.display()
        )));
    }
    symlink(base.join("pg"), link).map_err(Failure::at("link", link))?;
    Ok(base)
}

fn private(dir: &Path, identity: &Identity) -> Result<(), Failure> {
    match DirBuilder::new().mode(0o700).create(dir) {
        Ok(()) => identity.take(dir)?,
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(Failure::at("make", dir)(error)),
    }
    let meta = fs::symlink_metadata(dir).map_err(Failure::at("inspect", dir))?;
    let ours = [identity.owner(), rustix::process::geteuid().as_raw()].contains(&meta.uid());
    if meta.is_dir() && ours && meta.mode() & 0o077 == 0 {
        identity.take(dir)
    } else {
        Err(Failure::Server(format!("{} is not a private folder of ours: remove it", dir.display())))
    }
}

fn accepts_sockets(dir: &Path) -> Result<(), Failure> {
    for left in [format!(".s.PGSQL.{PORT}"), format!(".s.PGSQL.{PORT}.lock"), ".s.PGSQL.test".to_owned()] {
        drop(fs::remove_file(dir.join(left)));
    }
    // As long as the real one.
    let test = dir.join(".s.PGSQL.test");
    UnixListener::bind(&test).map_err(Failure::at("listen at", &test))?;
    fs::remove_file(&test).map_err(Failure::at("remove", &test))
}

fn short_hash(path: &Path) -> String {
    let digest = Sha256::digest(path.as_os_str().as_encoded_bytes());
    digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_path_moves_the_socket_and_a_shared_folder_is_refused() {
        let scratch = std::env::temp_dir().join(format!("fermata-place-{}", std::process::id()));
        let base = scratch.join("x".repeat(90));
        fs::create_dir_all(&base).unwrap();
        let place = Place { pg: base.join("pg"), log: base.join("log"), base: base.clone() };
        let dir = place.socket_dir(&Identity::Own).unwrap();
        assert!(!dir.starts_with(&base) && dir.as_os_str().len() < 90, "{}", dir.display());
        fs::remove_dir(&dir).unwrap();

        let open = scratch.join("open");
        DirBuilder::new().mode(0o755).create(&open).unwrap();
        assert!(private(&open, &Identity::Own).is_err());
        fs::remove_dir_all(&scratch).unwrap();
    }
}
