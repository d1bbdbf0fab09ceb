//! Tools that ask a language model. Its words are told as they come, in company.

mod embed;
mod generate;
mod named;
mod speech;
mod tell;
mod turn;

use std::{num::NonZeroU32, time::Duration};

use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::{Call, Outcome, ToolError, fits};
use crate::{
    journal::{Failure, MessageCompleted, ModelPins},
    kernel::Reference,
    llm::{Answer, AskError, Choice, Given, Models, Prompt, Teller},
};

pub(super) use embed::Embed;
pub(super) use generate::Generate;
pub use named::named;
pub(super) use speech::{Synthesize, Transcribe};
pub(super) use turn::AgentTurn;
pub use turn::{Asked, Compacted, Conversation, TurnCall, TurnOutput};

/// How long a call may take. Repetitions and fallbacks have time-outs of their own.
const PATIENCE: Duration = Duration::from_secs(1800);
/// News that may wait to be told; then the model is read more slowly.
const NEWS: usize = 64;

/// Asks for a call of a tool.
async fn ask(models: &Models, call: &Call, choice: &Choice, prompt: &Prompt) -> Result<Answer, ToolError> {
    let bounded = call.bounded.then(|| Prompt { bounded: true, ..prompt.clone() });
    let prompt = bounded.as_ref().unwrap_or(prompt);
    let asking = |teller: Teller| async move { models.ask(call.tenant_id, choice, prompt, &teller).await };
    let answer = telling(call, asking).await?;
    call.progress.report(completed(&answer.given(), Some(&answer.text), call.room)).await;
    Ok(answer)
}

/// Asks, and tells what happens meanwhile. The teller is dropped with the question, so that whoever tells the news knows
/// when it was the last.
async fn telling<T, A: Future<Output = Result<T, AskError>>>(
    call: &Call,
    asking: impl FnOnce(Teller) -> A,
) -> Result<T, ToolError> {
    let (teller, news) = mpsc::channel(NEWS);
    // On the heap: it is made of too much to lie within the tool's own.
    let asking = Box::pin(asking(teller));
    // Where it is called off it is dropped, which tells what it took; that is heard before this is over.
    let asking = unless_cancelled(call, async { asking.await.map_err(failure) });
    let (answered, ()) = tokio::join!(asking, tell::tell(news, &call.progress, call.is_retried));
    answered
}

/// What comes of some work for a call, unless that is cancelled before.
async fn unless_cancelled<T>(call: &Call, work: impl Future<Output = Result<T, ToolError>>) -> Result<T, ToolError> {
    tokio::select! {
        biased;
        () = call.cancel.cancelled() => Err(ToolError::cancelled()),
        done = work => done,
    }
}

/// The configurations that the name means in this run.
fn choice(pins: Option<&ModelPins>, config: Reference) -> Choice {
    let pinned = pins.and_then(|pins| pins.configs.get(&config.to_string()).cloned());
    pinned.map_or(Choice::Named(config), Choice::Pinned)
}

/// JSON Schema of a name, perhaps with a version.
fn reference() -> Value {
    json!({ "type": "string", "pattern": "^[a-z][a-z0-9._-]{0,62}(@[1-9][0-9]{0,8})?$" })
}

/// JSON Schema of an output that has these fields, those always, beside what all have: who answered, and what it took.
fn answered(always: &[&str], fields: Value) -> Value {
    let mut properties = json!({
        "config": { "type": "string", "description": "The configuration that answered, with its version." },
        "provider": { "type": "string" },
        "model": { "type": "string" },
        "usage": {
            "type": "object",
            "properties": {
                "inputTokens": { "type": "integer" },
                "cachedTokens": { "type": "integer" },
                "outputTokens": { "type": "integer" }
            }
        }
    });
    if let (Value::Object(properties), Value::Object(fields)) = (&mut properties, fields) {
        properties.extend(fields);
    }
    let always = [always, &["config", "provider", "model", "usage"]].concat();
    json!({ "type": "object", "required": always, "properties": properties })
}

/// The output of a tool that gives this. What it took is told as it is of words, which goes into the books.
async fn given<T>(call: &Call, given: Given<T>, text: Option<&str>, fields: Value) -> Outcome {
    let told = completed(&given, text, call.room);
    let Given { usage, spent, config, provider, model, .. } = given;
    let mut output = json!({ "config": config, "provider": provider, "model": model, "usage": usage });
    if let (Value::Object(output), Value::Object(fields)) = (&mut output, fields) {
        output.extend(fields);
    }
    call.progress.report(told).await;
    Outcome::Done { output, cost: Some(spent) }
}

/// What a model gave as it is told and gets into the books, with its words where it gave any and they have room.
fn completed<T>(given: &Given<T>, text: Option<&str>, room: usize) -> MessageCompleted {
    let mut told = MessageCompleted {
        reply: given.reply,
        text: text.map(str::to_owned),
        text_bytes: text.map_or(0, str::len) as u64,
        config: given.config.clone(),
        provider: given.provider.clone(),
        model: given.model.clone(),
        input_tokens: given.usage.input_tokens,
        cached_tokens: given.usage.cached_tokens,
        output_tokens: given.usage.output_tokens,
        cost: given.cost,
    };
    if !fits(&told, room) {
        told.text = None;
    }
    told
}

fn failure(error: AskError) -> ToolError {
    let AskError { code, message, retryable, retry_after } = error;
    let retry_after_seconds = retry_after
        .and_then(|after| NonZeroU32::new(u32::try_from(after.as_millis().div_ceil(1000)).unwrap_or(u32::MAX)));
    ToolError::Failed(Failure { retryable, retry_after_seconds, ..Failure::new(&code, message) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_has_its_text_where_there_is_room_for_its_json() {
        let given = Given { config: "c@1".to_owned(), ..Given::<()>::default() };
        let most = |text: &str| serde_json::to_vec(&completed(&given, Some(text), usize::MAX)).unwrap().len();
        for text in ["plain words", "\"\n\u{1}", "\u{e9}", ""] {
            let whole = most(text);
            assert_eq!(completed(&given, Some(text), whole).text.as_deref(), Some(text));
            let without = completed(&given, Some(text), whole - 1);
            assert_eq!((without.text, without.text_bytes), (None, text.len() as u64), "{text:?}");
        }
    }
}
