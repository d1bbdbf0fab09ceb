use chrono::TimeDelta;
use rmcp::transport::auth::StoredAuthorizationState;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use utoipa::ToSchema;

use super::grant::RegisteredClient;
use crate::kernel::{Timestamp, wire_time};

/// How long somebody may take to sign in.
pub(super) const GOOD_FOR: TimeDelta = TimeDelta::minutes(10);

/// An authorization that was begun, as it lies sealed until the provider has sent its answer.
#[derive(Serialize, Deserialize)]
pub(super) struct Attempt {
    pub(super) client: RegisteredClient,
    /// The authorization server that the person was sent to.
    pub(super) issuer: String,
    /// The verifier (PKCE), and what was asked for.
    pub(super) stored: StoredAuthorizationState,
}

/// What the table keeps of the state.
pub(super) fn hash(state: &str) -> [u8; 32] {
    Sha256::digest(state).into()
}

/// Where to send the person who is to grant it.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuthorizationUrl {
    /// To be opened in that person's browser.
    #[schema(example = "https://login.example/authorize?response_type=code&state=…")]
    pub url: String,
    /// By when the provider's answer has to be here.
    #[schema(value_type = String, format = DateTime)]
    #[serde(with = "wire_time")]
    pub expires_at: Timestamp,
}

/// The provider's answer, as it came back in the query of the redirect.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CallbackBody {
    /// `code`.
    #[schema(value_type = String)]
    pub code: secrecy::SecretString,
    /// `state`: good once, for whoever began, within ten minutes.
    pub state: String,
    /// `iss`, where it is there (RFC 9207).
    #[serde(default)]
    pub iss: Option<String>,
}
