use std::{
    collections::{BTreeMap, btree_map::Entry},
    fmt,
    sync::{Arc, OnceLock},
};

use jsonschema::Validator;
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::{
    Call, ChildRuns, Outcome, Tool, ToolError,
    child::RunStart,
    data::Transform,
    debug,
    handoff::Handoff,
    http::{HttpRequest, Sender},
    model::{AgentTurn, Embed, Generate, Synthesize, Transcribe},
    output::OutputRead,
    size,
    time::TimeWait,
};
use crate::{
    config::{LimitSettings, ToolSettings},
    http::Outbound,
    journal::{ApprovalTerms, Effect, Wanted},
    kernel::{Error, Result, compile},
    llm::Models,
};

/// How many mistakes in the arguments one message names.
const NAMED_MISTAKES: usize = 8;

/// What this server's tools may be called on other days: in `dev`, or from elsewhere.
const KEPT: [&str; 3] = ["debug", "mcp", "agent"];

/// The longest message of a failure, in characters.
const MESSAGE: usize = 2000;
/// The largest detail of a failure, in bytes of JSON.
const DETAIL: usize = 64 * 1024;

/// What the built-in tools ask of the modules around them.
#[derive(Clone)]
pub struct Ports {
    /// Where `http.request` goes out.
    pub outbound: Arc<Outbound>,
    /// How `run.start` starts a run.
    pub child_runs: Arc<dyn ChildRuns>,
    /// What `llm.*` and `speech.*` ask.
    pub models: Models,
}

/// The tools there are, by name: the server's, and beside them those of one tenant, where it [has some](super::Toolbox).
/// Cheap to clone.
#[derive(Clone)]
pub struct Registry {
    tools: Arc<BTreeMap<String, Registered>>,
    own: Arc<BTreeMap<String, Registered>>,
    limits: LimitSettings,
}

struct Registered {
    tool: Arc<dyn Tool>,
    /// The schema of its arguments, once somebody needs it: most of a tenant's many tools are not called by this worker.
    /// None, if it does not stand on its own.
    arguments: OnceLock<Option<Validator>>,
}

impl Registered {
    fn new(tool: Arc<dyn Tool>) -> Self {
        Self { tool, arguments: OnceLock::new() }
    }

    fn arguments(&self) -> Option<&Validator> {
        let compiled = || {
            let unusable = |why: &String| tracing::warn!(why, tool = self.tool.name(), "a schema is of no use");
            compile(&self.tool.arguments()).inspect_err(unusable).ok()
        };
        self.arguments.get_or_init(compiled).as_ref()
    }
}

/// A tool as a person or a model reads about it.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Described {
    /// Its name in `uses`.
    #[schema(example = "http.request")]
    pub name: String,
    /// What it does.
    pub description: String,
    /// Changes whenever the meaning of the arguments does.
    pub version: String,
    /// What repeating a call can do to the world; where it is more than one, that depends on the arguments.
    pub effects: Vec<Effect>,
    /// JSON Schema of `with`.
    #[schema(value_type = Object)]
    pub arguments: Value,
    /// JSON Schema of its output.
    #[schema(value_type = Object)]
    pub output: Value,
}

impl Described {
    /// That tool.
    #[must_use]
    pub fn of(tool: &dyn Tool) -> Self {
        Self {
            name: tool.name().to_owned(),
            description: tool.description().to_owned(),
            version: tool.version().to_owned(),
            effects: tool.effects(),
            arguments: tool.arguments(),
            output: tool.output(),
        }
    }
}

impl Registry {
    /// The built-in tools.
    ///
    /// # Errors
    /// Never, unless a schema of theirs does not stand on its own.
    pub fn builtin(settings: &ToolSettings, limits: &LimitSettings, ports: Ports) -> Result<Self> {
        let mut tools: Vec<Arc<dyn Tool>> = vec![
            Arc::new(HttpRequest::new(Sender::new(ports.outbound, limits.output))),
            Arc::new(Transform),
            Arc::new(OutputRead),
            Arc::new(TimeWait),
            Arc::new(RunStart::new(ports.child_runs)),
            Arc::new(Generate::new(ports.models.clone())),
            Arc::new(Embed::new(ports.models.clone(), limits.output)),
            Arc::new(Synthesize::new(ports.models.clone(), limits.output)),
            Arc::new(Transcribe::new(ports.models.clone())),
            Arc::new(AgentTurn::new(ports.models)),
            Arc::new(Handoff),
        ];
        if settings.debug {
            let debug: [Arc<dyn Tool>; 4] =
                [Arc::new(debug::Echo), Arc::new(debug::Sleep), Arc::new(debug::Fail), Arc::new(debug::Emit)];
            tools.extend(debug);
        }
        Self::new(tools, limits)
    }

    /// Exactly these tools.
    ///
    /// # Errors
    /// When two share a name, or the schema of one's arguments does not stand on its own.
    pub fn new(tools: impl IntoIterator<Item = Arc<dyn Tool>>, limits: &LimitSettings) -> Result<Self> {
        let mut registered = BTreeMap::new();
        for tool in tools {
            let tool = Registered::new(tool);
            if tool.arguments().is_none() {
                return Err(Error::internal(format!("the argument schema of tool `{}`", tool.tool.name())));
            }
            match registered.entry(tool.tool.name().to_owned()) {
                Entry::Vacant(place) => place.insert(tool),
                Entry::Occupied(taken) => return Err(Error::internal(format!("two tools named {}", taken.key()))),
            };
        }
        Ok(Self { tools: Arc::new(registered), own: Arc::default(), limits: limits.clone() })
    }

    /// These tools beside the server's, whose names they cannot take. They were checked when they were put; one whose schema
    /// does not stand on its own all the same is no tool to whoever names it: nothing could be checked against it.
    #[must_use]
    pub fn with(&self, own: impl IntoIterator<Item = Arc<dyn Tool>>) -> Self {
        let named = own.into_iter().map(|tool| (tool.name().to_owned(), Registered::new(tool)));
        let own = named.filter(|(name, _)| !self.tools.contains_key(name)).collect();
        Self { own: Arc::new(own), ..self.clone() }
    }

    /// The tool of that name.
    ///
    /// # Errors
    /// `unknown_tool`.
    pub fn tool(&self, name: &str) -> Result<&Arc<dyn Tool>, ToolError> {
        self.registered(name).map(|(found, _)| &found.tool)
    }

    /// What the tool of that name says itself of its calls: what they cost and touch.
    #[must_use]
    pub fn terms(&self, name: &str) -> Option<&ApprovalTerms> {
        self.tool(name).ok()?.rule()?.terms.as_ref()
    }

    fn registered(&self, name: &str) -> Result<(&Registered, &Validator), ToolError> {
        let found = self.tools.get(name).or_else(|| self.own.get(name));
        let usable = found.and_then(|found| Some((found, found.arguments()?)));
        usable.ok_or_else(|| ToolError::failed("unknown_tool", format!("there is no tool `{name}`")))
    }

    /// Whether there is a tool of that name.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.registered(name).is_ok()
    }

    /// The compiled schema of a tool's arguments; none if there is no such tool for plans.
    #[must_use]
    pub fn arguments(&self, name: &str) -> Option<&Validator> {
        self.registered(name).ok().filter(|(found, _)| !found.tool.internal()).map(|(_, arguments)| arguments)
    }

    /// Refuses a name for a tenant's own tool that is this server's, or in a part of the names that it keeps to itself:
    /// what comes before the first dot of any of its tools.
    ///
    /// # Errors
    /// Invalid (422), naming the field `name`.
    pub fn check_own(&self, name: &str) -> Result<()> {
        let first = |name: &str| name.split('.').next().unwrap_or_default().to_owned();
        let (own, kept) = (first(name), self.tools.keys().map(|taken| first(taken)));
        if kept.chain(KEPT.map(str::to_owned)).any(|kept| kept == own) {
            let detail = format!("`{own}` and names that begin with `{own}.` are the server's own: take another");
            return Err(Error::invalid("name", detail));
        }
        Ok(())
    }

    /// How large things may be.
    #[must_use]
    pub fn limits(&self) -> &LimitSettings {
        &self.limits
    }

    /// Every tool that plans can use: the server's in order of name, and then the tenant's.
    pub fn all(&self) -> impl Iterator<Item = &Arc<dyn Tool>> {
        self.tools.values().chain(self.own.values()).map(|found| &found.tool).filter(|tool| !tool.internal())
    }

    /// Every name that plans can use.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.all().map(|tool| tool.name())
    }

    /// Every tool that plans can use, as one reads about it.
    #[must_use]
    pub fn describe(&self) -> Vec<Described> {
        self.all().map(|tool| Described::of(&**tool)).collect()
    }

    /// A call as rules look at it. What is not known is taken for the worst, and nobody vouches for the arguments.
    #[must_use]
    pub fn wanted<'a>(&'a self, name: &'a str, arguments: &Value) -> Wanted<'a> {
        let tool = self.tool(name).ok();
        let effect = tool.map_or(Effect::Once, |tool| tool.effect_unvouched(arguments));
        Wanted { tool: name, effect, own: tool.and_then(|tool| tool.rule()) }
    }

    /// Whether the tool takes these arguments; the engine asks before it journals the intent.
    ///
    /// # Errors
    /// `unknown_tool`, `invalid_arguments` with every mistake's JSON path in message and detail,
    /// `arguments_too_large`, `arguments_too_deep`.
    pub fn validate(&self, name: &str, arguments: &Value) -> Result<(), ToolError> {
        let (_, schema) = self.registered(name)?;
        size::check("arguments", arguments, self.limits.arguments)?;
        let mistakes: Vec<Mistake> = schema
            .iter_errors(arguments)
            .take(NAMED_MISTAKES)
            // Masked: a message repeats no value, which may be large or a secret.
            .map(|error| Mistake { path: error.instance_path().to_string(), message: error.masked().to_string() })
            .collect();
        if mistakes.is_empty() {
            return Ok(());
        }
        let named: Vec<String> = mistakes.iter().map(Mistake::to_string).collect();
        Err(ToolError::failed("invalid_arguments", named.join("; ")).with(json!({ "errors": mistakes })))
    }

    /// Calls the tool and holds its output to the cap.
    ///
    /// # Errors
    /// The tool's own, cut to what an event carries, `unknown_tool`, `output_too_large`, `output_too_deep`.
    pub async fn call(&self, name: &str, call: Call) -> Result<Outcome, ToolError> {
        let outcome = self.tool(name)?.call(call).await.map_err(brief)?;
        if let Outcome::Done { output, .. } = &outcome {
            self.check_output(output)?;
        }
        Ok(outcome)
    }

    /// Whether a step may have this output, wherever it comes from: a tool, a child, a `forEach`.
    ///
    /// # Errors
    /// `output_too_large`, `output_too_deep`.
    pub fn check_output(&self, output: &Value) -> Result<(), ToolError> {
        size::check("output", output, self.limits.output)
    }
}

/// A failure that fits its event, whatever the tool put in it.
fn brief(mut error: ToolError) -> ToolError {
    let (ToolError::Failed(failure) | ToolError::Unknown(failure)) = &mut error;
    if let Some((end, _)) = failure.message.char_indices().nth(MESSAGE) {
        failure.message.truncate(end);
        failure.message.push('…');
    }
    if let Some(detail) = &failure.detail
        && size::check("detail", detail, DETAIL).is_err()
    {
        failure.detail = Some(Box::new(
            json!({ "omitted": format!("it takes more than {DETAIL} bytes of JSON, or nests too deep") }),
        ));
    }
    error
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.names()).finish()
    }
}

#[derive(Serialize)]
struct Mistake {
    /// A JSON pointer into the arguments; empty for the whole.
    path: String,
    message: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`with{}`: {}", self.path, self.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tool::{fixture, tests::call};

    fn builtin(settings: &ToolSettings, limits: &LimitSettings) -> Result<Registry> {
        Registry::builtin(settings, limits, fixture::ports(settings))
    }

    fn registry(debug: bool) -> Registry {
        let settings = ToolSettings { debug, ..ToolSettings::default() };
        builtin(&settings, &LimitSettings::default()).unwrap()
    }

    fn failure(result: Result<(), ToolError>) -> Option<(String, String)> {
        match result {
            Err(ToolError::Failed(failure)) => Some((failure.code, failure.message)),
            _ => None,
        }
    }

    #[test]
    fn debug_tools_exist_only_where_wanted() {
        let names = |debug| registry(debug).names().collect::<Vec<_>>().join(" ");
        let always = "data.transform http.request llm.embed llm.generate output.read run.start speech.synthesize \
                      speech.transcribe time.wait";
        assert_eq!(names(false), always);
        assert!(names(true).contains("debug.echo debug.emit debug.fail debug.sleep"));
    }

    #[test]
    fn every_schema_is_a_schema() {
        for tool in registry(true).describe() {
            assert!(jsonschema::meta::is_valid(&tool.arguments), "{}", tool.name);
            assert!(jsonschema::meta::is_valid(&tool.output), "{}", tool.name);
        }
    }

    #[test]
    fn a_mistake_is_named_by_its_path_and_not_by_its_value() {
        let arguments = json!({"method": "GET", "url": "https://a.example", "headers": {"x": ["hunter2"]}, "uri": 1});
        let result = registry(false).validate("http.request", &arguments);
        let (code, message) = failure(result).unwrap();
        assert_eq!(code, "invalid_arguments");
        assert!(message.contains("`with/headers/x`"), "{message}");
        assert!(message.contains("uri"), "{message}");
        assert!(!message.contains("hunter2"), "{message}");
    }

    #[test]
    fn what_is_right_passes() {
        let registry = registry(true);
        for (tool, arguments) in [
            ("http.request", json!({"url": "https://a.example"})),
            ("http.request", json!({"method": "POST", "url": "https://a.example", "json": null, "repeatable": true})),
            ("data.transform", json!({"value": null})),
            ("time.wait", json!({"for": "2h"})),
            ("run.start", json!({"workflow": "crm-sync@3", "input": {}, "budget": 1})),
            ("debug.emit", json!({"count": 1, "perSecond": 200, "bytes": 1000})),
        ] {
            assert_eq!(registry.validate(tool, &arguments), Ok(()), "{tool}");
        }
    }

    #[test]
    fn an_unknown_tool_is_a_failure() {
        let result = registry(false).validate("debug.echo", &json!({}));
        assert_eq!(failure(result).unwrap().0, "unknown_tool");
    }

    #[tokio::test]
    async fn an_output_past_the_cap_fails_the_call() {
        let limits = LimitSettings { output: 10, ..LimitSettings::default() };
        let registry = builtin(&ToolSettings::default(), &limits).unwrap();
        let result = registry.call("data.transform", call(json!({"value": "0123456789"}))).await;
        assert_eq!(failure(result.map(drop)).unwrap().0, "output_too_large");
    }

    #[test]
    fn a_failure_fits_its_event() {
        let error = ToolError::failed("much", "é".repeat(5000)).with(json!("x".repeat(DETAIL)));
        let ToolError::Failed(failure) = brief(error) else { panic!("still a failure") };
        assert_eq!(failure.message.chars().count(), MESSAGE + 1);
        assert!(failure.detail.unwrap().to_string().len() < 200);
        let small = ToolError::failed("little", "é".repeat(MESSAGE)).with(json!({"status": 500}));
        assert_eq!(brief(small.clone()), small);
    }

    #[test]
    fn two_tools_cannot_share_a_name() {
        let tools: [Arc<dyn Tool>; 2] = [Arc::new(debug::Echo), Arc::new(debug::Echo)];
        assert!(Registry::new(tools, &LimitSettings::default()).is_err());
    }
}
