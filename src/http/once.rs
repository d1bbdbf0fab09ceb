use axum::{
    body::Body,
    extract::{FromRequestParts, MatchedPath},
    http::{HeaderName, HeaderValue, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use chrono::TimeDelta;
use serde::Serialize;
use sha2::{Digest, Sha256};
use utoipa::{
    IntoParams,
    openapi::{
        ObjectBuilder, Required,
        path::{Parameter, ParameterBuilder, ParameterIn},
        schema::Type,
    },
};

use super::{
    Arrival, Ctx, Permit,
    store::{self, Reservation},
};
use crate::{
    db::{Stale, TenantTx},
    kernel::{Error, Problem, Result},
};

/// How long a key is remembered.
const MEMORY: TimeDelta = TimeDelta::hours(24);

/// The answer of an operation that happens once: what is kept and said again to a repeated request.
#[derive(Clone, Debug)]
pub struct Reply {
    status: StatusCode,
    body: String,
}

impl Reply {
    /// An answer with a JSON body.
    ///
    /// # Errors
    /// When `body` cannot be written as JSON.
    pub fn json<T: Serialize>(status: StatusCode, body: &T) -> Result<Self> {
        Ok(Self { status, body: serde_json::to_string(body).map_err(Error::internal)? })
    }
}

impl IntoResponse for Reply {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::from(self.body));
        *response.status_mut() = self.status;
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    }
}

/// Makes an operation happen once for each `Idempotency-Key`: the key, the effect and the answer commit
/// together, so a repeated request finds all of them or none. Without the header it only opens and
/// commits the transaction.
#[derive(Debug)]
pub struct Once {
    key: Option<String>,
    route: String,
    target: String,
    arrival: Arrival,
}

impl Once {
    /// The same for `work` that reads and ends in an append. Without a key it only reads here, and the append goes into
    /// the journal's next shared commit; should the run have moved by then, it is done again, and keeps others out.
    ///
    /// # Errors
    /// Those of [`Once::run`].
    pub async fn command<P, W>(self, ctx: &Ctx<P>, work: W) -> Result<Response>
    where
        P: Permit,
        W: AsyncFnOnce(&mut TenantTx) -> Result<Reply> + Clone,
    {
        if self.key.is_none() {
            let mut tx = ctx.begin_reading().await?;
            let reply = work.clone()(&mut tx).await?;
            match tx.commit().await {
                Err(error) if Stale::is(&error) => {}
                done => return done.map(|()| reply.into_response()),
            }
        }
        self.run(ctx, work).await
    }

    /// Does `work` in one transaction and answers, or gives the answer of the first time again. When the
    /// work fails nothing is kept.
    ///
    /// # Errors
    /// Those of `work`; idempotency-mismatch (422) when the key came with another request before;
    /// idempotency-in-flight (409) when the first request with it is still at work.
    pub async fn run<P, W>(self, ctx: &Ctx<P>, work: W) -> Result<Response>
    where
        P: Permit,
        W: AsyncFnOnce(&mut TenantTx) -> Result<Reply>,
    {
        let mut tx = ctx.begin().await?;
        let Some(key) = &self.key else {
            let reply = work(&mut tx).await?;
            tx.commit().await?;
            return Ok(reply.into_response());
        };
        let now = ctx.now();
        let print = self.fingerprint(ctx.subject.as_str());
        let slot = store::Slot { tenant_id: ctx.tenant_id, route: &self.route, key };
        match store::reserve(&mut tx, slot, &print, now, now + MEMORY).await? {
            Reservation::Ours => {
                let reply = work(&mut tx).await?;
                store::keep(&mut tx, slot, reply.status.as_u16(), &reply.body).await?;
                tx.commit().await?;
                Ok(reply.into_response())
            }
            Reservation::Done { print: first, .. } if first != print => Err(mismatch()),
            Reservation::Done { status, body, .. } => replay(status, body),
            Reservation::InFlight => Err(Error::new(
                Problem::IdempotencyInFlight,
                "the first request with this `Idempotency-Key` is still at work: ask again for its answer",
            )),
        }
    }

    /// The answer of the first time, where this is a repeated request that cannot be taken any more: what it names may be
    /// another thing by now, or gone.
    ///
    /// # Errors
    /// `refused`, where there is none; idempotency-mismatch (422) when the key came with another request before.
    pub async fn again<P: Permit>(&self, ctx: &Ctx<P>, refused: Error) -> Result<Response> {
        let Some(key) = &self.key else { return Err(refused) };
        let slot = store::Slot { tenant_id: ctx.tenant_id, route: &self.route, key };
        match store::find(&mut ctx.begin_reading().await?, slot, ctx.now()).await? {
            Some(Reservation::Done { print, .. }) if print != self.fingerprint(ctx.subject.as_str()) => Err(mismatch()),
            Some(Reservation::Done { status, body, .. }) => replay(status, body),
            _ => Err(refused),
        }
    }

    /// What makes two requests the same: who, what target, what body.
    fn fingerprint(&self, subject: &str) -> [u8; 32] {
        let body = self.arrival.body_hash.get().copied().unwrap_or_else(|| Sha256::digest([]).into());
        let mut hash = Sha256::new();
        for part in [subject.as_bytes(), self.target.as_bytes(), &body] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        hash.finalize().into()
    }
}

fn mismatch() -> Error {
    let detail = "this `Idempotency-Key` came with another request before: take a new key for a new request";
    Error::new(Problem::IdempotencyMismatch, detail)
}

fn replay(status: u16, body: String) -> Result<Response> {
    let status = StatusCode::from_u16(status).map_err(Error::internal)?;
    let mut response = Reply { status, body }.into_response();
    let name = HeaderName::from_static("idempotency-replayed");
    response.headers_mut().insert(name, HeaderValue::from_static("true"));
    Ok(response)
}

impl<S: Send + Sync> FromRequestParts<S> for Once {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self> {
        let path = parts.extensions.get::<MatchedPath>().map_or_else(|| parts.uri.path(), MatchedPath::as_str);
        let route = format!("{} {}", parts.method, unversioned(path));
        let target = parts.uri.path_and_query().map_or_else(|| parts.uri.path(), |target| target.as_str());
        let target = unversioned(target).to_owned();
        Ok(Self { key: key(parts)?, route, target, arrival: Arrival::of(parts) })
    }
}

impl IntoParams for Once {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let text = "Makes the request happen once, whatever is lost on the way: the same key with the same request gets \
                    the first answer again for 24 hours.";
        let schema = ObjectBuilder::new()
            .schema_type(Type::String)
            .min_length(Some(1))
            .max_length(Some(255))
            .pattern(Some("^[!-~]+$"));
        let header = ParameterBuilder::new().name("Idempotency-Key").parameter_in(ParameterIn::Header);
        vec![header.required(Required::False).description(Some(text)).schema(Some(schema)).build()]
    }
}

/// The path as it is without the `/v1` under which it is served too.
pub(super) fn unversioned(path: &str) -> &str {
    path.strip_prefix("/v1").filter(|rest| rest.starts_with('/')).unwrap_or(path)
}

fn key(parts: &Parts) -> Result<Option<String>> {
    let wrong = || {
        Error::malformed("`Idempotency-Key` is one value of 1 to 255 visible ASCII characters")
            .with("field", "Idempotency-Key")
    };
    let mut given = parts.headers.get_all("idempotency-key").iter();
    let Some(value) = given.next() else { return Ok(None) };
    let fits = (1..=255).contains(&value.len()) && value.as_bytes().iter().all(u8::is_ascii_graphic);
    if given.next().is_some() || !fits {
        return Err(wrong());
    }
    value.to_str().map(|text| Some(text.to_owned())).map_err(|_| wrong())
}

#[cfg(test)]
mod tests;
