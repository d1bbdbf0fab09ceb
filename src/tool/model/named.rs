use std::sync::Arc;

use serde_json::{Value, json};

use super::{embed, generate, speech};
use crate::{
    journal::Step,
    kernel::{
        Reference,
        template::{self, Context, Scope},
    },
};

/// The tools that ask models, and the configuration of each where its arguments name none.
const ASKING: [(&str, &str); 4] = [
    (generate::NAME, generate::USUAL),
    (embed::NAME, embed::USUAL),
    (speech::SYNTHESIZE, speech::USUAL_VOICE),
    (speech::TRANSCRIBE, speech::USUAL_EAR),
];

/// The model configurations and the prompt templates that the arguments of steps name, in a run with this input. What is
/// known only when a step begins is left out.
#[must_use]
pub fn named(steps: &[Arc<Step>], input: &Arc<Value>) -> (Vec<Reference>, Vec<Reference>) {
    let context = Context::Run(Arc::new(Scope { input: Arc::clone(input), ..Scope::default() }));
    let (mut configs, mut templates) = (vec![], vec![]);
    for step in steps {
        let Some((_, usual)) = ASKING.iter().find(|(tool, _)| *tool == step.uses) else { continue };
        configs.extend(name(step, "config", Some(usual), &context));
        templates.extend(name(step, "template", None, &context));
    }
    for names in [&mut configs, &mut templates] {
        names.sort_by_key(ToString::to_string);
        names.dedup();
    }
    (configs, templates)
}

/// The name that an argument is, or the usual one where it is not given.
fn name(step: &Step, argument: &str, usual: Option<&str>, context: &Context) -> Option<Reference> {
    let given = match step.with.get(argument) {
        // What hangs on more than the input is not known yet.
        Some(Value::String(text)) if !step.verbatim => {
            template::check(text).ok().filter(|names| names.are_of_input())?;
            template::render(&json!({ argument: text }), context).ok()?.get(argument).cloned()
        }
        given => given.cloned(),
    };
    match given {
        Some(name) => name.as_str()?.parse().ok(),
        None => usual?.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(uses: &str, with: Value) -> Arc<Step> {
        Arc::new(Step { with: with.as_object().unwrap().clone(), ..Step::of("a", uses) })
    }

    fn found(steps: &[Arc<Step>], input: Value) -> (Vec<String>, Vec<String>) {
        let (configs, templates) = named(steps, &Arc::new(input));
        let text = |names: Vec<Reference>| names.iter().map(ToString::to_string).collect();
        (text(configs), text(templates))
    }

    fn texts(names: &[&str]) -> Vec<String> {
        names.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn names_are_found_once_and_the_usual_ones_where_there_are_none() {
        let steps = [
            step("llm.generate", json!({ "prompt": "x" })),
            step("llm.generate", json!({ "config": "mine@2", "template": "greeting" })),
            step("llm.embed", json!({ "text": "x" })),
            step("llm.embed", json!({ "config": "mine@2" })),
            step("speech.transcribe", json!({ "config": 7 })),
            step("data.transform", json!({ "config": "other", "template": "other" })),
        ];
        let expected = (texts(&["default-embed", "default-smart", "mine@2"]), texts(&["greeting"]));
        assert_eq!(found(&steps, json!({})), expected);
    }

    #[test]
    fn an_expression_is_a_name_where_the_input_alone_gives_it() {
        let with = json!({ "config": "{{ input.config | default(omit) }}", "template": "say-{{ input.language }}" });
        let steps = [step("llm.generate", with.clone())];
        let input = json!({ "config": "mine", "language": "en" });
        assert_eq!(found(&steps, input.clone()), (texts(&["mine"]), texts(&["say-en"])));
        assert_eq!(found(&steps, json!({})), (texts(&["default-smart"]), vec![]));
        // What is no name is the step's to refuse.
        assert_eq!(found(&steps, json!({ "config": "No Name" })), (vec![], vec![]));
        let verbatim = Step { verbatim: true, ..Step::clone(&step("llm.generate", with)) };
        assert_eq!(found(&[Arc::new(verbatim)], input.clone()), (vec![], vec![]));
        for later in ["{{ item }}", "{{ steps.b.output | default('mine') }}", "{{ input.config }}{{ run.goal }}"] {
            let steps = [step("llm.generate", json!({ "config": later }))];
            assert_eq!(found(&steps, input.clone()), (vec![], vec![]), "{later}");
        }
    }
}
