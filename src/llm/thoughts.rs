//! What a model thought before it called tools, where its provider wants to see that again with the calls. So far that is
//! Anthropic, who signs each block of it, and refuses one that is missing or that has something else before it than it was
//! thought about. So each keeps a digest of that, and goes back only behind the same.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{Message, Prompt, provider::Target};
use crate::config::Api;

/// What a model thought before calls, sealed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Thoughts {
    /// A digest of who was asked and of all that was said before.
    pub after: String,
    /// Its blocks, as the provider gave them.
    pub blocks: Vec<Value>,
}

/// What comes before each message of a question, and before its answer.
pub(super) struct Trail(Vec<String>);

impl Trail {
    /// None where the provider does not want thoughts back.
    pub(super) fn of(target: &Target, prompt: &Prompt) -> Option<Self> {
        let who = json!([target.config.reference(), target.config.body.provider, target.config.body.model]);
        (target.api == Api::Anthropic).then(|| Self::from(&who, prompt))
    }

    fn from(who: &Value, prompt: &Prompt) -> Self {
        let tools: Vec<_> =
            prompt.tools.iter().map(|tool| json!([tool.name, tool.description, tool.arguments])).collect();
        let mut sha = Sha256::new_with_prefix(json!([who, prompt.system, tools]).to_string());
        let mut marks = vec![mark(&sha)];
        for message in &prompt.messages {
            sha.update(json!(message).to_string());
            marks.push(mark(&sha));
        }
        Self(marks)
    }

    /// The blocks of a message, which is the so manieth, where they may go back.
    pub(super) fn blocks<'a>(&self, place: usize, message: &'a Message) -> &'a [Value] {
        match message {
            Message::Assistant { thoughts: Some(thoughts), .. } if self.0.get(place) == Some(&thoughts.after) => {
                &thoughts.blocks
            }
            _ => &[],
        }
    }

    /// The blocks of the answer, to be kept.
    pub(super) fn keep(mut self, blocks: Vec<Value>) -> Option<Thoughts> {
        self.0.pop().filter(|_| !blocks.is_empty()).map(|after| Thoughts { after, blocks })
    }
}

fn mark(sha: &Sha256) -> String {
    sha.clone().finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llm::ToolCall;

    fn asked(text: &str) -> Message {
        Message::User { text: text.to_owned(), images: vec![] }
    }

    fn answered(thoughts: Option<Thoughts>) -> Message {
        let call = ToolCall { id: "1".to_owned(), name: "act".to_owned(), arguments: json!({}), signatures: None };
        Message::Assistant { text: String::new(), calls: vec![call], by: None, thoughts }
    }

    fn prompt(system: &str, messages: &[Message]) -> Prompt {
        Prompt { system: Some(system.to_owned()), messages: messages.to_vec(), ..Prompt::default() }
    }

    #[test]
    fn thoughts_go_back_behind_what_they_were_thought_about_and_behind_nothing_else() {
        let (who, block) = (json!("who"), json!({ "type": "thinking" }));
        let thoughts = Trail::from(&who, &prompt("s", &[asked("a")])).keep(vec![block.clone()]);
        let first = answered(thoughts);
        let goes_back = |who: &Value, system: &str, messages: &[Message], place: usize| {
            !Trail::from(who, &prompt(system, messages)).blocks(place, &messages[place]).is_empty()
        };
        let history = [asked("a"), first.clone(), asked("b")];
        assert!(goes_back(&who, "s", &history, 1), "whatever comes after");
        assert!(!goes_back(&json!("other"), "s", &history, 1));
        assert!(!goes_back(&who, "t", &history, 1));
        assert!(!goes_back(&who, "s", &[asked("b"), first.clone()], 1));
        assert!(!goes_back(&who, "s", &[asked("a"), asked("b"), first.clone()], 2));
        // What is thought later is thought about what was sent then.
        let second = answered(Trail::from(&who, &prompt("s", &history)).keep(vec![block]));
        let longer = [asked("a"), first, asked("b"), second.clone()];
        assert!(goes_back(&who, "s", &longer, 3));
        assert!(!goes_back(&who, "s", &[asked("a"), answered(None), asked("b"), second], 3));
        assert_eq!(Trail::from(&who, &prompt("s", &history)).keep(vec![]), None);
    }
}
