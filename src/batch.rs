//! Attention over several contexts in one call.

use crate::error::Error;
use crate::snapshot::{Snapshot, on_pool};
use crate::tensor::TensorView;
use longwave_query::{Answer, Budget};
use rayon::prelude::*;

/// One sequence of a batch: what [`Snapshot::attend`] takes.
#[derive(Clone, Copy, Debug)]
pub struct BatchCall<'a> {
    /// The rows that are asked.
    pub snapshot: &'a Snapshot,
    /// The layer.
    pub layer: usize,
    /// `[n, query_heads, key_dim]`, at the last n positions of the layer.
    pub queries: TensorView<'a>,
    /// What the call may spend, and by which method.
    pub budget: Budget,
}

/// Answers several calls at once, each as [`Snapshot::attend`] would and with the same bits, in the order of the calls. All
/// threads of the first snapshot's pool share the sequences and, within each, its positions and KV heads, so that a batch of
/// many short calls keeps them as busy as one long call does. A call that fails leaves the others as they are.
pub fn attend_batch(calls: &[BatchCall<'_>]) -> Vec<Result<Answer, Error>> {
    let Some(first) = calls.first() else { return Vec::new() };
    on_pool(first.snapshot.inner.pool.as_deref(), || {
        calls.par_iter().map(|call| call.snapshot.attend(call.layer, &call.queries, &call.budget)).collect()
    })
}
