//! Writing a segment: checksums first, then the file under a provisional name, then its own.

use super::layout::{
    Alignment, BLOCK_SIZE, COLUMN_NAME_MAX, COLUMN_SIZE, COLUMNS_MAX, HEADER_SIZE, MAGIC, RawColumn,
    RawHeader, align_up, block_count,
};
use super::open::{is_allowed, is_column_name};
use super::{ColumnKind, RowForm, SegmentHeader};
use crate::backend::{Backend, FileWriter};
use crate::checksum::{hash64, header_checksum};
use crate::error::{Error, Result};
use crate::prologue::Prologue;

/// A column to be written.
#[derive(Clone, Debug)]
pub struct NewColumn<'a> {
    /// Which column.
    pub kind: ColumnKind,
    /// Its name in messages: 1 to 24 printable ASCII characters.
    pub name: &'a str,
    /// Bytes of one element.
    pub element_size: u32,
    /// Alignment in the file; keys and values must be page-aligned.
    pub alignment: Alignment,
    /// Its bytes, in pieces that are written one behind the other.
    pub parts: Vec<&'a [u8]>,
}

impl NewColumn<'_> {
    fn len(&self) -> u64 {
        self.parts.iter().map(|part| part.len() as u64).sum()
    }
}

/// Writes a segment and returns the length of its file in bytes.
///
/// The file is written as `<path>.new`, synced, and only then renamed to `path`, so that a file of a segment's name
/// is always whole; one that is there already, left over from a process that died before its commit, is replaced.
/// The name becomes durable with the next sync of the directory, which a strict commit does.
///
/// # Errors
/// [`Error::Input`] or [`Error::Limit`] if the columns do not fit the header; otherwise what the backend reports.
pub fn write_segment(
    backend: &dyn Backend,
    path: &str,
    header: &SegmentHeader,
    columns: &[NewColumn<'_>],
) -> Result<u64> {
    header.validate()?;
    let form = check_columns(path, header, columns)?;
    let table = lay_out(path, columns)?;
    let checksums: Vec<u8> =
        columns.iter().flat_map(|column| block_checksums(&column.parts)).flat_map(u64::to_le_bytes).collect();
    let head = encode_head(path, header, form, &table, &checksums)?;

    let fresh = format!("{path}.new");
    if backend.exists(&fresh)? {
        backend.remove(&fresh)?;
    }
    let mut output = Output { writer: backend.create_new(&fresh)?, offset: 0 };
    output.write(&head)?;
    for (column, entry) in columns.iter().zip(&table) {
        output.pad_to(entry.offset)?;
        column.parts.iter().filter(|part| !part.is_empty()).try_for_each(|part| output.write(part))?;
    }
    output.pad_to(output.offset.next_multiple_of(u64::from(Alignment::CacheLine.bytes())))?;
    output.write(&checksums)?;
    output.writer.sync()?;
    backend.rename(&fresh, path)?;
    Ok(output.offset)
}

struct Output {
    writer: Box<dyn FileWriter>,
    offset: u64,
}

impl Output {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.writer.write_all(bytes)?;
        self.offset += bytes.len() as u64;
        Ok(())
    }

    fn pad_to(&mut self, offset: u64) -> Result<()> {
        const ZEROS: [u8; 4096] = [0; 4096];
        let missing = usize::try_from(offset - self.offset).unwrap_or(ZEROS.len());
        match ZEROS.get(..missing) {
            Some(zeros) if !zeros.is_empty() => self.write(zeros),
            _ => Ok(()),
        }
    }
}

/// Gives the form that the rows are kept in.
fn check_columns(path: &str, header: &SegmentHeader, columns: &[NewColumn<'_>]) -> Result<RowForm> {
    if columns.len() > COLUMNS_MAX {
        return Err(Error::limit("columns of a segment", COLUMNS_MAX as u64, columns.len() as u64));
    }
    for (index, column) in columns.iter().enumerate() {
        let refuse = |what: String| Err(Error::input(path, format!("column {:?}: {what}", column.name)));
        if !is_column_name(column.name) || column.name.len() > COLUMN_NAME_MAX {
            return refuse(format!("the name must be 1 to {COLUMN_NAME_MAX} printable characters"));
        }
        if columns.iter().take(index).any(|earlier| earlier.kind == column.kind) {
            return refuse(format!("kind {} comes twice", column.kind.0));
        }
        if !is_allowed(column.kind, column.alignment) {
            return refuse("keys and values must be page-aligned".to_owned());
        }
        let (len, size) = (column.len(), u64::from(column.element_size));
        if size == 0 || !len.is_multiple_of(size) {
            return refuse(format!("{len} bytes are not whole elements of {size}"));
        }
        if let Some(known) =
            header.known_element_size(column.kind).filter(|known| *known != column.element_size)
        {
            return refuse(format!("elements of {size} bytes, expected {known}"));
        }
        if let Some(known) = header.known_len(column.kind).filter(|known| *known != len) {
            return refuse(format!(
                "{len} bytes, expected {known} for {} rows of {}",
                header.rows, header.geometry
            ));
        }
    }
    let has = |kind| columns.iter().any(|column| column.kind == kind);
    match RowForm::of(has) {
        Some(form) if has(ColumnKind::POSITIONS) => Ok(form),
        Some(_) => Err(Error::input(path, format!("there is no column of kind {}", ColumnKind::POSITIONS.0))),
        None => Err(Error::input(path, "keys and values are not in one form")),
    }
}

/// The column table: each column at the next multiple of its alignment behind the one before.
fn lay_out(path: &str, columns: &[NewColumn<'_>]) -> Result<Vec<RawColumn>> {
    let mut end = Some((HEADER_SIZE + columns.len() * COLUMN_SIZE) as u64);
    columns
        .iter()
        .map(|column| {
            let alignment = column.alignment.bytes();
            let offset = end
                .and_then(|end| align_up(end, u64::from(alignment)))
                .ok_or_else(|| Error::input(path, "the file would be too long"))?;
            end = offset.checked_add(column.len());
            let mut name = [0; COLUMN_NAME_MAX];
            name.iter_mut().zip(column.name.bytes()).for_each(|(slot, byte)| *slot = byte);
            Ok(RawColumn {
                kind: column.kind.0,
                element_size: column.element_size,
                name,
                offset,
                len: column.len(),
                alignment,
                reserved: [0; 12],
            })
        })
        .collect()
}

/// XXH3-64 of every block of a column that comes in pieces. A block that lies in one piece is hashed where it is.
fn block_checksums(parts: &[&[u8]]) -> Vec<u64> {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    let mut checksums = Vec::with_capacity(len.div_ceil(BLOCK_SIZE));
    let mut carry: Vec<u8> = Vec::new();
    for part in parts {
        let mut rest = *part;
        if !carry.is_empty() {
            let (head, tail) = rest.split_at(rest.len().min(BLOCK_SIZE - carry.len()));
            carry.extend_from_slice(head);
            rest = tail;
            if carry.len() < BLOCK_SIZE {
                continue;
            }
            checksums.push(hash64(&carry));
            carry.clear();
        }
        let blocks = rest.chunks_exact(BLOCK_SIZE);
        carry.extend_from_slice(blocks.remainder());
        checksums.extend(blocks.map(hash64));
    }
    if !carry.is_empty() {
        checksums.push(hash64(&carry));
    }
    checksums
}

/// Header and column table as they lie on disk.
fn encode_head(
    path: &str,
    header: &SegmentHeader,
    form: RowForm,
    table: &[RawColumn],
    checksums: &[u8],
) -> Result<Vec<u8>> {
    let end = table.last().map_or(HEADER_SIZE as u64, |column| column.offset + column.len);
    let too_long = || Error::input(path, "the file would be too long");
    let checksums_offset = align_up(end, u64::from(Alignment::CacheLine.bytes())).ok_or_else(too_long)?;
    let file_len = checksums_offset.checked_add(checksums.len() as u64).ok_or_else(too_long)?;
    debug_assert_eq!(
        table.iter().map(|column| block_count(column.len)).sum::<u64>() * 8,
        checksums.len() as u64
    );
    let table_bytes: &[u8] = bytemuck::cast_slice(table);
    let mut raw = RawHeader {
        prologue: Prologue::with_version(MAGIC, form.version()),
        id: header.id,
        identity: header.identity.0,
        prefix_hash: header.prefix_hash,
        first_position: header.first_position,
        file_len,
        rows: header.rows,
        layer: header.layer,
        kv_heads: header.geometry.kv_heads,
        key_dim: header.geometry.key_dim,
        value_dim: header.geometry.value_dim,
        element: header.geometry.element.code(),
        column_count: u32::try_from(table.len()).unwrap_or(u32::MAX),
        block_size: BLOCK_SIZE as u32,
        checksums_offset,
        checksums_len: checksums.len() as u64,
        checksums_checksum: hash64(checksums),
        table_checksum: hash64(table_bytes),
        reserved: 0,
        checksum: 0,
    };
    raw.checksum = header_checksum(&raw);
    Ok([bytemuck::bytes_of(&raw), table_bytes].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_checksums_do_not_depend_on_the_pieces() {
        let bytes: Vec<u8> = (0..3 * BLOCK_SIZE + 100).map(|i| (i * 31 % 251) as u8).collect();
        let whole = block_checksums(&[&bytes]);
        assert_eq!(whole.len(), 4);
        assert_eq!(whole, bytes.chunks(BLOCK_SIZE).map(hash64).collect::<Vec<_>>());
        for cut in [0, 1, 4095, 4096, 4097, 8000, bytes.len()] {
            let (head, tail) = bytes.split_at(cut);
            assert_eq!(block_checksums(&[head, tail]), whole, "cut at {cut}");
        }
        let pieces: Vec<&[u8]> = bytes.chunks(700).collect();
        assert_eq!(block_checksums(&pieces), whole);
        assert_eq!(block_checksums(&[]), Vec::<u64>::new());
    }
}
