//! What a choice touches, piece by piece.

use super::Case;
use super::method::{Choice, Resolution};
use super::stored::StoredHead;
use longwave::index::ladder::columns;
use longwave::storage::{BLOCK_SIZE, ColumnKind};
use longwave::{LayerSegment, ModelSpec, RowForm, Traffic};
use longwave_kernels::codec::record_len;
use std::collections::BTreeSet;
use std::ops::Range;

/// Bytes of a column of one of the case's segments that are read together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Piece {
    pub segment: usize,
    pub kind: u32,
    pub bytes: (usize, usize),
}

impl Piece {
    fn new(segment: usize, kind: ColumnKind, bytes: Range<usize>) -> Piece {
        Piece { segment, kind: kind.0, bytes: (bytes.start, bytes.end) }
    }

    /// Record `at` of records of `size` bytes.
    fn record(segment: usize, kind: ColumnKind, at: usize, size: usize) -> Piece {
        Piece::new(segment, kind, at * size..(at + 1) * size)
    }

    pub fn len(&self) -> usize {
        self.bytes.1 - self.bytes.0
    }
}

/// What one position and KV head reads of the segments with a ladder, given what it chose.
pub fn pieces(
    model: &ModelSpec,
    segments: &[&LayerSegment],
    ladder: &StoredHead,
    kv_head: usize,
    choice: &Choice,
) -> BTreeSet<Piece> {
    let (d, v) = (model.key_dim, model.value_dim);
    let mut pieces = BTreeSet::new();
    let mut known = BTreeSet::new();
    for (number, stored) in ladder.segments.iter().enumerate() {
        pieces.extend(basis_pieces(model, number, kv_head, known.insert(stored.digest)));
        if choice.slopes[number] {
            pieces.insert(Piece::record(number, columns::VALUE_SLOPE, kv_head, d * record_len(v)));
        }
    }
    for (c, cluster) in ladder.clusters.iter().enumerate() {
        let segment = segments[cluster.segment];
        let view = segment.ladder().unwrap().unwrap();
        let head = view.head(kv_head).unwrap();
        let (at, number) = (head.first_cluster() + cluster.local, cluster.segment);
        pieces.insert(Piece::record(number, columns::CENTROID, at, record_len(d)));
        pieces.insert(Piece::record(number, columns::CLUSTER, at, columns::CLUSTER_SIZE));
        if choice.means[c] {
            pieces.insert(Piece::record(number, columns::VALUE_MEAN, at, record_len(v)));
        }
        if choice.opened[c] {
            pieces.insert(Piece::new(number, columns::SKETCH, head.sketch_range(cluster.local)));
        }
        for (row, [key, value]) in choice.rows[c].iter().enumerate() {
            let place = kv_head * segment.rows() + cluster.first + row;
            let columns = [(key, columns::KEY_CODE, d), (value, columns::VALUE_CODE, v)];
            let kept = full_columns(model, segment.row_form());
            for (side, (resolution, code, dim)) in columns.into_iter().enumerate() {
                let [upper, lower] = code_pieces(number, (code, dim), place);
                let before = if side == 0 { choice.before[c][row] } else { Resolution::Coarse };
                if [*resolution, before].iter().any(|of| matches!(of, Resolution::Half | Resolution::Code)) {
                    pieces.insert(upper);
                }
                if [*resolution, before].contains(&Resolution::Code) {
                    pieces.insert(lower);
                }
                if *resolution == Resolution::Full {
                    let (kind, size) = kept.expect("rows that are kept")[side];
                    pieces.insert(Piece::record(number, kind, place, size));
                }
            }
        }
    }
    pieces
}

/// What a head's query is turned with: all of it, or what no other segment of the same basis has.
fn basis_pieces(model: &ModelSpec, number: usize, kv_head: usize, all: bool) -> Vec<Piece> {
    let (d, v) = (model.key_dim, model.value_dim);
    let scale = |numbers: Range<usize>| {
        let start = kv_head * (6 * d + 3 * v + 6);
        Piece::new(number, columns::SCALES, 2 * (start + numbers.start)..2 * (start + numbers.end))
    };
    let mut pieces = vec![scale(4 * d..6 * d), scale(6 * d + 2 * v..6 * d + 3 * v + 6)];
    if all {
        pieces.push(Piece::record(number, columns::BASIS, kv_head, d * d));
        pieces.push(Piece::record(number, columns::BITS, kv_head, d));
        pieces.extend([scale(0..4 * d), scale(6 * d..6 * d + 2 * v)]);
    }
    pieces
}

/// The halves of a code, so that a whole one and a half of it share a piece.
fn code_pieces(number: usize, (kind, dim): (ColumnKind, usize), place: usize) -> [Piece; 2] {
    let [start, half, end] = [0, dim / 4 + 2, record_len(dim)].map(|at| place * record_len(dim) + at);
    [Piece::new(number, kind, start..half), Piece::new(number, kind, half..end)]
}

/// The columns of keys and values, and what a row takes in them; none where codes are all there is.
fn full_columns(model: &ModelSpec, form: RowForm) -> Option<[(ColumnKind, usize); 2]> {
    let (d, v, size) = (model.key_dim, model.value_dim, model.dtype.size_of());
    match form {
        RowForm::Full => Some([(ColumnKind::KEYS, d * size), (ColumnKind::VALUES, v * size)]),
        RowForm::EightBits => Some([(ColumnKind::KEYS_8BIT, d + 4), (ColumnKind::VALUES_8BIT, v + 4)]),
        RowForm::Codes => None,
    }
}

/// All that the rows of a head are decoded from where codes are all there is.
fn decoded_pieces(
    model: &ModelSpec,
    segment: &LayerSegment,
    number: usize,
    kv_head: usize,
) -> BTreeSet<Piece> {
    let view = segment.ladder().unwrap().unwrap();
    let head = view.head(kv_head).unwrap();
    let mut pieces: BTreeSet<Piece> = basis_pieces(model, number, kv_head, true).into_iter().collect();
    for cluster in 0..head.cluster_count() {
        let at = head.first_cluster() + cluster;
        pieces.insert(Piece::record(number, columns::CENTROID, at, record_len(model.key_dim)));
        pieces.insert(Piece::record(number, columns::VALUE_MEAN, at, record_len(model.value_dim)));
        pieces.insert(Piece::new(number, columns::SKETCH, head.sketch_range(cluster)));
    }
    for place in kv_head * segment.rows()..(kv_head + 1) * segment.rows() {
        pieces.extend(code_pieces(number, (columns::KEY_CODE, model.key_dim), place));
        pieces.extend(code_pieces(number, (columns::VALUE_CODE, model.value_dim), place));
    }
    pieces
}

/// What the query at `position` reads of segments from number `first` on, which no summary may stand for.
pub fn plain_pieces(case: &Case, first: usize, kv_head: usize, position: u64) -> BTreeSet<Piece> {
    let mut pieces = BTreeSet::new();
    for (number, segment) in case.segments().iter().enumerate().skip(first) {
        let rows = segment.rows();
        if segment.first_position() <= position {
            match full_columns(&case.model, segment.row_form()) {
                Some(kept) => {
                    pieces.extend(kept.map(|(kind, size)| Piece::record(number, kind, kv_head, rows * size)))
                }
                None => pieces.extend(decoded_pieces(&case.model, segment, number, kv_head)),
            }
            if segment.end() > position + 1 {
                pieces.insert(Piece::record(number, ColumnKind::POSITIONS, kv_head, rows * 4));
            }
        }
    }
    pieces
}

/// The pieces' bytes by column, and the distinct pages that they lie in.
pub fn traffic(pieces: &BTreeSet<Piece>) -> Traffic {
    let mut traffic = Traffic::default();
    for piece in pieces {
        let sum = match ColumnKind(piece.kind) {
            ColumnKind::KEYS | ColumnKind::KEYS_8BIT => &mut traffic.keys,
            ColumnKind::VALUES | ColumnKind::VALUES_8BIT => &mut traffic.values,
            ColumnKind::POSITIONS => &mut traffic.positions,
            columns::CENTROID => &mut traffic.centroids,
            columns::CLUSTER => &mut traffic.counts,
            columns::VALUE_MEAN => &mut traffic.value_means,
            columns::SKETCH => &mut traffic.sketches,
            columns::KEY_CODE => &mut traffic.key_codes,
            columns::VALUE_CODE => &mut traffic.value_codes,
            _ => &mut traffic.bases,
        };
        *sum += piece.len() as u64;
    }
    traffic.pages = pages(pieces);
    traffic
}

/// Distinct blocks of 4096 bytes of each column.
fn pages(pieces: &BTreeSet<Piece>) -> u64 {
    let block = BLOCK_SIZE;
    let pages = pieces.iter().flat_map(|piece| {
        let (start, end) = piece.bytes;
        (start / block..end.div_ceil(block)).map(|page| (piece.segment, piece.kind, page))
    });
    pages.collect::<BTreeSet<_>>().len() as u64
}
