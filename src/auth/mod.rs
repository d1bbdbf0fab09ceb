//! Whose word counts: tokens are verified here (RFC 8725), roles become permissions, and secrets are
//! sealed for the time they lie in the database.

mod claims;
mod keys;
mod mint;
mod permission;
mod seal;
mod verify;

pub use claims::Claims;
pub(crate) use mint::signing_key;
pub use mint::{Grant, Minter};
pub use permission::{Permission, Permissions, Role};
pub use seal::{Sealed, Vault};
pub use verify::Verifier;
