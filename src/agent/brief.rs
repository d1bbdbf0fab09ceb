//! A draft that will not do, as its event has room for it. Pure.

use crate::{journal::PlanRefused, tool::fits};

/// The share of the room that what a model says besides its plan may have where there is too little, and that what is wrong
/// with it may: a sixteenth each, as a letter can take six bytes of JSON.
const SHARE: usize = 16;

/// The draft with as much of it as `most` bytes of JSON have room for: less of what was said first, then no plan.
#[must_use]
pub fn brief(mut draft: PlanRefused, most: usize) -> PlanRefused {
    if fits(&draft, most) {
        return draft;
    }
    cut(&mut draft.text, most / SHARE);
    let each = most / SHARE / draft.mistakes.len().max(1);
    draft.mistakes.iter_mut().for_each(|mistake| cut(mistake, each));
    if !fits(&draft, most) {
        (draft.plan, draft.signatures) = (None, None);
        draft.mistakes.push("the plan is too large to be shown again: hand in a smaller one".to_owned());
    }
    draft
}

/// Cuts a text to so many bytes, and says so.
fn cut(text: &mut String, most: usize) {
    let bytes = text.len();
    if bytes > most {
        text.truncate(text.floor_char_boundary(most));
        text.push_str(&format!("… (cut: it has {bytes} bytes)"));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const MOST: usize = 16 * 1024;

    fn draft(text: &str, plan: Option<Value>, mistakes: &[String]) -> PlanRefused {
        PlanRefused { text: text.to_owned(), plan, signatures: Some(vec!["s".to_owned()]), mistakes: mistakes.to_vec() }
    }

    #[test]
    fn what_has_room_stays_as_it_is() {
        let small = draft("I plan.", Some(json!({ "steps": [] })), &["no steps".to_owned()]);
        assert_eq!(brief(small.clone(), MOST), small);
    }

    #[test]
    fn words_are_cut_before_the_plan_is_left_out() {
        let plan = json!({ "steps": "p".repeat(MOST / 2) });
        let told = brief(draft(&"\u{e9}".repeat(MOST), Some(plan.clone()), &["no".to_owned()]), MOST);
        assert!(told.text.ends_with(&format!("\u{e9}… (cut: it has {} bytes)", 2 * MOST)), "{}", told.text);
        assert_eq!((told.plan, told.mistakes), (Some(plan), vec!["no".to_owned()]));
    }

    #[test]
    fn it_fits_whatever_it_is_made_of() {
        for letter in ["x", "\"", "\u{1}", "\u{1f3b5}"] {
            let long = letter.repeat(MOST);
            for mistakes in [1, 20] {
                let told = brief(draft(&long, Some(json!({ "steps": long })), &vec![long.clone(); mistakes]), MOST);
                assert!(fits(&told, MOST), "{letter:?}");
                assert_eq!((told.plan, told.signatures, told.mistakes.len()), (None, None, mistakes + 1));
            }
        }
    }
}
