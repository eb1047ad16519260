//! Opening: nothing in a segment is believed before a checksum over it has been.

use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use super::ahead::Ahead;
use super::layout::{
    BLOCK_SIZE, CHECKSUM_AT, COLUMN_SIZE, COLUMNS_MAX, HEADER_SIZE, MAGIC, RawColumn, RawHeader,
    VERSION_REDUCED, align_up, block_count,
};
use super::{
    Alignment, ChecksumColumn, ColumnInfo, ColumnKind, ColumnState, Expected, RowForm, Segment, SegmentHeader,
};
use crate::backend::{Backend, FileReader};
use crate::checksum::{hash64, header_checksum};
use crate::error::{Error, Result};
use crate::geometry::{ElementKind, Geometry, Identity};
use crate::prologue::check_sum;

impl Segment {
    /// Opens the segment at `path`: reads its header and column table and checks both, and that the file is what is
    /// expected. Does not map the file.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::Corrupt`], [`Error::Version`], [`Error::ByteOrder`]; [`Error::Identity`] if the
    /// rows belong to another model.
    pub fn open(backend: Arc<dyn Backend>, path: &str, expected: &Expected) -> Result<Self> {
        let reader = backend.open_read(path)?;
        let len = reader.len()?;
        let mut start = [0_u8; HEADER_SIZE + COLUMNS_MAX * COLUMN_SIZE];
        let start = read_start(reader.as_ref(), len, &mut start)?;
        let (raw, table) = start
            .split_first_chunk::<HEADER_SIZE>()
            .ok_or_else(|| Error::corrupt(path, len, "a header of 192 bytes", "the end of the file"))?;
        let raw: RawHeader = bytemuck::pod_read_unaligned(raw);
        let header = check_header(path, &raw, len)?;
        check_expected(path, &header, len, expected)?;
        let columns = check_table(path, &raw, &header, table)?;
        let form = check_form(path, &raw, &columns)?;
        Ok(Self {
            backend,
            path: path.to_owned(),
            header,
            file_len: len,
            checksums: ChecksumColumn {
                offset: raw.checksums_offset,
                len: raw.checksums_len,
                checksum: raw.checksums_checksum,
            },
            header_checksum: raw.checksum,
            columns,
            form,
            region: OnceLock::new(),
            held: OnceLock::new(),
            mapping: Mutex::new(()),
            ahead: Ahead::default(),
        })
    }
}

/// Reads the header and as much as the column table can take. Where the table ends within the file's first page, as nearly all
/// do, that page alone: the system takes two for the beginning of a read from end to end, and reads on.
fn read_start<'a>(reader: &dyn FileReader, len: u64, start: &'a mut [u8]) -> Result<&'a [u8]> {
    let len = usize::try_from(len).unwrap_or(usize::MAX).min(start.len());
    let (start, _) = start.split_at_mut(len);
    let (page, rest) = start.split_at_mut(len.min(BLOCK_SIZE));
    reader.read_exact_at(page, 0)?;
    // Not verified yet, which is no harm: it only says whether more is read.
    let columns = page.first_chunk::<HEADER_SIZE>().map_or(0, |raw| {
        let raw: RawHeader = bytemuck::pod_read_unaligned(raw);
        raw.column_count as usize
    });
    if columns > (BLOCK_SIZE - HEADER_SIZE) / COLUMN_SIZE {
        reader.read_exact_at(rest, BLOCK_SIZE as u64)?;
    }
    Ok(start)
}

fn check_header(path: &str, raw: &RawHeader, len: u64) -> Result<SegmentHeader> {
    raw.prologue.check_up_to(path, MAGIC, VERSION_REDUCED)?;
    check_sum(path, CHECKSUM_AT as u64, "segment header", raw.checksum, header_checksum(raw))?;
    let element = ElementKind::from_code(raw.element)
        .ok_or_else(|| Error::corrupt(path, 132, "an element code of 1 to 3", raw.element))?;
    let header = SegmentHeader {
        id: raw.id,
        identity: Identity(raw.identity),
        layer: raw.layer,
        geometry: Geometry {
            kv_heads: raw.kv_heads,
            key_dim: raw.key_dim,
            value_dim: raw.value_dim,
            element,
        },
        first_position: raw.first_position,
        rows: raw.rows,
        prefix_hash: raw.prefix_hash,
    };
    header.validate().map_err(|error| Error::corrupt(path, 96, "a possible geometry", error))?;
    for (offset, what, expected, found) in [
        (104, "bytes in all", raw.file_len, len),
        (140, "bytes in a block", BLOCK_SIZE as u64, u64::from(raw.block_size)),
        (176, "in the reserved field", 0, raw.reserved),
    ] {
        if expected != found {
            return Err(Error::corrupt(path, offset, format_args!("{expected} {what}"), found));
        }
    }
    if raw.column_count == 0 || raw.column_count as usize > COLUMNS_MAX {
        return Err(Error::corrupt(path, 136, format_args!("1 to {COLUMNS_MAX} columns"), raw.column_count));
    }
    Ok(header)
}

fn check_expected(path: &str, header: &SegmentHeader, len: u64, expected: &Expected) -> Result<()> {
    if header.identity != expected.identity {
        return Err(Error::Identity {
            file: path.to_owned(),
            expected: expected.identity,
            found: header.identity,
        });
    }
    if let Some(layer) = expected.layer.filter(|layer| *layer != header.layer) {
        return Err(Error::corrupt(path, 116, format_args!("layer {layer}"), header.layer));
    }
    if let Some(geometry) = expected.geometry.filter(|geometry| *geometry != header.geometry) {
        return Err(Error::corrupt(path, 120, geometry, header.geometry));
    }
    let Some(record) = &expected.record else { return Ok(()) };
    if record.id != header.id {
        return Err(Error::corrupt(
            path,
            16,
            format_args!("segment {}", hex(&record.id)),
            format_args!("segment {}", hex(&header.id)),
        ));
    }
    if (record.first_position, record.rows) != (header.first_position, header.rows) {
        return Err(Error::corrupt(
            path,
            96,
            format_args!("{} rows from position {}", record.rows, record.first_position),
            format_args!("{} rows from position {}", header.rows, header.first_position),
        ));
    }
    if record.file_len != len {
        return Err(Error::corrupt(path, 104, format_args!("{} bytes in all", record.file_len), len));
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Columns lie one behind the other in the order of the table, each at the next multiple of its alignment, and the
/// checksum column after the last. That leaves no offset to be believed: each can be computed.
fn check_table(
    path: &str,
    raw: &RawHeader,
    header: &SegmentHeader,
    bytes: &[u8],
) -> Result<Vec<ColumnState>> {
    let table_len = raw.column_count as usize * COLUMN_SIZE;
    let table = bytes.get(..table_len).ok_or_else(|| {
        Error::corrupt(path, 136, format_args!("a table of {table_len} bytes"), "the end of the file")
    })?;
    check_sum(path, 168, "column table", raw.table_checksum, hash64(table))?;
    let mut columns: Vec<ColumnState> = Vec::with_capacity(raw.column_count as usize);
    let mut end = (HEADER_SIZE + table_len) as u64;
    let mut first_block = 0_u64;
    for (index, entry) in table.chunks_exact(COLUMN_SIZE).enumerate() {
        let entry: RawColumn = bytemuck::pod_read_unaligned(entry);
        let at = (HEADER_SIZE + index * COLUMN_SIZE) as u64;
        let info = check_column(path, at, &entry, header, end, raw.file_len)?;
        if columns.iter().any(|column| column.info.kind == info.kind) {
            return Err(Error::corrupt_column(
                path,
                &info.name,
                at,
                "each kind once",
                format_args!("kind {} twice", entry.kind),
            ));
        }
        end = info.offset + info.len;
        let blocks = info.blocks;
        columns.push(ColumnState::new(path, info, first_block)?);
        first_block += blocks;
    }
    let checksums_end = raw.checksums_offset.checked_add(raw.checksums_len);
    if Some(raw.checksums_offset) != align_up(end, u64::from(Alignment::CacheLine.bytes()))
        || raw.checksums_len != first_block * 8
        || checksums_end != Some(raw.file_len)
    {
        return Err(Error::corrupt(
            path,
            144,
            format_args!("{first_block} checksums after offset {end} and then the end of the file"),
            format_args!("{} bytes at {}", raw.checksums_len, raw.checksums_offset),
        ));
    }
    Ok(columns)
}

/// The form of the rows, which the columns and the version say alike.
fn check_form(path: &str, raw: &RawHeader, columns: &[ColumnState]) -> Result<RowForm> {
    let has = |kind| columns.iter().any(|column| column.info.kind == kind);
    let version = raw.prologue.check_up_to(path, MAGIC, VERSION_REDUCED)?;
    let form = RowForm::of(has).filter(|form| form.version() == version && has(ColumnKind::POSITIONS));
    form.ok_or_else(|| {
        let kinds: Vec<u32> = columns.iter().map(|column| column.info.kind.0).collect();
        let expected = format_args!("positions, and keys and values as version {version} has them");
        Error::corrupt(path, HEADER_SIZE as u64, expected, format_args!("columns of kinds {kinds:?}"))
    })
}

/// Checks one entry of the table, of which the last column ended at `end`.
fn check_column(
    path: &str,
    at: u64,
    entry: &RawColumn,
    header: &SegmentHeader,
    end: u64,
    file_len: u64,
) -> Result<ColumnInfo> {
    let used = entry.name.iter().position(|byte| *byte == 0).unwrap_or(entry.name.len());
    let (name, zeros) = entry.name.split_at(used);
    let name = match std::str::from_utf8(name) {
        Ok(name) if is_column_name(name) && zeros.iter().all(|byte| *byte == 0) => name,
        _ => {
            return Err(Error::corrupt(path, at + 8, "a column name, then zeros", entry.name.escape_ascii()));
        }
    };
    let fail = |field: u64, expected: String, found: u64| {
        Err(Error::corrupt_column(path, name, at + field, expected, found))
    };
    let kind = ColumnKind(entry.kind);
    let Some(alignment) = Alignment::from_bytes(entry.alignment).filter(|found| is_allowed(kind, *found))
    else {
        return fail(48, "an alignment that the kind may have".to_owned(), u64::from(entry.alignment));
    };
    if entry.reserved != [0; 12] {
        return Err(Error::corrupt_column(path, name, at + 52, "reserved bytes of zero", "others"));
    }
    let expected_offset = align_up(end, u64::from(entry.alignment));
    if Some(entry.offset) != expected_offset {
        return fail(32, format!("offset {}", expected_offset.unwrap_or(u64::MAX)), entry.offset);
    }
    if entry.offset.checked_add(entry.len).is_none_or(|end| end > file_len) {
        return fail(40, format!("a column that ends within {file_len} bytes"), entry.len);
    }
    if let Some(size) = header.known_element_size(kind).filter(|size| *size != entry.element_size) {
        return fail(4, format!("elements of {size} bytes"), u64::from(entry.element_size));
    }
    if entry.element_size == 0 || !entry.len.is_multiple_of(u64::from(entry.element_size)) {
        return fail(40, format!("whole elements of {} bytes", entry.element_size), entry.len);
    }
    if let Some(len) = header.known_len(kind).filter(|len| *len != entry.len) {
        return fail(40, format!("{len} bytes for {} rows of {}", header.rows, header.geometry), entry.len);
    }
    Ok(ColumnInfo {
        kind,
        name: name.to_owned(),
        offset: entry.offset,
        len: entry.len,
        element_size: entry.element_size,
        alignment,
        blocks: block_count(entry.len),
    })
}

pub(super) fn is_column_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Keys and values are page-aligned; others may be.
pub(super) fn is_allowed(kind: ColumnKind, alignment: Alignment) -> bool {
    let rows = RowForm::ALL.iter().filter_map(|form| form.columns()).flatten();
    alignment == Alignment::Page || !rows.into_iter().any(|of_rows| of_rows == kind)
}

impl ColumnState {
    fn new(path: &str, info: ColumnInfo, first_block: u64) -> Result<Self> {
        let fits = |what: &str, count: u64| {
            usize::try_from(count)
                .map_err(|_| Error::limit(format!("{path}: {what}"), usize::MAX as u64, count))
        };
        let start = fits("column offset", info.offset)?;
        let end = fits("column end", info.offset + info.len)?;
        let blocks = fits("blocks", info.blocks)?;
        Ok(Self {
            info,
            start,
            end,
            first_block: fits("blocks", first_block)?,
            verified: (0..blocks.div_ceil(64)).map(|_| AtomicU64::new(0)).collect(),
            unverified: AtomicUsize::new(blocks),
            in_memory: AtomicU32::new(0),
        })
    }
}
