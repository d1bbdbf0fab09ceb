//! PostgreSQL refuses to run as root. Started by root, it runs in a user namespace where root's files
//! belong to an ordinary user, or, where namespaces are refused, under an unprivileged account.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt, lchown},
    path::Path,
    process::Stdio,
};

use tokio::process::Command;

use crate::db::Failure;

/// Who the server runs as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Identity {
    /// Ourselves: we are not root.
    Own,
    /// Root outside, this user inside a user namespace.
    Namespace(Account),
    /// An account of the machine.
    Account(Account),
}

/// A line of the machine's user table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Account {
    name: String,
    uid: u32,
    gid: u32,
}

impl Identity {
    /// The best one that works here: a user namespace before an account.
    ///
    /// # Errors
    /// When root has nobody to hand the server to.
    pub(super) async fn choose() -> Result<Self, Failure> {
        if !rustix::process::geteuid().is_root() {
            return Ok(Self::Own);
        }
        let table = fs::read_to_string("/etc/passwd").unwrap_or_default();
        let accounts = accounts(&table);
        let inside = accounts.first().cloned().map(Self::Namespace);
        for identity in inside.into_iter().chain(accounts.into_iter().map(Self::Account)) {
            if identity.can_enter(Path::new("/")).await {
                return Ok(identity);
            }
        }
        Err(Failure::Server(
            "PostgreSQL does not run as root, user namespaces are refused here and there is no account such as \
             `postgres` or `nobody` to run it: start as another user, or name a database with --database-url"
                .to_owned(),
        ))
    }

    /// The account it falls back to.
    #[cfg(test)]
    pub(super) fn account() -> Option<Self> {
        accounts(&fs::read_to_string("/etc/passwd").ok()?).into_iter().next().map(Self::Account)
    }

    /// A command that runs as this identity, in a clean environment as far as PostgreSQL reads it.
    pub(super) fn command(&self, program: &Path) -> Command {
        let mut command = match self {
            Self::Own => Command::new(program),
            Self::Namespace(account) => {
                let mut command = Command::new("unshare");
                command.args(["--user", &format!("--map-user={}", account.uid), "--"]).arg(program);
                command
            }
            Self::Account(account) => {
                let mut command = Command::new(program);
                command.uid(account.uid).gid(account.gid);
                command
            }
        };
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"PG")) {
            command.env_remove(name);
        }
        command.env("LC_ALL", "C").current_dir("/").stdin(Stdio::null());
        command
    }

    /// Whether it may pass into `dir`.
    pub(super) async fn can_enter(&self, dir: &Path) -> bool {
        let mut test = self.command(Path::new("/bin/sh"));
        test.args(["-c", "test -x \"$0\""]).arg(dir).stdout(Stdio::null()).stderr(Stdio::null());
        test.status().await.is_ok_and(|status| status.success())
    }

    /// Makes everything under `path` its own.
    pub(super) fn take(&self, path: &Path) -> Result<(), Failure> {
        let (uid, gid) = match self {
            Self::Own => return Ok(()),
            Self::Namespace(_) => (0, 0),
            Self::Account(account) => (account.uid, account.gid),
        };
        if fs::symlink_metadata(path).is_ok_and(|meta| meta.uid() == uid) {
            return Ok(());
        }
        hand_over(path, uid, gid).map_err(Failure::at(format!("hand to user {uid}"), path))
    }

    /// The owner that its private directories must have.
    pub(super) fn owner(&self) -> u32 {
        match self {
            Self::Own => rustix::process::geteuid().as_raw(),
            Self::Namespace(_) => 0,
            Self::Account(account) => account.uid,
        }
    }

    /// The line to show when it is not simply ourselves.
    pub(super) fn notice(&self, pg: &Path) -> Option<String> {
        match self {
            Self::Own => None,
            Self::Namespace(account) => Some(format!(
                "PostgreSQL does not run as root: it runs in a user namespace, as uid {} ({}) inside it",
                account.uid, account.name
            )),
            Self::Account(account) => Some(format!(
                "PostgreSQL does not run as root and namespaces are refused: it runs as {}, in {}",
                account.name,
                pg.display()
            )),
        }
    }
}

// initdb wants a name for its user id, so only ids in the table will do.
fn accounts(table: &str) -> Vec<Account> {
    let read = |line: &str| {
        let mut fields = line.split(':');
        let name = fields.next()?.to_owned();
        let uid = fields.nth(1)?.parse().ok().filter(|uid| *uid != 0)?;
        let gid = fields.next()?.parse().ok()?;
        Some(Account { name, uid, gid })
    };
    let known: Vec<_> = table.lines().filter_map(read).collect();
    let pick = |wanted: &str| known.iter().find(|account| account.name == wanted).cloned();
    let mut best: Vec<_> = ["postgres", "nobody"].into_iter().filter_map(pick).collect();
    if best.is_empty() {
        best.extend(known.into_iter().next());
    }
    best
}

// Children first, so that a hand-over cut short is begun again: the root changes last.
fn hand_over(path: &Path, uid: u32, gid: u32) -> io::Result<()> {
    if fs::symlink_metadata(path)?.is_dir() {
        for entry in fs::read_dir(path)? {
            hand_over(&entry?.path(), uid, gid)?;
        }
    }
    lchown(path, Some(uid), Some(gid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_accounts_are_postgres_then_nobody_and_never_root() {
        let table = "root:x:0:0::/root:/bin/sh\ndaemon:x:1:1::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n\
                     postgres:x:101:104:P,,,:/var/lib/postgresql:/bin/bash\n";
        let names: Vec<_> = accounts(table).into_iter().map(|account| (account.name, account.uid)).collect();
        assert_eq!(names, [("postgres".to_owned(), 101), ("nobody".to_owned(), 65534)]);
        assert_eq!(accounts("root:x:0:0\nweb:x:7:8::/:/bin/sh").first().map(|account| account.gid), Some(8));
        assert!(accounts("root:x:0:0::/root:/bin/sh\n+::::::\nbroken").is_empty());
    }
}
