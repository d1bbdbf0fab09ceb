//! Who there is. So far tenants: made and found by name, with their settings.

mod store;
mod tenant;

pub use tenant::{Tenant, TenantSettings, Tenants};
