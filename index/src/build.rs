//! From the rows of one layer to everything its segment stores.

use std::sync::{Mutex, PoisonError};

use longwave_kernels::codec::{encode8, record8_len};
use longwave_kernels::{Dtype, Kernels, Rows};
use longwave_storage::{Alignment, ColumnKind, NewColumn, RowForm};
use rayon::prelude::*;
use rayon::{Scope, ThreadPool};

use crate::ClusterOptions;
use crate::clustering::{Clustering, cluster_in};
use crate::columns::{IndexColumns, Parameters};
use crate::kmeans::Workspace;
use crate::ladder::{self, HeadColumns, HeadTask, LadderColumns, LadderInput, LadderScratch};
use crate::summary::Summaries;

/// Keys and values of one KV head, in the order of their positions. They should be finite: an index over rows that
/// are not is refused when it is read.
#[derive(Clone, Copy, Debug)]
pub struct HeadInput<'a> {
    /// Keys, `[rows, key_dim]`.
    pub keys: Rows<'a>,
    /// Values, `[rows, value_dim]`.
    pub values: Rows<'a>,
}

/// The rows of one layer, ordered cluster by cluster, and their index.
#[derive(Clone, Debug, PartialEq)]
pub struct BuiltSegment {
    /// Element type of centroids and value means, and of keys and values that are kept in full.
    pub dtype: Dtype,
    /// The form that keys and values are kept in: in full, until [`BuiltSegment::reduce`] is called.
    pub form: RowForm,
    /// Keys, `[kv_heads, rows]` in the form; empty where only their codes are kept.
    pub keys: Vec<u8>,
    /// Values, the same.
    pub values: Vec<u8>,
    /// Position of each row less the first position, `[kv_heads, rows]`; ascending inside a cluster.
    pub positions: Vec<u32>,
    /// The index.
    pub columns: IndexColumns,
    /// The resolution ladder, when it was asked for.
    pub ladder: Option<LadderColumns>,
}

impl BuiltSegment {
    /// Keeps the rows in another form than in full, on the current rayon pool.
    ///
    /// # Panics
    /// When the rows are not in full any more, or `form` is codes and there is no ladder.
    pub fn reduce(&mut self, form: RowForm, key_dim: usize, value_dim: usize) {
        assert!(self.form == RowForm::Full, "rows in the form {} are not reduced again", self.form);
        self.form = form;
        match form {
            RowForm::Full => {}
            RowForm::EightBits => {
                self.keys = eight_bits(self.dtype, &self.keys, key_dim);
                self.values = eight_bits(self.dtype, &self.values, value_dim);
            }
            RowForm::Codes => {
                assert!(self.ladder.is_some(), "rows without a ladder have no codes");
                (self.keys, self.values) = (Vec::new(), Vec::new());
            }
        }
    }

    /// All columns of the segment: keys, values, positions, the index's, and the ladder's if there is one.
    pub fn columns(&self) -> Vec<NewColumn<'_>> {
        let rows = self.positions.len();
        let mut columns = row_columns(self.form, self.dtype, &[&self.keys], &[&self.values], rows);
        columns.push(NewColumn {
            kind: ColumnKind::POSITIONS,
            name: "positions",
            element_size: 4,
            alignment: Alignment::CacheLine,
            parts: vec![bytemuck::cast_slice(&self.positions)],
        });
        columns.extend(self.columns.columns(self.dtype));
        columns.extend(self.ladder.iter().flat_map(LadderColumns::columns));
        columns
    }
}

/// The columns of keys and values in a form, whose bytes come in parts; none where only codes are kept. `rows` are those of
/// all heads, at least one.
pub fn row_columns<'a>(
    form: RowForm,
    dtype: Dtype,
    keys: &[&'a [u8]],
    values: &[&'a [u8]],
    rows: usize,
) -> Vec<NewColumn<'a>> {
    let column = |(kind, parts): (ColumnKind, &[&'a [u8]])| {
        let bytes: usize = parts.iter().map(|part| part.len()).sum();
        let element_size = if form == RowForm::Full { dtype.size_of() } else { bytes / rows };
        NewColumn {
            kind,
            name: kind.name().unwrap_or_default(),
            element_size: element_size as u32,
            alignment: Alignment::Page,
            parts: parts.to_vec(),
        }
    };
    form.columns().map_or_else(Vec::new, |kinds| kinds.into_iter().zip([keys, values]).map(column).collect())
}

/// Rows of `dim` elements in 8 bits, on the current rayon pool.
///
/// # Panics
/// When `bytes` are not whole rows, or are not aligned for their type.
pub fn eight_bits(dtype: Dtype, bytes: &[u8], dim: usize) -> Vec<u8> {
    let (size, record) = (dim * dtype.size_of(), record8_len(dim));
    assert!(bytes.len().is_multiple_of(size), "{} bytes are not whole rows of {dim}", bytes.len());
    let mut records = vec![0; bytes.len() / size * record];
    let pieces = bytes.par_chunks(size * REDUCED_ROWS).zip(records.par_chunks_mut(record * REDUCED_ROWS));
    pieces.for_each_init(
        || vec![0.0; dim],
        |wide, (rows, records)| {
            for (row, record) in rows.chunks_exact(size).zip(records.chunks_exact_mut(record)) {
                let Some(row) = Rows::from_bytes(dtype, row) else { panic!("rows at an odd address") };
                Kernels::get().widen(row, wide);
                encode8(wide, record);
            }
        },
    );
    records
}

/// Rows that a thread reduces at a time.
const REDUCED_ROWS: usize = 512;

/// Clusters the rows of each head, orders them cluster by cluster, summarises the clusters, and with `ladder` codes rows
/// and summaries at lower resolutions; keys are then clustered in the metric of the head's queries.
///
/// Heads are spread over the current rayon pool; the result does not depend on its size. Head `h` clusters with the
/// random stream `stream_base + h`.
///
/// # Panics
/// As [`build_segment_on`].
pub fn build_segment(
    heads: &[HeadInput<'_>],
    key_dim: usize,
    value_dim: usize,
    options: &ClusterOptions,
    stream_base: u64,
    ladder: Option<&LadderInput<'_>>,
) -> BuiltSegment {
    build_segment_on(None, heads, (key_dim, value_dim), options, stream_base, ladder)
}

/// [`build_segment`] on `pool`, asked for by a thread that is none of it; without one, on the current rayon pool.
///
/// The pool takes heads in the order in which they were asked for: those of a segment that another thread asks for meanwhile keep
/// it busy while the last heads of this one are built.
///
/// # Panics
/// When there are no heads or no rows, when a dimension is 0, when the heads differ in type or number of rows, or when
/// there are more than `u32::MAX` rows; with `ladder`, when a dimension has no codes
/// ([`longwave_kernels::is_supported_dim`]), or moments and bases are not one for each head and of the right dimensions.
pub fn build_segment_on(
    pool: Option<&ThreadPool>,
    heads: &[HeadInput<'_>],
    (key_dim, value_dim): (usize, usize),
    options: &ClusterOptions,
    stream_base: u64,
    ladder: Option<&LadderInput<'_>>,
) -> BuiltSegment {
    let (dtype, rows) = check_heads(heads, key_dim, value_dim);
    let (key_bytes, value_bytes) = (key_dim * dtype.size_of(), value_dim * dtype.size_of());
    let mut keys = vec![0; heads.len() * rows * key_bytes];
    let mut values = vec![0; heads.len() * rows * value_bytes];
    // One scratch for each thread that asks, whichever heads it works on.
    let idle = Mutex::new(Vec::<Scratch>::new());
    let lock = || idle.lock().unwrap_or_else(PoisonError::into_inner);

    let build = |head: usize, input: &HeadInput<'_>, keys: &mut [u8], values: &mut [u8]| {
        let mut scratch = lock().pop().unwrap_or_default();
        let stream = stream_base.wrapping_add(head as u64);
        let task = ladder.map(|input| HeadTask::of(input, head, heads.len(), key_dim, value_dim));
        let parts = scratch.build(input, key_dim, value_dim, options, stream, task);
        reorder(input.keys.as_bytes(), key_bytes, &parts.clustering.order, keys);
        reorder(input.values.as_bytes(), value_bytes, &parts.clustering.order, values);
        lock().push(scratch);
        parts
    };
    let mut parts: Vec<Option<HeadParts>> = heads.iter().map(|_| None).collect();
    let rows_of_heads =
        keys.chunks_exact_mut(rows * key_bytes).zip(values.chunks_exact_mut(rows * value_bytes));
    let build = &build;
    in_place_scope(pool, |scope| {
        let heads = parts.iter_mut().zip(heads).enumerate();
        for ((head, (part, input)), (keys, values)) in heads.zip(rows_of_heads) {
            scope.spawn(move |_| *part = Some(build(head, input, keys, values)));
        }
    });
    // A scope has ended when all that it spawned has.
    let parts: Vec<HeadParts> = parts.into_iter().flatten().collect();
    let positions = parts.iter().flat_map(|part| &part.clustering.order).copied().collect();
    let (columns, heads) = join(parts, options, ladder.is_some());
    let ladder = ladder.map(|input| ladder::join(heads, input, key_dim, value_dim));
    BuiltSegment { dtype, form: RowForm::Full, keys, values, positions, columns, ladder }
}

fn in_place_scope<'scope>(pool: Option<&ThreadPool>, spawn: impl FnOnce(&Scope<'scope>)) {
    match pool {
        Some(pool) => pool.in_place_scope(spawn),
        None => rayon::in_place_scope(spawn),
    }
}

/// The type and the number of rows that all heads share.
fn check_heads(heads: &[HeadInput<'_>], key_dim: usize, value_dim: usize) -> (Dtype, usize) {
    assert!(key_dim > 0 && value_dim > 0, "dimensions {key_dim} and {value_dim} must not be 0");
    assert!(!heads.is_empty(), "a segment needs at least one head");
    let (dtype, rows) = (heads[0].keys.dtype(), heads[0].keys.len() / key_dim);
    assert!(rows > 0, "a segment needs at least one row");
    for (head, HeadInput { keys, values }) in heads.iter().enumerate() {
        assert!(keys.dtype() == dtype && values.dtype() == dtype, "head {head} is not of type {dtype}");
        assert!(
            keys.len() == rows * key_dim && values.len() == rows * value_dim,
            "head {head}: {} key and {} value elements, expected {rows} rows of {key_dim} and {value_dim}",
            keys.len(),
            values.len(),
        );
    }
    (dtype, rows)
}

/// What one head adds to the index.
struct HeadParts {
    clustering: Clustering,
    keys: Summaries,
    values: Summaries,
    ladder: Option<HeadColumns>,
}

/// Buffers of one thread.
#[derive(Default)]
struct Scratch {
    workspace: Workspace,
    widened: Vec<f32>,
    ladder: LadderScratch,
}

impl Scratch {
    fn build(
        &mut self,
        input: &HeadInput<'_>,
        key_dim: usize,
        value_dim: usize,
        options: &ClusterOptions,
        stream: u64,
        task: Option<HeadTask<'_>>,
    ) -> HeadParts {
        let dtype = input.keys.dtype();
        let rows = widen(input.keys, &mut self.widened);
        let points = task.map_or(rows, |task| self.ladder.metric(rows, task));
        let clustering = cluster_in(&mut self.workspace, points, key_dim, options, stream);
        let keys = Summaries::of(rows, key_dim, dtype, &clustering);
        let coded = task.map(|task| (task, self.ladder.keys(rows, &clustering, task)));
        let rows = widen(input.values, &mut self.widened);
        let values = Summaries::of(rows, value_dim, dtype, &clustering);
        let ladder = coded.map(|(task, coded)| self.ladder.values(rows, value_dim, &clustering, task, coded));
        HeadParts { clustering, keys, values, ladder }
    }
}

fn widen<'a>(rows: Rows<'_>, buffer: &'a mut Vec<f32>) -> &'a [f32] {
    buffer.resize(rows.len().max(buffer.len()), 0.0);
    let widened = &mut buffer[..rows.len()];
    Kernels::get().widen(rows, widened);
    widened
}

/// Copies rows of `row_bytes` bytes from `from` to `to` in the order `order`.
fn reorder(from: &[u8], row_bytes: usize, order: &[u32], to: &mut [u8]) {
    for (to, &row) in to.chunks_exact_mut(row_bytes).zip(order) {
        to.copy_from_slice(&from[row as usize * row_bytes..][..row_bytes]);
    }
}

/// Joins the heads' parts, head by head.
fn join(
    parts: Vec<HeadParts>,
    options: &ClusterOptions,
    query_metric: bool,
) -> (IndexColumns, Vec<HeadColumns>) {
    let mut columns = IndexColumns {
        parameters: Parameters { options: *options, query_metric }.encode(),
        cluster_heads: vec![0],
        postings: Vec::new(),
        counts: Vec::new(),
        centroids: Vec::new(),
        value_means: Vec::new(),
        key_spreads: Vec::new(),
        value_spreads: Vec::new(),
    };
    let mut ladders = Vec::new();
    for HeadParts { clustering, keys, values, ladder } in parts {
        // Storage allows at most 2^12 heads of 2^24 rows; a `u32` holds the clusters of any segment that fits memory.
        columns.counts.extend(clustering.offsets.windows(2).map(|bounds| (bounds[1] - bounds[0]) as f32));
        columns.cluster_heads.push(columns.counts.len() as u32);
        columns.postings.extend(clustering.offsets);
        columns.centroids.extend(keys.means);
        columns.value_means.extend(values.means);
        columns.key_spreads.extend(keys.spreads);
        columns.value_spreads.extend(values.spreads);
        ladders.extend(ladder);
    }
    (columns, ladders)
}
