use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use utoipa::ToSchema;

macro_rules! permissions {
    ($($(#[$doc:meta])* $name:ident = $wire:literal;)*) => {
        /// One thing a token may do; operations name the one they need.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Permission { $($(#[$doc])* $name,)* }

        impl Permission {
            /// Every permission.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// Its name in a token's `scope` and in problems.
            #[must_use]
            pub const fn name(self) -> &'static str { match self { $(Self::$name => $wire,)* } }
        }
    };
}

permissions! {
    /// See runs and their events.
    RunsRead = "runs:read";
    /// Start, cancel and retry runs.
    RunsWrite = "runs:write";
    /// See workflow definitions.
    WorkflowsRead = "workflows:read";
    /// Put workflow definitions.
    WorkflowsWrite = "workflows:write";
    /// See holds and what they would do.
    ApprovalsRead = "approvals:read";
    /// Give or refuse consent.
    ApprovalsDecide = "approvals:decide";
    /// Change approval policies.
    PoliciesWrite = "policies:write";
    /// See integrations and their connections.
    IntegrationsRead = "integrations:read";
    /// Connect and disconnect integrations.
    IntegrationsWrite = "integrations:write";
    /// Search knowledge.
    KnowledgeRead = "knowledge:read";
    /// Add and remove knowledge.
    KnowledgeWrite = "knowledge:write";
    /// See the tenant's members.
    MembersRead = "members:read";
    /// Invite and remove members.
    MembersWrite = "members:write";
    /// See API keys, never their secrets.
    KeysRead = "keys:read";
    /// Make and revoke API keys.
    KeysWrite = "keys:write";
    /// See plan and invoices.
    BillingRead = "billing:read";
    /// Change the plan.
    BillingWrite = "billing:write";
    /// Read the audit log.
    AuditRead = "audit:read";
    /// See the tenant's settings.
    SettingsRead = "settings:read";
    /// Change the tenant's settings.
    SettingsWrite = "settings:write";
}

impl Permission {
    const fn bit(self) -> u32 {
        1 << self as u32
    }

    fn is_read(self) -> bool {
        self.name().ends_with(":read")
    }
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a token says its bearer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Everything.
    Owner,
    /// Everything but billing.
    Admin,
    /// Sees all but the audit log; runs, workflows, knowledge and integrations are theirs to change.
    Operator,
    /// Sees all but the audit log, and decides approvals.
    Approver,
    /// Sees all but the audit log.
    Viewer,
    /// A machine: its token's scopes and nothing else.
    Service,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 6] = [Self::Owner, Self::Admin, Self::Operator, Self::Approver, Self::Viewer, Self::Service];

    /// Its name in a token.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Owner => "owner",
            Self::Admin => "admin",
            Self::Operator => "operator",
            Self::Approver => "approver",
            Self::Viewer => "viewer",
            Self::Service => "service",
        }
    }

    /// What it allows before scopes narrow it. A service has no permissions of its own.
    fn allows(self, permission: Permission) -> bool {
        use Permission as P;
        let viewer = permission.is_read() && permission != P::AuditRead;
        match self {
            Self::Owner => true,
            Self::Admin => !matches!(permission, P::BillingRead | P::BillingWrite),
            Self::Operator => {
                viewer
                    || matches!(permission, P::RunsWrite | P::WorkflowsWrite | P::KnowledgeWrite | P::IntegrationsWrite)
            }
            Self::Approver => viewer || permission == P::ApprovalsDecide,
            Self::Viewer => viewer,
            Self::Service => false,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|role| role.name() == text)
            .ok_or_else(|| format!("no role is called `{text}`: there are {}", Self::ALL.map(Self::name).join(", ")))
    }
}

/// A set of permissions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Permissions(u32);

impl Permissions {
    /// What `roles` give, narrowed by `scope` (names separated by spaces, `runs:*` for both of a kind).
    /// A scope that names nothing known gives nothing; a service gets its scopes and no more.
    #[must_use]
    pub fn of(roles: &[Role], scope: Option<&str>) -> Self {
        let scoped = |permission: Permission| {
            scope.is_none_or(|scope| scope.split_ascii_whitespace().any(|name| names(name, permission)))
        };
        let service = scope.is_some() && roles.contains(&Role::Service);
        Permission::ALL
            .iter()
            .copied()
            .filter(|p| scoped(*p) && (service || roles.iter().any(|role| role.allows(*p))))
            .collect()
    }

    /// Whether `permission` is in the set.
    #[must_use]
    pub const fn contains(self, permission: Permission) -> bool {
        self.0 & permission.bit() != 0
    }

    /// The permissions in the set.
    pub fn iter(self) -> impl Iterator<Item = Permission> {
        Permission::ALL.iter().copied().filter(move |p| self.contains(*p))
    }
}

fn names(scope: &str, permission: Permission) -> bool {
    let name = permission.name();
    scope == name || scope.strip_suffix('*').is_some_and(|kind| kind.ends_with(':') && name.starts_with(kind))
}

impl FromIterator<Permission> for Permissions {
    fn from_iter<I: IntoIterator<Item = Permission>>(permissions: I) -> Self {
        Self(permissions.into_iter().fold(0, |set, p| set | p.bit()))
    }
}

impl Serialize for Permissions {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter().map(Permission::name))
    }
}

impl<'de> Deserialize<'de> for Permissions {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let names = Vec::<String>::deserialize(deserializer)?;
        let find = |name: &String| Permission::ALL.iter().copied().find(|p| p.name() == name);
        names.iter().map(|name| find(name).ok_or_else(|| de::Error::custom("no such permission"))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn granted(roles: &[Role], scope: Option<&str>) -> Vec<&'static str> {
        Permissions::of(roles, scope).iter().map(Permission::name).collect()
    }

    #[test]
    fn roles_give_what_the_design_says() {
        let viewer = granted(&[Role::Viewer], None);
        assert!(viewer.iter().all(|name| name.ends_with(":read")) && !viewer.contains(&"audit:read"));
        assert_eq!(viewer.len(), Permission::ALL.iter().filter(|p| p.is_read()).count() - 1);

        let mut approver = granted(&[Role::Approver], None);
        approver.retain(|name| !viewer.contains(name));
        assert_eq!(approver, ["approvals:decide"]);

        let mut operator = granted(&[Role::Operator], None);
        operator.retain(|name| !viewer.contains(name));
        assert_eq!(operator, ["runs:write", "workflows:write", "integrations:write", "knowledge:write"]);

        assert_eq!(granted(&[Role::Owner], None).len(), Permission::ALL.len());
        assert_eq!(granted(&[Role::Admin], None).len(), Permission::ALL.len() - 2);
        assert!(!Permissions::of(&[Role::Admin], None).contains(Permission::BillingRead));
    }

    #[test]
    fn a_scope_narrows_and_never_widens() {
        assert_eq!(granted(&[Role::Viewer], Some("runs:read runs:write")), ["runs:read"]);
        assert_eq!(granted(&[Role::Owner], Some("runs:*")), ["runs:read", "runs:write"]);
        assert!(granted(&[Role::Owner], Some("")).is_empty());
        assert!(granted(&[Role::Owner], Some("openid * r*")).is_empty());
    }

    #[test]
    fn a_service_has_its_scopes_only() {
        assert!(granted(&[Role::Service], None).is_empty());
        assert_eq!(granted(&[Role::Service], Some("runs:write audit:read")), ["runs:write", "audit:read"]);
    }

    #[test]
    fn a_set_survives_storage() {
        let set = Permissions::of(&[Role::Operator], None);
        let text = serde_json::to_string(&set).expect("text");
        assert_eq!(serde_json::from_str::<Permissions>(&text).expect("set"), set);
    }
}
