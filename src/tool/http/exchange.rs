use std::future::Future;

use reqwest::Response;
use serde_json::Value;

use super::{hosts::Hosts, request::Request, response::settle};
use crate::{
    http::{Door, Refusal},
    kernel::crash::{self, Side},
    tool::{Call, ToolError, sealed::Sealed},
};

/// One call's way through its requests.
pub(super) struct Exchange<'a> {
    pub(super) call: &'a Call,
    pub(super) door: &'a Door,
    pub(super) hosts: &'a Hosts,
    /// What nobody is to be told, whoever says it.
    pub(super) sealed: &'a Sealed,
}

impl Exchange<'_> {
    /// Sends the request and those its redirects ask for.
    pub(super) async fn run(&self, mut request: Request) -> Result<Value, ToolError> {
        loop {
            match self.hop(&request).await.map_err(|e| honest(&request, e))? {
                Step::Next(next) => request = *next,
                Step::Done(output) => return Ok(output),
            }
        }
    }

    async fn hop(&self, request: &Request) -> Result<Step, ToolError> {
        self.door.vet(&request.url).map_err(refused)?;
        let place = self.hosts.enter(self.call.tenant_id, request.origin());
        let _place = unless_cancelled(self.call, place).await?;
        tokio::select! {
            biased;
            // Bytes may be on their way: whether they were acted on, nobody here knows.
            () = self.call.cancel.cancelled() => {
                Err(ToolError::unknown("cancelled", format!("called off while `{}` was asked", request.host())))
            }
            answered = self.send(request) => answered,
        }
    }

    async fn send(&self, request: &Request) -> Result<Step, ToolError> {
        let client = self.door.client();
        let mut sending = client.request(request.method.clone(), request.url.clone()).headers(request.headers.clone());
        if let Some(body) = &request.body {
            sending = sending.body(body.clone());
        }
        crash::point("request", Side::Before, &request.method);
        let response: Response = sending.send().await.map_err(|e| unanswered(request, &e))?;
        crash::point("request", Side::After, &request.method);
        if let Some(next) = request.next(response.status(), response.headers())? {
            return Ok(Step::Next(Box::new(next)));
        }
        settle(request, response, self.call, self.sealed).await.map(Step::Done)
    }
}

enum Step {
    Next(Box<Request>),
    Done(Value),
}

/// Awaits what comes before anything is sent.
pub(super) async fn unless_cancelled<T>(call: &Call, work: impl Future<Output = T>) -> Result<T, ToolError> {
    tokio::select! {
        biased;
        () = call.cancel.cancelled() => Err(ToolError::cancelled()),
        done = work => Ok(done),
    }
}

/// Once an earlier request did its work, a failure of a later one does not mean that nothing happened.
fn honest(request: &Request, error: ToolError) -> ToolError {
    match error {
        ToolError::Failed(failure) if request.acted => ToolError::Unknown(failure),
        error => error,
    }
}

fn refused(refusal: Refusal) -> ToolError {
    let code = match refusal {
        Refusal::Url(_) => "url_refused",
        Refusal::Address(_) => "address_refused",
    };
    ToolError::failed(code, refusal.to_string())
}

/// Why no response came: for certain before the request was sent, or maybe after.
fn unanswered(request: &Request, error: &reqwest::Error) -> ToolError {
    let host = request.host();
    if let Some(refusal) = Refusal::behind(error, host) {
        return refused(refusal);
    }
    let reason = reason(error);
    if error.is_builder() {
        return ToolError::failed("invalid_arguments", format!("the request cannot be made: {reason}"));
    }
    if error.is_dns() {
        return ToolError::retryable("dns_failed", format!("`{host}` cannot be resolved: {reason}"));
    }
    if error.is_connect() {
        return ToolError::retryable("connect_failed", format!("`{host}` cannot be reached: {reason}"));
    }
    ToolError::unknown("no_response", format!("`{host}` was asked and gave no answer: {reason}"))
}

/// The innermost cause: the outer ones repeat the URL.
fn reason(error: &reqwest::Error) -> String {
    let causes = std::iter::successors(std::error::Error::source(error), |&e| e.source());
    causes.last().map_or_else(|| "unknown cause".to_owned(), ToString::to_string)
}
