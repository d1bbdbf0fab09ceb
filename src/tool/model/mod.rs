//! Tools that ask a language model. Its words are told as they come, in company.

mod generate;
mod tell;
mod turn;

use std::num::NonZeroU32;

use tokio::sync::mpsc;

use super::{Call, ToolError};
use crate::{
    journal::{Failure, MessageCompleted},
    kernel::Reference,
    llm::{Answer, AskError, Models, Prompt},
};

pub(super) use generate::Generate;
pub(super) use turn::AgentTurn;
pub use turn::{Compacted, Conversation, TurnCall, TurnOutput};

/// News that may wait to be told; then the model is read more slowly.
const NEWS: usize = 64;
/// The longest text that its event carries.
const INLINE: usize = 128 * 1024;

/// Asks for a call of a tool, and tells what happens meanwhile; with `reasoning`, also what the model thinks.
async fn ask(
    models: &Models,
    call: &Call,
    config: &Reference,
    prompt: &Prompt,
    reasoning: bool,
) -> Result<Answer, ToolError> {
    let (teller, news) = mpsc::channel(NEWS);
    let asking = async {
        // Dropped with the question, so that whoever tells the news knows when it was the last.
        let teller = teller;
        models.ask(call.tenant_id, config, prompt, &teller).await
    };
    let (answered, ()) = tokio::join!(asking, tell::tell(news, &call.progress, reasoning));
    let answer = answered.map_err(failure)?;
    call.progress.report(completed(&answer)).await;
    Ok(answer)
}

fn failure(error: AskError) -> ToolError {
    let AskError { code, message, retryable, retry_after } = error;
    let retry_after_seconds = retry_after
        .and_then(|after| NonZeroU32::new(u32::try_from(after.as_millis().div_ceil(1000)).unwrap_or(u32::MAX)));
    ToolError::Failed(Failure { retryable, retry_after_seconds, ..Failure::new(&code, message) })
}

fn completed(answer: &Answer) -> MessageCompleted {
    MessageCompleted {
        reply: answer.reply,
        text: (answer.text.len() <= INLINE).then(|| answer.text.clone()),
        text_bytes: answer.text.len() as u64,
        config: answer.config.clone(),
        provider: answer.provider.clone(),
        model: answer.model.clone(),
        input_tokens: answer.usage.input_tokens,
        cached_tokens: answer.usage.cached_tokens,
        output_tokens: answer.usage.output_tokens,
        cost: answer.cost,
    }
}
