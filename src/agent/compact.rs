//! The rule by which a question stays within the window of the model that is asked. Pure, and of the history alone: the
//! same history gives the same question, and what has been left out once stays out, so that from turn to turn a question
//! begins as the one before and a provider's cache is of use.

use std::ops::Range;

use serde_json::Value;

use crate::{
    llm::{Message, Prompt},
    tool::{self, Compacted},
};

/// The most of one output that a model is shown, in bytes.
const SHOWN: usize = 32 * 1024;

/// The least to which outputs of the last turns are cut.
const LEAST: usize = 128;

/// So many turns are the last: what they called gave what the model is at.
const LAST: usize = 2;

/// The longest note on turns that are left out, in bytes.
const NOTE: usize = 4096;

/// A turn of the past, and what its calls came to.
#[derive(Clone, Debug)]
pub(super) struct Past {
    pub(super) n: u32,
    /// The tokens of the question that it answered, as its provider counted; 0 where nobody did.
    pub(super) asked: u64,
    /// What the model said; with a call for each of the outputs.
    pub(super) said: Message,
    pub(super) given: Vec<Given>,
}

/// What a call came to.
#[derive(Clone, Debug)]
pub(super) struct Given {
    /// The call, which is also its step.
    id: String,
    /// The tool, by the name that the model knows it by.
    name: String,
    /// What it gave, as much as is ever shown, or why it did not.
    text: String,
    /// All its bytes, where it is the output of a step.
    output: Option<usize>,
    /// How it came out, in a word or two.
    end: String,
    view: View,
}

/// How much of an output is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum View {
    /// So many bytes of it.
    UpTo(usize),
    /// Where to read it.
    Place,
}

/// What was said after the goal, as the model is told, and what is left out of it. `fixed` are the bytes of all else in
/// the question, `window` the most tokens of it, `reader` the tool that reads outputs, by the name that the model knows it by.
pub(super) fn compact(past: Vec<Past>, fixed: usize, window: u32, reader: Option<&str>) -> (Vec<Message>, Compacted) {
    let window = usize::try_from(window.saturating_sub(1)).unwrap_or(usize::MAX);
    let room = window.saturating_mul(Prompt::TOKEN);
    let mut history = History { fixed, window, room, reader, turns: vec![], bytes: vec![], out: 0, note: None };
    for turn in past {
        history.add(turn);
    }
    history.told()
}

struct History<'a> {
    fixed: usize,
    /// The most tokens of the whole question.
    window: usize,
    /// The bytes that are as many.
    room: usize,
    reader: Option<&'a str>,
    turns: Vec<Past>,
    /// What each of them takes.
    bytes: Vec<usize>,
    /// So many of them are left out, the oldest, and the note stands in their place.
    out: usize,
    note: Option<Message>,
}

impl History<'_> {
    /// One more turn, and what had to be left out of the question that followed it.
    fn add(&mut self, turn: Past) {
        self.measure(turn.asked);
        self.bytes.push(turn.bytes(self.reader));
        self.turns.push(turn);
        let most = self.room / 4 * 3;
        if self.bytes() <= most {
            return;
        }
        let old = self.turns.len().saturating_sub(LAST);
        // Down to the half, so that it is some turns until it comes to this again; or to half of what the last leave.
        let last = self.fixed + self.bytes.iter().skip(old).sum::<usize>();
        let enough = (self.room / 2).max(last + most.saturating_sub(last) / 2);
        self.place(self.out..old, enough);
        self.leave_out(old, enough);
        let mut least = SHOWN;
        while self.bytes() > most && least > LEAST {
            least /= 2;
            self.cut(least);
        }
        // Rather the last turn alone than none.
        self.leave_out(self.turns.len().saturating_sub(1), self.room);
    }

    /// Learns from the tokens that a provider counted of the question so far how many bytes make one, where it is fewer than
    /// usual. It is one at least.
    fn measure(&mut self, tokens: u64) {
        let (tokens, bytes) = (u128::from(tokens.saturating_sub(Prompt::PREAMBLE)), self.bytes() as u128);
        if let Some(room) = (self.window as u128 * bytes.max(tokens)).checked_div(tokens) {
            self.room = usize::try_from(room).unwrap_or(usize::MAX).min(self.window.saturating_mul(Prompt::TOKEN));
        }
    }

    /// The bytes of the whole question.
    fn bytes(&self) -> usize {
        let turns: usize = self.bytes.iter().skip(self.out).sum();
        self.fixed + self.note.as_ref().map_or(0, Message::bytes) + turns
    }

    /// Says only where to read the outputs of these turns, the oldest first, until it is enough.
    fn place(&mut self, turns: Range<usize>, enough: usize) {
        for at in turns {
            for call in 0..self.turns.get(at).map_or(0, |turn| turn.given.len()) {
                if self.bytes() <= enough {
                    return;
                }
                self.view(at, call, View::Place);
            }
        }
    }

    /// Shows no more than that of what is shown at all.
    fn cut(&mut self, most: usize) {
        for at in self.out..self.turns.len() {
            for call in 0..self.turns.get(at).map_or(0, |turn| turn.given.len()) {
                self.view(at, call, View::UpTo(most));
            }
        }
    }

    /// Shows an output so, where that is shorter.
    fn view(&mut self, at: usize, call: usize, view: View) {
        let (Some(turn), Some(bytes)) = (self.turns.get_mut(at), self.bytes.get_mut(at)) else { return };
        let Some(given) = turn.given.get_mut(call) else { return };
        let other = Given { view, ..given.clone() };
        let shorter = given.shown(self.reader).len().saturating_sub(other.shown(self.reader).len());
        if shorter > 0 {
            *given = other;
            *bytes -= shorter;
        }
    }

    /// Leaves turns out, the oldest first and none from `end` on, until it is enough.
    fn leave_out(&mut self, end: usize, enough: usize) {
        while self.bytes() > enough && self.out < end {
            self.out += 1;
            let (out, _) = self.turns.split_at(self.out);
            self.note = Some(note(out, NOTE.min(self.room / 16), self.reader));
        }
    }

    fn told(self) -> (Vec<Message>, Compacted) {
        let mut compacted = Compacted { turns: self.out, ..Compacted::default() };
        let mut messages = Vec::from_iter(self.note);
        for turn in self.turns.into_iter().skip(self.out) {
            let seen = |view: fn(View) -> bool| turn.given.iter().filter(|given| view(given.view)).count();
            compacted.outputs += seen(|view| view == View::Place);
            compacted.cut += seen(|view| matches!(view, View::UpTo(most) if most < SHOWN));
            messages.push(turn.said);
            messages.extend(turn.given.into_iter().map(|given| given.told(self.reader)));
        }
        (messages, compacted)
    }
}

impl Past {
    fn bytes(&self, reader: Option<&str>) -> usize {
        self.said.bytes() + self.given.iter().map(|given| given.clone().told(reader).bytes()).sum::<usize>()
    }
}

impl Given {
    /// An output.
    pub(super) fn output(id: &str, name: &str, output: &Value) -> Self {
        let mut text = tool::text(output);
        let all = text.len();
        text.truncate(text.floor_char_boundary(SHOWN));
        Self { output: Some(all), ..Self::other(id, name, text, format!("gave {all} bytes")) }
    }

    /// Anything else that came of a call.
    pub(super) fn other(id: &str, name: &str, text: String, end: String) -> Self {
        Self { id: id.to_owned(), name: name.to_owned(), text, output: None, end, view: View::UpTo(SHOWN) }
    }

    fn told(self, reader: Option<&str>) -> Message {
        let output = self.shown(reader);
        Message::Tool { call_id: self.id, name: self.name, output }
    }

    fn shown(&self, reader: Option<&str>) -> String {
        let Self { id, name, text, output, view, .. } = self;
        let all = output.unwrap_or(text.len());
        let how = |from: usize| match reader.filter(|_| output.is_some()) {
            Some(reader) if from > 0 => format!("; go on with {reader}, step \"{id}\", offset {from}"),
            Some(reader) => format!("; read it with {reader}, step \"{id}\""),
            None => String::new(),
        };
        match view {
            View::UpTo(most) => {
                let end = text.floor_char_boundary(*most);
                if end == all {
                    return text.clone();
                }
                let part = text.get(..end).unwrap_or_default();
                format!("{part}\n[cut off here: these are {end} of {all} bytes{}]", how(end))
            }
            View::Place => format!("[what {name} gave, {all} bytes, is left out here{}]", how(0)),
        }
    }
}

/// What stands in the place of turns that are left out: what they called and how it came out, a line each, the latest
/// where all are too many.
fn note(out: &[Past], most: usize, reader: Option<&str>) -> Message {
    let line = |given: &Given| {
        let name = given.name.get(..given.name.floor_char_boundary(64)).unwrap_or_default();
        format!("\n{} {name}: {}", given.id, given.end)
    };
    let (mut lines, mut room, mut left) = (vec![], most, 0);
    for given in out.iter().rev().flat_map(|turn| turn.given.iter().rev()) {
        let line = line(given);
        match room.checked_sub(line.len()).filter(|_| left == 0) {
            Some(less) => {
                room = less;
                lines.push(line);
            }
            None => left += 1,
        }
    }
    if left > 0 {
        lines.push(format!("\n{left} calls before"));
    }
    lines.reverse();
    let turns = match out {
        [first, .., last] => format!("turns {} to {} are", first.n, last.n),
        _ => format!("turn {} is", out.first().map_or(1, |turn| turn.n)),
    };
    let how = reader.map(|reader| format!("; {reader} reads what they gave")).unwrap_or_default();
    Message::User {
        text: format!("[For want of room {turns} left out here. They called{how}:{}]", lines.concat()),
        images: vec![],
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::llm::ToolCall;

    const READER: Option<&str> = Some("output_read");

    /// A turn with so many words and, for each call, so many bytes of arguments and of what it came to.
    fn turn(n: u32, words: usize, calls: &[(usize, usize, bool)]) -> Past {
        let id = |place: usize| format!("call-{n}-{place}");
        let call = |(place, call): (usize, &(usize, usize, bool))| ToolCall {
            id: id(place),
            name: "act".to_owned(),
            arguments: json!({ "a": "a".repeat(call.0) }),
            signatures: None,
        };
        let given = |(place, (_, bytes, failed)): (usize, &(usize, usize, bool))| match failed {
            true => Given::other(&id(place), "act", "f".repeat(*bytes), "failed: broken".to_owned()),
            false => Given::output(&id(place), "act", &json!("é".repeat(bytes / 2))),
        };
        let said = Message::said("w".repeat(words), calls.iter().enumerate().map(call).collect());
        Past { n, asked: 0, said, given: calls.iter().enumerate().map(given).collect() }
    }

    fn bytes(messages: &[Message]) -> usize {
        messages.iter().map(Message::bytes).sum()
    }

    fn histories() -> impl Strategy<Value = Vec<Past>> {
        let size = prop_oneof![4 => 0..200_usize, 3 => 0..9000_usize, 1 => 0..90_000_usize];
        let call = (prop_oneof![9 => 0..100_usize, 1 => 0..20_000_usize], size, proptest::bool::weighted(0.2));
        let one = (0..2000_usize, proptest::collection::vec(call, 1..5));
        proptest::collection::vec(one, 0..20)
            .prop_map(|turns| turns.iter().zip(1..).map(|((words, calls), n)| turn(n, *words, calls)).collect())
    }

    proptest! {
        #[test]
        fn a_question_stays_within_the_window_and_whole(past in histories(), fixed in 0..9000_usize, window in 500..60_000_u32) {
            let (told, compacted) = compact(past.clone(), fixed, window, READER);
            let room = (window as usize - 1) * Prompt::TOKEN;
            if fixed + bytes(&told) > room {
                // What is left is the last turn alone, with next to nothing of what its calls gave.
                prop_assert_eq!(compacted.turns, past.len().saturating_sub(1));
                let given = told.iter().filter_map(|message| match message {
                    Message::Tool { output, .. } => Some(output.len()),
                    _ => None,
                });
                prop_assert!(given.max().unwrap_or_default() < LEAST + 120);
            }
            // All that is not left out is there, in order, each call before its output and none without.
            let kept = &past[compacted.turns..];
            let mut rest = told.iter();
            if compacted.turns > 0 {
                prop_assert!(matches!(rest.next(), Some(Message::User { text, .. }) if text.len() < NOTE + 200), "a note");
            }
            for turn in kept {
                prop_assert_eq!(rest.next(), Some(&turn.said));
                for given in &turn.given {
                    prop_assert!(matches!(rest.next(), Some(Message::Tool { call_id, .. }) if *call_id == given.id), "an output");
                }
            }
            prop_assert_eq!(rest.next(), None);
            prop_assert!(past.is_empty() || !kept.is_empty(), "the last turn is always there");
            // What fits is left as it is.
            let whole: Vec<_> = past.iter().flat_map(|turn| {
                std::iter::once(turn.said.clone()).chain(turn.given.iter().map(|given| given.clone().told(READER)))
            }).collect();
            if fixed + bytes(&whole) <= room / 4 * 3 {
                prop_assert_eq!((&told, compacted), (&whole, Compacted::default()));
            }
        }

        #[test]
        fn what_is_left_out_stays_out(past in histories(), window in 500..60_000_u32) {
            let asked: Vec<_> = (0..=past.len()).map(|n| compact(past[..n].to_vec(), 100, window, READER)).collect();
            for pair in asked.windows(2) {
                prop_assert!(pair[0].1.turns <= pair[1].1.turns);
                let [before, after] = [&pair[0].0, &pair[1].0].map(|told| {
                    told.iter().filter_map(|message| match message {
                        Message::Tool { call_id, output, .. } => Some((call_id.clone(), output.len())),
                        _ => None,
                    }).collect::<std::collections::BTreeMap<_, _>>()
                });
                for (call, bytes) in after {
                    prop_assert!(before.get(&call).is_none_or(|then| bytes <= *then), "{} is shown again", call);
                }
            }
        }
    }

    #[test]
    fn a_question_mostly_begins_as_the_one_before() {
        let past: Vec<_> = (1..=90).map(|n| turn(n, 40, &[(20, 4000, false), (20, 900, true)])).collect();
        let asked: Vec<_> = (0..=90).map(|n| compact(past[..n].to_vec(), 2000, 20_000, READER)).collect();
        assert!(asked.iter().all(|(told, _)| bytes(told) + 2000 <= 60_000), "the limit is three quarters");
        let anew = asked.windows(2).filter(|pair| !pair[1].0.starts_with(&pair[0].0)).count();
        assert!((5..=25).contains(&anew), "{anew} of 90 questions begin anew");
    }

    #[test]
    fn outputs_go_before_turns_and_each_says_where_it_is() {
        let told = |turns: u32, window, reader| {
            let past = (1..=turns).map(|n| turn(n, 10, &[(10, 3000, false), (10, 30, true)])).collect();
            let (told, compacted) = compact(past, 0, window, reader);
            let texts = told.into_iter().filter_map(|message| match message {
                Message::User { text, .. } => Some(text),
                Message::Tool { output, .. } if output.starts_with('[') || output.contains("[cut") => Some(output),
                _ => None,
            });
            (compacted, texts.collect::<Vec<_>>())
        };
        let (compacted, texts) = told(4, 3500, READER);
        assert_eq!(compacted, Compacted { outputs: 2, turns: 0, cut: 0 });
        let place = "[what act gave, 3000 bytes, is left out here; read it with output_read, step \"call-1-0\"]";
        assert_eq!(texts[0], place);
        let (_, texts) = told(4, 3500, None);
        assert_eq!(texts[0], "[what act gave, 3000 bytes, is left out here]");
        let (compacted, texts) = told(30, 3500, READER);
        assert!(compacted.turns > 5 && compacted.outputs > 0, "{compacted:?}");
        let head = format!(
            "[For want of room turns 1 to {} are left out here. They called; output_read reads",
            compacted.turns
        );
        assert!(texts[0].starts_with(&head), "{}", texts[0]);
        let last = format!(
            "
call-{}-1 act: failed: broken]",
            compacted.turns
        );
        assert!(
            texts[0].contains(
                " calls before
"
            ) && texts[0].ends_with(&last),
            "{}",
            texts[0]
        );
        let (compacted, texts) = told(1, 500, READER);
        assert_eq!(compacted, Compacted { outputs: 0, turns: 0, cut: 1 });
        assert!(texts[0].ends_with("bytes; go on with output_read, step \"call-1-0\", offset 1024]"), "{}", texts[0]);
    }
}
