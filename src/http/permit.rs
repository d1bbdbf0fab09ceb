//! One type for each permission, so that a handler's signature says what its caller needs.

use crate::auth::Permission;

/// What a handler's caller needs, as a type.
pub trait Permit: Send + Sync + 'static {
    /// The permission, or none where a good token is enough.
    const NEEDS: Option<Permission>;
}

macro_rules! permits {
    ($($name:ident),* $(,)?) => {$(
        #[doc = concat!("The caller needs [`Permission::", stringify!($name), "`].")]
        #[derive(Debug)]
        pub enum $name {}
        impl Permit for $name {
            const NEEDS: Option<Permission> = Some(Permission::$name);
        }
    )*};
}

permits! {
    RunsRead, RunsWrite, WorkflowsRead, WorkflowsWrite, ApprovalsRead, ApprovalsDecide, IntegrationsRead,
    IntegrationsWrite, AuditRead, SettingsRead, SettingsWrite, KeysRead, KeysWrite,
}

/// Any good token will do.
#[derive(Debug)]
pub enum Anyone {}

impl Permit for Anyone {
    const NEEDS: Option<Permission> = None;
}
