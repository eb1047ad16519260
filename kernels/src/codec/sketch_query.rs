//! Scores of sketches by table look-up.
//!
//! What a half byte adds to a score is one of sixteen numbers. A [`SketchQuery`] has them for every half byte of a
//! sketch, in 8 bits: an entry is the nearest whole number of steps above the least entry of its half byte, where the
//! step of a head is what brings the widest of its half bytes to 255 steps. A score is then a sum of bytes, exact in
//! integers, times the step, plus the sum of the least entries.
//!
//! Each half byte is off by half a step at most, so a score is off by its factor times half a step times the half bytes
//! ([`SketchQuery::error_bound`]), and as a rule by the square root of a twelfth of their number
//! ([`SketchQuery::error_deviation`]): a few hundredths of what the sketch itself leaves.

use super::levels::{factor_of_code, level};
use super::lookup::Lookup;
use super::sketch::{BLOCK_ROWS, SketchLayout};
use crate::isa::Kernels;
use crate::score::check_heads;

/// Most bytes of a sketch whose scores fit 16-bit sums: two half bytes each, of 255 at most. Longer ones, which no
/// allocation of about a bit a dimension has, are scored in parts.
const BYTES_MAX: usize = 128;

/// Several query heads, as tables of what each half byte of a sketch adds to each head's score.
#[derive(Clone, Debug)]
pub struct SketchQuery {
    layout: SketchLayout,
    heads: usize,
    /// Steps above the least entry, `[heads, 2 * bytes]`.
    tables: Vec<[u8; 16]>,
    scales: Vec<Scale>,
}

/// What the steps of a head stand for.
#[derive(Clone, Copy, Debug)]
struct Scale {
    step: f32,
    /// Sum of the least entries of all half bytes.
    least: f32,
}

impl SketchQuery {
    /// Tables for `queries`, `[heads, dim]`, already times the scales that the sketches were coded with.
    ///
    /// # Panics
    /// If `queries` is not `heads * dim` long, or there is no head.
    pub fn new(layout: &SketchLayout, queries: &[f32], heads: usize) -> SketchQuery {
        check_heads(heads, queries.len(), layout.dim(), "queries");
        let nibbles = layout.bytes() * 2;
        let mut query = SketchQuery {
            layout: *layout,
            heads,
            tables: Vec::with_capacity(heads * nibbles),
            scales: Vec::with_capacity(heads),
        };
        let mut exact = vec![[0.0; 16]; nibbles];
        for coordinates in queries.chunks_exact(layout.dim()) {
            fill(layout, coordinates, &mut exact);
            query.quantise(&exact);
        }
        query
    }

    /// Adds the tables of one head.
    fn quantise(&mut self, exact: &[[f32; 16]]) {
        let bounds = exact.iter().map(|table| {
            let less = |least: f32, &entry: &f32| if entry < least { entry } else { least };
            let more = |most: f32, &entry: &f32| if entry > most { entry } else { most };
            (table.iter().fold(f32::INFINITY, less), table.iter().fold(f32::NEG_INFINITY, more))
        });
        let (widest, sum) = bounds
            .clone()
            .fold((0.0f32, 0.0), |(widest, sum), (least, most)| (widest.max(most - least), sum + least));
        let step = widest / 255.0;
        let per_step = if step > 0.0 { step.recip() } else { 0.0 };
        for (table, (least, _)) in exact.iter().zip(bounds) {
            // The conversion cuts off, and saturates should rounding go past 255.
            self.tables.push(table.map(|entry| ((entry - least) * per_step + 0.5) as u8));
        }
        self.scales.push(Scale { step, least: sum });
    }

    /// Query heads.
    pub fn heads(&self) -> usize {
        self.heads
    }

    /// How the sketches are laid out.
    pub fn layout(&self) -> &SketchLayout {
        &self.layout
    }

    /// How far a score of `head` may be off for the 8 bits of the tables, in units of the row's factor.
    ///
    /// # Panics
    /// If there is no such head.
    pub fn error_bound(&self, head: usize) -> f32 {
        // A thousandth covers the rounding of the entries themselves.
        self.scales[head].step * self.layout.nibbles() as f32 * 0.501
    }

    /// The same as a standard deviation, were each entry off by anything up to half a step alike.
    ///
    /// # Panics
    /// If there is no such head.
    pub fn error_deviation(&self, head: usize) -> f32 {
        self.scales[head].step * (self.layout.nibbles() as f32 / 12.0).sqrt()
    }

    fn tables_of(&self, head: usize) -> &[[u8; 16]] {
        &self.tables[head * self.layout.bytes() * 2..][..self.layout.bytes() * 2]
    }
}

/// The exact entries of one head.
fn fill(layout: &SketchLayout, query: &[f32], tables: &mut [[f32; 16]]) {
    tables.fill([0.0; 16]);
    for (i, q) in query[..layout.kept()].iter().enumerate() {
        if let Some(place) = layout.place(i) {
            for (nibble, entry) in tables[place.nibble].iter_mut().enumerate() {
                *entry += q * level(place.bits, nibble as u8 >> place.shift);
            }
        }
    }
}

impl Kernels {
    /// Scores of one cluster's sketches, and their factors:
    /// `scores[head * stride + row] = factors[row] * Σ_i queries[head][i] * level[row][i]`, up to
    /// [`SketchQuery::error_bound`]. Places that are no row's are left as they are.
    ///
    /// # Panics
    /// If `record` is not that of `rows` rows, `scores` has no place for the last row of the last head, `stride` is less
    /// than `rows`, or `factors` is not `rows` long.
    pub fn scores_sketch(
        &self,
        query: &SketchQuery,
        record: &[u8],
        rows: usize,
        stride: usize,
        scores: &mut [f32],
        factors: &mut [f32],
    ) {
        let (layout, heads) = (&query.layout, query.heads);
        assert!(
            record.len() == layout.record_len(rows),
            "a record of {} bytes for {rows} rows",
            record.len()
        );
        let room = stride >= rows && scores.len() >= (heads - 1) * stride + rows;
        assert!(room && factors.len() == rows, "room for {rows} rows");
        (self.scores_sketch)(query, record, stride, scores, factors);
    }
}

/// Scores of all heads and rows, `[head][row]`, and the rows' factors.
#[inline(always)]
pub(crate) fn scores_sketch<L: Lookup>(
    isa: L,
    query: &SketchQuery,
    record: &[u8],
    stride: usize,
    scores: &mut [f32],
    factors: &mut [f32],
) {
    let bytes = query.layout.bytes();
    let mut rest = record;
    for (block, factors) in factors.chunks_mut(BLOCK_ROWS).enumerate() {
        let height = factors.len();
        let codes = &rest[bytes * height..];
        let mut wide = [[0.0; 8]; 4];
        for (row, factor) in factors.iter_mut().enumerate() {
            *factor = factor_of_code(codes[row]);
            wide[row / 8][row % 8] = *factor;
        }
        let place = Place { first: block * BLOCK_ROWS, rows: height, stride };
        let mut head = 0;
        while head < query.heads {
            let group = (query.heads - head).min(4);
            match group {
                4 => score_block::<L, 4>(isa, query, head, rest, place, &wide, scores),
                3 => score_block::<L, 3>(isa, query, head, rest, place, &wide, scores),
                2 => score_block::<L, 2>(isa, query, head, rest, place, &wide, scores),
                _ => score_block::<L, 1>(isa, query, head, rest, place, &wide, scores),
            }
            head += group;
        }
        rest = &rest[(bytes + 1) * height..];
    }
}

/// Where a block's scores go.
#[derive(Clone, Copy)]
struct Place {
    first: usize,
    rows: usize,
    stride: usize,
}

/// Scores of heads `head..head + H` in the block that `record` begins with.
#[inline(always)]
fn score_block<L: Lookup, const H: usize>(
    isa: L,
    query: &SketchQuery,
    head: usize,
    record: &[u8],
    place: Place,
    factors: &[[f32; 8]; 4],
    scores: &mut [f32],
) {
    let totals = block_totals::<L, H>(isa, query, head, record, place.rows);
    for h in 0..H {
        let scores = &mut scores[(head + h) * place.stride + place.first..][..place.rows];
        for (part, scores) in scores.chunks_mut(8).enumerate() {
            let part = isa.mul(totals[h][part], isa.load(&factors[part]));
            isa.store_first(part, scores);
        }
    }
}

/// What heads `head..head + H` score, in units of the rows' factors, in the block of `height` rows that `record` begins with.
#[inline(always)]
pub(super) fn block_totals<L: Lookup, const H: usize>(
    isa: L,
    query: &SketchQuery,
    head: usize,
    record: &[u8],
    height: usize,
) -> [[L::V; 4]; H] {
    let bytes = query.layout.bytes();
    let mut tables: [&[[u8; 16]]; H] = [&[]; H];
    let mut totals = [[isa.splat(0.0); 4]; H];
    for h in 0..H {
        tables[h] = query.tables_of(head + h);
        totals[h] = [isa.splat(query.scales[head + h].least); 4];
    }
    for start in (0..bytes).step_by(BYTES_MAX) {
        let mut all = [isa.zero_bytes(); H];
        let mut upper = [isa.zero_bytes(); H];
        for b in start..bytes.min(start + BYTES_MAX) {
            let column = load_column(isa, &record[b * height..]);
            let (low, high) = (isa.low_nibbles(column), isa.high_nibbles(column));
            for h in 0..H {
                for (table, nibbles) in [(&tables[h][2 * b], low), (&tables[h][2 * b + 1], high)] {
                    let entries = isa.look_up(table, nibbles);
                    all[h] = isa.add_words(all[h], entries);
                    upper[h] = isa.add_words(upper[h], isa.upper_bytes(entries));
                }
            }
        }
        for h in 0..H {
            let step = isa.splat(query.scales[head + h].step);
            let sums = isa.column_sums(all[h], upper[h]);
            for part in 0..4 {
                totals[h][part] = isa.mul_add(sums[part], step, totals[h][part]);
            }
        }
    }
    totals
}

/// The bytes from a column's start. Those of fewer rows than 32 go on into the next columns, which nobody looks at; the
/// last ones of a record are filled up.
#[inline(always)]
fn load_column<L: Lookup>(isa: L, column: &[u8]) -> L::B {
    match column.first_chunk::<32>() {
        Some(column) => isa.load_bytes(column),
        None => {
            let mut filled = [0; 32];
            filled[..column.len()].copy_from_slice(column);
            isa.load_bytes(&filled)
        }
    }
}
