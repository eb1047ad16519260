//! Reading rows exactly: runs of rows of one KV head, with the causal mask and the sliding window.

use crate::report::Traffic;
use crate::stored::{RowColumn, RowReads, Side};
use crate::view::{LayerSegment, LayerView, QueryBatch, RowBlock, Scoring, Shape};
use longwave_kernels::{AttentionState, Kernels, Rows};
use longwave_storage::Error;
use std::ops::Range;

/// Rows that one task reads. Fixed, so that the partial states and their merge do not depend on the thread count.
pub(crate) const PIECE_ROWS: usize = 2048;
/// Rows scored at a time where a mask applies.
const MASKED_ROWS: usize = 128;

/// Where a run of rows lies.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Source<'a> {
    Segment(&'a LayerSegment),
    Block(&'a RowBlock<'a>),
}

impl Source<'_> {
    fn rows(&self) -> usize {
        match self {
            Source::Segment(segment) => segment.rows(),
            Source::Block(block) => block.rows,
        }
    }
}

/// A run of rows of one KV head.
#[derive(Clone, Debug)]
pub(crate) struct Piece<'a> {
    pub(crate) head: usize,
    pub(crate) source: Source<'a>,
    pub(crate) rows: Range<usize>,
}

/// Cuts the rows of a source into pieces for one KV head.
pub(crate) fn pieces<'a>(head: usize, source: Source<'a>) -> impl Iterator<Item = Piece<'a>> {
    let rows = source.rows();
    (0..rows).step_by(PIECE_ROWS).map(move |start| Piece {
        head,
        source,
        rows: start..rows.min(start + PIECE_ROWS),
    })
}

/// The scaled queries that share one KV head: `[positions * group, key_dim]`, positions outermost.
#[derive(Debug)]
pub(crate) struct HeadQueries {
    pub(crate) data: Vec<f32>,
    pub(crate) heads: usize,
    pub(crate) span: Span,
    group: usize,
}

impl HeadQueries {
    /// Gathers the queries of KV head `head` at `positions` (indices into the batch).
    pub(crate) fn gather(
        view: &LayerView<'_>,
        queries: &QueryBatch<'_>,
        head: usize,
        positions: Range<usize>,
    ) -> Self {
        let Shape { query_heads, key_dim, .. } = view.shape;
        let group = view.shape.group();
        let mut data = Vec::with_capacity(positions.len() * group * key_dim);
        for position in positions.clone() {
            let start = (position * query_heads + head * group) * key_dim;
            data.extend(queries.data[start..start + group * key_dim].iter().map(|x| x * view.scoring.scale));
        }
        HeadQueries {
            data,
            heads: positions.len() * group,
            span: Span {
                oldest: queries.first_position + positions.start as u64,
                newest: queries.first_position + positions.end as u64 - 1,
            },
            group,
        }
    }

    /// The positions that the queries of head `head` of this batch may see, given a sliding window.
    fn visible(&self, head: usize, scoring: &Scoring) -> Range<u64> {
        let position = self.span.oldest + (head / self.group) as u64;
        lowest_visible(position, scoring)..position + 1
    }
}

fn lowest_visible(position: u64, scoring: &Scoring) -> u64 {
    scoring.sliding_window.map_or(0, |window| (position + 1).saturating_sub(window))
}

/// The queries of a range of positions, answered by one reading.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    /// Position of the first query.
    pub(crate) oldest: u64,
    /// Position of the last query.
    pub(crate) newest: u64,
}

/// What reading rows one by one amounts to.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Reading {
    /// Rows read from segments.
    pub(crate) sealed_rows: u64,
    /// Rows read from memory.
    pub(crate) tail_rows: u64,
    pub(crate) traffic: Traffic,
    /// Of rows that are kept as codes alone: what these are decoded with. It is not part of `traffic`, since who answers
    /// from summaries reads it anyway.
    pub(crate) summaries: Traffic,
}

impl Reading {
    /// All that is read.
    pub(crate) fn all(&self) -> Traffic {
        self.traffic + self.summaries
    }
}

/// What [`read_piece`] will read for one KV head if it is given all pieces of `segments` and of the tail.
pub(crate) fn reading(
    view: &LayerView<'_>,
    head: usize,
    span: Span,
    segments: &[&LayerSegment],
) -> Result<Reading, Error> {
    let mut sum = Reading::default();
    for segment in segments {
        let base = head * segment.rows();
        let (mut reads, mut positions) = (RowReads::new(segment, &view.shape, head), Pages::default());
        for piece in pieces(head, Source::Segment(segment)) {
            let visible = visible_rows(view, span, &piece)?;
            if matches!(visible, Visible::Some(_) | Visible::NoneOfThem) {
                let (first, rows) = (base + piece.rows.start, piece.rows.len());
                sum.traffic.positions += positions.add(first, rows, size_of::<u32>());
            }
            if matches!(visible, Visible::Some(_) | Visible::All) {
                sum.sealed_rows += piece.rows.len() as u64;
                reads.add(piece.rows.clone(), &mut sum.traffic)?;
            }
        }
        sum.traffic.pages += positions.count;
        reads.finish(&mut sum.traffic, &mut sum.summaries)?;
    }
    for block in &view.blocks {
        for piece in pieces(head, Source::Block(block)) {
            if matches!(visible_rows(view, span, &piece)?, Visible::Some(_) | Visible::All) {
                sum.tail_rows += piece.rows.len() as u64;
            }
        }
    }
    Ok(sum)
}

/// Counts the distinct 4 KiB pages, of a page-aligned column, of ranges that arrive in rising order.
#[derive(Default)]
pub(crate) struct Pages {
    pub(crate) count: u64,
    next: u64,
}

impl Pages {
    /// Counts `rows` rows of `size` bytes from row `first` on, and returns their bytes.
    pub(crate) fn add(&mut self, first: usize, rows: usize, size: usize) -> u64 {
        let start = ((first * size) as u64 / 4096).max(self.next);
        let end = ((first + rows) * size).div_ceil(4096) as u64;
        self.count += end.saturating_sub(start);
        self.next = end.max(self.next);
        (rows * size) as u64
    }
}

/// Reads a piece row by row into `state`, unless no query sees a row of it.
pub(crate) fn read_piece(
    kernels: &Kernels,
    view: &LayerView<'_>,
    queries: &HeadQueries,
    piece: &Piece<'_>,
    state: &mut AttentionState,
    scratch: &mut Vec<f32>,
) -> Result<(), Error> {
    match visible_rows(view, queries.span, piece)? {
        Visible::OutOfSight | Visible::NoneOfThem => {}
        Visible::All => {
            let softcap = view.scoring.softcap;
            rows_of(view, piece, |_, keys, values| {
                kernels.attend_rows(state, &queries.data, view.shape.key_dim, keys, values, softcap, scratch);
            })?;
        }
        Visible::Some(positions) => rows_of(view, piece, |first, keys, values| {
            let positions = &positions[first..first + keys.len() / view.shape.key_dim];
            read_masked(kernels, view, queries, (keys, values), positions, state, scratch);
        })?,
    }
    Ok(())
}

/// Which rows of a piece the queries of a span see.
enum Visible {
    /// None, as the bounds of the segment or block say.
    OutOfSight,
    /// None, as the positions of the rows say.
    NoneOfThem,
    /// All queries see all rows.
    All,
    /// Some queries see some rows; the positions of the rows tell.
    Some(Vec<u64>),
}

/// Calls `look` with the columns and the rows of them that reading a segment row by row touches for one KV head, positions
/// before anything of them is read.
pub(crate) fn for_rows_read(
    view: &LayerView<'_>,
    (head, span): (usize, Span),
    segment: &LayerSegment,
    mut look: impl FnMut(&[RowColumn], Range<usize>) -> Result<(), Error>,
) -> Result<(), Error> {
    for piece in pieces(head, Source::Segment(segment)) {
        let (any, all) = sight(view, span);
        let bounds = segment.first_position()..segment.end();
        if overlap(&bounds, &any) && !within(&bounds, &all) {
            look(&[RowColumn::Positions], piece.rows.clone())?;
        }
        if matches!(visible_rows(view, span, &piece)?, Visible::Some(_) | Visible::All) {
            look(&[RowColumn::Row(Side::Keys), RowColumn::Row(Side::Values)], piece.rows)?;
        }
    }
    Ok(())
}

/// Whether some query of a span sees rows of a segment, as its bounds say.
pub(crate) fn in_sight(view: &LayerView<'_>, span: Span, segment: &LayerSegment) -> bool {
    overlap(&(segment.first_position()..segment.end()), &sight(view, span).0)
}

/// The positions that some queries of a span see, and those that all see.
fn sight(view: &LayerView<'_>, Span { oldest, newest }: Span) -> (Range<u64>, Range<u64>) {
    let any = lowest_visible(oldest, view.scoring)..newest + 1;
    (any, lowest_visible(newest, view.scoring)..oldest + 1)
}

fn overlap(positions: &Range<u64>, others: &Range<u64>) -> bool {
    positions.start < others.end && positions.end > others.start
}

fn within(positions: &Range<u64>, others: &Range<u64>) -> bool {
    positions.start >= others.start && positions.end <= others.end
}

fn visible_rows(view: &LayerView<'_>, span: Span, piece: &Piece<'_>) -> Result<Visible, Error> {
    let (any, all) = sight(view, span);
    let bounds = match piece.source {
        Source::Segment(segment) => segment.first_position()..segment.end(),
        Source::Block(block) => {
            block.first_position + piece.rows.start as u64..block.first_position + piece.rows.end as u64
        }
    };
    if !overlap(&bounds, &any) {
        return Ok(Visible::OutOfSight);
    }
    if within(&bounds, &all) {
        return Ok(Visible::All);
    }
    let positions: Vec<u64> = match piece.source {
        Source::Block(_) => bounds.collect(),
        Source::Segment(segment) => {
            let bytes = segment.positions(piece.head, piece.rows.clone())?;
            let ranks = bytes.as_chunks::<4>().0.iter().map(|&bytes| u32::from_le_bytes(bytes));
            ranks.map(|rank| segment.position(rank)).collect()
        }
    };
    let seen = positions.iter().any(|position| any.contains(position));
    Ok(if seen { Visible::Some(positions) } else { Visible::NoneOfThem })
}

/// Gives `take` the rows of a piece; see [`LayerSegment::read_rows`].
fn rows_of(
    view: &LayerView<'_>,
    piece: &Piece<'_>,
    mut take: impl FnMut(usize, Rows<'_>, Rows<'_>),
) -> Result<(), Error> {
    let Shape { key_dim, value_dim, .. } = view.shape;
    let Range { start, end } = piece.rows;
    match piece.source {
        Source::Segment(segment) => {
            segment.read_rows(&view.shape, piece.head, piece.rows.clone(), take)?;
        }
        Source::Block(block) => {
            let keys = block.keys[piece.head].slice(start * key_dim..end * key_dim);
            take(0, keys, block.values[piece.head].slice(start * value_dim..end * value_dim));
        }
    }
    Ok(())
}

fn read_masked(
    kernels: &Kernels,
    view: &LayerView<'_>,
    queries: &HeadQueries,
    (keys, values): (Rows<'_>, Rows<'_>),
    positions: &[u64],
    state: &mut AttentionState,
    scratch: &mut Vec<f32>,
) {
    let Shape { key_dim, value_dim, .. } = view.shape;
    let visible: Vec<Range<u64>> =
        (0..queries.heads).map(|head| queries.visible(head, view.scoring)).collect();
    for (chunk, positions) in positions.chunks(MASKED_ROWS).enumerate() {
        let rows = chunk * MASKED_ROWS..chunk * MASKED_ROWS + positions.len();
        scratch.clear();
        scratch.resize(positions.len() * queries.heads, 0.0);
        let keys = keys.slice(rows.start * key_dim..rows.end * key_dim);
        kernels.scores(&queries.data, queries.heads, key_dim, keys, scratch);
        if let Some(cap) = view.scoring.softcap {
            kernels.softcap(scratch, cap);
        }
        for (scores, position) in scratch.chunks_mut(queries.heads).zip(positions) {
            for (score, visible) in scores.iter_mut().zip(&visible) {
                if !visible.contains(position) {
                    *score = f32::NEG_INFINITY;
                }
            }
        }
        state.absorb(kernels, scratch, values.slice(rows.start * value_dim..rows.end * value_dim));
    }
}
