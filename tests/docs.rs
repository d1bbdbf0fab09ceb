//! What the documentation lists is what there is.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use fermata::telemetry::{self, CATALOGUE};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(file: &str) -> String {
    fs::read_to_string(root().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// Every file below `dir` whose name ends so, but for what is built.
fn files(dir: &Path, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let (path, name) = (entry.path(), entry.file_name());
        let name = name.to_string_lossy();
        if entry.file_type().unwrap().is_dir() {
            if name != "target" && !(name.starts_with('.') && name != ".ci") {
                found.extend(files(&path, ending));
            }
        } else if name.ends_with(ending) {
            found.push(path);
        }
    }
    found
}

/// `docs/operations.md` has a row for every setting, with the default and the words of its doc comment.
#[test]
fn every_setting_is_described_as_in_the_code() {
    let page = read("docs/operations.md");
    let source = read("src/config/settings.rs") + &read("src/config/llm.rs");
    let mut rows = 0;
    for (section, name) in [
        ("Http", "http"),
        ("Database", "database"),
        ("Auth", "auth"),
        ("Stream", "streams"),
        ("Worker", "worker"),
        ("Limit", "limits"),
        ("Retention", "retention"),
        ("Tool", "tools"),
        ("Llm", "llm"),
        ("CircuitBreaker", "circuit_breaker"),
        ("Vault", "vault"),
        ("Job", "job"),
        ("Oauth", "oauth"),
        ("Telemetry", "telemetry"),
    ] {
        let body = source.split_once(&format!("pub struct {section}Settings {{\n")).expect(section).1;
        let mut text = String::new();
        for line in body.lines().take_while(|line| *line != "}").map(str::trim) {
            if let Some(comment) = line.strip_prefix("/// ") {
                text.push_str(comment);
                text.push(' ');
            } else if let Some((field, _)) = line.strip_prefix("pub ").and_then(|field| field.split_once(':')) {
                let (meaning, default) = text.split_once("Default").unwrap_or_else(|| panic!("{name}.{field}: {text}"));
                let default = default.trim_matches([' ', ':', '.']);
                let row = format!("| `{name}.{field}` | {default} | {} |\n", meaning.trim());
                assert!(page.contains(&row), "docs/operations.md lacks the row\n{row}");
                rows += 1;
                text.clear();
            }
        }
    }
    let listed = page.lines().filter(|line| {
        let named = line.strip_prefix("| `").and_then(|rest| rest.split_once('.'));
        named.is_some_and(|(section, _)| source.contains(&format!("/// `[{section}]`")))
    });
    assert_eq!(listed.count(), rows, "docs/operations.md has rows for settings that there are not");
}

#[test]
fn every_metric_is_described_and_no_other_is_measured() {
    let page = read("docs/operations.md");
    for (_, name, text) in CATALOGUE {
        assert!(page.contains(&format!("\n| `{name}` | {text} |\n")), "docs/operations.md lacks {name}: {text}");
    }
    let known: BTreeSet<_> = CATALOGUE.iter().map(|(_, name, _)| *name).collect();
    let mut measured = BTreeSet::new();
    for file in files(&root().join("src"), ".rs").iter().filter(|file| !file.ends_with("telemetry/metrics.rs")) {
        let source = fs::read_to_string(file).unwrap();
        for quoted in source.split('"').filter(|text| known.contains(text)) {
            measured.insert(quoted.to_owned());
        }
        for kind in ["counter!(", "gauge!(", "histogram!("] {
            for rest in source.split(kind).skip(1) {
                let name = rest.trim_start().strip_prefix('"').and_then(|rest| rest.split('"').next());
                assert!(name.is_none_or(|name| known.contains(name)), "{}: {name:?} is in no list", file.display());
            }
        }
    }
    measured.insert("fermata_build_info".to_owned());
    assert_eq!(measured.iter().map(String::as_str).collect::<BTreeSet<_>>(), known);
}

/// Rooms get hold of their metrics when they are made; made before the recorder, they would measure nothing.
#[tokio::test]
async fn what_the_rooms_measure_is_recorded_from_the_first_moment() {
    fermata::app::openapi().unwrap();
    let text = telemetry::metrics().unwrap().render();
    for name in ["fermata_stream_lag_events", "fermata_stream_reads_total", "fermata_stream_events_sent_total"] {
        assert!(text.contains(name), "{name} is not recorded:\n{text}");
    }
}

#[test]
fn every_link_leads_to_a_file() {
    let mut links = 0;
    for page in files(root(), ".md") {
        let text = fs::read_to_string(&page).unwrap();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = target.split('#').next().unwrap_or_default();
            if target.is_empty() || target.contains("://") {
                continue;
            }
            assert!(page.parent().unwrap().join(target).exists(), "{}: {target} is not there", page.display());
            links += 1;
        }
    }
    assert!(links > 20, "only {links} links were looked at");
}
