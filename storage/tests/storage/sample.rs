//! A small store with one of everything, no two sizes or values in it alike.

use std::sync::Arc;

use longwave_storage::{
    Alignment, Backend, ColumnKind, Durability, ElementKind, Expected, Geometry, Identity, LayerKind,
    LayerRecord, LogHeader, LogPlace, LogReader, LogRecord, LogWriter, Manifest, MemoryBackend, ModelRecord,
    NewColumn, Profile, ProfileLayer, ProfileShape, Record, RecordHeader, RecordKind, Result, Segment,
    SegmentHeader, SegmentRecord, SettingsRecord, StateRecord, StoreHeader, context_dir, create_store,
    log_path, read_manifest, read_profile, read_store, segment_file_name, segment_path, write_manifest,
    write_profile, write_segment,
};

pub const CONTEXT: &str = "manual-v3";
pub const CONTEXT_ID: [u8; 16] = *b"context-id-16byt";
pub const IDENTITY: Identity = Identity(*b"weights, tokenizer, RoPE, dtype!");
pub const GEOMETRY: Geometry =
    Geometry { kv_heads: 3, key_dim: 16, value_dim: 24, element: ElementKind::F16 };
pub const OPAQUE: ColumnKind = ColumnKind(0x107);
pub const EMPTY: ColumnKind = ColumnKind(0x108);
pub const ROW_LOG: &str = "1.rows.log";
pub const META_LOG: &str = "1.meta.log";

/// `len` bytes that differ with `salt` and repeat only after 251.
pub fn pattern(len: usize, salt: usize) -> Vec<u8> {
    (0..len).map(|i| ((i * 7 + salt * 13 + i / 251) % 251) as u8).collect()
}

/// Positions of every head, each head another permutation.
pub fn positions(geometry: &Geometry, rows: u32) -> Vec<u8> {
    let of_head = |head: u32| (0..rows).map(move |row| (rows - 1 - row + head) % rows);
    (0..geometry.kv_heads).flat_map(of_head).flat_map(u32::to_le_bytes).collect()
}

/// The bytes of a segment's columns, in the order they are written.
pub struct Columns {
    pub keys: Vec<u8>,
    pub values: Vec<u8>,
    pub positions: Vec<u8>,
    pub opaque: Vec<u8>,
}

impl Columns {
    pub fn new(geometry: &Geometry, rows: u32, salt: usize) -> Self {
        Self {
            keys: pattern(geometry.key_bytes(rows) as usize, salt),
            values: pattern(geometry.value_bytes(rows) as usize, salt + 1),
            positions: positions(geometry, rows),
            opaque: pattern(12 * 7, salt + 2),
        }
    }

    pub fn list(&self, geometry: &Geometry) -> Vec<NewColumn<'_>> {
        let column = |kind, name, element_size, alignment, parts| NewColumn {
            kind,
            name,
            element_size,
            alignment,
            parts,
        };
        let (head, tail) = self.values.split_at(self.values.len() / 3);
        vec![
            column(ColumnKind::KEYS, "keys", geometry.element.size(), Alignment::Page, vec![&self.keys]),
            column(ColumnKind::VALUES, "values", geometry.element.size(), Alignment::Page, vec![head, tail]),
            column(ColumnKind::POSITIONS, "positions", 4, Alignment::CacheLine, vec![&self.positions]),
            column(EMPTY, "nothing", 8, Alignment::CacheLine, vec![]),
            column(OPAQUE, "opaque-twelve-byte-items", 12, Alignment::CacheLine, vec![&self.opaque]),
        ]
    }

    pub fn of(&self, kind: ColumnKind) -> &[u8] {
        match kind {
            ColumnKind::KEYS => &self.keys,
            ColumnKind::VALUES => &self.values,
            ColumnKind::POSITIONS => &self.positions,
            OPAQUE => &self.opaque,
            _ => &[],
        }
    }
}

pub fn segment_header(layer: u32, first_position: u64, rows: u32) -> SegmentHeader {
    let mut id = [layer as u8 + 1; 16];
    id[..8].copy_from_slice(&first_position.to_le_bytes());
    let prefix_hash = [0x5c; 32];
    SegmentHeader { id, identity: IDENTITY, layer, geometry: GEOMETRY, first_position, rows, prefix_hash }
}

/// Writes a segment and returns what a manifest says of it.
pub fn write_sample_segment(
    backend: &dyn Backend,
    sequence: u64,
    header: &SegmentHeader,
    salt: usize,
) -> Result<SegmentRecord> {
    let file = segment_file_name(&CONTEXT_ID, sequence);
    let columns = Columns::new(&header.geometry, header.rows, salt);
    let file_len = write_segment(backend, &segment_path(&file), header, &columns.list(&header.geometry))?;
    Ok(SegmentRecord {
        id: header.id,
        file,
        first_position: header.first_position,
        rows: header.rows,
        file_len,
    })
}

pub fn log_header(salt: u8) -> LogHeader {
    LogHeader { log_id: [salt; 16], identity: IDENTITY }
}

pub fn rows_record(layer: u32, first_position: u64, count: u32) -> RecordHeader {
    RecordHeader { kind: RecordKind::Rows, layer, first_position, count }
}

/// A manifest of two layers that names nothing yet.
pub fn empty_manifest() -> Manifest {
    let layer = |kind, sink_logits| LayerRecord {
        kind,
        sink_logits,
        segments: vec![],
        sealed_at: vec![],
        cuts: vec![],
        length: 0,
    };
    Manifest {
        context_id: CONTEXT_ID,
        generation: 1,
        name: CONTEXT.to_owned(),
        model: ModelRecord {
            identity: IDENTITY,
            weights: [0x51; 32],
            tokenizer: [0x52; 32],
            rope: "theta 100000, interleaved".to_owned(),
            layers: 2,
            query_heads: 9,
            kv_heads: GEOMETRY.kv_heads,
            key_dim: GEOMETRY.key_dim,
            value_dim: GEOMETRY.value_dim,
            element: GEOMETRY.element,
            scale: 0.25,
            softcap: Some(30.0),
        },
        settings: SettingsRecord {
            bulk_append_rows: 32,
            sample_positions: 128,
            sinks: 4,
            window: 64,
            bulk_segment_rows: 8192,
            decode_segment_rows: 1024,
            tokens_per_cluster: 32,
            iterations: 12,
            split_factor: Some(4.0),
            seed: 0x1234_5678_9abc,
            ladder: true,
            rebuild_positions: Some(77),
        },
        layers: vec![
            layer(LayerKind::Clustered, vec![]),
            layer(LayerKind::Sliding { window: 77 }, vec![0.5; 9]),
        ],
        row_logs: vec![],
        meta_logs: vec![],
        token_count: 0,
        extra: b"tenant 5".to_vec(),
        prefix: [0x5f; 16],
        first_unnamed: 9,
        origin: None,
        state: vec![StateRecord { kind: 11, version: 3, bytes: pattern(21, 5) }],
    }
}

pub const PROFILE_SHAPE: ProfileShape =
    ProfileShape { identity: IDENTITY, layers: 2, kv_heads: 3, key_dim: 16 };

/// A profile that knows layer 1.
pub fn profile(positions: u32) -> Profile {
    let moments = (0..3 * 136).map(|i| (i as f32 * 0.37).sin().abs() + positions as f32).collect();
    Profile { shape: PROFILE_SHAPE, layers: vec![ProfileLayer { layer: 1, positions, moments }] }
}

/// A log that counts whole.
pub fn log_record(id: u8, file: &str, len: u64) -> LogRecord {
    LogRecord { id: [id; 16], file: file.to_owned(), len, end: u64::MAX, place: LogPlace::Shared }
}

/// A committed store: two segments, a log of rows and one of tokens, a profile.
pub fn build_store() -> Arc<MemoryBackend> {
    let backend = MemoryBackend::new();
    create_store(&backend, &StoreHeader { store_id: *b"store-identifier" }).unwrap();
    let dir = context_dir(CONTEXT);
    backend.create_dir_all(&dir).unwrap();
    let mut manifest = empty_manifest();
    write_manifest(&backend, &dir, &manifest, Durability::Strict).unwrap();

    for (layer, rows) in [(0, 50), (1, 37)] {
        let record =
            write_sample_segment(&backend, u64::from(layer), &segment_header(layer, 4, rows), layer as usize);
        manifest.layers[layer as usize].segments.push(record.unwrap());
        manifest.layers[layer as usize].sealed_at.push(60);
        manifest.layers[layer as usize].length = 60;
    }
    write_profile(&backend, &profile(7), &CONTEXT_ID, Durability::Strict).unwrap();
    let row_len = (GEOMETRY.key_bytes(1) + GEOMETRY.value_bytes(1)) as usize;
    let mut rows = LogWriter::create(&backend, &log_path(ROW_LOG), log_header(0x31)).unwrap();
    rows.append(&rows_record(0, 54, 6), &[&pattern(row_len * 6, 1)]).unwrap();
    rows.append(&rows_record(1, 41, 2), &[&pattern(100, 2), &pattern(row_len * 2 - 100, 3)]).unwrap();
    rows.sync().unwrap();
    let mut meta = LogWriter::create(&backend, &log_path(META_LOG), log_header(0x32)).unwrap();
    let tokens = RecordHeader { kind: RecordKind::Tokens, layer: 0, first_position: 0, count: 60 };
    meta.append(&tokens, &[&pattern(240, 4)]).unwrap();
    meta.sync().unwrap();

    manifest.generation = 2;
    manifest.row_logs = vec![log_record(0x31, ROW_LOG, rows.len())];
    manifest.meta_logs = vec![log_record(0x32, META_LOG, meta.len())];
    manifest.token_count = 60;
    write_manifest(&backend, &dir, &manifest, Durability::Strict).unwrap();
    Arc::new(backend)
}

/// Everything that a store says, read in the ordinary way.
#[derive(PartialEq, Debug)]
pub struct Contents {
    pub store: StoreHeader,
    pub manifest: Manifest,
    pub records: Vec<Record>,
    pub segments: Vec<(SegmentHeader, Vec<Vec<u8>>)>,
    pub profile: Option<Profile>,
}

pub fn read_all(backend: &Arc<dyn Backend>) -> Result<Contents> {
    let store = read_store(backend.as_ref())?;
    let manifest = read_manifest(backend.as_ref(), &context_dir(CONTEXT))?;
    let mut records = vec![];
    for log in manifest.row_logs.iter().chain(&manifest.meta_logs) {
        let header = LogHeader { log_id: log.id, identity: IDENTITY };
        let mut reader = LogReader::open(backend.as_ref(), &log.path(CONTEXT), header, log.len)?;
        while let Some(record) = reader.next()? {
            records.push(record);
        }
    }
    let mut segments = vec![];
    for (layer, record) in
        (0..).zip(&manifest.layers).flat_map(|(layer, l)| l.segments.iter().map(move |s| (layer, s)))
    {
        let expected = Expected {
            identity: IDENTITY,
            layer: Some(layer),
            geometry: Some(GEOMETRY),
            record: Some(record.clone()),
        };
        let segment = Segment::open(Arc::clone(backend), &segment_path(&record.file), &expected)?;
        let kinds: Vec<ColumnKind> = segment.columns().map(|column| column.kind).collect();
        let columns =
            kinds.into_iter().map(|kind| Ok(segment.column(kind)?.all()?.to_vec())).collect::<Result<_>>()?;
        segments.push((segment.header().clone(), columns));
    }
    let profile = read_profile(backend.as_ref(), &PROFILE_SHAPE)?;
    Ok(Contents { store, manifest, records, segments, profile })
}
