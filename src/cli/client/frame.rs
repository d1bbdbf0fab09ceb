//! A timeline as the lines of a screen. Pure: time, width and height come in.

use console::{Style, measure_text_width, truncate_str};

use super::{
    line, text,
    timeline::{Outcome, State, StepView, Timeline},
};
use crate::{
    journal::{AwaitingApproval, Question},
    kernel::Timestamp,
};

/// The screen a frame is for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Screen {
    pub(super) width: usize,
    /// The most lines a frame may have.
    pub(super) height: usize,
}

/// The whole timeline as it stands at `now`. No line is wider than the screen, and all fit on it: steps
/// that are over, and then those to come, are folded to make room.
pub(super) fn frame(timeline: &Timeline, now: Timestamp, screen: Screen) -> Vec<String> {
    let head = head(timeline);
    let foot = foot(timeline, now, screen);
    let room = screen.height.saturating_sub(head.len() + foot.len());
    let columns = Columns::of(timeline);
    let rows: Vec<Row> = timeline.steps().map(|step| Row::of(step, &columns, now, screen.width)).collect();
    let mut lines = head;
    lines.extend(fold(rows, room));
    lines.extend(foot);
    clip(lines, screen)
}

struct Columns {
    step: usize,
    tool: usize,
}

impl Columns {
    fn of(timeline: &Timeline) -> Self {
        let widest = |of: fn(&StepView) -> usize| timeline.steps().map(of).max().unwrap_or_default().min(32);
        Self { step: widest(|step| label(step).chars().count()), tool: widest(|step| step.tool.chars().count()) }
    }
}

/// What a step shows, and what may be done to make room.
struct Row {
    lines: Vec<String>,
    fold: Fold,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fold {
    /// It moves, waits for somebody or went wrong.
    Never,
    Done,
    ToCome,
}

impl Row {
    fn of(step: &StepView, columns: &Columns, now: Timestamp, width: usize) -> Self {
        let indent = if step.key.item.is_some() { "    " } else { "  " };
        let (sign, style) = sign(&step.state);
        let name = pad(&label(step), columns.step);
        let tool = pad(&text::safe(&step.tool), columns.tool);
        let first = format!("{indent}{} {name}  {}  {}", style.apply_to(sign), dim(&tool), doing(step, now));
        let mut lines = vec![first.trim_end().to_owned()];
        if let State::Held(hold) = &step.state {
            lines.extend(question(hold, now, width));
        }
        let fold = match step.state {
            State::Completed | State::Skipped(_) => Fold::Done,
            State::Pending => Fold::ToCome,
            _ => Fold::Never,
        };
        Self { lines, fold }
    }
}

fn label(step: &StepView) -> String {
    let key = step.key.to_string();
    match &step.name {
        Some(name) => text::cut(&text::safe(name), 40),
        None => key,
    }
}

fn sign(state: &State) -> (&'static str, Style) {
    let plain = Style::new();
    match state {
        State::Pending => ("·", plain.dim()),
        State::Running => ("▸", plain.cyan()),
        State::Waiting(_) => ("…", plain.cyan()),
        State::Retrying { .. } => ("↻", plain.yellow()),
        State::Held(_) => ("?", plain.yellow().bold()),
        State::Completed => ("✓", plain.green()),
        State::Failed { .. } => ("✗", plain.red()),
        State::Skipped(_) => ("–", plain.dim()),
    }
}

/// What a step does now, or what came of it.
fn doing(step: &StepView, now: Timestamp) -> String {
    let since = step.started_at.map(|at| text::whole_duration(now - at));
    let took = step.took.map(text::duration);
    let mut parts = Vec::new();
    match &step.state {
        State::Pending => {}
        State::Running => {
            parts.extend(step.items.map(|items| format!("{items} items")));
            parts.extend(since);
        }
        State::Waiting(Some(until)) => parts.push(format!("waits {} more", text::whole_duration(*until - now))),
        State::Waiting(None) => {
            parts.push(step.child.map(|child| format!("waits for {child}")).unwrap_or_default());
            parts.extend(since);
        }
        State::Retrying { at, error } => {
            parts.push(format!("again in {}", text::whole_duration(*at - now)));
            parts.push(text::safe(&line::failure(error)));
        }
        State::Held(hold) if hold.question == Question::Repeat => parts.push("may have acted already".to_owned()),
        State::Held(_) => parts.push("held".to_owned()),
        State::Completed => parts.extend(took),
        State::Failed { error, continued } => {
            parts.extend(took);
            parts.push(text::safe(&line::failure(error)));
            parts.extend(continued.then(|| "the run goes on".to_owned()));
        }
        State::Skipped(reason) => parts.push(line::skip(*reason).to_owned()),
    }
    if step.attempt > 1 {
        parts.insert(0, format!("attempt {}", step.attempt));
    }
    if let (State::Running, Some(progress)) = (&step.state, &step.progress) {
        parts.push(text::safe(line::progress_words(progress).trim_end()));
    }
    parts.extend(step.decision.as_ref().map(|decision| dim(&text::safe(decision))));
    parts.retain(|part| !part.is_empty());
    parts.join(" · ")
}

/// A hold: what is asked, the exact arguments, and how to answer.
fn question(hold: &AwaitingApproval, now: Timestamp, width: usize) -> Vec<String> {
    let mut about = Vec::new();
    about.extend(hold.reason.clone());
    about.extend(hold.cost_estimate.map(|cost| format!("costs {cost}")));
    about.extend((!hold.scope.is_empty()).then(|| format!("touches {}", hold.scope.join(", "))));
    about.extend((!hold.requires.is_empty()).then(|| format!("needs {}", hold.requires.join(", "))));
    about.extend((!hold.approvers.is_empty()).then(|| format!("for {}", hold.approvers.join(" or "))));
    about.extend(hold.expires_at.map(|at| format!("expires in {}", text::whole_duration(at - now))));
    let mut lines = vec![format!("{} with", hold.action)];
    if !about.is_empty() {
        lines.insert(0, text::safe(&about.join(" · ")));
    }
    lines.extend(text::json_lines(&hold.arguments));
    lines.extend(hold.form.as_ref().map(line::form).into_iter().flatten());
    let mut lines: Vec<String> = lines
        .iter()
        .flat_map(|line| text::wrap(line, width.saturating_sub(6)))
        .map(|line| format!("      {line}"))
        .collect();
    let (yes, no) = match hold.question {
        Question::Consent => ("consent", "refuse"),
        Question::Repeat => ("act again", "take it as done"),
        Question::Budget => ("raise the budget", "refuse"),
        Question::Input => ("with --arguments: fill it in", "refuse"),
    };
    let answer = |command, meaning| {
        format!("      {} {}", bold(&format!("fermata {command} {}", hold.approval_id)), dim(&format!("# {meaning}")))
    };
    lines.extend([answer("approve", yes), answer("deny", no)]);
    lines
}

fn head(timeline: &Timeline) -> Vec<String> {
    let id = timeline.run_id.map(|id| id.to_string()).unwrap_or_default();
    let what = [timeline.workflow.as_deref(), timeline.goal.as_deref()].into_iter().flatten();
    let mut first = bold(&id);
    what.for_each(|what| first.push_str(&format!("  {}", text::safe(what))));
    let mut lines = vec![first];
    if let Some(parent) = &timeline.parent {
        lines.push(dim(&format!("started by {} of {}", parent.step_id, parent.run_id)));
    }
    lines
}

fn foot(timeline: &Timeline, now: Timestamp, screen: Screen) -> Vec<String> {
    let over = timeline.steps().filter(|step| step.is_over()).count();
    let age = timeline.age(now);
    let age = if timeline.end.is_some() { text::duration(age) } else { text::whole_duration(age) };
    let counts = format!("{over} of {} steps · {age}", timeline.steps().count());
    let style = match timeline.status() {
        "completed" => Style::new().green(),
        "failed" => Style::new().red(),
        "awaiting approval" | "cancelled" | "cancelling" => Style::new().yellow(),
        _ => Style::new(),
    };
    let mut lines = vec![format!("{} · {counts}", style.apply_to(timeline.status()))];
    match timeline.end.as_ref().map(|end| &end.outcome) {
        None => {}
        Some(Outcome::Failed(failure)) => lines.extend(text::wrap(&text::safe(&line::failure(failure)), screen.width)),
        Some(Outcome::Cancelled { by, reason }) => {
            let why = reason.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
            lines.push(text::safe(&format!("by {by}{why}")));
        }
        Some(Outcome::Completed { output: Some(output), .. }) => {
            lines.extend(text::json_lines(output).iter().flat_map(|line| text::wrap(line, screen.width)));
        }
        Some(Outcome::Completed { bytes, .. }) => lines.extend(bytes.map(line::left_out)),
    }
    lines
}

/// Lines of the rows, where too many: neighbours that are done as one line, then those to come.
fn fold(rows: Vec<Row>, room: usize) -> Vec<String> {
    let height = |rows: &[Row]| rows.iter().map(|row| row.lines.len()).sum::<usize>();
    let mut rows = rows;
    for (kind, word) in [(Fold::Done, "done"), (Fold::ToCome, "to come")] {
        if height(&rows) > room {
            rows = fold_kind(rows, kind, word);
        }
    }
    rows.into_iter().flat_map(|row| row.lines).collect()
}

fn fold_kind(rows: Vec<Row>, kind: Fold, word: &str) -> Vec<Row> {
    let mut out: Vec<Row> = Vec::new();
    let mut folded = 0;
    for row in rows {
        if row.fold == kind {
            if folded > 0 {
                out.pop();
            }
            folded += 1;
            let lines = if folded > 1 { vec![dim(&format!("  {folded} steps {word}"))] } else { row.lines };
            out.push(Row { lines, fold: kind });
        } else {
            folded = 0;
            out.push(row);
        }
    }
    out
}

/// The last resort: the screen's width and height, keeping the first line and the last ones.
fn clip(lines: Vec<String>, screen: Screen) -> Vec<String> {
    let mut lines: Vec<String> = lines
        .into_iter()
        .map(|line| {
            if measure_text_width(&line) > screen.width {
                truncate_str(&line, screen.width, "…").into_owned()
            } else {
                line
            }
        })
        .collect();
    if lines.len() > screen.height && screen.height > 2 {
        let cut = lines.len() - screen.height + 1;
        lines.splice(
            1..=cut,
            [dim(&format!("  … {cut} more lines; `fermata run get` and `fermata approvals ID` have all"))],
        );
    }
    lines
}

fn pad(text: &str, width: usize) -> String {
    console::pad_str(text, width, console::Alignment::Left, Some("…")).into_owned()
}

fn dim(text: &str) -> String {
    console::style(text).dim().to_string()
}

fn bold(text: &str) -> String {
    console::style(text).bold().to_string()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cli::client::timeline::{Record, apply};

    fn timeline(steps: usize, events: &[(&str, Option<usize>, serde_json::Value)]) -> Timeline {
        let plan: Vec<_> = (0..steps).map(|i| json!({"id": format!("s{i}"), "uses": "debug.echo"})).collect();
        let mut timeline = Timeline::default();
        let ready = ("plan.ready", None, json!({"plan": {"steps": plan}}));
        let began = ("idle", None, json!({"createdBy": "user_1", "workflow": "demo@1"}));
        let executing = ("executing", None, json!({"by": "user_1"}));
        for (seq, (name, step, payload)) in (1..).zip([&began, &ready, &executing].into_iter().chain(events)) {
            let mut event = json!({
                "eventId": format!("evt_{seq}"), "runId": "run_01k0000000e00000000000000a",
                "tenantId": "tnt_01k0000000e00000000000000c", "ts": "2026-11-21T09:00:00.000Z",
                "step": name, "level": "info", "payload": payload,
            });
            if let Some(step) = step {
                event["stepId"] = json!(format!("s{step}"));
                event["attempt"] = json!(1);
            }
            apply(&mut timeline, &Record::parse(event.to_string()).unwrap());
        }
        timeline
    }

    fn shown(timeline: &Timeline, width: usize, height: usize) -> Vec<String> {
        let now = "2026-11-21T09:01:05Z".parse().unwrap();
        let lines = frame(timeline, now, Screen { width, height });
        lines.iter().map(|line| console::strip_ansi_codes(line).into_owned()).collect()
    }

    fn started() -> serde_json::Value {
        json!({"tool": "debug.echo", "toolVersion": "1", "effect": "pure", "arguments": {}})
    }

    fn held(arguments: serde_json::Value) -> serde_json::Value {
        json!({"approvalId": "apr_01k0000000e00000000000000b", "question": "consent", "action": "crm.sync", "toolVersion": "1",
            "arguments": arguments, "digest": "sha256:00", "reason": "Writes", "scope": ["contacts"], "requires": []})
    }

    #[test]
    fn a_frame_shows_what_runs_what_is_held_and_how_to_answer() {
        let timeline = timeline(
            3,
            &[
                ("step.completed", Some(0), json!({"durationMs": 1200})),
                ("step.started", Some(1), started()),
                ("tool.progress", Some(1), json!({"fraction": 0.42, "message": "loading"})),
                ("awaiting_approval", Some(2), held(json!({"a": "x\u{1b}[2J"}))),
            ],
        );
        assert_eq!(
            shown(&timeline, 80, 40),
            [
                "run_01k0000000e00000000000000a  demo@1",
                "  ✓ s0  debug.echo  1.2 s",
                "  ▸ s1  debug.echo  1 m 05 s · 42 % loading",
                "  ? s2  debug.echo  held",
                "      Writes · touches contacts",
                "      crm.sync with",
                "      {",
                "        \"a\": \"x\\u001b[2J\"",
                "      }",
                "      fermata approve apr_01k0000000e00000000000000b # consent",
                "      fermata deny apr_01k0000000e00000000000000b # refuse",
                "executing · 1 of 3 steps · 1 m 05 s",
            ]
        );
    }

    #[test]
    fn the_last_line_of_what_a_model_says_is_shown() {
        let delta =
            |offset, text: &str| ("message.delta", Some(0), json!({"reply": 1, "offset": offset, "text": text}));
        let spoken = [
            ("step.started", Some(0), started()),
            delta(0, "One\n"),
            delta(4, "Two "),
            delta(8, "and "),
            delta(12, "three\n"),
        ];
        assert!(shown(&timeline(1, &spoken), 80, 20)[1].ends_with("· Two and three"));
        let again = [spoken.as_slice(), &[delta(0, "Anew")]].concat();
        assert!(shown(&timeline(1, &again), 80, 20)[1].ends_with("· Anew"));
    }

    #[test]
    fn a_long_run_is_folded_to_the_screen() {
        let mut events: Vec<_> = (0..100).map(|i| ("step.completed", Some(i), json!({"durationMs": 5}))).collect();
        events.push(("step.started", Some(100), started()));
        let lines = shown(&timeline(300, &events), 80, 20);
        assert_eq!(lines.len(), 5, "{lines:?}");
        assert_eq!(lines.get(1).map(String::as_str), Some("  100 steps done"));
        assert!(lines.get(2).is_some_and(|line| line.contains("s100")));
        assert_eq!(lines.get(3).map(String::as_str), Some("  199 steps to come"));
    }

    #[test]
    fn no_frame_outgrows_its_screen_and_arguments_are_wrapped_not_cut() {
        let timeline = timeline(1, &[("awaiting_approval", Some(0), held(json!({"long": "x".repeat(300)})))]);
        let lines = shown(&timeline, 40, 100);
        assert!(lines.iter().all(|line| measure_text_width(line) <= 40));
        assert_eq!(lines.concat().matches('x').count(), 300);
        assert_eq!(shown(&timeline, 40, 8).len(), 8);
    }
}
