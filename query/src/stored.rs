//! Rows of a segment, in whichever form it keeps them: what is not there in full is decoded, a few rows at a time.

use crate::report::Traffic;
use crate::view::{LayerSegment, OpenedLadder, Shape};
use crate::work::Pages;
use longwave_index::checked8;
use longwave_index::ladder::DecodeRoom;
use longwave_index::ladder::columns::{KEY_CODE, VALUE_CODE};
use longwave_kernels::codec::{record_len, record8_len};
use longwave_kernels::{Kernels, Rows};
use longwave_storage::{Column, ColumnKind, Error, RowForm};
use std::cell::RefCell;
use std::ops::Range;

/// Rows that are decoded at a time: few enough that they stay in the second-level cache.
const DECODED_ROWS: usize = 256;

/// Room for decoded rows. A thread keeps it from call to call.
#[derive(Default)]
struct Room {
    keys: Vec<f32>,
    values: Vec<f32>,
    decode: DecodeRoom,
}

thread_local! {
    static ROOM: RefCell<Room> = RefCell::default();
}

/// Hands the thread's room over, so that whoever is called with it may come here again.
fn with_room<T>(work: impl FnOnce(&mut Room) -> T) -> T {
    let mut room = ROOM.take();
    let result = work(&mut room);
    ROOM.set(room);
    result
}

/// A side of the rows.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Side {
    Keys,
    Values,
}

/// A column that has something of every row.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum RowColumn {
    Positions,
    /// The ladder's codes.
    Code(Side),
    /// Rows in the form in which the segment keeps them.
    Row(Side),
}

impl Side {
    fn dim(self, shape: &Shape) -> usize {
        match self {
            Side::Keys => shape.key_dim,
            Side::Values => shape.value_dim,
        }
    }

    fn kind_8bit(self) -> ColumnKind {
        match self {
            Side::Keys => ColumnKind::KEYS_8BIT,
            Side::Values => ColumnKind::VALUES_8BIT,
        }
    }

    fn kind_code(self) -> ColumnKind {
        match self {
            Side::Keys => KEY_CODE,
            Side::Values => VALUE_CODE,
        }
    }

    fn kind(self, form: RowForm) -> ColumnKind {
        match (form, self) {
            (RowForm::Full, Side::Keys) => ColumnKind::KEYS,
            (RowForm::Full, Side::Values) => ColumnKind::VALUES,
            (RowForm::EightBits, _) => self.kind_8bit(),
            (RowForm::Codes, _) => self.kind_code(),
        }
    }
}

impl LayerSegment {
    /// How the segment keeps its rows.
    pub fn row_form(&self) -> RowForm {
        self.segment().row_form()
    }

    /// Bytes that a key of one head takes in its column, which is that of codes where these are all there is.
    pub(crate) fn key_bytes(&self, shape: &Shape) -> usize {
        bytes_of(self.row_form(), shape.key_dim, shape.key_bytes())
    }

    /// The same of a value.
    pub(crate) fn value_bytes(&self, shape: &Shape) -> usize {
        bytes_of(self.row_form(), shape.value_dim, shape.value_bytes())
    }

    /// A column, and the bytes that a row of one head takes in it.
    pub(crate) fn row_column(&self, shape: &Shape, of: RowColumn) -> Result<(Column<'_>, usize), Error> {
        let (kind, size) = match of {
            RowColumn::Positions => (ColumnKind::POSITIONS, size_of::<u32>()),
            RowColumn::Code(side) => (side.kind_code(), record_len(side.dim(shape))),
            RowColumn::Row(Side::Keys) => (Side::Keys.kind(self.row_form()), self.key_bytes(shape)),
            RowColumn::Row(Side::Values) => (Side::Values.kind(self.row_form()), self.value_bytes(shape)),
        };
        Ok((self.segment().column(kind)?, size))
    }

    /// Gives `take` the keys and values of rows `rows` of KV head `head`, in stored order: in one piece, or in several one
    /// behind the other, each with the number of its first row among `rows`. Rows that are not kept in full come as f32.
    ///
    /// # Errors
    /// [`Error::Corrupt`] and those of [`longwave_storage::Column::bytes`]: some rows may have been given then.
    pub fn read_rows(
        &self,
        shape: &Shape,
        head: usize,
        rows: Range<usize>,
        mut take: impl FnMut(usize, Rows<'_>, Rows<'_>),
    ) -> Result<(), Error> {
        if self.row_form() == RowForm::Full {
            let (keys, values) =
                (self.full_keys(shape, head, rows.clone())?, self.full_values(shape, head, rows)?);
            take(0, keys, values);
            return Ok(());
        }
        with_room(|room| {
            for start in rows.clone().step_by(DECODED_ROWS) {
                let piece = start..rows.end.min(start + DECODED_ROWS);
                room.keys.resize(piece.len() * shape.key_dim, 0.0);
                room.values.resize(piece.len() * shape.value_dim, 0.0);
                let Room { keys, values, decode } = room;
                self.decode(Side::Keys, shape, head, piece.clone(), (keys, decode))?;
                self.decode(Side::Values, shape, head, piece, (values, decode))?;
                take(start - rows.start, Rows::F32(keys), Rows::F32(values));
            }
            Ok(())
        })
    }

    /// Gives `take` keys of KV head `head` among which are the listed ones: all of them with the list, where they are kept
    /// in full and only the listed ones may be read; else the listed ones alone, in the order of the list. Who calls has
    /// asked the system for them.
    pub(crate) fn read_listed_keys<T>(
        &self,
        shape: &Shape,
        head: usize,
        list: &[u32],
        take: impl FnOnce(Rows<'_>, Option<&[u32]>) -> T,
    ) -> Result<T, Error> {
        match self.row_form() {
            RowForm::Full => Ok(take(self.full_listed_keys(shape, head, list)?, Some(list))),
            _ => self.decode_listed(Side::Keys, shape, head, list, |rows| take(rows, None)),
        }
    }

    /// As [`Self::read_listed_keys`], of values.
    pub(crate) fn read_listed_values<T>(
        &self,
        shape: &Shape,
        head: usize,
        list: &[u32],
        take: impl FnOnce(Rows<'_>, Option<&[u32]>) -> T,
    ) -> Result<T, Error> {
        match self.row_form() {
            RowForm::Full => Ok(take(self.full_listed_values(shape, head, list)?, Some(list))),
            _ => self.decode_listed(Side::Values, shape, head, list, |rows| take(rows, None)),
        }
    }

    fn decode_listed<T>(
        &self,
        side: Side,
        shape: &Shape,
        head: usize,
        list: &[u32],
        take: impl FnOnce(Rows<'_>) -> T,
    ) -> Result<T, Error> {
        let dim = side.dim(shape);
        with_room(|Room { keys: out, decode, .. }| {
            out.resize(list.len() * dim, 0.0);
            if self.row_form() == RowForm::EightBits {
                let rows = head * self.rows()..(head + 1) * self.rows();
                let column = self.segment().column(side.kind_8bit())?.without_ahead();
                let records = checked8(self.segment(), column, dim, rows, Some(list))?;
                Kernels::get().decode8(dim, records, Some(list), out);
            } else {
                for (&row, out) in list.iter().zip(out.chunks_exact_mut(dim)) {
                    self.decode(side, shape, head, row as usize..row as usize + 1, (out, decode))?;
                }
            }
            Ok(take(Rows::F32(out)))
        })
    }

    /// Decodes rows that are not kept in full.
    fn decode(
        &self,
        side: Side,
        shape: &Shape,
        head: usize,
        rows: Range<usize>,
        (out, room): (&mut [f32], &mut DecodeRoom),
    ) -> Result<(), Error> {
        if self.row_form() == RowForm::EightBits {
            let (dim, base) = (side.dim(shape), head * self.rows());
            let rows = base + rows.start..base + rows.end;
            let column = self.segment().column(side.kind_8bit())?;
            let records = checked8(self.segment(), column, dim, rows, None)?;
            Kernels::get().decode8(dim, records, None, out);
            return Ok(());
        }
        let opened = self.decoded_ladder()?;
        let ladder = opened.view.head(head)?;
        match side {
            Side::Keys => ladder.decode_keys(opened.decoder(head, &ladder), rows, room, out),
            Side::Values => ladder.decode_values(rows, out),
        }
    }

    /// The ladder of a segment that keeps nothing but codes.
    fn decoded_ladder(&self) -> Result<&OpenedLadder<'_>, Error> {
        let missing = || Error::MissingColumn { file: self.segment().path().into(), column: "keys".into() };
        self.opened_ladder()?.ok_or_else(missing)
    }
}

/// What reading rows of one KV head of a segment one by one touches; ranges of rows arrive in rising order.
pub(crate) struct RowReads<'a> {
    segment: &'a LayerSegment,
    shape: &'a Shape,
    head: usize,
    keys: Pages,
    values: Pages,
    sketches: Pages,
    any: bool,
}

impl<'a> RowReads<'a> {
    pub(crate) fn new(segment: &'a LayerSegment, shape: &'a Shape, head: usize) -> Self {
        let [keys, values, sketches] = [(); 3].map(|()| Pages::default());
        RowReads { segment, shape, head, keys, values, sketches, any: false }
    }

    /// Adds the bytes of a range of rows to those of the columns that hold them.
    pub(crate) fn add(&mut self, rows: Range<usize>, traffic: &mut Traffic) -> Result<(), Error> {
        let first = self.head * self.segment.rows() + rows.start;
        let keys = self.keys.add(first, rows.len(), self.segment.key_bytes(self.shape));
        let values = self.values.add(first, rows.len(), self.segment.value_bytes(self.shape));
        self.any |= !rows.is_empty();
        if self.segment.row_form() == RowForm::Codes {
            let ladder = self.segment.decoded_ladder()?.view.head(self.head)?;
            let (start, size) = (ladder.sketch_range(0).start, ladder.sketch_row_bytes());
            traffic.sketches += self.sketches.add(start + rows.start * size, rows.len() * size, 1);
            traffic.key_codes += keys;
            traffic.value_codes += values;
        } else {
            traffic.keys += keys;
            traffic.values += values;
        }
        Ok(())
    }

    /// Adds the pages of all ranges; and of codes, what they are decoded with: centroids and value means, scales and the
    /// basis.
    pub(crate) fn finish(self, traffic: &mut Traffic, summaries: &mut Traffic) -> Result<(), Error> {
        traffic.pages += self.keys.count + self.values.count + self.sketches.count;
        if self.any && self.segment.row_form() == RowForm::Codes {
            let ladder = self.segment.decoded_ladder()?.view.head(self.head)?;
            *summaries +=
                ladder_summaries(self.shape, self.head, ladder.first_cluster(), ladder.cluster_count());
        }
        Ok(())
    }
}

/// Bytes and pages of all centroids and value means of a KV head, and of what they are decoded with.
fn ladder_summaries(shape: &Shape, head: usize, first: usize, clusters: usize) -> Traffic {
    let (d, v) = (shape.key_dim, shape.value_dim);
    let [mut centroids, mut means, mut matrix, mut bits, mut scales] = [(); 5].map(|()| Pages::default());
    let numbers = 6 * d + 3 * v + 6;
    let mut traffic = Traffic {
        centroids: centroids.add(first, clusters, record_len(d)),
        value_means: means.add(first, clusters, record_len(v)),
        bases: matrix.add(head, 1, d * d) + bits.add(head, 1, d) + scales.add(head * numbers, numbers, 2),
        ..Traffic::default()
    };
    traffic.pages = [centroids, means, matrix, bits, scales].iter().map(|pages| pages.count).sum();
    traffic
}

fn bytes_of(form: RowForm, dim: usize, full: usize) -> usize {
    match form {
        RowForm::Full => full,
        RowForm::EightBits => record8_len(dim),
        RowForm::Codes => record_len(dim),
    }
}
