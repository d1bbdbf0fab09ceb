//! Histories that once went wrong, each the smallest of its kind.

use serde_json::json;

use super::{
    history::History,
    script::{Death, How, Return, Scene},
};
use crate::journal::{self, Body, Command, Question, Refusal, SkipReason, StepKey};

const PASS: Scene = Scene::Pass { worker: 0, how: How { death: None, deaf: false, ahead: None } };

fn play(steps: serde_json::Value, scenes: &[Scene]) -> History {
    let mut history = History::of(serde_json::from_value(json!({ "steps": steps })).unwrap());
    scenes.iter().for_each(|scene| history.play(scene));
    history
}

fn questions(history: &History, wanted: Question) -> usize {
    let events = history.db.events.iter();
    events.filter(|(_, event)| matches!(&event.body, Body::AwaitingApproval(asked) if asked.question == wanted)).count()
}

#[test]
fn an_unanswered_question_about_a_repetition_is_asked_again_after_a_retry() {
    let scenes = [
        PASS,
        Scene::Act { call: 0 },
        Scene::Return { call: 0, how: Return::Unknown },
        PASS,
        Scene::Return { call: 0, how: Return::Failed { retryable: false } },
        PASS,
        Scene::Retry,
    ];
    let mut history = play(json!([{ "id": "a", "uses": "once" }, { "id": "b", "uses": "pure" }]), &scenes);
    history.play_out();
    assert_eq!(history.acts[&StepKey::whole("a")], 1, "it was taken as done");
    assert_eq!(questions(&history, Question::Repeat), 2);
}

#[test]
fn a_call_of_unknown_outcome_in_a_failing_run_is_asked_about_after_a_retry() {
    let scenes = [
        PASS,
        Scene::Act { call: 0 },
        Scene::Return { call: 1, how: Return::Failed { retryable: false } },
        PASS,
        Scene::Crash,
        PASS,
        Scene::Retry,
    ];
    let mut history = play(json!([{ "id": "a", "uses": "once" }, { "id": "b", "uses": "pure" }]), &scenes);
    history.play_out();
    assert_eq!(history.acts[&StepKey::whole("a")], 1, "it was taken as done");
    assert_eq!(questions(&history, Question::Repeat), 1);
}

#[test]
fn consent_does_not_cover_a_repetition_by_another_version_of_the_tool() {
    let scenes = [
        PASS,
        Scene::Decide { hold: 0, by: 1, approve: true, instead: false },
        Scene::Pass { worker: 0, how: How { death: Some(Death::AfterCommit), ..How::default() } },
        Scene::Upgrade,
    ];
    let mut history = play(json!([{ "id": "a", "uses": "repeatable", "approval": {} }]), &scenes);
    history.play_out();
    assert_eq!(questions(&history, Question::Consent), 2);
}

#[test]
fn instants_finer_than_the_journal_keeps_are_the_same_lived_and_read_back() {
    // The comparison is made at every append.
    let steps = json!([
        { "id": "a", "uses": "pure", "approval": { "expires": "1us" } },
        { "id": "b", "uses": "pure", "retry": { "attempts": 2, "backoff": "1us" } },
        { "id": "c", "uses": "wait" },
    ]);
    let retryable = Scene::Return { call: 0, how: Return::Failed { retryable: true } };
    let done = Scene::Return { call: 0, how: Return::Done };
    play(steps, &[PASS, retryable, PASS, done, PASS]).play_out();
}

#[test]
fn only_a_step_of_the_plan_whose_needs_have_ended_is_skipped() {
    let history = play(json!([{ "id": "a", "uses": "pure" }, { "id": "b", "needs": ["a"], "uses": "pure" }]), &[]);
    for step in ["b", "nowhere"] {
        let command = Command::Skip { step: StepKey::whole(step), reason: SkipReason::Condition };
        let (state, now) = (&history.db.head, history.now);
        assert_eq!(journal::decide(state, command, now), Err(Refusal::Stale), "{step}");
    }
}

#[test]
fn items_begin_in_order() {
    let steps = json!([{ "id": "a", "uses": "pure", "forEach": [1, 2, 3], "concurrency": 2 }]);
    let history = play(steps, &[PASS, Scene::Return { call: 0, how: Return::Done }, PASS]);
    // The second and the third are in flight: a fourth there is not, and the first one is done.
    let state = &history.db.head;
    assert_eq!(state.items("a").count(), 3);
    assert_eq!(state.next_item(&state.plan.as_ref().unwrap().steps[0]), None);

    let steps = json!([{ "id": "a", "uses": "pure", "forEach": [1, 2, 3] }]);
    let mut history = play(steps, &[]);
    history.expand("a", 3);
    let skip = |item| Command::Skip { step: StepKey::item("a", item), reason: SkipReason::Condition };
    assert_eq!(journal::decide(&history.db.head, skip(1), history.now), Err(Refusal::Stale));
    assert!(journal::decide(&history.db.head, skip(0), history.now).is_ok());
}

#[test]
fn a_call_that_asks_is_made_again_with_what_was_filled_in() {
    let asks = Scene::Return { call: 0, how: Return::Asks };
    let fill = Scene::Decide { hold: 0, by: 0, approve: true, instead: false };
    let key = StepKey::whole("a");
    let mut history =
        play(json!([{ "id": "a", "uses": "once" }]), &[PASS, asks.clone(), PASS, Scene::Crash, fill, PASS]);
    let filled = history.db.head.filled(&key);
    assert_eq!(*filled[0].input, json!({ "which": 1.5 }), "by whoever started the run, since it is no consent");
    history.play_out();
    assert_eq!((history.acts[&key], questions(&history, Question::Input)), (1, 1));
    assert!(history.db.events.iter().all(|(_, event)| event.attempt.is_none_or(|attempt| attempt == 1)));

    let history = play(json!([{ "id": "a", "uses": "once" }]), &[PASS, asks, PASS]);
    let (state, now) = (&history.db.head, history.now);
    let approval_id = *state.holds.keys().next().unwrap();
    let decide = |approve, input| {
        let by = super::history::person(1);
        Command::Decide { approval_id, approve, by, known_as: vec![], reason: None, instead: None, input }
    };
    let form = Some(std::sync::Arc::new(json!({})));
    assert_eq!(journal::decide(state, decide(true, None), now), Err(Refusal::Form));
    assert_eq!(journal::decide(state, decide(false, form), now), Err(Refusal::Form));
    assert!(journal::decide(state, decide(false, None), now).is_ok());
}
