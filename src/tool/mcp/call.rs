//! One call of a server's tool: only if the tool still is what was pinned, and with nobody in doubt afterwards whether it
//! was made.

use std::time::{Duration, Instant};

use rmcp::{
    RoleClient,
    model::{CallToolRequestParams, CallToolResult, ServerResult},
    service::RequestHandle,
};

use super::{
    McpEntry,
    connect::Target,
    fault, form, output,
    pin::Pinned,
    session::{self, Key, Session},
    tool::McpTool,
};
use crate::{
    db,
    journal::Filled,
    kernel::crash::{self, Side},
    llm::shelf,
    tool::{Call, Handed, Outcome, ToolError},
};

/// Rounds in which a server only wants to be asked again, and how long to wait before each.
const ROUNDS: u32 = 20;
const ROUND: Duration = Duration::from_millis(250);
/// Forms that one attempt may ask for.
const FORMS: usize = 20;
/// Progress is told so often at most, and so many times.
const TELL_EVERY: Duration = Duration::from_millis(200);
const TELLS: usize = 200;
/// How long a server may take to hear that a call is called off.
const CALL_OFF: Duration = Duration::from_secs(2);

impl McpTool {
    pub(super) async fn make(&self, call: &Call) -> Result<Outcome, ToolError> {
        if self.changed {
            // It is refused, whatever comes of asking.
            let reminded = self.servers.remind(call.tenant_id, &self.server.name, &self.pinned.tool.name).await;
            reminded.unwrap_or_else(|error| tracing::warn!(?error, "nobody is asked about a tool that has changed"));
            return Err(ToolError::failed("tool_changed", self.is_changed()));
        }
        if filled(call).len() > FORMS {
            let message = format!("MCP server `{}` asked for more than {FORMS} forms", self.server.name);
            return Err(ToolError::failed("mcp_asks_forever", message));
        }
        let key: Key = (call.tenant_id, self.server.name.clone(), self.server.version);
        match self.attempt(call, key.clone()).await {
            // Nor does anything that is open speak for anybody any more.
            Err(ToolError::Failed(failure)) if failure.code == fault::UNCONNECTED => {
                self.servers.0.pool.discard(&key);
                Err(ToolError::Failed(failure))
            }
            // The token was not accepted, so nothing was called; the next one is another.
            Err(ToolError::Failed(failure))
                if failure.code == fault::UNAUTHORIZED && self.server.body.settings.connection.is_some() =>
            {
                self.servers.0.pool.discard(&key);
                self.attempt(call, key).await
            }
            outcome => outcome,
        }
    }

    async fn attempt(&self, call: &Call, key: Key) -> Result<Outcome, ToolError> {
        let pool = &self.servers.0.pool;
        let ready = async {
            let place = pool.enter(call.tenant_id, &self.server.name).await;
            Ok::<_, ToolError>((self.session(call, &key).await?, place))
        };
        let (mut session, _place) = tokio::select! {
            biased;
            () = call.cancel.cancelled() => return Err(ToolError::cancelled()),
            ready = ready => ready?,
        };
        let outcome = self.ask(call, &mut session).await;
        match outcome {
            Ok(Ok(outcome)) => {
                pool.keep(key, session);
                Ok(outcome)
            }
            // The server has said so itself, in good order.
            Ok(Err(error)) => {
                pool.keep(key, session);
                Err(error)
            }
            Err(broken) => {
                let Broken { error, unanswered } = *broken;
                self.servers.0.connector.heed(self.target(call), session.token(), &error).await;
                tokio::spawn(async move {
                    if let Some(handle) = unanswered {
                        drop(tokio::time::timeout(CALL_OFF, handle.cancel(Some("called off".to_owned()))).await);
                    }
                    session.close().await;
                });
                Err(error)
            }
        }
    }

    /// A session in which the tool is what was pinned.
    async fn session(&self, call: &Call, key: &Key) -> Result<Session, ToolError> {
        let connector = &self.servers.0.connector;
        // Asked first: a session that is open may be in the name of somebody who is not connected any more.
        let token = connector.token(self.target(call)).await?;
        let mut session = match self.servers.0.pool.take(key, token.as_ref()) {
            Some(session) => session,
            None => connector.open(self.target(call), token).await?,
        };
        let is_pinned = |name: &str| self.server.body.pinned(name).is_some();
        let listed = match session.tools(self.servers.now(), is_pinned).await {
            Ok(listed) => listed.get(&self.pinned.tool.name).cloned(),
            Err(error) => {
                connector.heed(self.target(call), session.token(), &error).await;
                tokio::spawn(session.close());
                return Err(error);
            }
        };
        let problem = match listed.map(|tool| tool.pin()) {
            Some(Ok(seen)) if seen.digest == self.pinned.digest => return Ok(session),
            Some(Ok(seen)) => self.note(call, &seen).await,
            // Nobody could approve of what cannot even be shown.
            Some(Err(why)) => {
                ToolError::failed("tool_changed", format!("`{}` is of no use any more: {why}", self.name_of()))
            }
            None => {
                ToolError::failed("tool_gone", format!("MCP server `{}` lists no such tool any more", self.server.name))
            }
        };
        session.doubt();
        self.servers.0.pool.keep(key.clone(), session);
        Err(problem)
    }

    fn target(&self, call: &Call) -> Target<'_> {
        Target {
            tenant: call.tenant_id,
            name: &self.server.name,
            settings: &self.server.body.settings,
            protocol: Some(&self.server.body.protocol),
        }
    }

    /// Puts the tool out of use until somebody has looked at it.
    async fn note(&self, call: &Call, seen: &Pinned) -> ToolError {
        let (tenant, server, tool) = (call.tenant_id, &self.server.name, &seen.tool.name);
        let noted = db::patiently(|| async {
            let mut tx = self.servers.begin(tenant).await?;
            let held = shelf::held::<McpEntry>(&mut tx, tenant, server).await?;
            // Whoever has put or approved something meanwhile has seen more than we have.
            let stands = held.is_some_and(|held| held.body.stands(&self.server.body, Some(&self.pinned)));
            if stands {
                self.servers.notice(&mut tx, tenant, (server, &self.pinned), seen).await?;
                tx.commit().await?;
            }
            Ok(stands)
        });
        match noted.await {
            Ok(true) => {
                tracing::warn!(server, tool, "a tool of an MCP server has changed and is out of use");
                ToolError::failed("tool_changed", self.is_changed())
            }
            Ok(false) => ToolError::retryable("tool_replaced", format!("`{}` was put anew meanwhile", self.name_of())),
            Err(error) => ToolError::retryable("unavailable", error.detail().to_owned()),
        }
    }

    pub(super) fn is_changed(&self) -> String {
        format!(
            "`{}` is no longer what was pinned: look at /approvals or /tools/mcp/{}, and approve of what it is now",
            self.name_of(),
            self.server.name
        )
    }

    fn name_of(&self) -> String {
        format!("mcp:{}/{}", self.server.name, self.pinned.tool.name)
    }

    /// Asks until there is an answer. The outer error means that the session is of no more use.
    async fn ask(&self, call: &Call, session: &mut Session) -> Result<Result<Outcome, ToolError>, Box<Broken>> {
        let (mut state, mut answers) = match form::resumed(filled(call)) {
            Some((state, answers)) => (state, Some(answers)),
            None => (None, None),
        };
        let begins = |filled: &&Filled| filled.form.resume.is_none();
        // What was heard after the answer to the call before is about that.
        while session.progress.try_recv().is_ok() {}
        session.ear().begin(&filled(call).iter().filter(begins).cloned().collect::<Vec<_>>());
        for _ in 0..ROUNDS {
            let mut params = CallToolRequestParams::new(self.pinned.tool.name.clone());
            params.arguments = call.arguments.as_object().cloned();
            params.request_state = state.take();
            params.input_responses = answers.take();
            let result = self.round(call, session, params).await?;
            // What it says after it was told that nobody is there does not count.
            if let Some(form) = session.ear().asked() {
                return Ok(Ok(Outcome::Ask(form)));
            }
            match result {
                Err(error) => return Ok(Err(explained(session, error))),
                Ok(ServerResult::CallToolResult(result)) => return Ok(self.output(session, result)),
                Ok(ServerResult::EmptyResult(_)) => return Ok(self.output(session, CallToolResult::default())),
                Ok(ServerResult::InputRequiredResult(needs)) => {
                    let asks = needs.input_requests.as_ref().is_some_and(|requests| !requests.is_empty());
                    if asks || needs.request_state.is_none() {
                        return Ok(form::required(needs, session.ear().sealed()).map(Outcome::Ask));
                    }
                    state = needs.request_state;
                    tokio::time::sleep(ROUND).await;
                }
                Ok(ServerResult::CreateTaskResult(_)) => {
                    return Ok(Err(ToolError::unknown(
                        "mcp_unsupported",
                        "the server made a task of it, which nobody follows",
                    )));
                }
                Ok(other) => return Ok(Err(self.no_answer(session, &other))),
            }
        }
        Ok(Err(ToolError::retryable(
            "mcp_busy",
            format!("MCP server `{}` only wants to be asked again", self.server.name),
        )))
    }

    fn output(&self, session: &Session, result: CallToolResult) -> Result<Outcome, ToolError> {
        let said_by = (self.server.name.as_str(), session.ear().sealed());
        let output = output::output(said_by, result, self.servers.0.connector.output);
        output.map(Outcome::done).map_err(|error| explained(session, error))
    }

    /// An answer that is none; or one that asks for what cannot be read, and says at least that nothing was done.
    fn no_answer(&self, session: &Session, result: &ServerResult) -> ToolError {
        let unread = match result {
            ServerResult::CustomResult(result) => form::unread(&result.0, session.ear().sealed()),
            _ => None,
        };
        let message = || format!("MCP server `{}` gave an answer that is none", self.server.name);
        unread.unwrap_or_else(|| ToolError::unknown("mcp_protocol", message()))
    }

    /// One question and its answer; the inner error is the server's own word.
    async fn round(
        &self,
        call: &Call,
        session: &mut Session,
        params: CallToolRequestParams,
    ) -> Result<Result<ServerResult, ToolError>, Box<Broken>> {
        crash::point("mcp", Side::Before, &self.pinned.tool.name);
        let mut handle = session.send(params).await.map_err(Broken::before)?;
        let answer = wait(call, session, &mut handle).await;
        crash::point("mcp", Side::After, &self.pinned.tool.name);
        match answer {
            Some(Ok(result)) => Ok(Ok(result)),
            Some(Err(ToolError::Failed(failure))) if failure.code == "mcp_error" => Ok(Err(ToolError::Failed(failure))),
            Some(Err(error)) => Err(Box::new(Broken { error, unanswered: None })),
            None => {
                let error =
                    ToolError::unknown("cancelled", format!("called off while `{}` was called", self.name_of()));
                Err(Box::new(Broken { error, unanswered: Some(handle) }))
            }
        }
    }
}

/// The failure of a call, with what it asked for and was refused: the server's own words may not say.
fn explained(session: &Session, mut error: ToolError) -> ToolError {
    let (ToolError::Failed(failure) | ToolError::Unknown(failure)) = &mut error;
    if let Some(why) = session.ear().refused() {
        failure.message = format!("{} (it asked for a form that nobody can fill in: {why})", failure.message);
    }
    error
}

/// What the attempt has asked for and was given.
fn filled(call: &Call) -> &[Filled] {
    match &call.handed {
        Handed::Filled(filled) => filled,
        _ => &[],
    }
}

/// Waits for the answer, and tells meanwhile how far the server says it is. There is none where the call is called off.
async fn wait(
    call: &Call,
    session: &mut Session,
    handle: &mut RequestHandle<RoleClient>,
) -> Option<Result<ServerResult, ToolError>> {
    let (mut told, mut tells): (Option<Instant>, usize) = (None, 0);
    loop {
        tokio::select! {
            biased;
            answer = &mut handle.rx => {
                let answer = session::answered(answer);
                return Some(answer.map_err(|error| session.fault(&error)));
            }
            () = call.cancel.cancelled() => return None,
            Some(progress) = session.progress.recv() => {
                let soon = told.is_some_and(|at| at.elapsed() < TELL_EVERY);
                if !soon && tells < TELLS {
                    (told, tells) = (Some(Instant::now()), tells + 1);
                    call.progress.report(progress).await;
                }
            }
        }
    }
}

/// A session that is of no more use.
struct Broken {
    error: ToolError,
    /// A call that the server may still be at.
    unanswered: Option<RequestHandle<RoleClient>>,
}

impl Broken {
    fn before(error: ToolError) -> Box<Self> {
        Box::new(Self { error, unanswered: None })
    }
}
