//! Which of two ways to answer is expected to be sooner: every row, or the resolution ladder.

use crate::view::{LayerView, QueryBatch};
use longwave_storage::RowForm;

/// Bytes of rows that a thread reads and works on in a nanosecond when it reads all of them.
const EXACT_BYTES_PER_NS: f64 = 8.0;
/// What the ladder costs a position and KV head, in nanoseconds times tau for each dimension of key and value: the rows
/// that matter at a threshold are about as many in a short context as in a long one.
const LADDER_NS_BY_TAU: f64 = 18.0;
/// What it costs for each element of key and value beside that, in nanoseconds: centroids, and sketches of a zone that grows
/// slowly.
const LADDER_NS_PER_ELEMENT: f64 = 0.033;

/// Whether reading every row of `view` is expected to be sooner than the ladder at `tau`.
///
/// The constants were measured on one machine on synthetic rows (docs/performance.md). The ladder answers each position
/// and KV head on one thread, whereas all threads share the rows where all are read.
pub(crate) fn exact_is_sooner(view: &LayerView<'_>, queries: &QueryBatch<'_>, tau: f64) -> bool {
    let shape = &view.shape;
    // Turning codes back into rows costs more than the ladder ever does.
    if view.row_form() == RowForm::Codes {
        return false;
    }
    let rows: usize = view.segments.iter().map(|segment| segment.rows()).sum();
    let (rows, dims) = (rows as f64, (shape.key_dim + shape.value_dim) as f64);
    let exact = rows * (shape.key_bytes() + shape.value_bytes()) as f64 / EXACT_BYTES_PER_NS;
    let ladder = dims * (LADDER_NS_BY_TAU / tau + LADDER_NS_PER_ELEMENT * rows);
    let units = (queries.positions * shape.kv_heads) as f64;
    let threads = rayon::current_num_threads() as f64;
    exact * units / threads <= ladder * (units / threads).ceil()
}
