//! Turns rows that have left the window into immutable segments, and segments into better ones.

use crate::error::Error;
use crate::metric::Metric;
use crate::rows::{Block, RowBuffer, SharedRows};
use crate::snapshot::on_pool;
use longwave_index::ladder::{Basis, LadderInput, LadderView};
use longwave_index::{BuiltSegment, ClusterOptions, HeadInput, build_segment_on, eight_bits, row_columns};
use longwave_kernels::Rows;
use longwave_query::{LayerSegment, Shape};
use longwave_storage::{
    Alignment, Backend, ColumnKind, Error as StorageError, Expected, NewColumn, RowForm, Segment,
    SegmentHeader, SegmentRecord, segment_file_name, segment_path, write_segment,
};
use rayon::ThreadPool;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

/// A segment to be built and written.
#[derive(Debug)]
pub(crate) struct SealJob {
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) header: SegmentHeader,
    pub(crate) expected: Expected,
    pub(crate) sequence: u64,
    pub(crate) sealed_at: u64,
    pub(crate) context_id: [u8; 16],
    pub(crate) shape: Shape,
    /// `None` stores the rows as they are, without an index.
    pub(crate) clusters: Option<ClusterOptions>,
    /// `None` stores no resolution ladder beside the clusters.
    pub(crate) ladder: Option<SealLadder>,
    pub(crate) rows: SealRows,
    /// See [`SealRows::place`].
    pub(crate) offsets: Option<Arc<[u32]>>,
    /// How the segment keeps its rows; with codes alone there is a ladder.
    pub(crate) form: RowForm,
    /// Set when the context goes or the result is no longer wanted: what has not been started is then left.
    pub(crate) cancelled: Arc<AtomicBool>,
}

/// Where the rows of a segment come from.
#[derive(Debug)]
pub(crate) enum SealRows {
    /// Shared with the tail.
    Tail(SharedRows),
    /// Segments that lie one behind the other, to be built again as one.
    Segments(Vec<Arc<Sealed>>),
    /// A segment of which only the rows of these ranks by position stay, in rising order.
    Kept(Arc<Sealed>, Vec<u32>),
}

impl SealRows {
    pub(crate) fn count(&self) -> usize {
        match self {
            SealRows::Tail(rows) => rows.count(),
            SealRows::Segments(sources) => sources.iter().map(|source| source.segment.rows()).sum(),
            SealRows::Kept(_, ranks) => ranks.len(),
        }
    }

    fn positions(&self) -> Vec<u64> {
        let all = |sealed: &Arc<Sealed>| {
            let segment = Arc::clone(&sealed.segment);
            (0..segment.rows() as u32).map(move |rank| segment.position(rank))
        };
        match self {
            SealRows::Tail(rows) => rows.positions().collect(),
            SealRows::Segments(sources) => sources.iter().flat_map(all).collect(),
            SealRows::Kept(source, ranks) => {
                ranks.iter().map(|&rank| source.segment.position(rank)).collect()
            }
        }
    }

    /// Position of the first row, and those of all less that of the first where rows are missing between them.
    pub(crate) fn place(&self) -> (u64, Option<Arc<[u32]>>) {
        let positions = self.positions();
        let first = positions.first().copied().unwrap_or_default();
        let whole = positions.last().is_none_or(|last| last - first < positions.len() as u64);
        let offsets = positions.iter().map(|position| (position - first) as u32);
        (first, (!whole).then(|| offsets.collect()))
    }
}

/// What the ladder of a segment is built with.
#[derive(Debug)]
pub(crate) struct SealLadder {
    pub(crate) metric: Arc<Metric>,
    /// The layer's bases: set by its first segment, used by those after it. Jobs of a layer run in order.
    pub(crate) bases: Arc<OnceLock<Vec<Basis>>>,
    /// Rows from which on a segment says by itself how its values follow its keys.
    pub(crate) slope_rows: u32,
}

/// A written segment.
#[derive(Debug)]
pub(crate) struct Sealed {
    pub(crate) segment: Arc<LayerSegment>,
    pub(crate) record: SegmentRecord,
    /// Rows that the layer must have for this to be a segment: a context that had fewer would not have sealed it.
    pub(crate) sealed_at: u64,
    /// Whether a manifest names it: it does not go when its writer does.
    pub(crate) committed: AtomicBool,
}

impl Sealed {
    /// `offsets` as in [`LayerSegment::with_gaps`].
    pub(crate) fn new(
        segment: Segment,
        record: SegmentRecord,
        (sealed_at, offsets): (u64, Option<Arc<[u32]>>),
        committed: bool,
    ) -> Self {
        Sealed {
            segment: Arc::new(LayerSegment::with_gaps(segment, offsets)),
            record,
            sealed_at,
            committed: committed.into(),
        }
    }
}

impl SealJob {
    /// Everything but the writing, on `pool`, of which the calling thread is none.
    pub(crate) fn build(self, pool: Option<&ThreadPool>) -> Result<Built, Error> {
        let started = Instant::now();
        let rows = match &self.rows {
            SealRows::Tail(rows) => rows.clone(),
            SealRows::Segments(sources) => {
                let mut all = Block::new(&self.shape, self.header.first_position);
                for source in sources {
                    let rows = stored_rows(&source.segment, &self.shape)?;
                    all.extend(&self.shape, &rows, 0..rows.rows);
                }
                SharedRows::of(all)
            }
            SealRows::Kept(source, ranks) => {
                let rows = stored_rows(&source.segment, &self.shape)?;
                let mut kept = Block::new(&self.shape, self.header.first_position);
                let within = ranks.iter().map(|&rank| rank as usize).filter(|&rank| rank < rows.rows);
                within.for_each(|rank| kept.extend(&self.shape, &rows, rank..rank + 1));
                SharedRows::of(kept)
            }
        };
        let content = match &self.clusters {
            Some(options) => Content::Clustered(Box::new(self.build_index(pool, options, &rows))),
            None => on_pool(pool, || self.plain(rows)),
        };
        if let (Some(ladder), Content::Clustered(built)) = (&self.ladder, &content)
            && let Some(columns) = &built.ladder
        {
            // Fails where there are some: the layer's first segment has set them.
            let _ = ladder.bases.set(columns.bases().to_vec());
        }
        Ok(Built { job: self, content, started })
    }

    fn build_index(
        &self,
        pool: Option<&ThreadPool>,
        options: &ClusterOptions,
        rows: &SharedRows,
    ) -> BuiltSegment {
        let rows = on_pool(pool, || rows.joined(&self.shape));
        let pairs = rows.keys.iter().zip(&rows.values);
        let heads: Vec<HeadInput<'_>> =
            pairs.map(|(keys, values)| HeadInput { keys: keys.rows(), values: values.rows() }).collect();
        // The random stream of a head depends on where its rows lie, not on when or where they are sealed.
        let stream = (u64::from(self.header.layer) << 48) ^ (self.header.first_position << 8);
        let ladder = self.ladder.as_ref().map(|ladder| LadderInput {
            moments: ladder.metric.moments(),
            bases: ladder.bases.get().map(Vec::as_slice),
            source: ladder.metric.source(),
            slopes: self.header.rows >= ladder.slope_rows,
        });
        let Shape { key_dim, value_dim, .. } = self.shape;
        let options = if ladder.is_some() { options.at(self.header.first_position) } else { *options };
        let dims = (key_dim, value_dim);
        let mut built = build_segment_on(pool, &heads, dims, &options, stream, ladder.as_ref());
        on_pool(pool, || built.reduce(self.form, key_dim, value_dim));
        built
    }

    fn plain(&self, rows: SharedRows) -> Content {
        let Shape { key_dim, value_dim, dtype, .. } = self.shape;
        let reduced = (self.form == RowForm::EightBits).then(|| {
            let of = |parts: Vec<&[u8]>, dim| parts.iter().map(|part| eight_bits(dtype, part, dim)).collect();
            [of(rows.key_parts(&self.shape), key_dim), of(rows.value_parts(&self.shape), value_dim)]
        });
        Content::Plain(rows, reduced)
    }

    fn write_plain(&self, path: &str, rows: &SharedRows, reduced: Option<&Reduced>) -> Result<u64, Error> {
        let offsets: Vec<u8> = (0..self.header.rows).flat_map(u32::to_le_bytes).collect();
        let Shape { dtype, kv_heads, .. } = self.shape;
        let [keys, values] = match reduced {
            Some(sides) => sides.each_ref().map(|parts| parts.iter().map(Vec::as_slice).collect()),
            None => [rows.key_parts(&self.shape), rows.value_parts(&self.shape)],
        };
        let mut columns = row_columns(self.form, dtype, &keys, &values, rows.count() * kv_heads);
        columns.push(NewColumn {
            kind: ColumnKind::POSITIONS,
            name: "positions",
            element_size: 4,
            alignment: Alignment::CacheLine,
            parts: vec![offsets.as_slice(); kv_heads],
        });
        Ok(write_segment(self.backend.as_ref(), path, &self.header, &columns)?)
    }
}

/// A segment that is still to be written.
#[derive(Debug)]
pub(crate) struct Built {
    job: SealJob,
    content: Content,
    started: Instant,
}

/// Keys and values in 8 bits, in parts.
type Reduced = [Vec<Vec<u8>>; 2];

#[derive(Debug)]
enum Content {
    Clustered(Box<BuiltSegment>),
    Plain(SharedRows, Option<Reduced>),
}

impl Built {
    fn write(self) -> Result<Sealed, Error> {
        let Built { job, content, started } = self;
        let file = segment_file_name(&job.context_id, job.sequence);
        let path = segment_path(&file);
        let file_len = match &content {
            Content::Clustered(built) => {
                write_segment(job.backend.as_ref(), &path, &job.header, &built.columns())?
            }
            Content::Plain(rows, reduced) => job.write_plain(&path, rows, reduced.as_ref())?,
        };
        drop(content);
        let segment = Segment::open(Arc::clone(&job.backend), &path, &job.expected)?;
        let SegmentHeader { id, first_position, rows, layer, .. } = job.header;
        tracing::debug!(layer, first_position, rows, file_len, elapsed = ?started.elapsed(), "sealed a segment");
        let record = SegmentRecord { id, file, first_position, rows, file_len };
        Ok(Sealed::new(segment, record, (job.sealed_at, job.offsets.clone()), false))
    }

    /// Writes it and says what became of it, unless nobody wants it any more.
    pub(crate) fn finish(self, result: &Sender<Result<Sealed, Error>>) {
        let (cancelled, backend) = (Arc::clone(&self.job.cancelled), Arc::clone(&self.job.backend));
        if cancelled.load(Ordering::Acquire) {
            return;
        }
        let sealed = self.write();
        if let Ok(sealed) = &sealed
            && cancelled.load(Ordering::Acquire)
        {
            // Nobody wants it any more. Where it stays it is an orphan, removed at the next open.
            drop(backend.remove(&segment_path(&sealed.record.file)));
        }
        drop(result.send(sealed));
    }
}

/// The bases that a segment's ladder was built with, one a KV head.
pub(crate) fn bases_of(segment: &Segment) -> Result<Option<Vec<Basis>>, Error> {
    let Some(ladder) = LadderView::open(segment)? else { return Ok(None) };
    let heads = 0..segment.header().geometry.kv_heads as usize;
    Ok(Some(heads.map(|head| ladder.basis(head)).collect::<Result<_, _>>()?))
}

/// The rows of a segment in the order of their positions. What is not kept in full is rounded to the model's type.
pub(crate) fn stored_rows(sealed: &LayerSegment, shape: &Shape) -> Result<Block, Error> {
    let segment = sealed.segment();
    let rows = sealed.rows();
    let column = segment.column(ColumnKind::POSITIONS)?;
    let positions = column.all()?.as_chunks::<4>().0;
    let mut block = Block::new(shape, sealed.first_position());
    block.rows = rows;
    // Storage has checked the columns' lengths; that positions are a permutation is checked here.
    for (head, positions) in positions.chunks_exact(rows).enumerate() {
        let mut stored_at = vec![u32::MAX; rows];
        for (at, position) in positions.iter().enumerate() {
            match stored_at.get_mut(u32::from_le_bytes(*position) as usize) {
                Some(slot) if *slot == u32::MAX => *slot = at as u32,
                _ => return Err(not_a_permutation(segment, u32::from_le_bytes(*position))),
            }
        }
        let mut stored = [RowBuffer::new(shape.dtype), RowBuffer::new(shape.dtype)];
        sealed.read_rows(shape, head, 0..rows, |_, keys, values| {
            stored[0].extend(keys);
            stored[1].extend(values);
        })?;
        gather(stored[0].rows(), shape.key_dim, &stored_at, &mut block.keys[head]);
        gather(stored[1].rows(), shape.value_dim, &stored_at, &mut block.values[head]);
    }
    Ok(block)
}

fn gather(stored: Rows<'_>, dim: usize, stored_at: &[u32], buffer: &mut RowBuffer) {
    for &at in stored_at {
        buffer.extend(stored.slice(at as usize * dim..(at as usize + 1) * dim));
    }
}

fn not_a_permutation(segment: &Segment, found: u32) -> Error {
    let found = format_args!("{found} out of its range or twice");
    StorageError::corrupt_column(segment.path(), "positions", 0, "each position once", found).into()
}
