//! Jobs and background tasks: runs of one question to a model, seen as those know them who come from a queue of jobs
//! (snake case, as their documents have it). Each is a run of the workflow that is called as its kind, which the server
//! brings along and anybody may put another over. Their events stream like any run's.

mod background;
mod jobs;
mod standing;
mod task;

use utoipa_axum::router::OpenApiRouter;

use super::routes::RunRoutes;

use standing::{Standing, WaitingFor};
use task::{BESIDES, Kind, words};

/// Where a run's metadata says which kind of task it is. Callers cannot set it.
pub(super) const TASK: &str = "fermata.task";

/// Submitting, reading, listing and cancelling jobs; submitting and reading background tasks.
pub(super) fn routes() -> OpenApiRouter<RunRoutes> {
    jobs::routes().merge(background::routes())
}
