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
    let head = Head {
        rows: rows as f64,
        dims: (shape.key_dim + shape.value_dim) as f64,
        row_bytes: (shape.key_bytes() + shape.value_bytes()) as f64,
    };
    head.exact_is_sooner(tau, queries.positions * shape.kv_heads, rayon::current_num_threads())
}

/// What a position and KV head has to answer from.
struct Head {
    rows: f64,
    /// Of key and value together.
    dims: f64,
    row_bytes: f64,
}

impl Head {
    /// Whether reading every row is expected to be sooner for so many of them on so many threads.
    fn exact_is_sooner(&self, tau: f64, units: usize, threads: usize) -> bool {
        let exact = self.rows * self.row_bytes / EXACT_BYTES_PER_NS;
        let ladder = self.dims * (LADDER_NS_BY_TAU / tau + LADDER_NS_PER_ELEMENT * self.rows);
        let (units, threads) = (units as f64, threads as f64);
        exact * units / threads <= ladder * (units / threads).ceil()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_that_was_measured_to_be_sooner_is_chosen() {
        // docs/benchmarks.md: three heads of dimension 64, and eight of 128, on two threads.
        let small = |rows| Head { rows, dims: 128.0, row_bytes: 256.0 };
        assert!([1024.0, 8192.0, 16384.0].iter().all(|&rows| small(rows).exact_is_sooner(0.0028, 3, 2)));
        let large = |rows| Head { rows, dims: 256.0, row_bytes: 512.0 };
        for tau in [0.0028, 0.0256] {
            assert!(
                [131_072.0, 1_048_576.0].iter().all(|&rows| !large(rows).exact_is_sooner(tau, 8, 2)),
                "{tau}"
            );
        }
    }
}
