use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{Read, Seek, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use crate::{
    db::Failure,
    kernel::{Clock, Timestamp, wire_time},
};

/// A data directory that is ours alone for as long as a clone of this lives. The kernel holds the lock, so
/// a killed holder never blocks the next one.
#[derive(Clone, Debug)]
pub struct DataDir {
    path: PathBuf,
    lock: Arc<File>,
    since: Timestamp,
}

#[derive(Debug, Serialize, Deserialize)]
struct Holder {
    pid: u32,
    #[serde(with = "wire_time")]
    since: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    url: Option<String>,
}

impl DataDir {
    /// Makes the directory where there is none and takes it.
    ///
    /// # Errors
    /// [`Failure::Held`] at once when another process has it; it says which, since when and where it
    /// listens.
    pub fn claim(path: &Path, clock: &Clock) -> Result<Self, Failure> {
        // Others may pass through (an unprivileged server must), not look; what is secret has its own mode.
        DirBuilder::new().recursive(true).mode(0o711).create(path).map_err(Failure::at("make", path))?;
        let path = path.canonicalize().map_err(Failure::at("find", path))?;
        keep_out_of_git(&path)?;
        let file = path.join("lock");
        let lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&file)
            .map_err(Failure::at("open", &file))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Failure::Held(held(&path, lock))),
            Err(TryLockError::Error(source)) => return Err(Failure::at("lock", &file)(source)),
        }
        let dir = Self { path, lock: Arc::new(lock), since: clock.now() };
        dir.write(None)?;
        Ok(dir)
    }

    /// Lets a second start say where this process listens.
    ///
    /// # Errors
    /// When the lock file cannot be written.
    pub fn announce(&self, url: &str) -> Result<(), Failure> {
        self.write(Some(url.to_owned()))
    }

    /// The directory, absolute.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn write(&self, url: Option<String>) -> Result<(), Failure> {
        let holder = Holder { pid: std::process::id(), since: self.since, url };
        let mut file: &File = &self.lock;
        serde_json::to_vec(&holder)
            .map_err(std::io::Error::from)
            .and_then(|text| {
                file.rewind()?;
                file.set_len(0)?;
                file.write_all(&text)
            })
            .map_err(Failure::at("write", &self.path.join("lock")))
    }
}

fn held(path: &Path, mut lock: File) -> String {
    let mut text = String::new();
    let holder = lock.read_to_string(&mut text).ok().and_then(|_| serde_json::from_str::<Holder>(&text).ok());
    let who = holder.map_or_else(
        || "another process".to_owned(),
        |Holder { pid, since, url }| {
            let url = url.map(|url| format!(", at {url}")).unwrap_or_default();
            format!("process {pid} since {}{url}", wire_time::format(&since))
        },
    );
    format!("{} is in use by {who}. Stop it, or choose another --data-dir", path.display())
}

// Tokens and a database: nothing anybody wants to commit.
fn keep_out_of_git(dir: &Path) -> Result<(), Failure> {
    let file = dir.join(".gitignore");
    if file.exists() { Ok(()) } else { fs::write(&file, "*\n").map_err(Failure::at("write", &file)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_claim_says_who_holds_it_and_the_first_one_s_end_frees_it() {
        let scratch = std::env::temp_dir().join(format!("fermata-claim-{}", std::process::id()));
        let first = DataDir::claim(&scratch, &Clock::system()).unwrap();
        first.announce("http://127.0.0.1:8080").unwrap();
        let refusal = DataDir::claim(&scratch, &Clock::system()).unwrap_err().to_string();
        assert!(refusal.contains(&format!("process {}", std::process::id())), "{refusal}");
        assert!(refusal.contains("http://127.0.0.1:8080"), "{refusal}");
        drop(first);
        assert!(DataDir::claim(&scratch, &Clock::system()).is_ok());
        fs::remove_dir_all(&scratch).unwrap();
    }
}
