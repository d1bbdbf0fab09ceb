use serde::{Deserialize, Serialize};

use super::{Permissions, Role};
use crate::kernel::{Subject, TenantId, Timestamp};

/// What a verified token says. It can be kept (a stream's ticket does) and read again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Claims {
    /// `tid`.
    pub tenant_id: TenantId,
    /// `sub`.
    #[serde(with = "subject")]
    pub subject: Subject,
    /// `jti`: 1 to 128 visible ASCII characters, unique to the token.
    pub token_id: String,
    /// `roles`.
    pub roles: Vec<Role>,
    /// `groups`: those of the bearer's at the issuer.
    #[serde(default)]
    pub groups: Vec<String>,
    /// What the roles allow, narrowed by `scope`.
    pub permissions: Permissions,
    /// `iat`.
    pub issued_at: Timestamp,
    /// `exp`; leeway comes on top of it.
    pub expires_at: Timestamp,
}

mod subject {
    use serde::{Deserialize, Deserializer, Serializer, de};

    use crate::kernel::{Error, Subject};

    pub(super) fn serialize<S: Serializer>(subject: &Subject, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(subject.as_str())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Subject, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(|e: Error| de::Error::custom(e.detail()))
    }
}
