use std::str::FromStr;

use serde::Serialize;
use sha2::{Digest, Sha256};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::kernel::{Error, Problem, TenantId, TicketId, Timestamp, wire_time};

/// How long a ticket may lie before it is used.
pub(super) const GOOD_FOR: chrono::TimeDelta = chrono::TimeDelta::seconds(30);

/// A one-time permission to open one stream, as it stands in its URL: where its row is, and the secret.
#[derive(Clone, Copy)]
pub(super) struct Ticket {
    pub tenant: TenantId,
    pub id: TicketId,
    secret: [u128; 2],
}

impl Ticket {
    /// A fresh one.
    pub fn new(tenant: TenantId, now: Timestamp) -> Self {
        Self { tenant, id: TicketId::new(now), secret: [rand::random(), rand::random()] }
    }

    /// What the table keeps of the secret.
    pub fn hash(&self) -> [u8; 32] {
        let [one, two] = self.secret;
        Sha256::new().chain_update(one.to_be_bytes()).chain_update(two.to_be_bytes()).finalize().into()
    }

    /// As it is written into a URL.
    pub fn text(&self) -> String {
        let [one, two] = self.secret;
        format!("{}{}{one:032x}{two:032x}", self.tenant.uuid().simple(), self.id.uuid().simple())
    }
}

impl FromStr for Ticket {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let part = |at: usize| {
            let digits = text.get(at * 32..(at + 1) * 32)?;
            digits.bytes().all(|b| b.is_ascii_hexdigit()).then(|| u128::from_str_radix(digits, 16).ok()).flatten()
        };
        match (text.len(), part(0), part(1), part(2), part(3)) {
            (128, Some(tenant), Some(id), Some(one), Some(two)) => Ok(Self {
                tenant: TenantId::from_uuid(Uuid::from_u128(tenant)),
                id: TicketId::from_uuid(Uuid::from_u128(id)),
                secret: [one, two],
            }),
            _ => Err(refused()),
        }
    }
}

/// What is said of every ticket that is not good.
pub(super) fn refused() -> Error {
    let detail = "the ticket is unknown, used, late, or for another stream: ask for a new one";
    Error::new(Problem::Unauthenticated, detail)
}

/// Where a browser finds its stream.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TicketUrl {
    /// For `EventSource`; works once.
    #[schema(example = "http://127.0.0.1:8080/workflow/events?ticket=…")]
    pub url: String,
    /// By when it must be used.
    #[schema(value_type = String, format = DateTime)]
    #[serde(with = "wire_time")]
    pub expires_at: Timestamp,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_round_trips_and_its_hash_is_not_its_secret() {
        let ticket = Ticket::new(TenantId::new(chrono::DateTime::UNIX_EPOCH), chrono::DateTime::UNIX_EPOCH);
        let same: Ticket = ticket.text().parse().expect("a ticket");
        assert_eq!((same.tenant, same.id, same.hash()), (ticket.tenant, ticket.id, ticket.hash()));
        let hash = ticket.hash().iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        assert!(!ticket.text().contains(&hash));
    }

    #[test]
    fn what_is_no_ticket_is_refused() {
        for text in [String::new(), "0".repeat(127), "+".repeat(128), "g".repeat(128), "é".repeat(64), "0".repeat(129)]
        {
            assert!(text.parse::<Ticket>().is_err(), "{text}");
        }
    }
}
