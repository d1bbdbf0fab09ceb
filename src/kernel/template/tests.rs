use std::{collections::BTreeMap, sync::Arc};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn scope() -> Scope {
    let contacts = json!({"body": {"contacts": [{"name": "Ada"}, {"name": "Grace"}]}, "changed": 2, "big": u64::MAX});
    Scope {
        run: RunFacts { id: "run_1".to_owned(), goal: None, created_by: "user_1".to_owned() },
        input: Arc::new(json!({"account": "acme", "share": 0.5, "flag": "false", "none": null, "list": [3, 1, 2]})),
        metadata: Arc::new(json!({})),
        steps: BTreeMap::from([
            ("fetch".to_owned(), StepFacts { status: "completed", output: Some(Arc::new(contacts)), error: None }),
            ("my-step".to_owned(), StepFacts { status: "skipped", output: None, error: None }),
        ]),
        item: None,
    }
}

fn context() -> Context {
    Context::Run(Arc::new(scope()))
}

fn rendered(text: &str) -> Result<Value, TemplateError> {
    render(&json!(text), &context())
}

#[test]
fn a_whole_expression_keeps_its_type_and_anything_else_is_a_text() -> Result<(), TemplateError> {
    let contacts = json!([{"name": "Ada"}, {"name": "Grace"}]);
    for (template, value) in [
        ("{{ steps.fetch.output.body.contacts }}", contacts.clone()),
        ("{{ steps.fetch.output.body.contacts }}\n", contacts),
        ("{{ steps.fetch.output.changed > 0 }}", json!(true)),
        ("{{ steps.fetch.output.big }}", json!(u64::MAX)),
        ("{{ input.share }}", json!(0.5)),
        ("{{ input.none }}", json!(null)),
        ("{{ steps['my-step'].status }}", json!("skipped")),
        ("{{ steps['my-step'].output }}", json!(null)),
        ("{{ {'a': {'b': input.list | sort}} }}", json!({"a": {"b": [1, 2, 3]}})),
        ("{{ input.list | sum }}", json!(6)),
        ("{{ run.createdBy }}/{{ run.goal }}", json!("user_1/null")),
        (" {{ input.share }}", json!(" 0.5")),
        ("{{ input.account }}{{ input.account }}", json!("acmeacme")),
        ("{{ steps.fetch.output.body }}!", json!(r#"{"contacts":[{"name":"Ada"},{"name":"Grace"}]}!"#)),
        ("{% for c in steps.fetch.output.body.contacts %}{{ c.name }};{% endfor %}\n", json!("Ada;Grace;\n")),
        ("{{ '{{' }} {# gone #}", json!("{{ ")),
        ("{{ steps.fetch.output.body.contacts | join(', ', attribute='name') }}", json!("Ada, Grace")),
        ("{{ 'a b/c' | urlencode }}", json!("a%20b/c")),
        ("{{ input.nope | default([1]) }}", json!([1])),
        ("no braces", json!("no braces")),
    ] {
        assert_eq!(rendered(template)?, value, "{template}");
    }
    Ok(())
}

#[test]
fn lists_and_maps_render_through_and_items_are_seen() -> Result<(), TemplateError> {
    let context = Context::Run(Arc::new(Scope { item: Some((Arc::new(json!({"id": 7})), 3)), ..scope() }));
    let value = render(&json!({"{{ a }}": [{"x": "{{ item.id }}"}, 1, "#{{ index }}"]}), &context)?;
    assert_eq!(value, json!({"{{ a }}": [{"x": 7}, 1, "#3"]}));
    Ok(())
}

#[test]
fn what_is_to_be_omitted_leaves_its_field_or_item_out() -> Result<(), TemplateError> {
    let value = json!({
        "there": "{{ input.account | default(omit) }}",
        "none": "{{ input.none | default(omit) }}",
        "gone": "{{ input.nope | default(omit) }}",
        "list": [1, "{{ omit }}", { "gone": "{{ 'x' if input.none else omit }}" }],
    });
    assert_eq!(render(&value, &context())?, json!({ "there": "acme", "none": null, "list": [1, {}] }));
    for alone in
        ["{{ omit }}", "x{{ omit }}", "{{ [omit] }}", "{{ {'a': omit} }}", "{% if true %}{{ omit }}{% endif %}"]
    {
        let error = rendered(alone).map_err(|error| error.message().to_owned());
        assert!(error.as_ref().is_err_and(|message| message.contains("`omit`")), "{alone}: {error:?}");
    }
    assert!(condition("omit", &context()).is_err());
    Ok(())
}

#[test]
fn what_is_not_there_is_an_error_that_names_it() {
    for template in
        ["{{ input.acount }}", "{{ steps.nope.output }}", "x {{ input.acount }}", "{{ item }}", "{{ [input.a] }}"]
    {
        let error = rendered(template).err();
        assert!(error.is_some_and(|e| !e.message().is_empty()), "{template}");
    }
    let error = rendered("{{ input.acount.x }}").map_err(|e| e.message().to_owned());
    assert!(error.as_ref().is_err_and(|message| message.contains("acount")), "{error:?}");
}

#[test]
fn conditions_take_braces_or_none_and_refuse_texts() -> Result<(), TemplateError> {
    let context = context();
    for (source, expected) in [
        ("steps.fetch.output.changed > 0", true),
        ("{{ steps.fetch.output.changed > 5 }}", false),
        ("input.list", true),
        ("input.none", false),
        ("0.0", false),
        ("steps.fetch.error is none and not steps['my-step'].output", true),
        ("steps.fetch.error", false),
    ] {
        assert_eq!(condition(source, &context)?, expected, "{source}");
    }
    for source in ["input.flag", "{{ a }} and {{ b }}", "{% if true %}x{% endif %}", "", "input.nope"] {
        assert!(condition(source, &context).is_err(), "{source}");
    }
    Ok(())
}

#[test]
fn names_are_found_in_every_spelling() -> Result<(), TemplateError> {
    let names =
        check("{{ steps.a.output.x + steps['b-c'].output }}{% for s in steps.d.output %}{{ s.e }}{% endfor %}")?;
    assert_eq!(names.steps.iter().map(String::as_str).collect::<Vec<_>>(), ["a", "b-c", "d"]);
    assert!(!names.any_step);
    assert!(names.roots.is_empty(), "{names:?}");
    assert!(check("{{ steps[input.which].output }}")?.any_step);
    assert!(check("{{ range(3) | list }} {{ inputs.x }}")?.roots.contains("inputs"));
    assert!(check_condition("steps.z.status == 'failed'")?.steps.contains("z"));
    for (text, is_known) in [
        ("name", true),
        ("{{ 'name' }}", true),
        ("{{ input.name | default(omit) }}-{{ range(3) | last }}", true),
        ("{{ input.name }}{{ item }}", false),
        ("{{ steps.a.output | default(input.name) }}", false),
        ("{{ steps[input.which].output }}", false),
    ] {
        assert_eq!(check(text)?.are_of_input(), is_known, "{text}");
    }
    Ok(())
}

#[test]
fn mistakes_are_found_without_running_and_where_they_are() {
    for (template, at) in [
        ("ab {{ 1 + }}", 9),
        ("{{ input.x | nope }}", 13),
        ("{{ input.x is nope }}", 14),
        ("{{ never closed", 0),
        ("x{% set a = 1 %}", 3),
    ] {
        let error = check(template);
        assert!(error.as_ref().is_err_and(|e| e.offset().abs_diff(at) <= 2), "{template}: {error:?}");
    }
}

#[test]
fn the_reference_lists_the_vocabulary() {
    let text = include_str!("../../../docs/workflows.md");
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let listed =
        |after: &str| words(text.split_once(after).and_then(|(_, rest)| rest.split('`').nth(1)).unwrap_or_default());
    assert_eq!(listed("Filters: "), engine::FILTERS);
    assert_eq!(listed("Tests, after `is`: "), engine::TESTS);
}

#[test]
fn nothing_runs_or_grows_for_ever() {
    for template in [
        "{% for a in range(9999) %}{% for b in range(9999) %}{{ b }}{% endfor %}{% endfor %}",
        "{{ 'x' * 99999999 }}",
        "{{ ('x' * 1000000) | replace('x', 'xxxxxxxxxxxxxxxxxxxxxxxx') }}",
        "{{ range(99999) | map('string') | join('xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx') }}",
        "{{ 1 / 0 }}",
        "{{ range }}",
    ] {
        assert!(rendered(template).is_err(), "{template}");
    }
}

proptest! {
    #[test]
    fn no_template_panics(template in r#"(\{\{|\}\}|\{%|%\}|[a-z]{1,3}|input|steps|\.|\[|\]|\(|\)|"|'|\||~|\*|-|[0-9]{1,4}|for |in |if |endif| |é|\{|\}|:|,|==|not |is ){0,30}"#) {
        let context = context();
        // Only the absence of panics is asserted: most of these are not templates.
        drop(render(&json!(template), &context));
        drop(condition(&template, &context));
        drop(check(&template));
    }

    #[test]
    fn texts_without_braces_render_to_themselves(text in "[^{]{0,40}") {
        prop_assert_eq!(render(&json!(text), &context()), Ok(json!(text)));
    }
}
