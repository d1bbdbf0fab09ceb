//! What a killed process left behind: a server that is still running, or its stale lock files.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::time::{Instant, sleep};

use crate::db::Failure;

/// Stops every server process of the cluster in `pg` and removes its lock file, so that a new server can
/// start. The data directory's lock must be ours.
///
/// # Errors
/// When a process does not even end when killed.
pub(super) async fn stop(pg: &Path) -> Result<(), Failure> {
    let Ok(pg) = pg.canonicalize() else { return Ok(()) };
    // Fast shutdown; immediate shutdown; then there is nothing left to ask.
    for (signal, patience) in [(Signal::INT, 10), (Signal::QUIT, 5), (Signal::KILL, 5)] {
        let left = processes(&pg);
        if left.is_empty() {
            break;
        }
        tracing::info!(?left, "a server of an earlier start is still running; stopping it");
        // The postmaster stops its own; without one each ends by itself, or is told.
        let told = match leader(&pg).filter(|pid| left.contains(pid)) {
            Some(leader) if signal != Signal::KILL => vec![leader],
            _ => left,
        };
        for pid in told.into_iter().filter_map(Pid::from_raw) {
            // It may have ended meanwhile.
            let _ = kill_process(pid, signal);
        }
        wait(&pg, Duration::from_secs(patience)).await;
    }
    let left = processes(&pg);
    if !left.is_empty() {
        return Err(Failure::Server(format!("server processes {left:?} of {} do not end: stop them", pg.display())));
    }
    // Its process id may be another program's by now, which would make the server refuse to start.
    let stale = pg.join("postmaster.pid");
    match fs::remove_file(&stale) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Failure::at("remove", &stale)(error)),
        _ => Ok(()),
    }
}

async fn wait(pg: &Path, patience: Duration) {
    let deadline = Instant::now() + patience;
    while !processes(pg).is_empty() && Instant::now() < deadline {
        sleep(Duration::from_millis(20)).await;
    }
}

// The postmaster's process id as its lock file has it, dead or alive.
fn leader(pg: &Path) -> Option<i32> {
    fs::read_to_string(pg.join("postmaster.pid")).ok()?.lines().next()?.trim().parse().ok()
}

// The living server processes of this cluster. Each works in the cluster's folder; the postmaster is also
// known by its arguments, which anybody may read.
fn processes(pg: &Path) -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return leader(pg).filter(|pid| is_postmaster_by_ps(*pid, pg)).into_iter().collect();
    };
    let ours = |pid: &i32| {
        let dir = PathBuf::from(format!("/proc/{pid}"));
        let server = fs::read_to_string(dir.join("comm")).is_ok_and(|name| name.trim_end() == "postgres");
        server && (fs::read_link(dir.join("cwd")).is_ok_and(|cwd| cwd == pg) || is_postmaster(&dir, pg))
    };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(ours).collect()
}

fn is_postmaster(dir: &Path, pg: &Path) -> bool {
    let arguments = fs::read(dir.join("cmdline")).unwrap_or_default();
    let mut arguments = arguments.split(|byte| *byte == 0);
    arguments.any(|argument| argument == b"-D") && arguments.next() == Some(pg.as_os_str().as_encoded_bytes())
}

// Where there is no /proc.
fn is_postmaster_by_ps(pid: i32, pg: &Path) -> bool {
    let output = Command::new("ps").args(["-o", "command=", "-p", &pid.to_string()]).output();
    output.is_ok_and(|output| {
        let command = String::from_utf8_lossy(&output.stdout);
        command.contains("postgres") && command.contains(&format!("-D {}", pg.display()))
    })
}
