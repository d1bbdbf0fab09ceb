//! What runs take: the books of it, kept in the journal's own commits, and the budget of a tenant's day, from which calls
//! reserve before they are made, so that runs which go side by side never exceed it together.

mod budget;
mod day;
mod ledger;
mod report;
mod routes;
mod store;

pub use budget::{Amounts, DayStanding, left_of_day};
pub use day::{Days, Share};
pub use ledger::Ledger;
pub use report::{GroupBy, Usage, UsageQuery};
pub use routes::{UsageRoutes, routes};
