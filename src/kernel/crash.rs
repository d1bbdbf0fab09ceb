//! Crash points: the named places where a debug build can be told to end itself as `kill -9` would. The doors
//! to the database and to the outside call [`point`] before and after they are gone through; a release build
//! has nothing of it.
//!
//! `CRASH_POINT=<name>#<n>` ends the process at the n-th passing of that point, `CRASH_POINT=list:<file>` writes
//! the name of every passing to a file, which is how the campaign in `tests/it/fire` knows them all.

use std::fmt::Display;

/// On which side of a door.
#[derive(Clone, Copy, Debug)]
pub enum Side {
    /// Nothing has happened yet.
    Before,
    /// It has happened, and nobody has been told.
    After,
}

/// The process may end here. `place` tells the passings of one door apart.
#[inline]
pub fn point(door: &'static str, side: Side, place: &dyn Display) {
    #[cfg(debug_assertions)]
    armed::pass(door, side, place);
    #[cfg(not(debug_assertions))]
    let _ = (door, side, place);
}

#[cfg(debug_assertions)]
mod armed {
    use std::{
        fmt::Display,
        fs::{File, OpenOptions},
        io::Write,
        sync::{
            OnceLock,
            atomic::{AtomicU64, Ordering},
        },
    };

    use rustix::process::{Signal, getpid, kill_process};

    use super::Side;

    enum Order {
        None,
        List(File),
        Crash { name: String, left: AtomicU64 },
    }

    static ORDER: OnceLock<Order> = OnceLock::new();

    fn order() -> Order {
        let Ok(text) = std::env::var("CRASH_POINT") else { return Order::None };
        if let Some(path) = text.strip_prefix("list:") {
            return OpenOptions::new().append(true).create(true).open(path).map_or(Order::None, Order::List);
        }
        let (name, left) = text.rsplit_once('#').unwrap_or((&text, "1"));
        Order::Crash { name: name.to_owned(), left: AtomicU64::new(left.parse().unwrap_or(1)) }
    }

    pub(super) fn pass(door: &'static str, side: Side, place: &dyn Display) {
        let order = ORDER.get_or_init(order);
        if matches!(order, Order::None) {
            return;
        }
        let side = match side {
            Side::Before => "before",
            Side::After => "after",
        };
        let here = format!("{door} {place} {side}");
        match order {
            Order::List(file) => {
                let mut file = file;
                // In one piece, since many threads write.
                let _ = file.write_all(format!("{here}\n").as_bytes());
            }
            Order::Crash { name, left } if *name == here && left.fetch_sub(1, Ordering::Relaxed) == 1 => {
                let _ = kill_process(getpid(), Signal::KILL);
                // The signal is on its way to every thread; this one goes no further.
                std::process::abort();
            }
            _ => {}
        }
    }
}
