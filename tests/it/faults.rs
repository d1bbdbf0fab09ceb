//! Everything that goes wrong with providers, in every protocol and for everything that asks a model: a plan, a loop and a
//! job. What passes is told and comes to the same end; what lasts ends in a clear error.

use std::time::Duration;

use chrono::TimeDelta;
use fermata::kernel::Timestamp;
use reqwest::Method;
use serde_json::{Value, json};

use crate::world::{APIS, Event, KEY, Midway, Provider, Run, Turn, World};

/// How long a provider asks to be left alone, as its header says it and in seconds.
const WAIT: (&str, i64) = ("7", 7);
/// How long an answer may take.
const TIMEOUT: u64 = 40;
/// How often a call is made again.
const RETRIES: usize = 1;

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asker {
    Plan,
    Loop,
    Job,
}

impl Asker {
    /// What a sound model says, one answer after another.
    fn sound(self) -> Vec<Turn> {
        let (tool, arguments) = self.call();
        match self {
            Self::Plan => vec![Turn::call(tool, arguments)],
            Self::Loop => vec![Turn::call(tool, arguments), Turn::say("Seven.")],
            Self::Job => vec![Turn::say("All is well.")],
        }
    }

    /// A call of a tool, with arguments long enough to be broken off in.
    fn call(self) -> (&'static str, Value) {
        let value = json!({ "value": { "n": 7, "note": "as long as it takes to be cut" } });
        match self {
            Self::Plan => ("plan", json!({ "steps": [{ "id": "a", "uses": "data.transform", "with": value }] })),
            Self::Loop | Self::Job => ("data_transform", value),
        }
    }

    /// How often it asks in vain before it gives up, and how many of that are attempts of a step.
    const fn patience(self) -> usize {
        match self {
            Self::Plan => 1,
            Self::Loop => 3,
            Self::Job => 2,
        }
    }

    /// Begins to ask the provider.
    async fn begin(self, world: &World, provider: &str) -> Run {
        let client = world.operator();
        match self {
            Self::Plan => client.execute(json!({ "goal": "Compute" })).await,
            Self::Loop => client.execute(json!({ "agent": provider, "goal": "Compute" })).await,
            Self::Job => {
                let body = json!({ "prompt": "Well?", "config_name": provider, "max_retries": 1 });
                let job = client.post("/jobs", &body).await.expect(202);
                client.run(job["job_id"].as_str().unwrap())
            }
        }
    }

    /// The run came to what a sound model leads to, and to nothing besides.
    async fn came_to_its_end(self, run: &Run, what: &str) {
        let done = run.get().await;
        assert_eq!(done["status"], "completed", "{what}: {done:#}");
        let steps = run.steps().await;
        let ids: Vec<_> = steps.iter().map(|step| step["stepId"].as_str().unwrap()).collect();
        match self {
            Self::Plan => {
                assert_eq!(ids, ["a"], "{what}");
                assert_eq!(steps[0]["output"]["n"], 7, "{what}");
            }
            Self::Loop => {
                assert_eq!(ids, ["turn-1", "call-1-1", "turn-2"], "{what}: what was called by half is not called");
                assert_eq!((&done["output"], &steps[1]["output"]["n"]), (&json!("Seven."), &json!(7)), "{what}");
            }
            Self::Job => assert_eq!(steps[0]["output"]["text"], "All is well.", "{what}"),
        }
        assert!(steps.iter().all(|step| step["attempt"] == 1), "{what}: the call is made again, and not the step");
    }
}

/// Something that goes wrong.
#[derive(Clone, Debug)]
struct Fault {
    turn: Turn,
    /// What is told of it: `retrying`, or `asked_again` with the reason.
    told: &'static str,
    /// What a run fails with where it lasts.
    code: &'static str,
}

impl Fault {
    /// Whether the provider asks for time.
    fn wants_time(&self) -> bool {
        matches!(&self.turn, Turn::Status(_, headers) if headers.iter().any(|(_, value)| *value == WAIT.0))
    }

    /// Whether nothing ever comes of it.
    fn hangs(&self) -> bool {
        matches!(self.turn, Turn::Hang | Turn::SayHeld(..) | Turn::Broken(_, _, Midway::Hang))
    }
}

/// All that may pass, as that protocol shows it to that asker.
fn faults(asker: Asker, provider: &str) -> Vec<Fault> {
    let words = || vec!["A half ".to_owned(), "sentence".to_owned()];
    let fault = |turn, told, code| Fault { turn, told, code };
    let retried = |turn, code| fault(turn, "retrying", code);
    let broken = |midway| {
        let (tool, arguments) = asker.call();
        Turn::Broken(tool.to_owned(), arguments, midway)
    };
    let truncated = match provider {
        // It says so itself, and has no call to show.
        "fake-gemini" => retried(broken(Midway::Truncated), "model_broke_off"),
        _ => fault(broken(Midway::Truncated), "asked_again", "model_answer_invalid"),
    };
    vec![
        retried(Turn::Status(429, vec![("retry-after", WAIT.0)]), "model_rate_limited"),
        retried(Turn::Status(429, vec![]), "model_rate_limited"),
        retried(Turn::Status(500, vec![]), "model_unavailable"),
        retried(Turn::Status(503, vec![("retry-after", WAIT.0)]), "model_unavailable"),
        retried(Turn::Hang, "model_timeout"),
        retried(Turn::SayHeld(words(), 1), "model_timeout"),
        retried(broken(Midway::Hang), "model_timeout"),
        retried(Turn::Cut(words()), "model_unavailable"),
        retried(broken(Midway::Cut), "model_unavailable"),
        retried(Turn::Short(words()), "model_broke_off"),
        retried(broken(Midway::Short), "model_broke_off"),
        retried(Turn::Garbled(words()), "model_broke_off"),
        retried(broken(Midway::Garbled), "model_broke_off"),
        retried(Turn::Unframed(words()), "model_broke_off"),
        retried(Turn::Torn(words()), "model_unavailable"),
        retried(Turn::ErrorInside(words()), "model_unavailable"),
        retried(broken(Midway::Error), "model_unavailable"),
        retried(Turn::WrongJson, "model_broke_off"),
        fault(Turn::Empty, "asked_again", "model_answer_invalid"),
        truncated,
        fault(broken(Midway::Full), "asked_again", "model_answer_invalid"),
    ]
}

/// What no repetition mends.
const REFUSALS: [(u16, &str); 4] =
    [(401, "model_key_refused"), (403, "model_key_refused"), (400, "model_refused"), (404, "model_refused")];

/// A world in which nothing but what a provider asks for is waited for, with a configuration and an agent for each.
async fn world_of(provider: &Provider) -> World {
    let world = World::with(|settings| {
        settings.llm.providers = provider.settings().collect();
        settings.llm.retry_initial_delay = 0.0;
        settings.llm.max_retries = RETRIES as u32;
        settings.circuit_breaker.failure_threshold = u32::MAX;
    })
    .await;
    for (name, _) in APIS {
        let config = json!({ "provider": name, "model": "m", "timeout": format!("{TIMEOUT}s") });
        let agent = json!({ "instructions": "Compute.", "config": name, "tools": ["data.transform"] });
        for (path, body) in [(format!("/llm/configs/{name}"), config), (format!("/agents/{name}"), agent)] {
            world.admin().request(Method::PUT, &path).json(&body).send().await.expect(201);
        }
    }
    world
}

/// A run under a fault: begun with this script, and given as much time as it waits for.
struct Life<'a> {
    world: &'a World,
    provider: &'a Provider,
    asker: Asker,
    name: &'a str,
    fault: &'a Fault,
}

impl Life<'_> {
    fn what(&self) -> String {
        format!("{:?}, {}, {:?}", self.asker, self.name, self.fault.turn)
    }

    /// Lives to its end; `hangs` says of the n-th question that nothing comes of it. Answers with the run, its events, and
    /// how often the provider was asked.
    async fn live(&self, script: Vec<Turn>, hangs: impl Fn(usize) -> bool) -> (Run, Vec<Event>, usize) {
        let (base, mut since) = (self.provider.asked().len(), self.world.now());
        self.provider.script(script);
        let run = self.asker.begin(self.world, self.name).await;
        let (mut follow, mut questions) = (run.follow().await, 0);
        loop {
            tokio::select! {
                event = follow.next() => match event {
                    Some(event) => since = self.given_time(&event, since),
                    None => break,
                },
                _ = self.provider.asked_times(base + questions + 1) => {
                    if self.fault.hangs() && hangs(questions) {
                        self.world.advance(Duration::from_secs(TIMEOUT + 1));
                    }
                    questions += 1;
                }
            }
        }
        assert!(follow.seen.iter().all(|event| !event.raw.contains(KEY)), "{}: the key is told", self.what());
        (run, follow.seen, self.provider.asked().len() - base)
    }

    /// Lets the time pass that the run waits for by its own word, which is as long as the provider asks for; answers with
    /// when nothing can have happened before.
    fn given_time(&self, event: &Event, since: Timestamp) -> Timestamp {
        let payload = &event.data["payload"];
        let at = match &*event.name {
            "tool.progress" if self.fault.wants_time() => &payload["data"]["at"],
            "step.retrying" => &payload["retryAt"],
            _ => return since,
        };
        let at: Timestamp = at.as_str().unwrap().parse().unwrap();
        let asked = TimeDelta::seconds(if self.fault.wants_time() { WAIT.1 } else { 0 });
        // On the wire are whole milliseconds.
        assert!(at - since >= asked - TimeDelta::milliseconds(1), "{}: {at} since {since}", self.what());
        let left = at - self.world.now();
        assert!(event.name == "step.retrying" || left <= asked, "{}: {at}", self.what());
        self.world.advance(left.max(TimeDelta::zero()).to_std().unwrap() + Duration::from_millis(1));
        at
    }

    /// Each answer is a sound one at the second time of asking.
    async fn passes(&self) {
        let (sound, what) = (self.asker.sound(), self.what());
        let turns = sound.len();
        let script = sound.into_iter().flat_map(|turn| [self.fault.turn.clone(), turn]).collect();
        let (run, events, asked) = self.live(script, |question| question % 2 == 0).await;
        self.asker.came_to_its_end(&run, &what).await;
        assert!(named(&events, "plan.refused").is_empty(), "{what}: a draft was lost");
        assert_eq!(asked, turns * 2, "{what}");
        self.is_clear(&events, turns);
    }

    /// It goes wrong as often as anybody asks.
    async fn lasts(&self) {
        let what = self.what();
        let calls = self.asker.patience() * (RETRIES + 1);
        let (run, events, asked) = self.live(vec![self.fault.turn.clone(); calls], |_| true).await;
        assert_eq!(asked, calls, "{what}");
        self.is_clear(&events, self.asker.patience() * RETRIES);
        let again = named(&events, "step.retrying");
        assert_eq!(again.len(), self.asker.patience() - 1, "{what}");
        assert!(again.iter().all(|event| event.data["payload"]["error"]["code"] == self.fault.code), "{what}");
        self.has_failed(&run, self.fault.code, self.asker.patience()).await;
    }

    /// The run ended with that error after so many attempts. It says whose it is and shows no key.
    async fn has_failed(&self, run: &Run, code: &str, attempts: usize) {
        let (failed, what) = (run.get().await, self.what());
        assert_eq!(
            (&failed["status"], &failed["error"]["code"]),
            (&json!("failed"), &json!(code)),
            "{what}: {failed:#}"
        );
        let message = failed["error"]["message"].as_str().unwrap();
        assert!(message.contains(self.name) && !failed.to_string().contains(KEY), "{what}: {message}");
        let step = match self.asker {
            Asker::Plan => Value::Null,
            Asker::Loop => json!("turn-1"),
            Asker::Job => run.steps().await[0]["stepId"].clone(),
        };
        assert_eq!(failed["error"]["stepId"], step, "{what}");
        if self.asker == Asker::Job {
            let job = self.world.operator().get(&format!("/jobs/{}", run.id)).await.expect(200);
            assert_eq!(job["status"], "FAILED", "{what}");
            assert_eq!(job["retry_count"], attempts - 1, "{what}");
            assert!(job["error"].as_str().unwrap().starts_with(&format!("{code}: ")), "{what}: {job}");
        }
    }

    /// So many troubles are told, each with what happens now and why.
    fn is_clear(&self, events: &[Event], troubles: usize) {
        let told = named(events, "tool.progress");
        assert_eq!(told.len(), troubles, "{}: {told:#?}", self.what());
        for told in told.iter().map(|event| &event.data["payload"]["data"]) {
            let because = told["because"].as_str().unwrap();
            let is_named = because.contains(self.name) || self.fault.told == "asked_again";
            assert!(told["model"] == self.fault.told && is_named && !because.is_empty(), "{}: {told}", self.what());
        }
    }
}

fn named<'e>(events: &'e [Event], name: &str) -> Vec<&'e Event> {
    events.iter().filter(|event| event.name == name).collect()
}

/// Holds everything that can go wrong against one who asks.
async fn is_borne(asker: Asker) {
    let provider = Provider::start().await;
    let world = world_of(&provider).await;
    for (name, _) in APIS {
        // Whoever plans.
        let usual = json!({ "provider": name, "model": "m", "timeout": format!("{TIMEOUT}s") });
        world.admin().request(Method::PUT, "/llm/configs/default-smart").json(&usual).send().await.expect(201);
        for fault in &faults(asker, name) {
            let life = Life { world: &world, provider: &provider, asker, name, fault };
            life.passes().await;
            life.lasts().await;
        }
        for (status, code) in REFUSALS {
            let fault = &Fault { turn: Turn::Status(status, vec![]), told: "nothing", code };
            let life = Life { world: &world, provider: &provider, asker, name, fault };
            let (run, events, asked) = life.live(vec![fault.turn.clone()], |_| false).await;
            assert_eq!(asked, 1, "{}: asking again would not help", life.what());
            life.is_clear(&events, 0);
            life.has_failed(&run, code, 1).await;
        }
    }
}

#[tokio::test]
async fn whatever_goes_wrong_is_borne_by_a_plan() {
    is_borne(Asker::Plan).await;
}

#[tokio::test]
async fn whatever_goes_wrong_is_borne_by_a_loop() {
    is_borne(Asker::Loop).await;
}

#[tokio::test]
async fn whatever_goes_wrong_is_borne_by_a_job() {
    is_borne(Asker::Job).await;
}
