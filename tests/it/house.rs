//! The rules of the house, read from the sources: which rooms may use which, how long a file may be, where
//! SQL may stand, and what a file may not be called.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// From the ground up. A room may use those before it.
const ROOMS: [&str; 19] = [
    "kernel",
    "config",
    "telemetry",
    "auth",
    "db",
    "http",
    "audit",
    "journal",
    "stream",
    "identity",
    "integration",
    "llm",
    "approval",
    "usage",
    "tool",
    "agent",
    "run",
    "app",
    "cli",
];

/// Rooms whose files may all hold SQL: it is what they are for. Elsewhere it stands in `store.rs`.
const SPEAK_SQL: [&str; 2] = ["db", "journal"];

/// Names that say nothing.
const EMPTY_NAMES: [&str; 6] = ["util", "utils", "helper", "helpers", "common", "manager"];

const LONGEST: usize = 500;

struct Source {
    /// From the repository's root.
    path: String,
    text: String,
}

impl Source {
    fn all_below(folders: &[&str]) -> Vec<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut left: Vec<PathBuf> = folders.iter().map(|folder| root.join(folder)).collect();
        let mut found = Vec::new();
        while let Some(path) = left.pop() {
            if path.is_dir() {
                left.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            } else if path.extension().is_some_and(|kind| kind == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                found.push(Self { path: path.strip_prefix(root).unwrap().to_str().unwrap().to_owned(), text });
            }
        }
        assert!(!found.is_empty());
        found
    }

    /// Whether it is compiled for tests only.
    fn is_test(&self) -> bool {
        self.path.split('/').any(|part| matches!(part, "tests" | "tests.rs" | "fixture.rs"))
    }

    /// The room it is in; none for the crate's own roof and for `main`.
    fn room(&self) -> Option<&str> {
        self.path.strip_prefix("src/")?.split_once('/').map(|(room, _)| room)
    }

    /// The part that is in the product, without comments.
    fn product(&self) -> String {
        let product = self.text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        product.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
    }

    /// The rooms it names: `crate::db::…` and `use crate::{db::…, http::{…}}`.
    fn uses(&self) -> Vec<String> {
        let product = self.product();
        let mut used = Vec::new();
        for (at, _) in product.match_indices("crate::") {
            // `$crate` and `some_crate::` are others.
            if product[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_') {
                continue;
            }
            let rest = &product[at + "crate::".len()..];
            match rest.strip_prefix('{') {
                Some(group) => used.extend(first_names(group)),
                None => used.push(name(rest)),
            }
        }
        used.sort_unstable();
        used.dedup();
        used
    }
}

fn name(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

/// The first name of each entry of a group, whose end is the brace that was open before it.
fn first_names(group: &str) -> Vec<String> {
    let (mut depth, mut fresh, mut names) = (0_u32, true, Vec::new());
    for (at, c) in group.char_indices() {
        match c {
            '}' if depth == 0 => break,
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => fresh = true,
            c if fresh && depth == 0 && !c.is_whitespace() => {
                names.push(name(&group[at..]));
                fresh = false;
            }
            _ => {}
        }
    }
    names
}

#[test]
fn groups_of_imports_are_read() {
    let text = "use crate::{\n    db::{Database, TenantTx},\n    http::{self, Ctx},\n    kernel::Error,\n};\nfn f(_: crate::tool::Tool) {}";
    let source = Source { path: "src/run/x.rs".to_owned(), text: text.to_owned() };
    assert_eq!(source.uses(), ["db", "http", "kernel", "tool"]);
}

#[test]
fn rooms_use_only_those_below_them() {
    let place = |room: &str| ROOMS.iter().position(|known| *known == room);
    let mut wrong = Vec::new();
    for source in Source::all_below(&["src"]).iter().filter(|source| !source.is_test()) {
        let Some(room) = source.room() else { continue };
        let Some(here) = place(room) else { panic!("{}: give the room `{room}` a tier in this test", source.path) };
        for used in source.uses() {
            match place(&used) {
                Some(there) if there <= here => {}
                Some(_) => wrong.push(format!("{} uses `{used}`, which stands above `{room}`", source.path)),
                None => wrong.push(format!("{} uses `crate::{used}`, which is no room", source.path)),
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_crate_lists_every_room() {
    let lib = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/src/lib.rs")).unwrap();
    let mut listed: Vec<_> = lib.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';')).collect();
    let mut rooms = ROOMS.to_vec();
    listed.sort_unstable();
    rooms.sort_unstable();
    assert_eq!(listed, rooms);
}

#[test]
fn no_file_is_too_long_and_none_has_an_empty_name() {
    let mut wrong = Vec::new();
    for source in Source::all_below(&["src", "tests", "entity/src", "migration/src"]) {
        let lines = source.text.lines().count();
        if lines > LONGEST {
            wrong.push(format!("{} has {lines} lines", source.path));
        }
        if source.path.split(['/', '.']).any(|part| EMPTY_NAMES.contains(&part)) {
            wrong.push(format!("{} has a name that says nothing", source.path));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn sql_stands_in_stores() {
    let mut wrong = Vec::new();
    for source in Source::all_below(&["src"]).iter().filter(|source| !source.is_test()) {
        let allowed = source.room().is_some_and(|room| SPEAK_SQL.contains(&room)) || source.path.ends_with("/store.rs");
        let speaks = ["sqlx::query", "sqlx::raw_sql", "query_as(", "query_scalar(", "Statement::from"];
        if !allowed && speaks.iter().any(|word| source.product().contains(word)) {
            wrong.push(source.path.clone());
        }
    }
    assert!(wrong.is_empty(), "SQL outside of stores: {wrong:#?}");
}

#[test]
fn the_product_is_finished_and_does_not_panic() {
    let mut wrong = Vec::new();
    for source in Source::all_below(&["src", "entity/src", "migration/src"]).iter().filter(|source| !source.is_test()) {
        let product = source.product();
        for word in ["todo!", "unimplemented!", "unreachable!", "dbg!", "#[allow", "#![allow", "unsafe "] {
            if product.contains(word) {
                wrong.push(format!("{} has `{word}`", source.path));
            }
        }
        for word in ["TODO", "FIXME", "XXX"] {
            if source.text.contains(word) {
                wrong.push(format!("{} has `{word}`", source.path));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
