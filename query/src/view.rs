//! What a call reads from: the rows of one layer at one moment.

use crate::numbers::ClusterNumbers;
use longwave_index::IndexView;
use longwave_index::ladder::{HeadLadder, KeyDecoder, LadderView};
use longwave_kernels::{Dtype, Rows};
use longwave_storage::{Column, ColumnKind, Error, RowForm, Segment};
use std::ops::Range;
use std::sync::{Arc, OnceLock};

/// Heads and dimensions of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Query heads; a multiple of `kv_heads`.
    pub query_heads: usize,
    /// Heads that keys and values are stored for.
    pub kv_heads: usize,
    /// Elements of a key and of a query.
    pub key_dim: usize,
    /// Elements of a value and of an output.
    pub value_dim: usize,
    /// Element type of keys and values.
    pub dtype: Dtype,
}

impl Shape {
    /// Query heads that share a KV head.
    pub fn group(&self) -> usize {
        self.query_heads / self.kv_heads
    }

    /// Bytes of one key of one head.
    pub fn key_bytes(&self) -> usize {
        self.key_dim * self.dtype.size_of()
    }

    /// Bytes of one value of one head.
    pub fn value_bytes(&self) -> usize {
        self.value_dim * self.dtype.size_of()
    }
}

/// How a layer turns dot products into weights.
#[derive(Clone, Debug, PartialEq)]
pub struct Scoring {
    /// Factor on every dot product, usually `key_dim^-1/2`.
    pub scale: f32,
    /// `score -> cap * tanh(score / cap)` where the model soft-caps its logits.
    pub softcap: Option<f32>,
    /// A learned logit per query head that takes part in the softmax without a value; empty when there is none.
    pub sink_logits: Vec<f32>,
    /// A query at position `p` sees positions above `p - sliding_window` only.
    pub sliding_window: Option<u64>,
    /// The latest rows that are always read exactly.
    pub window: u64,
}

/// Queries of one layer for the last `positions` positions of a context: `[positions, query_heads, key_dim]`.
#[derive(Clone, Copy, Debug)]
pub struct QueryBatch<'a> {
    /// Row-major values, not yet scaled.
    pub data: &'a [f32],
    /// The position of the first query; the others follow it.
    pub first_position: u64,
    /// How many positions.
    pub positions: usize,
}

/// Rows in memory, at consecutive positions. They are always read exactly.
#[derive(Clone, Debug)]
pub struct RowBlock<'a> {
    /// Position of the first row.
    pub first_position: u64,
    /// How many rows.
    pub rows: usize,
    /// One `[rows, key_dim]` per KV head.
    pub keys: Vec<Rows<'a>>,
    /// One `[rows, value_dim]` per KV head.
    pub values: Vec<Rows<'a>>,
}

/// A segment as queries use it: its index and its ladder are checked once, each before its own first use.
#[derive(Debug)]
pub struct LayerSegment {
    segment: Arc<Segment>,
    /// See [`Self::with_gaps`].
    offsets: Option<Arc<[u32]>>,
    checked: OnceLock<()>,
    ladder: OnceLock<Option<LadderCell>>,
}

self_cell::self_cell!(
    /// A ladder beside the segment that it reads.
    struct LadderCell {
        owner: Arc<Segment>,
        #[covariant]
        dependent: OpenedLadder,
    }

    impl {Debug}
);

/// A ladder, and what follows from it that many queries use.
#[derive(Debug)]
pub(crate) struct OpenedLadder<'a> {
    pub(crate) view: LadderView<'a>,
    /// Of each KV head, once it is asked for: see [`OpenedLadder::numbers`] and [`OpenedLadder::decoder`].
    numbers: Vec<OnceLock<ClusterNumbers>>,
    decoders: Vec<OnceLock<KeyDecoder>>,
}

/// Spreads of the clusters of one KV head; see [`LayerSegment::spreads`].
#[derive(Clone, Copy, Debug)]
pub struct Spreads<'a> {
    /// Key spread of each cluster.
    pub keys: &'a [f32],
    /// Means of key and value spreads over all rows.
    pub means: [f32; 2],
    /// See [`longwave_index::ladder::steepness`].
    pub steepness: &'a [f32],
}

impl<'a> OpenedLadder<'a> {
    fn open(view: LadderView<'a>) -> Self {
        let heads = view.postings().kv_heads();
        let numbers = (0..heads).map(|_| OnceLock::new()).collect();
        let decoders = (0..heads).map(|_| OnceLock::new()).collect();
        OpenedLadder { view, numbers, decoders }
    }

    /// The numbers of KV head `head`, whose ladder is `ladder`. The first call for it computes them, so that the threads
    /// that share the heads of a call share this work, too.
    pub(crate) fn numbers(&self, head: usize, ladder: &HeadLadder<'_>) -> &ClusterNumbers {
        self.numbers[head].get_or_init(|| ClusterNumbers::of(ladder))
    }

    /// What turns key codes of KV head `head`, whose ladder is `ladder`, back into keys.
    pub(crate) fn decoder(&self, head: usize, ladder: &HeadLadder<'_>) -> &KeyDecoder {
        self.decoders[head].get_or_init(|| ladder.key_decoder())
    }
}

/// Why a ladder was not opened.
enum NotOpened {
    NoLadder,
    Failed(Error),
}

fn open_ladder(segment: &Arc<Segment>) -> Result<OpenedLadder<'_>, NotOpened> {
    let view = LadderView::validated(segment).map_err(NotOpened::Failed)?;
    view.map(OpenedLadder::open).ok_or(NotOpened::NoLadder)
}

impl LayerSegment {
    /// Wraps an opened segment.
    pub fn new(segment: Segment) -> Self {
        LayerSegment::with_gaps(segment, None)
    }

    /// Wraps an opened segment whose rows do not lie at consecutive positions, since rows between them were dropped:
    /// `offsets` has the position of each of its rows, in rising order, less that of the first.
    pub fn with_gaps(segment: Segment, offsets: Option<Arc<[u32]>>) -> Self {
        let (checked, ladder) = (OnceLock::new(), OnceLock::new());
        LayerSegment { segment: Arc::new(segment), offsets, checked, ladder }
    }

    /// Position of the row that is the segment's `rank`-th in order of position.
    pub fn position(&self, rank: u32) -> u64 {
        let offset = self.offsets.as_ref().and_then(|offsets| offsets.get(rank as usize));
        self.first_position() + u64::from(*offset.unwrap_or(&rank))
    }

    /// Whether rows between its rows were dropped.
    pub fn has_gaps(&self) -> bool {
        self.offsets.is_some()
    }

    /// The stored columns.
    pub fn segment(&self) -> &Segment {
        &self.segment
    }

    /// Position of the first row.
    pub fn first_position(&self) -> u64 {
        self.segment.header().first_position
    }

    /// Rows per KV head.
    pub fn rows(&self) -> usize {
        self.segment.header().rows as usize
    }

    /// The position after the last row.
    pub fn end(&self) -> u64 {
        self.position((self.rows() as u32).saturating_sub(1)) + 1
    }

    /// The segment's index, or `None` where rows are stored without one.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when the index does not fit the rows.
    pub fn index(&self) -> Result<Option<IndexView<'_>>, Error> {
        if self.checked.get().is_some() {
            return IndexView::open(&self.segment);
        }
        let index = IndexView::validated(&self.segment)?;
        // Two threads may both have checked; either may say so.
        let _ = self.checked.set(());
        Ok(index)
    }

    /// The segment's resolution ladder, or `None` where it has none. The index at full resolution is neither read nor
    /// checked for it, and row codes are only checked as they are read.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when the ladder does not fit the rows.
    pub fn ladder(&self) -> Result<Option<&LadderView<'_>>, Error> {
        Ok(self.opened_ladder()?.map(|opened| &opened.view))
    }

    /// Says that the ladder is about to be opened; see [`LadderView::expect`].
    pub(crate) fn expect_ladder(&self) -> Result<(), Error> {
        if self.is_ladder_opened() {
            return Ok(());
        }
        LadderView::expect(&self.segment)
    }

    /// Whether the ladder, if there is one, was opened before.
    pub(crate) fn is_ladder_opened(&self) -> bool {
        self.ladder.get().is_some()
    }

    pub(crate) fn opened_ladder(&self) -> Result<Option<&OpenedLadder<'_>>, Error> {
        if let Some(ladder) = self.ladder.get() {
            return Ok(ladder.as_ref().map(LadderCell::borrow_dependent));
        }
        let cell = match LadderCell::try_new(Arc::clone(&self.segment), open_ladder) {
            Ok(cell) => Some(cell),
            Err(NotOpened::NoLadder) => None,
            Err(NotOpened::Failed(error)) => return Err(error),
        };
        // Two threads may both have opened it; they found the same.
        Ok(self.ladder.get_or_init(|| cell).as_ref().map(LadderCell::borrow_dependent))
    }

    /// Spreads of the clusters of KV head `head`, or `None` where the segment has no ladder.
    ///
    /// # Errors
    /// As [`LayerSegment::ladder`].
    pub fn spreads(&self, head: usize) -> Result<Option<Spreads<'_>>, Error> {
        let Some(opened) = self.opened_ladder()? else { return Ok(None) };
        let numbers = opened.numbers(head, &opened.view.head(head)?);
        let means = [numbers.key_spread_mean, numbers.value_spread_mean];
        Ok(Some(Spreads { keys: &numbers.key_spread, means, steepness: &numbers.steepness }))
    }

    /// Keys `rows` of KV head `head`, where they are kept in full.
    pub(crate) fn full_keys(
        &self,
        shape: &Shape,
        head: usize,
        rows: Range<usize>,
    ) -> Result<Rows<'_>, Error> {
        self.rows_of(ColumnKind::KEYS, shape.key_bytes(), shape.dtype, head, rows)
    }

    /// Values `rows` of KV head `head`, where they are kept in full.
    pub(crate) fn full_values(
        &self,
        shape: &Shape,
        head: usize,
        rows: Range<usize>,
    ) -> Result<Rows<'_>, Error> {
        self.rows_of(ColumnKind::VALUES, shape.value_bytes(), shape.dtype, head, rows)
    }

    /// All keys of KV head `head`, of which the listed ones may be read.
    pub(crate) fn full_listed_keys(
        &self,
        shape: &Shape,
        head: usize,
        list: &[u32],
    ) -> Result<Rows<'_>, Error> {
        let bytes = self.listed(ColumnKind::KEYS, shape.key_bytes(), head, list)?;
        self.as_rows(ColumnKind::KEYS, shape.dtype, bytes)
    }

    /// All values of KV head `head`, of which the listed ones may be read.
    pub(crate) fn full_listed_values(
        &self,
        shape: &Shape,
        head: usize,
        list: &[u32],
    ) -> Result<Rows<'_>, Error> {
        let bytes = self.listed(ColumnKind::VALUES, shape.value_bytes(), head, list)?;
        self.as_rows(ColumnKind::VALUES, shape.dtype, bytes)
    }

    fn listed(&self, kind: ColumnKind, size: usize, head: usize, list: &[u32]) -> Result<&[u8], Error> {
        let base = head * self.rows();
        self.segment.column(kind)?.without_ahead().listed(size, base..base + self.rows(), list)
    }

    /// Ranks by position, see [`Self::position`], of the rows `rows` of KV head `head`, in stored order.
    pub(crate) fn positions(&self, head: usize, rows: Range<usize>) -> Result<&[u8], Error> {
        self.row_bytes(ColumnKind::POSITIONS, size_of::<u32>(), head, rows)
    }

    fn rows_of(
        &self,
        kind: ColumnKind,
        row_bytes: usize,
        dtype: Dtype,
        head: usize,
        rows: Range<usize>,
    ) -> Result<Rows<'_>, Error> {
        let bytes = self.row_bytes(kind, row_bytes, head, rows)?;
        self.as_rows(kind, dtype, bytes)
    }

    fn as_rows<'a>(&self, kind: ColumnKind, dtype: Dtype, bytes: &'a [u8]) -> Result<Rows<'a>, Error> {
        Rows::from_bytes(dtype, bytes).ok_or_else(|| Error::Corrupt {
            file: self.segment.path().into(),
            column: Some(format!("{kind:?}")),
            offset: 0,
            expected: format!("rows of aligned {dtype}"),
            found: format!("{} bytes at an odd address", bytes.len()),
        })
    }

    fn row_bytes(
        &self,
        kind: ColumnKind,
        size: usize,
        head: usize,
        rows: Range<usize>,
    ) -> Result<&[u8], Error> {
        let base = head * self.rows();
        let column: Column<'_> = self.segment.column(kind)?;
        column.bytes((base + rows.start) * size..(base + rows.end) * size)
    }
}

/// The rows of one layer at one moment.
#[derive(Clone, Debug)]
pub struct LayerView<'a> {
    /// Heads and dimensions.
    pub shape: Shape,
    /// How scores become weights.
    pub scoring: &'a Scoring,
    /// Sealed rows, in order of position, without gaps between them.
    pub segments: Vec<&'a LayerSegment>,
    /// Rows that are not sealed: sinks and the tail, in order of position.
    pub blocks: Vec<RowBlock<'a>>,
    /// Which clusters are demoted: of each segment those of all KV heads, one head after the other; none where it says
    /// nothing. A demoted cluster is not opened, its summary stands for it; `exact` reads its rows all the same.
    pub demoted: Vec<Vec<bool>>,
    /// Whether answers are to say which clusters were important ([`crate::Answer::important`]).
    pub watched: bool,
}

impl<'a> LayerView<'a> {
    /// Splits the segments into those whose summaries may stand for their rows at the oldest query position
    /// `oldest`, and those that must be read row by row: a segment that reaches into the window of the oldest
    /// query could hide a row that one query may see and another may not, and one without an index has no
    /// summaries.
    pub(crate) fn partition(&self, oldest: u64) -> Result<Partition<'a>, Error> {
        let mut partition = Partition { clustered: Vec::new(), plain: Vec::new() };
        for &segment in &self.segments {
            match if self.summaries_hold(segment, oldest) { segment.index()? } else { None } {
                Some(index) => partition.clustered.push((segment, index)),
                None => partition.plain.push(segment),
            }
        }
        Ok(partition)
    }

    /// The smallest form that any segment keeps its rows in.
    pub(crate) fn row_form(&self) -> RowForm {
        self.segments.iter().map(|segment| segment.row_form()).max().unwrap_or_default()
    }

    /// Whether every query from position `oldest` on sees all rows of the segment, and none of them is in its window.
    pub(crate) fn summaries_hold(&self, segment: &LayerSegment, oldest: u64) -> bool {
        let last = (oldest + 1).saturating_sub(self.scoring.window.max(1));
        segment.end() <= last && self.scoring.sliding_window.is_none()
    }
}

/// See [`LayerView::partition`].
pub(crate) struct Partition<'a> {
    pub(crate) clustered: Vec<(&'a LayerSegment, IndexView<'a>)>,
    pub(crate) plain: Vec<&'a LayerSegment>,
}
