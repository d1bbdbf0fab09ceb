//! Who did what to which thing: appended in the transaction of the deed, never changed.

mod store;

pub use store::{Entry, record, rider};
