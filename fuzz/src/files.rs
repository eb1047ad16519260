//! The formats of `storage/`, and the columns of the index.

use crate::reseal::reseal;
use crate::{golden, golden_files};
use longwave::{Dtype, LayerSegment, ModelSpec, Shape};
use longwave_index::{IndexView, ladder::LadderView, validate};
use longwave_storage::{
    Alignment, Backend, ColumnKind, Durability, ElementKind, Expected, Geometry, Identity, LogHeader,
    LogReader, LogWriter, MemoryBackend, NewColumn, ProfileShape, RowForm, Segment, SegmentHeader,
    context_dir, profile_path, read_manifest, read_profile, read_recent_manifest, read_store, write_manifest,
    write_segment,
};
use std::sync::{Arc, OnceLock};

/// Hands over the bytes as they are, and with their checksums put right, as the file at `path`.
fn twice(path: &str, bytes: &[u8], run: impl Fn(&MemoryBackend, &[u8])) {
    let mut resealed = bytes.to_vec();
    reseal(path, &mut resealed);
    for bytes in [bytes, &resealed] {
        let memory = MemoryBackend::new();
        if memory.replace(path, bytes).is_ok() {
            run(&memory, bytes);
        }
    }
}

pub(crate) fn store(bytes: &[u8]) {
    twice("longwave.store", bytes, |memory, _| drop(read_store(memory)));
}

pub(crate) fn store_seeds() -> Vec<Vec<u8>> {
    golden_files("longwave.store")
}

/// What can be read can be written, and reads the same.
pub(crate) fn manifest(bytes: &[u8]) {
    let dir = context_dir("small");
    twice(&format!("{dir}/manifest"), bytes, |memory, _| {
        let Ok(manifest) = read_manifest(memory, &dir) else { return };
        // Floats that are no numbers are not equal to themselves, and none is let in.
        memory.create_dir_all(&dir).expect("a directory in memory");
        write_manifest(memory, &dir, &manifest, Durability::None).expect("what was read can be written");
        assert_eq!(read_recent_manifest(memory, &dir).expect("what was written can be read"), manifest);
    });
}

pub(crate) fn manifest_seeds() -> Vec<Vec<u8>> {
    golden_files("/manifest")
}

/// All bytes count, and the log is the one that it says it is.
pub(crate) fn log(bytes: &[u8]) {
    let path = "contexts/small/1.rows.log";
    twice(path, bytes, |memory, bytes| {
        let field = |at: usize| bytes.get(at..at + 16).and_then(|id| id.try_into().ok()).unwrap_or([0; 16]);
        let identity = [field(32), field(48)].concat().try_into().unwrap_or([0; 32]);
        let header = LogHeader { log_id: field(16), identity: Identity(identity) };
        let len = bytes.len() as u64;
        let Ok(mut reader) = LogReader::open(memory, path, header, len) else { return };
        let mut end = reader.offset();
        loop {
            match reader.next() {
                Ok(Some(record)) => {
                    assert_eq!(record.offset, end);
                    assert!(record.payload.len() as u64 <= len);
                }
                Ok(None) => break,
                Err(_) if reader.skip().is_err() => break,
                Err(_) => {}
            }
            end = reader.offset();
            assert!(end <= len);
        }
        LogWriter::resume(memory, path, header, end).expect("a log is resumed where it was read to");
    });
}

pub(crate) fn log_seeds() -> Vec<Vec<u8>> {
    golden_files(".log")
}

fn golden_model() -> &'static (Identity, ModelSpec) {
    static MODEL: OnceLock<(Identity, ModelSpec)> = OnceLock::new();
    MODEL.get_or_init(|| {
        let backend: Arc<dyn Backend> = Arc::new(golden());
        let store = longwave::Store::on_backend(backend, Default::default()).expect("the fixture opens");
        let model = store.snapshot("small").expect("the fixture has this context").model().clone();
        (model.digest(), model)
    })
}

pub(crate) fn profile(bytes: &[u8]) {
    let (identity, model) = golden_model();
    let ModelSpec { layers, kv_heads, key_dim, .. } = *model;
    let shape = ProfileShape {
        identity: *identity,
        layers: layers as u32,
        kv_heads: kv_heads as u32,
        key_dim: key_dim as u32,
    };
    twice(&profile_path(identity), bytes, |memory, _| drop(read_profile(memory, &shape)));
}

pub(crate) fn profile_seeds() -> Vec<Vec<u8>> {
    let path = profile_path(&golden_model().0);
    vec![golden().contents(&path).expect("the fixture has this profile")]
}

pub(crate) fn segment(bytes: &[u8]) {
    let path = "segments/a.segment";
    twice(path, bytes, |memory, bytes| {
        let identity = bytes.get(32..64).and_then(|bytes| bytes.try_into().ok()).unwrap_or([0; 32]);
        let backend: Arc<dyn Backend> = Arc::new(memory.clone());
        if let Ok(segment) = Segment::open(backend, path, &Expected::of_model(Identity(identity))) {
            look_through(&segment);
            read_rows(segment);
        }
    });
}

pub(crate) fn segment_seeds() -> Vec<Vec<u8>> {
    golden_files(".segment")
}

/// Every column, and whatever the index leads to.
fn look_through(segment: &Segment) {
    let kinds: Vec<ColumnKind> = segment.columns().map(|column| column.kind).collect();
    for kind in kinds {
        if let Ok(column) = segment.column(kind) {
            let _ = column.all();
        }
    }
    segment.verify();
    let valid = validate(segment).is_ok();
    if let Ok(Some(view)) = IndexView::open(segment) {
        for head in view.heads() {
            assert_eq!(head.offsets.len(), head.clusters() + 1);
            let end = head.offsets.last().copied();
            assert!(!valid || end == Some(segment.header().rows));
        }
    }
    if let Ok(Some(view)) = LadderView::open(segment) {
        for head in 0..segment.header().geometry.kv_heads as usize {
            let _ = (view.basis(head), view.head(head));
        }
    }
}

/// Every row, as whatever the segment keeps of it.
fn read_rows(segment: Segment) {
    let Geometry { element, kv_heads, key_dim, value_dim } = segment.header().geometry;
    let dtype = match element {
        ElementKind::F16 => Dtype::F16,
        ElementKind::Bf16 => Dtype::Bf16,
        ElementKind::F32 => Dtype::F32,
    };
    let kv_heads = kv_heads as usize;
    let (key_dim, value_dim) = (key_dim as usize, value_dim as usize);
    let shape = Shape { query_heads: kv_heads, kv_heads, key_dim, value_dim, dtype };
    // No model has others: a context refuses the segment.
    if [key_dim, value_dim].iter().any(|dim| !dim.is_multiple_of(8) || !(8..=576).contains(dim)) {
        return;
    }
    let sealed = LayerSegment::new(segment);
    for head in 0..kv_heads {
        let mut given = 0;
        let read = sealed.read_rows(&shape, head, 0..sealed.rows(), |first, keys, values| {
            assert_eq!((first, keys.len() / key_dim), (given, values.len() / value_dim));
            given += keys.len() / key_dim;
        });
        assert!(read.is_err() || given == sealed.rows());
    }
}

/// The header and the columns of the golden segment of one form that has the most of them.
struct Parts {
    header: SegmentHeader,
    columns: Vec<Part>,
}

struct Part {
    kind: ColumnKind,
    name: String,
    element_size: u32,
    alignment: Alignment,
    bytes: Vec<u8>,
}

impl Part {
    /// Whether its bytes are the input's: columns that the index checks.
    fn is_fed(&self) -> bool {
        self.kind.0 >= 0x100 || matches!(self.kind, ColumnKind::KEYS_8BIT | ColumnKind::VALUES_8BIT)
    }
}

fn parts(form: RowForm) -> &'static Parts {
    static PARTS: OnceLock<Vec<Parts>> = OnceLock::new();
    let all = PARTS.get_or_init(|| {
        let memory = golden();
        let backend: Arc<dyn Backend> = Arc::new(memory.clone());
        let expected = Expected::of_model(golden_model().0);
        let of_form = |form| {
            let files = memory.files().into_iter().filter(|path| path.ends_with(".segment"));
            let segments =
                files.filter_map(|path| Segment::open(Arc::clone(&backend), &path, &expected).ok());
            let segments = segments.filter(|segment| segment.row_form() == form);
            Parts::of(&segments.max_by_key(|segment| segment.columns().count()).expect("a golden segment"))
        };
        RowForm::ALL.into_iter().map(of_form).collect()
    });
    &all[usize::from(form.code())]
}

impl Parts {
    fn of(segment: &Segment) -> Parts {
        let bytes = |kind| segment.column(kind).and_then(|column| column.all().map(<[u8]>::to_vec));
        let columns = segment.columns().map(|info| Part {
            kind: info.kind,
            name: info.name.clone(),
            element_size: info.element_size,
            alignment: info.alignment,
            bytes: bytes(info.kind).expect("sound"),
        });
        Parts { header: segment.header().clone(), columns: columns.collect() }
    }
}

/// The form of the rows, then the columns of an index and of rows in 8 bits, one behind the other, each a u16 length and
/// so many bytes (as many whole elements of it as there are). What is missing at the end is the golden column's.
pub(crate) fn index(bytes: &[u8]) {
    let (form, mut rest) = bytes.split_first().unwrap_or((&0, bytes));
    let Parts { header, columns } = parts(RowForm::ALL[usize::from(*form) % RowForm::ALL.len()]);
    let mut take = |part: &Part| -> Option<Vec<u8>> {
        let (len, behind) = rest.split_first_chunk::<2>()?;
        let len = usize::from(u16::from_le_bytes(*len)).min(behind.len());
        let (column, behind) = behind.split_at(len);
        rest = behind;
        let whole = len - len % part.element_size as usize;
        Some(column[..whole].to_vec())
    };
    let fed: Vec<Option<Vec<u8>>> =
        columns.iter().map(|part| part.is_fed().then(|| take(part)).flatten()).collect();
    // Rows are as many as the header says.
    let fits = |part: &Part, bytes: &&Vec<u8>| part.kind.0 >= 0x100 || bytes.len() == part.bytes.len();
    let new = columns.iter().zip(&fed).map(|(part, changed)| NewColumn {
        kind: part.kind,
        name: &part.name,
        element_size: part.element_size,
        alignment: part.alignment,
        parts: vec![changed.as_ref().filter(|bytes| fits(part, bytes)).unwrap_or(&part.bytes)],
    });
    let memory = MemoryBackend::new();
    memory.create_dir_all("segments").expect("a directory in memory");
    let path = "segments/a.segment";
    write_segment(&memory, path, header, &new.collect::<Vec<_>>()).expect("whole columns");
    let expected = Expected::of_model(header.identity);
    let segment = Segment::open(Arc::new(memory), path, &expected).expect("what was written");
    look_through(&segment);
    read_rows(segment);
}

pub(crate) fn index_seeds() -> Vec<Vec<u8>> {
    let seed = |form: RowForm| {
        let mut seed = vec![form.code()];
        for part in parts(form).columns.iter().filter(|part| part.is_fed()) {
            seed.extend((part.bytes.len() as u16).to_le_bytes());
            seed.extend(&part.bytes);
        }
        seed
    };
    RowForm::ALL.into_iter().map(seed).collect()
}
