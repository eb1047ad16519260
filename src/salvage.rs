//! Saving what is intact of a damaged store: whole contexts as they are, of others the longest prefix of rows.

use crate::check;
use crate::context::Context;
use crate::error::Error;
use crate::model::{LayerKind, ModelSpec};
use crate::record;
use crate::replay::{Replay, take_tokens};
use crate::rows::{Block, RowBuffer};
use crate::store::{References, Store};
use crate::tensor::TensorView;
use half::f16;
use longwave_query::{LayerSegment, Shape};
use longwave_storage::check::{Fault, check_context};
use longwave_storage::{
    Backend, CONTEXTS_DIR, ColumnKind, Durability, Error as StorageError, Expected, LOGS_DIR, LogRecord,
    Manifest, PINNED_FILE, RecordKind, SEGMENTS_DIR, Segment, SegmentRecord, context_dir, context_file,
    file_maker, read_manifest, segment_path, validate_name, write_manifest,
};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// What became of a context.
#[derive(Clone, Debug, PartialEq)]
pub struct Salvaged {
    /// Its name.
    pub name: String,
    /// Rows that it had; `None` where its manifest is lost, and with it everything.
    pub rows_committed: Option<u64>,
    /// Rows that are in the new store.
    pub rows_kept: u64,
    /// Whether its files were copied as they are. Of others the rows were taken, and their index is built again; what
    /// audits had shown is gone.
    pub whole: bool,
    /// Whether the token ids of the rows are in the new store; false where it had none.
    pub token_ids: bool,
    /// What is wrong with it.
    pub faults: Vec<Fault>,
}

/// Saves what is intact of the store on `from` in the empty store `into`. `from` stays as it is; nobody may write to it
/// meanwhile.
///
/// # Errors
/// [`Error::Invalid`] if `into` holds a context; [`Error::Storage`] where `into` cannot be written, or the contexts of
/// `from` cannot be listed. What cannot be read of a context is lost, and no error.
pub fn salvage(from: &Arc<dyn Backend>, into: &Store) -> Result<Vec<Salvaged>, Error> {
    if let Some(found) = into.contexts()?.first() {
        let expected = "an empty store to save into".into();
        return Err(Error::Invalid { what: "store", expected, found: format!("context {found} in it") });
    }
    let mut names = from.list(CONTEXTS_DIR)?;
    names.retain(|name| validate_name(name).is_ok());
    let saved: Vec<_> = names.into_iter().map(|name| save(from, into, name)).collect::<Result<_, _>>()?;
    for name in saved.iter().map(|saved| &saved.name) {
        if from.exists(&context_file(name, PINNED_FILE)).unwrap_or(false) && into.contains(name)? {
            into.pin(name, true)?;
        }
    }
    Ok(saved)
}

fn save(from: &Arc<dyn Backend>, into: &Store, name: String) -> Result<Salvaged, Error> {
    let mut saved = Salvaged {
        rows_committed: None,
        rows_kept: 0,
        whole: false,
        token_ids: false,
        faults: check_context(from, &name, &check::options(None)).faults,
        name,
    };
    let manifest = match read_manifest(from.as_ref(), &context_dir(&saved.name)) {
        Ok(manifest) => manifest,
        Err(error) => {
            if saved.faults.is_empty() {
                saved.faults.push(error.into());
            }
            return Ok(saved);
        }
    };
    let rows = manifest.layers.iter().map(|layer| layer.length).max();
    saved.rows_committed = rows;
    let opened = Store::on_backend(Arc::clone(from), Default::default())
        .and_then(|store| store.snapshot(&saved.name).map(|_| ()));
    match opened {
        Ok(()) if saved.faults.is_empty() => {
            copy(from.as_ref(), into, &saved.name, &manifest)?;
            saved.whole = true;
            saved.token_ids = manifest.token_count > 0;
            saved.rows_kept = rows.unwrap_or_default();
            return Ok(saved);
        }
        Err(error) if saved.faults.is_empty() => {
            saved.faults.push(check::fault(context_dir(&saved.name), error));
        }
        _ => {}
    }
    let model = record::model_spec(&manifest).and_then(|model| model.check().map(|()| model));
    let (Ok(model), Ok(options)) = (model, record::context_options(&manifest, &saved.name)) else {
        return Ok(saved);
    };
    let source = Source::read(from, &saved.name, &manifest, &model);
    saved.rows_kept = source.intact_rows();
    if saved.rows_kept == 0 {
        return Ok(saved);
    }
    let mut context = into.create_with(&saved.name, &model, options)?;
    saved.token_ids = source.restore(&mut context, saved.rows_kept)?;
    context.seal()?;
    context.commit(Durability::Strict)?;
    Ok(saved)
}

/// Copies the files of an intact context. Contexts that share files find some there, logs perhaps shorter than they need.
fn copy(from: &dyn Backend, into: &Store, name: &str, manifest: &Manifest) -> Result<(), Error> {
    let (backend, dir) = (into.backend().as_ref(), context_dir(name));
    backend.create_dir_all(&dir)?;
    // What lies behind the committed length of a log is nobody's.
    let logs = manifest.row_logs.iter().chain(&manifest.meta_logs).map(|log| (log.path(name), log.len));
    let cuts = manifest.layers.iter().flat_map(|layer| &layer.cuts).map(|cut| &cut.segment);
    let segments = manifest.layers.iter().flat_map(|layer| &layer.segments).chain(cuts);
    let segments = segments.map(|segment| (segment_path(&segment.file), segment.file_len));
    for (path, len) in logs.chain(segments) {
        let reader = from.open_read(&path)?;
        let (mut writer, mut at) = match backend.create_new(&path) {
            Err(StorageError::AlreadyExists { .. }) => {
                let there = backend.open_read(&path)?.len()?;
                (backend.open_append(&path, there)?, there)
            }
            made => (made?, 0),
        };
        while at < len {
            let mut piece = vec![0; (len - at).min(PIECE) as usize];
            reader.read_exact_at(&mut piece, at)?;
            writer.write_all(&piece)?;
            at += piece.len() as u64;
        }
        writer.sync()?;
    }
    for dir in [LOGS_DIR, SEGMENTS_DIR, &dir] {
        backend.sync_dir(dir)?;
    }
    let makers = manifest
        .files(name)
        .iter()
        .filter_map(|path| file_maker(path.rsplit_once('/')?.1))
        .collect::<Vec<_>>();
    let others = makers.into_iter().map(|(maker, _)| maker).filter(|maker| *maker != manifest.context_id);
    References::hold(&into.shared)?.share(&others.collect())?;
    write_manifest(backend, &dir, manifest, Durability::Strict)?;
    into.shared.note_renamed(&manifest.context_id, Some(name));
    Ok(())
}

/// Bytes copied at a time.
const PIECE: u64 = 1 << 20;

/// What can be read of a damaged context.
struct Source<'a> {
    backend: &'a Arc<dyn Backend>,
    manifest: &'a Manifest,
    shape: Shape,
    /// Layers that keep rows.
    layers: Vec<usize>,
    /// Of every layer, the first row that it has dropped: those behind it are not a prefix of the text.
    dropped: Vec<u64>,
    /// Of every layer, by first position: what the row log has.
    logged: Vec<BTreeMap<u64, Block>>,
    tokens: Vec<u32>,
    queries: Vec<(usize, u64, Vec<f16>)>,
}

impl<'a> Source<'a> {
    fn read(backend: &'a Arc<dyn Backend>, name: &str, manifest: &'a Manifest, model: &ModelSpec) -> Self {
        let replay = Replay::of_logs(backend.as_ref(), name, model);
        let mut source = Source {
            backend,
            manifest,
            shape: model.shape(),
            layers: (0..model.layers).filter(|&layer| model.layer_kind(layer) != LayerKind::Absent).collect(),
            dropped: vec![u64::MAX; model.layers],
            logged: vec![BTreeMap::new(); model.layers],
            tokens: Vec::new(),
            queries: Vec::new(),
        };
        match record::forgotten(manifest, name) {
            Ok(stored) => stored.iter().for_each(|memory| {
                source.dropped[memory.number] = memory.dropped.first().unwrap_or(u64::MAX);
            }),
            // Which rows are missing is not known.
            Err(_) => source.dropped.fill(0),
        }
        for log in manifest.row_logs.iter().chain(&manifest.meta_logs) {
            source.read_log(&replay, log);
        }
        source
    }

    /// Every record that verifies; one that does not is passed over as long as its header says how long it is.
    fn read_log(&mut self, replay: &Replay<'_>, log: &LogRecord) {
        let Ok(mut reader) = replay.open(log) else { return };
        loop {
            let record = match reader.next() {
                Ok(Some(record)) => record,
                Ok(None) => return,
                Err(_) if reader.skip().is_err() => return,
                Err(_) => continue,
            };
            let header = record.header;
            match header.kind {
                RecordKind::Rows if header.first_position < log.end => {
                    if let (Ok(mut block), Some(layer)) =
                        (replay.block(&record), self.logged.get_mut(header.layer as usize))
                    {
                        let rows = log.end - block.first_position;
                        block.truncate(&self.shape, usize::try_from(rows).unwrap_or(usize::MAX));
                        layer.insert(block.first_position, block);
                    }
                }
                // Behind some that are lost, none can be placed.
                RecordKind::Tokens => drop(take_tokens(&record, log.end, &mut self.tokens)),
                RecordKind::Queries if header.first_position < log.end => {
                    let queries = record.payload.as_chunks::<2>().0;
                    let queries = queries.iter().map(|&bits| f16::from_le_bytes(bits)).collect();
                    self.queries.push((header.layer as usize, header.first_position, queries));
                }
                RecordKind::Rows | RecordKind::Queries | RecordKind::Prefix => {}
            }
        }
    }

    /// Rows from the first on that are intact in every layer.
    fn intact_rows(&self) -> u64 {
        self.layers
            .iter()
            .map(|&layer| self.walk(layer, u64::MAX, &mut |_| Ok(())).unwrap_or(0))
            .min()
            .unwrap_or(0)
    }

    /// Hands over the rows of a layer in order, as long as they are intact and before `end`. Gives the position that was
    /// reached.
    fn walk(
        &self,
        layer: usize,
        end: u64,
        take: &mut dyn FnMut(&Block) -> Result<(), Error>,
    ) -> Result<u64, Error> {
        let stored = &self.manifest.layers[layer];
        let end = end.min(stored.length).min(self.dropped[layer]);
        let mut next = 0;
        while next < end {
            let logged = self.logged[layer].range(..=next).next_back().map(|(_, block)| block);
            let segment = stored.segments.iter().find(|segment| segment.first_position == next);
            let cut = || stored.cuts.iter().find(|cut| cut.segment.first_position <= next && next < cut.end);
            // Behind the intact rows of a damaged segment there is neither, and the walk ends.
            let block = match (logged.filter(|block| block.end() > next), segment) {
                (Some(block), _) => part(&self.shape, block, next..end),
                (None, Some(segment)) => self.segment_rows(layer, segment, end),
                (None, None) => {
                    let Some(cut) = cut() else { break };
                    let rows = self.segment_rows(layer, &cut.segment, end.min(cut.end));
                    part(&self.shape, &rows, next.min(rows.end())..rows.end())
                }
            };
            if block.rows == 0 {
                break;
            }
            take(&block)?;
            next = block.end();
        }
        Ok(next)
    }

    /// The first rows of a segment, before `end` and as many as are intact in every head.
    fn segment_rows(&self, layer: usize, record: &SegmentRecord, end: u64) -> Block {
        let mut block = Block::new(&self.shape, record.first_position);
        let expected = Expected {
            identity: self.manifest.model.identity,
            layer: Some(layer as u32),
            geometry: Some(self.manifest.model.geometry()),
            record: Some(record.clone()),
        };
        let wanted = (end - record.first_position).min(u64::from(record.rows)) as usize;
        let opened = Segment::open(Arc::clone(self.backend), &segment_path(&record.file), &expected);
        if let Ok(segment) = opened
            && let Some(rows) = gather(&LayerSegment::new(segment), &self.shape, wanted, &mut block)
        {
            block.rows = rows;
        }
        block
    }

    /// Puts the first `rows` rows into an empty context, with the token ids and the sampled queries that go with them.
    /// Gives whether there were token ids.
    fn restore(&self, context: &mut Context, rows: u64) -> Result<bool, Error> {
        let Shape { query_heads, key_dim, value_dim, kv_heads, .. } = self.shape;
        for (layer, position, queries) in self.queries.iter().filter(|(_, position, _)| *position < rows) {
            if queries.len() == query_heads * key_dim && self.layers.contains(layer) {
                let queries = TensorView::token_major(&queries[..], 1, query_heads, key_dim);
                context.observe_at(*layer, *position, &queries)?;
            }
        }
        for &layer in &self.layers {
            self.walk(layer, rows, &mut |block| {
                let (keys, values) = (joined(&block.keys), joined(&block.values));
                context.append(
                    layer,
                    &TensorView::head_major(keys.rows(), block.rows, kv_heads, key_dim),
                    &TensorView::head_major(values.rows(), block.rows, kv_heads, value_dim),
                )
            })?;
        }
        let ids = self.tokens.get(..rows as usize).unwrap_or_default();
        context.extend_tokens(ids)?;
        Ok(!ids.is_empty())
    }
}

/// The rows of a block whose positions are in `range`, which begins inside it.
fn part(shape: &Shape, block: &Block, range: Range<u64>) -> Block {
    let mut part = Block::new(shape, range.start);
    let start = (range.start - block.first_position) as usize;
    let end = (range.end.min(block.end()) - block.first_position) as usize;
    part.extend(shape, block, start..end.max(start));
    part
}

/// All heads in one buffer, one behind the other.
fn joined(heads: &[RowBuffer]) -> RowBuffer {
    let mut all = heads.first().cloned().unwrap_or(RowBuffer::F32(Vec::new()));
    heads.iter().skip(1).for_each(|head| all.extend(head.rows()));
    all
}

/// Reads the first `wanted` rows of a segment in the order of their positions, and as many of them as are intact;
/// `None` where not even the order is known.
fn gather(sealed: &LayerSegment, shape: &Shape, wanted: usize, block: &mut Block) -> Option<usize> {
    let column = sealed.segment().column(ColumnKind::POSITIONS).ok()?;
    let positions = column.all().ok()?.as_chunks::<4>().0;
    let rows = sealed.rows();
    let mut intact = wanted;
    for (head, positions) in positions.chunks_exact(rows).enumerate() {
        let mut stored_at = vec![None; rows];
        for (at, position) in positions.iter().enumerate() {
            *stored_at.get_mut(u32::from_le_bytes(*position) as usize)? = Some(at);
        }
        for (position, at) in stored_at.iter().enumerate().take(intact) {
            let at = (*at)?;
            let read = sealed.read_rows(shape, head, at..at + 1, |_, keys, values| {
                block.keys[head].extend(keys);
                block.values[head].extend(values);
            });
            if read.is_err() {
                intact = position;
                break;
            }
        }
    }
    // Heads that were read before a damaged one have more rows than all have.
    for (buffers, dim) in [(&mut block.keys, shape.key_dim), (&mut block.values, shape.value_dim)] {
        for buffer in buffers {
            buffer.truncate(intact * dim);
        }
    }
    Some(intact)
}
