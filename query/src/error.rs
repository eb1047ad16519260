//! Why a query could not be answered.

/// Errors of planning and answering.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Bytes of a segment could not be read or did not verify.
    #[error(transparent)]
    Storage(#[from] longwave_storage::Error),
}
