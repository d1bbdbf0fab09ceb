//! Whose word counts: tokens are verified here (RFC 8725), and roles become permissions.

mod claims;
mod keys;
mod mint;
mod permission;
mod verify;

pub use claims::Claims;
pub(crate) use mint::signing_key;
pub use mint::{Grant, Minter};
pub use permission::{Permission, Permissions, Role};
pub use verify::Verifier;
