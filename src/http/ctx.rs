use std::{fmt, marker::PhantomData};

use axum::{
    extract::{FromRef, FromRequestParts, OptionalFromRequestParts},
    http::{header::AUTHORIZATION, request::Parts},
};

use super::{Arrival, Front, Permit, RequestId, problem::NO_TOKEN};
use crate::{
    auth::{Claims, Permissions, Role},
    db::{Database, TenantTx},
    kernel::{Actor, Clock, Error, Problem, Result, Subject, TenantId, Timestamp},
    telemetry::{KeyValue, Span, Trace},
};

/// Who asks, and that they may: the handler that takes a `Ctx<P>` runs only for a verified token with
/// the permission `P`. Taken as `Option<Ctx<P>>` it is `None` when there is no `Authorization` header,
/// and still refuses a bad one.
pub struct Ctx<P: Permit> {
    /// The tenant all work happens for.
    pub tenant_id: TenantId,
    /// The token's subject.
    pub subject: Subject,
    /// The token's `jti`.
    pub token_id: String,
    /// The token's roles.
    pub roles: Vec<Role>,
    /// The bearer's groups at the issuer.
    pub groups: Vec<String>,
    /// All that the token allows.
    pub permissions: Permissions,
    /// When the token expires.
    pub expires_at: Timestamp,
    /// What the request is called.
    pub request_id: RequestId,
    /// Where the request stands in its trace.
    pub trace: Trace,
    issued_at: Timestamp,
    database: Database,
    clock: Clock,
    permit: PhantomData<fn() -> P>,
}

impl<P: Permit> Ctx<P> {
    /// A context for claims that were verified before: a stream's ticket or cookie.
    ///
    /// # Errors
    /// When the token has expired since (401) or lacks the permission (403).
    pub fn from_claims(front: &Front, claims: Claims, arrival: Arrival) -> Result<Self> {
        if claims.expires_at <= front.clock().now() {
            return Err(Error::new(Problem::Unauthenticated, "the token behind this credential has expired"));
        }
        Self::admit(front, claims, arrival)
    }

    fn admit(front: &Front, claims: Claims, arrival: Arrival) -> Result<Self> {
        if let Some(needed) = P::NEEDS.filter(|needed| !claims.permissions.contains(*needed)) {
            let detail = format!("this needs the permission `{needed}`");
            return Err(Error::new(Problem::Forbidden, detail).with("permission", needed.name()));
        }
        let Claims { tenant_id, subject, token_id, roles, groups, permissions, issued_at, expires_at } = claims;
        let (database, clock) = (front.database().clone(), front.clock().clone());
        let Arrival { request_id, trace, .. } = arrival;
        tracing::Span::current().record("tenant", tracing::field::display(tenant_id));
        Span::current().note(|| [KeyValue::new("fermata.tenant.id", tenant_id.to_string())]);
        Ok(Self {
            tenant_id,
            subject,
            token_id,
            roles,
            groups,
            permissions,
            expires_at,
            request_id,
            trace,
            issued_at,
            database,
            clock,
            permit: PhantomData,
        })
    }

    /// The claims behind this context, to be kept with a ticket.
    #[must_use]
    pub fn claims(&self) -> Claims {
        Claims {
            tenant_id: self.tenant_id,
            subject: self.subject.clone(),
            token_id: self.token_id.clone(),
            roles: self.roles.clone(),
            groups: self.groups.clone(),
            permissions: self.permissions,
            issued_at: self.issued_at,
            expires_at: self.expires_at,
        }
    }

    /// The token's subject, as the one who acts.
    #[must_use]
    pub fn actor(&self) -> Actor {
        Actor::User(self.subject.clone())
    }

    /// What the bearer is known as besides: the names of their roles and groups.
    #[must_use]
    pub fn known_as(&self) -> Vec<String> {
        let roles = self.roles.iter().map(|role| role.name().to_owned());
        roles.chain(self.groups.iter().cloned()).collect()
    }

    /// Now.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// A transaction on the tenant's rows.
    ///
    /// # Errors
    /// When no connection is to be had.
    pub async fn begin(&self) -> Result<TenantTx> {
        self.database.tenant(self.tenant_id).await
    }

    /// A transaction that only reads the tenant's rows.
    ///
    /// # Errors
    /// When no connection is to be had.
    pub async fn begin_reading(&self) -> Result<TenantTx> {
        self.database.reader(self.tenant_id).await
    }
}

impl<P: Permit, S: Send + Sync> FromRequestParts<S> for Ctx<P>
where
    Front: FromRef<S>,
{
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self> {
        <Self as OptionalFromRequestParts<S>>::from_request_parts(parts, state)
            .await?
            .ok_or_else(|| Error::new(Problem::Unauthenticated, NO_TOKEN))
    }
}

impl<P: Permit, S: Send + Sync> OptionalFromRequestParts<S> for Ctx<P>
where
    Front: FromRef<S>,
{
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Option<Self>> {
        let arrival = Arrival::of(parts);
        let Some(token) = bearer(parts)? else { return Ok(None) };
        let front = Front::from_ref(state);
        let claims = front.verifier().verify(token, front.clock().now())?;
        Self::admit(&front, claims, arrival).map(Some)
    }
}

fn bearer(parts: &Parts) -> Result<Option<&str>> {
    let wrong = || Error::new(Problem::Unauthenticated, "`Authorization` is not one `Bearer` token");
    let mut given = parts.headers.get_all(AUTHORIZATION).iter();
    let Some(value) = given.next() else { return Ok(None) };
    if given.next().is_some() {
        return Err(wrong());
    }
    let (scheme, token) = value.to_str().ok().and_then(|text| text.split_once(' ')).ok_or_else(wrong)?;
    if scheme.eq_ignore_ascii_case("bearer") { Ok(Some(token.trim())) } else { Err(wrong()) }
}

impl<P: Permit> fmt::Debug for Ctx<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ctx")
            .field("tenant_id", &self.tenant_id)
            .field("subject", &self.subject)
            .field("request_id", &self.request_id)
            .finish_non_exhaustive()
    }
}

impl<P: Permit> Clone for Ctx<P> {
    fn clone(&self) -> Self {
        Self {
            tenant_id: self.tenant_id,
            subject: self.subject.clone(),
            token_id: self.token_id.clone(),
            roles: self.roles.clone(),
            groups: self.groups.clone(),
            permissions: self.permissions,
            expires_at: self.expires_at,
            request_id: self.request_id.clone(),
            trace: self.trace,
            issued_at: self.issued_at,
            database: self.database.clone(),
            clock: self.clock.clone(),
            permit: PhantomData,
        }
    }
}
