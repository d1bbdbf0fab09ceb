use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{PATIENCE, ask};
use crate::{
    journal::{AGENT_TURN, Effect, Failure},
    kernel::{Error, Pinned},
    llm::{Answer, Choice, Models, Prompt, Stop, Thoughts, Usage},
    tool::{Call, Handed, Outcome, Tool, ToolError},
};

/// What an agent's model is to be asked: too much for arguments, and all of it in the journal already.
#[derive(Clone, Debug, PartialEq)]
pub struct Conversation {
    /// The agent, as `name@version`; `planning` where a plan is drawn up.
    pub agent: String,
    /// The configuration.
    pub config: Pinned,
    /// Those that are asked when it gives no answer.
    pub fallback: Vec<Pinned>,
    /// What was said so far.
    pub prompt: Prompt,
    /// The tools by the names that the model knows them by.
    pub names: BTreeMap<String, String>,
    /// The most tokens that the question may have.
    pub window: u32,
    /// What of all that was said it does not have.
    pub compacted: Compacted,
}

/// What a question leaves out of what was said, so that it stays within the model's window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Compacted {
    /// Outputs of which it only says where to read them.
    pub outputs: usize,
    /// Turns of which it only says what they called.
    pub turns: usize,
    /// Outputs of the last turns that are shown shorter than usual.
    pub cut: usize,
}

impl Conversation {
    /// What the journal keeps of a question: which configuration is asked, how long it is, a digest of it, and what it
    /// leaves out.
    ///
    /// # Errors
    /// `window_exceeded`, where it is more than the model takes.
    pub fn digest(&self) -> Result<Value, Failure> {
        let tokens = self.prompt.tokens();
        if tokens > self.window {
            let message = format!(
                "the question has some {tokens} tokens and the model takes {}, whatever is left out of what was said: \
                 the goal, the input or the last answer is too long for it",
                self.window
            );
            return Err(Failure::new("window_exceeded", message));
        }
        let messages = self.prompt.messages.len();
        let request = self.prompt.digest(messages);
        let mut digest = json!({ "config": self.config, "messages": messages, "request": request });
        if self.compacted != Compacted::default() {
            digest["compacted"] = json!(self.compacted);
        }
        Ok(digest)
    }
}

/// What a turn came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TurnOutput {
    /// What the model says.
    pub text: String,
    /// The same as JSON, where the agent's output is that and this is it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub json: Option<Value>,
    /// What the model thought meanwhile, where its agent wants that kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning: Option<String>,
    /// What it wants called; nothing when it is done.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub calls: Vec<TurnCall>,
    /// What the provider wants to see again of its thoughts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thoughts: Option<Thoughts>,
    /// Why it stopped.
    pub stop: Stop,
    /// What it took.
    pub usage: Usage,
    /// The configuration that answered, as `name@version`.
    pub config: String,
    /// Its provider.
    pub provider: String,
    /// Its model.
    pub model: String,
    /// What it was asked, as far as the next question is held against that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked: Option<Asked>,
}

/// A question that a provider has counted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// How many messages it had.
    pub messages: usize,
    /// Its digest.
    pub request: String,
    /// Its tokens, at the most.
    pub tokens: u64,
}

/// A call that an agent's model wants made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TurnCall {
    /// The tool.
    pub tool: String,
    /// What to call it with.
    pub arguments: Value,
    /// What the provider wants to see again with the call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signatures: Option<Vec<String>>,
}

/// `agent.turn`: asks an agent's model what to do next.
pub(in crate::tool) struct AgentTurn {
    models: Models,
}

impl AgentTurn {
    pub(in crate::tool) fn new(models: Models) -> Self {
        Self { models }
    }
}

#[async_trait]
impl Tool for AgentTurn {
    fn name(&self) -> &str {
        AGENT_TURN
    }

    fn internal(&self) -> bool {
        true
    }

    fn description(&self) -> &str {
        "Asks an agent's model what to do next."
    }

    fn arguments(&self) -> Value {
        json!({ "type": "object" })
    }

    fn output(&self) -> Value {
        json!({ "type": "object" })
    }

    fn effect(&self, _: &Value) -> Effect {
        Effect::Repeatable
    }

    fn timeout(&self) -> Duration {
        PATIENCE
    }

    async fn call(&self, call: Call) -> Result<Outcome, ToolError> {
        let Handed::Conversation(conversation) = call.handed.clone() else {
            return Err(ToolError::failed("no_conversation", "only a run of an agent has turns"));
        };
        let chain = [&conversation.config].into_iter().chain(&conversation.fallback);
        let choice = Choice::Pinned(chain.cloned().collect());
        let answer = ask(&self.models, &call, &choice, &conversation.prompt).await?;
        Ok(Outcome::Done { cost: Some(answer.spent), output: output(answer, &conversation)? })
    }
}

fn output(answer: Answer, conversation: &Arc<Conversation>) -> Result<Value, ToolError> {
    let Answer { text, json, reasoning, calls, thoughts, stop, usage, asked, config, provider, model, .. } = answer;
    let calls = calls.into_iter().map(|call| TurnCall {
        // A name that is none of ours is passed on, and the gate forbids it.
        tool: conversation.names.get(&call.name).cloned().unwrap_or(call.name),
        arguments: call.arguments,
        signatures: call.signatures,
    });
    let calls = calls.collect();
    let messages = conversation.prompt.messages.len();
    let counted = || Asked { messages, request: conversation.prompt.digest(messages), tokens: asked };
    let asked = (asked > 0).then(counted);
    let output = TurnOutput { text, json, reasoning, calls, thoughts, stop, usage, config, provider, model, asked };
    serde_json::to_value(output).map_err(|error| ToolError::failed("internal", Error::internal(error).detail()))
}
