//! What the machine spent, from where Linux tells it; elsewhere there is nothing to tell.

use std::{fs, time::Instant};

use rustix::{
    param::{clock_ticks_per_second, page_size},
    process::{Resource, getrlimit, setrlimit},
    time::{ClockId, clock_gettime},
};
use serde::Serialize;

use crate::cli::client::failure::{Failure, Result};

/// Processors kept busy on average: 1.0 is one of them, all the time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Cost {
    /// By the load itself.
    pub(super) client: f64,
    /// By the server's process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) server: Option<f64>,
    /// By everything; what is left over is mostly the database.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) machine: Option<f64>,
}

/// Measures from now on.
#[derive(Debug)]
pub(super) struct Meter {
    server: Option<u32>,
    since: Instant,
    begin: Spent,
}

/// Seconds of processor time.
#[derive(Clone, Copy, Debug)]
struct Spent {
    client: f64,
    server: Option<f64>,
    machine: Option<f64>,
}

impl Meter {
    pub(super) fn start(server: Option<u32>) -> Self {
        Self { server, since: Instant::now(), begin: Spent::now(server) }
    }

    pub(super) fn read(&self) -> Cost {
        let (end, begin, wall) = (Spent::now(self.server), self.begin, self.since.elapsed().as_secs_f64());
        let rate = |to: Option<f64>, from: Option<f64>| Some(hundredths((to? - from?) / wall));
        Cost {
            client: hundredths((end.client - begin.client) / wall),
            server: rate(end.server, begin.server),
            machine: rate(end.machine, begin.machine),
        }
    }
}

impl Spent {
    fn now(server: Option<u32>) -> Self {
        let own = clock_gettime(ClockId::ProcessCPUTime);
        Self {
            client: own.tv_sec as f64 + own.tv_nsec as f64 / 1e9,
            server: server
                .and_then(|pid| fs::read_to_string(format!("/proc/{pid}/stat")).ok())
                .and_then(|s| of_process(&s)),
            machine: fs::read_to_string("/proc/stat").ok().and_then(|stat| of_machine(&stat)),
        }
    }
}

/// The bytes of memory a process has.
pub(super) fn resident(pid: u32) -> Option<u64> {
    let sizes = fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let pages: u64 = sizes.split(' ').nth(1)?.parse().ok()?;
    Some(pages * page_size() as u64)
}

/// Lets this process have that many files and connections open.
pub(super) fn allow_files(wanted: u64) -> Result<()> {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= wanted) {
        return Ok(());
    }
    limit.current = Some(wanted);
    let refused =
        |e| Failure::Usage(format!("{wanted} connections need as many open files (`ulimit -n {wanted}`): {e}"));
    setrlimit(Resource::Nofile, limit).map_err(refused)
}

/// User and system time, the fields 14 and 15; the name, the second, may have blanks in it.
fn of_process(stat: &str) -> Option<f64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    seconds([fields.next()?, fields.next()?])
}

/// User, nice, system, interrupts: the first line without idling, waiting and what guests got.
fn of_machine(stat: &str) -> Option<f64> {
    let fields: Vec<_> = stat.lines().next()?.strip_prefix("cpu ")?.split_whitespace().collect();
    match *fields.as_slice() {
        [user, nice, system, _, _, hard, soft, ..] => seconds([user, nice, system, hard, soft]),
        _ => None,
    }
}

fn seconds<const N: usize>(ticks: [&str; N]) -> Option<f64> {
    let ticks = ticks.into_iter().map(|field| field.parse::<u64>().ok()).sum::<Option<u64>>()?;
    Some(ticks as f64 / clock_ticks_per_second() as f64)
}

fn hundredths(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_tables_are_read() {
        let ticks = clock_ticks_per_second() as f64;
        let process = of_process("7 (a (b) c) S 1 7 7 0 -1 4194304 1 0 0 0 30 12 0 0 20 0 9 0 1 1 1");
        assert_eq!(process.map(|seconds| seconds * ticks), Some(42.0));
        let machine = of_machine("cpu  10 1 20 1000 50 3 4 9 8 7\ncpu0 1 1 1 1 1 1 1 1 1 1");
        assert_eq!(machine.map(|seconds| seconds * ticks), Some(38.0));
        assert_eq!((of_process("nonsense"), of_machine("nonsense")), (None, None));
    }

    #[test]
    fn work_costs_something() {
        let meter = Meter::start(Some(std::process::id()));
        let begin = Instant::now();
        while begin.elapsed().as_millis() < 30 {
            std::hint::spin_loop();
        }
        assert!(meter.read().client > 0.1);
    }
}
