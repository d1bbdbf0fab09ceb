use std::sync::Arc;

use super::{embed, generate, speech};
use crate::{journal::Step, kernel::Reference};

/// The tools that ask models, and the configuration of each where its arguments name none.
const ASKING: [(&str, &str); 4] = [
    (generate::NAME, generate::USUAL),
    (embed::NAME, embed::USUAL),
    (speech::SYNTHESIZE, speech::USUAL_VOICE),
    (speech::TRANSCRIBE, speech::USUAL_EAR),
];

/// The model configurations and the prompt templates that the arguments of steps name. What is known only when a step
/// begins is left out.
#[must_use]
pub fn named(steps: &[Arc<Step>]) -> (Vec<Reference>, Vec<Reference>) {
    let (mut configs, mut templates) = (vec![], vec![]);
    for step in steps {
        let Some((_, usual)) = ASKING.iter().find(|(tool, _)| *tool == step.uses) else { continue };
        // An expression is no name.
        let read = |text: &str| text.parse::<Reference>().ok();
        let config = step.with.get("config").map_or(Some(*usual), |config| config.as_str());
        configs.extend(config.and_then(read));
        templates.extend(step.with.get("template").and_then(|template| read(template.as_str()?)));
    }
    for names in [&mut configs, &mut templates] {
        names.sort_by_key(ToString::to_string);
        names.dedup();
    }
    (configs, templates)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn step(uses: &str, with: Value) -> Arc<Step> {
        Arc::new(Step { with: with.as_object().unwrap().clone(), ..Step::of("a", uses) })
    }

    #[test]
    fn names_are_found_once_and_expressions_are_none() {
        let (configs, templates) = named(&[
            step("llm.generate", json!({ "prompt": "x" })),
            step("llm.generate", json!({ "config": "mine@2", "template": "greeting" })),
            step("llm.generate", json!({ "config": "{{ input.config }}", "template": "{{ input.template }}" })),
            step("llm.embed", json!({ "text": "x" })),
            step("llm.embed", json!({ "config": "mine@2" })),
            step("speech.transcribe", json!({ "config": 7 })),
            step("data.transform", json!({ "config": "other", "template": "other" })),
        ]);
        let text = |names: Vec<Reference>| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(text(configs), ["default-embed", "default-smart", "mine@2"]);
        assert_eq!(text(templates), ["greeting"]);
    }
}
