use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{Thoughts, ToolCall};

/// What a model is asked.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Prompt {
    /// Who it is to be.
    pub system: Option<String>,
    /// What was said so far, first to last.
    pub messages: Vec<Message>,
    /// What it may call.
    pub tools: Vec<ToolSpec>,
    /// JSON Schema of its answer, where that is to be JSON.
    pub schema: Option<Arc<Value>>,
    /// The most tokens of the answer, where that is not for the configuration to say.
    pub max_tokens: Option<u32>,
    /// Whether the answer has to keep to the usual length where nobody says how long it may be: what is reserved for it
    /// goes by that.
    pub bounded: bool,
    /// Whether what it thinks is wanted as well.
    pub reasoning: bool,
    /// What is known of its length, where a provider has counted how it begins.
    pub counted: Option<Counted>,
}

/// What a provider counted of how a question begins, when that was the whole question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counted {
    /// The configuration that was asked, as `name@version`: another may count otherwise.
    pub by: String,
    /// So many of the messages, and all that stands before them.
    pub messages: usize,
    /// Tokens, at the most.
    pub tokens: u64,
}

/// One thing that was said.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "role", rename_all = "camelCase", rename_all_fields = "camelCase", deny_unknown_fields)]
pub enum Message {
    /// By whoever asks.
    User {
        /// The words.
        text: String,
        /// What is shown with them.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        images: Vec<Image>,
    },
    /// By the model.
    Assistant {
        /// The words.
        text: String,
        /// What it called.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        calls: Vec<ToolCall>,
        /// The configuration that gave it, as `name@version`, where that is known: what its provider wants to see again is
        /// for no other.
        #[serde(skip)]
        by: Option<String>,
        /// What it thought before it called that.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        thoughts: Option<Thoughts>,
    },
    /// By a tool.
    Tool {
        /// The call it answers.
        call_id: String,
        /// The tool, by the name that the model knows it by.
        name: String,
        /// What it gave, as text.
        output: String,
    },
}

/// An image in a message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Image {
    /// `image/png`, `image/jpeg` …
    pub media_type: String,
    /// Its bytes in base64; of one with an address, once they were fetched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Arc<str>>,
    /// Or where it is to be fetched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
}

/// A tool as a model reads about it.
#[derive(Clone, Debug, PartialEq)]
pub struct ToolSpec {
    /// What it is called by: `[a-zA-Z0-9_-]{1,64}`, as providers want names.
    pub name: String,
    /// What it does.
    pub description: String,
    /// JSON Schema of its arguments.
    pub arguments: Arc<Value>,
}

/// What surrounds a message, in bytes: its role and its marks.
const FRAME: usize = 16;
/// What surrounds a tool.
const TOOL_FRAME: usize = 96;
/// What an image counts for, in bytes.
const IMAGE: usize = 4096;
/// The most tokens that an image is: GPT-4o mini makes 48,169 of one that is three times as wide as it is high.
const IMAGE_TOKENS: usize = 50_000;
/// The most tokens that models put before a question without tools themselves.
const BARE_PREAMBLE: u64 = 128;

impl Message {
    /// By a model, whichever that was.
    #[must_use]
    pub fn said(text: String, calls: Vec<ToolCall>) -> Self {
        Self::Assistant { text, calls, by: None, thoughts: None }
    }

    /// About how many bytes of it a model reads.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.weight(IMAGE)
    }

    /// Its bytes, with such a number for each image.
    fn weight(&self, image: usize) -> usize {
        let call = |call: &ToolCall| {
            let signatures = call.signatures.iter().flatten().map(String::len).sum::<usize>();
            call.id.len() + call.name.len() + call.arguments.to_string().len() + signatures
        };
        FRAME
            + match self {
                Self::User { text, images } => text.len() + images.len() * image,
                Self::Assistant { text, calls, thoughts, .. } => {
                    let blocks = thoughts.iter().flat_map(|thoughts| &thoughts.blocks);
                    let thought = blocks.map(|block| block.to_string().len()).sum::<usize>();
                    text.len() + thought + calls.iter().map(call).sum::<usize>()
                }
                Self::Tool { call_id, name, output } => call_id.len() + name.len() + output.len(),
            }
    }
}

impl Prompt {
    /// Bytes that make a token, in most languages.
    pub const TOKEN: usize = 4;

    /// The most tokens that providers and models put before a question with tools themselves.
    pub const PREAMBLE: u64 = 1024;

    /// About how many bytes of it a model reads.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.head() + self.messages.iter().map(Message::bytes).sum::<usize>()
    }

    /// Those of what is no message.
    fn head(&self) -> usize {
        let json = |value: &Arc<Value>| value.to_string().len();
        let tool = |tool: &ToolSpec| TOOL_FRAME + tool.name.len() + tool.description.len() + json(&tool.arguments);
        self.system.as_ref().map_or(0, String::len)
            + self.tools.iter().map(tool).sum::<usize>()
            + self.schema.as_ref().map_or(0, json)
    }

    /// `sha256:` over who it is to be, its first messages, so many, and its tools.
    #[must_use]
    pub fn digest(&self, messages: usize) -> String {
        let tools: Vec<_> =
            self.tools.iter().map(|tool| json!([tool.name, tool.description, tool.arguments])).collect();
        let messages: Vec<_> = self.messages.iter().take(messages).collect();
        let whole = json!({ "system": self.system, "messages": messages, "tools": tools });
        let hex: String = Sha256::digest(whole.to_string()).iter().map(|byte| format!("{byte:02x}")).collect();
        format!("sha256:{hex}")
    }

    /// About how many tokens it has.
    #[must_use]
    pub fn tokens(&self) -> u32 {
        tokens(self.bytes())
    }

    /// The most tokens that it can have for a configuration (`name@version`): those that its provider counted before, and
    /// one for each byte of the rest, since no tokenizer makes more of them.
    #[must_use]
    pub fn most_tokens(&self, config: &str) -> u32 {
        let preamble = if self.tools.is_empty() { BARE_PREAMBLE } else { Self::PREAMBLE };
        let (known, messages) = match &self.counted {
            Some(Counted { by, messages, tokens }) if by == config => (*tokens, *messages),
            _ => (self.head() as u64 + preamble, 0),
        };
        let rest: usize = self.messages.iter().skip(messages).map(|message| message.weight(IMAGE_TOKENS)).sum();
        u32::try_from(known.saturating_add(rest as u64)).unwrap_or(u32::MAX)
    }
}

/// About how many tokens so many bytes of text are.
pub(super) fn tokens(bytes: usize) -> u32 {
    u32::try_from(bytes / Prompt::TOKEN + 1).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_has_no_more_tokens_than_bytes_but_those_that_were_counted() {
        let user = |text: &str, images: usize| {
            let image = Image { media_type: "image/png".to_owned(), data: None, url: None };
            Message::User { text: text.to_owned(), images: vec![image; images] }
        };
        let mut prompt = Prompt { messages: vec![user(&"7".repeat(1000), 0)], ..Prompt::default() };
        assert_eq!(prompt.most_tokens("a@1"), 1000 + 16 + 128);
        prompt.messages.extend([Message::said("ok".to_owned(), vec![]), user("and this", 1)]);
        assert_eq!(prompt.most_tokens("a@1"), 1000 + 2 + 8 + 3 * 16 + 128 + 50_000);
        prompt.counted = Some(Counted { by: "a@1".to_owned(), messages: 1, tokens: 300 });
        assert_eq!(prompt.most_tokens("a@1"), 300 + 2 + 8 + 2 * 16 + 50_000);
        assert!(prompt.most_tokens("b@1") > 51_000, "another counts otherwise");
    }
}
