//! What a server says besides answers: how far it is, what it wants to know, that its tools changed.

use std::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use rmcp::{
    ClientHandler, ErrorData, RoleClient,
    model::{
        ClientCapabilities, ClientConfig, ConstString, CustomRequest, CustomResult, ElicitRequestParams, ElicitResult,
        ElicitationAction, ElicitationCapability, ElicitationCreateRequestMethod, ErrorCode, FormElicitationCapability,
        Implementation, ProgressNotificationParam, ProtocolVersion, UrlElicitationCapability,
    },
    service::{NotificationContext, RequestContext},
};
use tokio::sync::mpsc;

use super::{fault, form};
use crate::{
    journal::{Filled, Form, ToolProgress},
    tool::sealed::Sealed,
};

/// Reports that wait; more are dropped, since the next one says more.
const REPORTS: usize = 8;
/// The longest line of a report, in characters.
const LINE: usize = 500;

/// Listens to a server during one call at a time.
#[derive(Debug)]
pub(super) struct Ear {
    /// What the server was shown of who calls, which is taken out of what it says.
    sealed: Sealed,
    progress: mpsc::Sender<ToolProgress>,
    answers: Mutex<Answers>,
    changed: AtomicBool,
}

#[derive(Debug, Default)]
struct Answers {
    given: Vec<Filled>,
    asked: Option<Form>,
    /// Why something that it asked for was refused.
    refused: Option<String>,
}

impl Ear {
    pub(super) fn new(sealed: Sealed) -> (Self, mpsc::Receiver<ToolProgress>) {
        let (progress, heard) = mpsc::channel(REPORTS);
        (Self { sealed, progress, answers: Mutex::default(), changed: AtomicBool::new(false) }, heard)
    }

    pub(super) fn sealed(&self) -> &Sealed {
        &self.sealed
    }

    /// A call begins: what it may be answered.
    pub(super) fn begin(&self, given: &[Filled]) {
        *self.answers() = Answers { given: given.to_vec(), ..Answers::default() };
    }

    /// What the call asked for and was not given.
    pub(super) fn asked(&self) -> Option<Form> {
        self.answers().asked.take()
    }

    /// Why it was not given what the call asked for, where that is nothing that anybody could fill in.
    pub(super) fn refused(&self) -> Option<String> {
        self.answers().refused.take()
    }

    /// Whether the server has said since the last time that its tools changed.
    pub(super) fn heard_of_change(&self) -> bool {
        self.changed.swap(false, Ordering::Relaxed)
    }

    fn answers(&self) -> MutexGuard<'_, Answers> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, asked: &ElicitRequestParams) -> Result<ElicitResult, ErrorData> {
        let form = form::form(asked, &self.sealed).map_err(|why| self.refuse(&why))?;
        let mut answers = self.answers();
        // The same form twice is answered by what was filled in twice.
        if let Some(place) = answers.given.iter().position(|filled| filled.form == form) {
            return Ok(form::answer(&answers.given.remove(place)));
        }
        answers.asked.get_or_insert(form);
        Ok(ElicitResult::new(ElicitationAction::Cancel))
    }

    /// Says to the server what is wrong with its question, and remembers it for whoever reads of the call.
    fn refuse(&self, why: &str) -> ErrorData {
        let why = fault::excerpt(why);
        let refusal = ErrorData::invalid_params(format!("nobody can fill in this form: {why}"), None);
        self.answers().refused.get_or_insert(why);
        refusal
    }
}

impl ClientHandler for Ear {
    fn get_info(&self) -> ClientConfig {
        let forms = ElicitationCapability::new()
            .with_form(FormElicitationCapability::default())
            .with_url(UrlElicitationCapability::default());
        let mut can = ClientCapabilities::default();
        can.elicitation = Some(forms);
        ClientConfig::new(can, Implementation::new("fermata", env!("CARGO_PKG_VERSION")))
            .with_protocol_version(ProtocolVersion::V_2025_11_25)
    }

    async fn create_elicitation(
        &self,
        asked: ElicitRequestParams,
        _: RequestContext<RoleClient>,
    ) -> Result<ElicitResult, ErrorData> {
        self.answer(&asked)
    }

    /// Whatever could not be read; a question too, where it is none that the protocol allows.
    async fn on_custom_request(
        &self,
        request: CustomRequest,
        _: RequestContext<RoleClient>,
    ) -> Result<CustomResult, ErrorData> {
        if request.method != ElicitationCreateRequestMethod::VALUE {
            return Err(ErrorData::new(ErrorCode::METHOD_NOT_FOUND, request.method, None));
        }
        let why = form::unreadable(&request.params.unwrap_or_default(), &self.sealed);
        Err(self.refuse(&why))
    }

    async fn on_progress(&self, said: ProgressNotificationParam, _: NotificationContext<RoleClient>) {
        let fraction = said.total.filter(|total| *total > 0.0).map(|total| (said.progress / total).clamp(0.0, 1.0));
        let line = |text: String| self.sealed.without(&text).replace('\0', "\u{fffd}").chars().take(LINE).collect();
        let progress = ToolProgress { message: said.message.map(line), fraction, data: None };
        drop(self.progress.try_send(progress));
    }

    async fn on_tool_list_changed(&self, _: NotificationContext<RoleClient>) {
        self.changed.store(true, Ordering::Relaxed);
    }
}
