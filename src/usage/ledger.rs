use super::store::{self, Note};
use crate::{
    db::Rider,
    journal::{Append, Projection},
    kernel::Result,
};

/// Keeps the books of usage in step with the journal, in the journal's own commits: what was spent is entered, and what
/// was reserved for it given back, with the very outcome.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ledger;

impl Projection for Ledger {
    fn riders(&self, appends: &[&Append]) -> Result<Vec<Rider>> {
        let notes = appends.iter().flat_map(|append| append.spending.iter().map(|entry| Note::of(append, entry)));
        let notes: Vec<_> = notes.collect();
        Ok(store::rider(notes).into_iter().collect())
    }
}
