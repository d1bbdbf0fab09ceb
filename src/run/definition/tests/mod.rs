mod served;

use std::{fs, path::Path, sync::LazyLock};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::{
    config::{LimitSettings, ToolSettings},
    kernel::{Error, Problem},
    tool::{Registry, fixture},
};

fn tools() -> &'static Registry {
    static TOOLS: LazyLock<Registry> = LazyLock::new(built_in);
    &TOOLS
}

fn built_in() -> Registry {
    let settings = ToolSettings { debug: true, ..ToolSettings::default() };
    Registry::builtin(&settings, &LimitSettings::default(), fixture::ports(&settings)).expect("the built-in tools")
}

fn mistakes(error: &Error) -> Vec<Mistake> {
    assert_eq!(error.problem(), Problem::InvalidDefinition, "{error}");
    serde_json::from_value(error.members()["errors"].clone()).expect("a list of mistakes")
}

fn refused(text: &str) -> Vec<Mistake> {
    mistakes(&check(text.as_bytes(), Media::Yaml, None, tools()).expect_err(text))
}

/// `path line:column message`, one mistake a line.
fn listed(mistakes: &[Mistake]) -> String {
    let line = |m: &Mistake| {
        format!("{} {}:{} {}", m.path, m.line.unwrap_or_default(), m.column.unwrap_or_default(), m.message)
    };
    mistakes.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[test]
fn every_mistake_is_found_at_its_place() {
    let text = r#"name: Bad Name
inputs: {}
input: { type: nonsense }
steps:
  - id: a
    uses: http.reqest
    needs: [c, a, zzz]
  - id: b
    needs: [a]
    uses: debug.sleep
    with: { ms: soon, extra: 1 }
    retry: { attempts: 0, backof: 1s }
    timeout: 5 parsecs
  - id: b
    uses: debug.echo
    concurrency: 3
    with:
      value: "{{ steps.b.output }} {{ item }} {{ inputt.x }}"
    approval: { cost: -1, expires: 0s, reason: "for {{ input.x }}" }
  - id: c
    needs: [b]
    uses: debug.echo
    if: "steps.d.output >"
    with:
      value: |
        first
        {{ steps.d.output | nope }}
  - id: d
    uses: debug.echo
    forEach: nothing
  - uses: 5
output: "{{ steps.e.output }} {{ steps[input.x] }}"
"#;
    insta::assert_snapshot!(listed(&refused(text)));
}

#[test]
fn json_has_places_too() {
    let text = "{\"name\": \"a\",\n\t\"steps\": [{\"id\": \"x\", \"uses\": \"debug.echo\",\n  \"wiht\": {\"\\u0076alue\": \"\\ud83d\\ude00\"}}]}";
    let error = check(text.as_bytes(), Media::Json, None, tools()).expect_err("a field that does not exist");
    let found = mistakes(&error);
    assert_eq!((found.len(), &*found[0].path), (1, "steps[0].wiht"));
    assert_eq!((found[0].line, found[0].column), (Some(3), Some(3)));
}

#[test]
fn what_cannot_be_read_says_where() {
    for (text, line, word) in [
        ("a: &x 1\n", 1, "anchors"),
        ("a: 1\nb: *x\n", 2, ""),
        ("a: 1\na: 2\n", 2, "twice"),
        ("1: x\n", 1, "text"),
        ("a: !!str 1\n", 1, "tags"),
        ("a: 1\n---\nb: 1\n", 2, "one document"),
        ("a: .inf\n", 1, "finite"),
        ("a: \"\\0\"\n", 1, "NUL"),
        ("? [a]\n: 1\n", 1, "text"),
        ("", 1, "empty"),
        ("a: [1\n", 2, ""),
    ] {
        let found = refused(text);
        assert_eq!(found.len(), 1, "{text:?}");
        assert!(found[0].message.contains(word), "{text:?}: {}", found[0].message);
        assert_eq!(found[0].line, Some(line), "{text:?}: {}", found[0].message);
    }
    let deep = format!("a: {}1{}", "[".repeat(100), "]".repeat(100));
    assert!(refused(&deep)[0].message.contains("deep"));
    assert!(refused(&format!("a: {}", "x".repeat(tools().limits().definition)))[0].message.contains("bytes"));
    let twice = check(br#"{"name": "a", "name": "b"}"#, Media::Json, None, tools()).expect_err("a name given twice");
    assert!(twice.detail().contains("twice"), "{twice}");
    assert!(check(b"\xff\xfe", Media::Yaml, None, tools()).is_err());
    assert!(check(br#"{"name": "a\u0000"}"#, Media::Json, None, tools()).is_err_and(|e| e.detail().contains("NUL")));
}

#[test]
fn yaml_means_what_version_1_2_says() {
    let text = "name: a\nsteps:\n- id: x\n  uses: debug.echo\n  with:\n    value: {a: no, b: 0x1F, c: 0o17, d: 1e3, e: ~, f: '1', g: 1.0.0, h: 18446744073709551615, i: -3, j: 012, k: TRUE, l: '', m: , n: +-5}\n";
    let definition = check(text.as_bytes(), Media::Yaml, None, tools()).expect("a definition");
    let expected = json!({"a": "no", "b": 31, "c": 15, "d": 1000.0, "e": null, "f": "1", "g": "1.0.0", "h": u64::MAX,
        "i": -3, "j": 12, "k": true, "l": "", "m": null, "n": "+-5"});
    assert_eq!(definition.steps[0].with["value"], expected);
}

#[test]
fn a_plan_fits_the_event_that_carries_it() {
    let plan = |bytes: usize| {
        let step = |id: &str| json!({"id": id, "uses": "debug.echo", "with": {"value": "x".repeat(bytes / 2)}});
        check_plan(&json!([step("a"), step("b")]), tools())
    };
    assert!(plan(200 * 1024).is_ok());
    let error = plan(256 * 1024).expect_err("too large");
    assert!(mistakes(&error)[0].message.contains("bytes of JSON"), "{error}");
}

#[test]
fn inline_plans_take_the_same_checks() {
    let step = json!({"id": "a", "uses": "debug.echo", "with": {"value": "{{ input.x }}"}, "if": false});
    let plan = check_plan(&json!([step]), tools()).expect("a plan");
    assert_eq!(plan.steps[0].condition.as_deref(), Some("false"));
    assert_eq!(check_plan(&json!({"steps": [step]}), tools()).expect("a plan"), plan);
    let nope = json!({"id": "a", "uses": "nope"});
    for (plan, path) in [
        (json!([nope]), "plan[0].uses"),
        (json!({"steps": [nope]}), "plan.steps[0].uses"),
        (json!({"steps": [step], "name": "x"}), "plan.name"),
        (json!({"steps": []}), "plan.steps"),
        (json!({}), "plan"),
        (json!([]), "plan"),
        (json!(7), "plan"),
    ] {
        let found = mistakes(&check_plan(&plan, tools()).expect_err("a wrong plan"));
        assert_eq!((&*found[0].path, found[0].line), (path, None), "{plan}");
    }
}

#[test]
fn the_name_is_the_one_it_is_put_under() {
    let text = "# a\nname: b\nsteps: [{id: x, uses: debug.echo, with: {value: 1}}]";
    assert!(check(text.as_bytes(), Media::Yaml, Some("b"), tools()).is_ok());
    let found = mistakes(&check(text.as_bytes(), Media::Yaml, Some("a"), tools()).expect_err("another name"));
    assert_eq!((&*found[0].path, found[0].line, found[0].column), ("name", Some(2), Some(7)));
}

#[test]
fn templates_may_fill_in_what_a_tool_needs() {
    for (with, right) in [
        (r#"{ ms: "{{ input.ms }}" }"#, true),
        (r#"{ ms: "soon" }"#, false),
        (r#"{ ms: "{{ input.ms }}", more: 1 }"#, false),
        ("{}", false),
    ] {
        let text = format!("name: a\nsteps: [{{ id: a, uses: debug.sleep, with: {with} }}]");
        assert_eq!(check(text.as_bytes(), Media::Yaml, None, tools()).is_ok(), right, "{with}");
    }
}

#[test]
fn an_input_is_refused_with_every_mistake() {
    let text = "name: a\ninput: {type: object, required: [x], properties: {x: {type: string}, y: {items: {minimum: 3}}}}\nsteps: [{id: a, uses: debug.echo, with: {value: 1}}]";
    let definition = check(text.as_bytes(), Media::Yaml, None, tools()).expect("a definition");
    assert!(check_input(&definition, &json!({"x": "ok", "y": [3]})).is_ok());
    let error = check_input(&definition, &json!({"y": [5, 1]})).expect_err("a wrong input");
    let found: Vec<Mistake> = serde_json::from_value(error.members()["errors"].clone()).expect("mistakes");
    let paths = found.iter().map(|m| &*m.path).collect::<Vec<_>>();
    assert_eq!((error.problem(), paths), (Problem::Invalid, vec!["input.x", "input.y[1]"]));
}

fn document(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(path);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

#[test]
fn every_example_is_right() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/examples");
    let files = fs::read_dir(folder).expect("the examples").map(|file| file.expect("a file").file_name());
    let names = files.map(|name| name.to_string_lossy().into_owned()).collect::<Vec<_>>();
    assert!(names.len() >= 5, "{names:?}");
    for name in names {
        let definition = check(document(&format!("examples/{name}")).as_bytes(), Media::Yaml, None, tools());
        let definition = definition.unwrap_or_else(|e| panic!("{name}: {}", e.detail()));
        assert_eq!(name, format!("{}.yaml", definition.name));
    }
}

#[test]
fn the_reference_prints_the_schema_and_explains_every_field() {
    let text = document("workflows.md");
    assert!(
        text.contains(&format!("```json\n{}```", SCHEMA)),
        "docs/workflows.md must hold workflow.schema.json as it is"
    );
    let schema: Value = serde_json::from_str(SCHEMA).expect("JSON");
    assert!(jsonschema::meta::is_valid(&schema));
    for part in ["/properties", "/$defs/step/properties", "/$defs/retry/properties", "/$defs/approval/properties"] {
        for field in schema.pointer(part).and_then(Value::as_object).expect("fields").keys() {
            assert!(text.contains(&format!("| `{field}`")), "docs/workflows.md does not explain `{field}`");
        }
    }
}

#[test]
fn a_definition_in_the_reference_is_right() {
    let text = document("workflows.md");
    let blocks = text.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next());
    let whole = blocks.filter(|block| block.starts_with("name:")).collect::<Vec<_>>();
    assert!(!whole.is_empty());
    for block in whole {
        check(block.as_bytes(), Media::Yaml, None, tools()).unwrap_or_else(|e| panic!("{}\n{block}", e.detail()));
    }
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        drop(check(&bytes, Media::Yaml, None, tools()));
        drop(check(&bytes, Media::Json, None, tools()));
    }

    #[test]
    fn no_text_that_looks_like_a_document_panics(text in r#"(\{|\}|\[|\]|: |- |, |\n|  |\t|"|'|#|\||>|%|@|&a|\*a|!|\?|~|<<|---|\.\.\.|name|steps|id|x|1|\\|é|\u{2028}|\u{feff}){0,60}"#) {
        drop(check(text.as_bytes(), Media::Yaml, None, tools()));
        drop(check(text.as_bytes(), Media::Json, None, tools()));
    }

    #[test]
    fn a_mark_lies_within_the_text(text in r#"(\{|\}|\[|\]|: |- |, |\n|  |name|steps|id|x|1){0,40}"#) {
        if let Err(error) = check(text.as_bytes(), Media::Yaml, None, tools()) {
            let lines = text.lines().count();
            prop_assert!(mistakes(&error).iter().all(|m| m.line.is_none_or(|line| (1..=lines + 1).contains(&line))));
        }
    }
}
