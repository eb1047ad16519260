//! What a choice touches, piece by piece.

use super::Case;
use super::method::{Choice, Resolution};
use super::stored::StoredHead;
use longwave::index::ladder::columns;
use longwave::storage::{BLOCK_SIZE, ColumnKind};
use longwave::{LayerSegment, ModelSpec, Traffic};
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
    let (key_size, value_size) = (d * model.dtype.size_of(), v * model.dtype.size_of());
    let mut pieces = BTreeSet::new();
    let mut known = BTreeSet::new();
    for (number, stored) in ladder.segments.iter().enumerate() {
        let scale = |numbers: Range<usize>| {
            let start = kv_head * (6 * d + 3 * v + 6);
            Piece::new(number, columns::SCALES, 2 * (start + numbers.start)..2 * (start + numbers.end))
        };
        if known.insert(stored.digest) {
            pieces.insert(Piece::record(number, columns::BASIS, kv_head, d * d));
            pieces.insert(Piece::record(number, columns::BITS, kv_head, d));
            pieces.extend([scale(0..4 * d), scale(6 * d..6 * d + 2 * v)]);
        }
        pieces.extend([scale(4 * d..6 * d), scale(6 * d + 2 * v..6 * d + 3 * v + 6)]);
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
            let columns = [
                (key, columns::KEY_CODE, d, ColumnKind::KEYS, key_size),
                (value, columns::VALUE_CODE, v, ColumnKind::VALUES, value_size),
            ];
            for (resolution, code, dim, full, full_size) in columns {
                // The halves of a code are pieces, so that a whole one and a half of it are its halves.
                let [start, half, end] =
                    [0, dim / 4 + 2, record_len(dim)].map(|at| place * record_len(dim) + at);
                if matches!(resolution, Resolution::Half | Resolution::Code) {
                    pieces.insert(Piece::new(number, code, start..half));
                }
                if *resolution == Resolution::Code {
                    pieces.insert(Piece::new(number, code, half..end));
                }
                if *resolution == Resolution::Full {
                    pieces.insert(Piece::record(number, full, place, full_size));
                }
            }
        }
    }
    pieces
}

/// What the query at `position` reads of segments from number `first` on, which no summary may stand for.
pub fn plain_pieces(case: &Case, first: usize, kv_head: usize, position: u64) -> BTreeSet<Piece> {
    let size = case.model.dtype.size_of();
    let mut pieces = BTreeSet::new();
    for (number, segment) in case.segments().iter().enumerate().skip(first) {
        let rows = segment.rows();
        let mut add = |kind, row_size: usize| {
            pieces.insert(Piece::record(number, kind, kv_head, rows * row_size));
        };
        if segment.first_position() <= position {
            add(ColumnKind::KEYS, case.model.key_dim * size);
            add(ColumnKind::VALUES, case.model.value_dim * size);
            if segment.end() > position + 1 {
                add(ColumnKind::POSITIONS, 4);
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
            ColumnKind::KEYS => &mut traffic.keys,
            ColumnKind::VALUES => &mut traffic.values,
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
