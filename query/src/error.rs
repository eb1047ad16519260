//! Why a query could not be answered.

/// Errors of planning and answering.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Bytes of a segment could not be read or did not verify.
    #[error(transparent)]
    Storage(#[from] longwave_storage::Error),
    /// The budget depends on what earlier calls were like, which only a context knows.
    #[error("budget {budget} needs the state of a context")]
    NeedsState {
        /// The budget.
        budget: crate::Budget,
    },
}
