//! Centroids and value means, all of which a call looks at: scored and summed 64 codes at a time.
//!
//! A level of a four-bit code is a whole number of ten-thousandths, so that two look-ups of bytes, one for each byte of
//! that number, decode 32 codes exactly (with AVX-512 one of floats, sixteen). They come out of their bytes in an order of their own. Instead of turning every
//! record around, [`Laid`] lays queries and sums out in that order, once a call.

use half::f16;

use super::code4::record_len;
use super::levels::LEVELS4;
use crate::isa::Kernels;
use crate::lanes::{Lanes, Portable, prefetch};
use crate::rows::is_supported_dim;

/// Codes that are decoded together; dimensions are filled up to a multiple of them.
const WIDE: usize = 64;
/// Bytes that hold so many codes.
const WIDE_BYTES: usize = WIDE / 2;
/// Vectors that so many levels take.
const WIDE_VECTORS: usize = WIDE / 8;
/// Records whose sums are added up by themselves. They are decoded once for all heads.
const BLOCK: usize = 32;
/// Heads that such a block is summed for at a time.
const HEADS: usize = 16;
/// Records that are asked for ahead of those that are worked on.
const AHEAD: usize = 16;

/// Lanes that decode so many codes at a time, in `M` vectors.
pub(crate) trait WideLevels<const N: usize, const M: usize>: Lanes<N> {
    /// The levels of 64 codes of four bits, in units and in an order of their own: see [`wide_level`].
    fn wide_levels4(self, codes: &[u8; WIDE_BYTES]) -> [Self::V; M];
}

impl WideLevels<8, 8> for Portable {
    #[inline(always)]
    fn wide_levels4(self, codes: &[u8; WIDE_BYTES]) -> [[f32; 8]; 8] {
        let mut levels = [[0.0; 8]; 8];
        for (vector, lanes) in levels.iter_mut().enumerate() {
            for (lane, level) in lanes.iter_mut().enumerate() {
                *level = wide_level(codes, vector, lane);
            }
        }
        levels
    }
}

/// Levels of a four-bit code in ten-thousandths.
const LEVEL_WORDS: [i16; 16] = level_words();

/// [`LEVEL_WORDS`] byte by byte: the lower ones, then the upper ones.
pub(crate) const LEVEL_BYTES: [[u8; 16]; 2] = level_bytes();

/// What [`WideLevels::wide_levels4`] gives for a level of 1: ten thousand, in the upper half of a 32-bit integer.
const LEVEL_UNIT: f32 = 10_000.0 * 65_536.0;

/// What [`WideLevels::wide_levels4`] gives for each code.
#[cfg(target_arch = "x86_64")]
pub(crate) const WIDE_LEVELS: [f32; 16] = wide_levels();

#[cfg(target_arch = "x86_64")]
const fn wide_levels() -> [f32; 16] {
    let mut levels = [0.0; 16];
    let mut code = 0;
    while code < 16 {
        levels[code] = LEVEL_WORDS[code] as f32 * 65_536.0;
        code += 1;
    }
    levels
}

const fn level_words() -> [i16; 16] {
    let mut words = [0; 16];
    let mut code = 0;
    while code < 16 {
        let scaled = LEVELS4[code] as f64 * 10_000.0;
        words[code] = (if scaled < 0.0 { scaled - 0.5 } else { scaled + 0.5 }) as i16;
        code += 1;
    }
    words
}

const fn level_bytes() -> [[u8; 16]; 2] {
    let mut bytes = [[0; 16]; 2];
    let mut code = 0;
    while code < 16 {
        let word = LEVEL_WORDS[code].to_le_bytes();
        bytes[0][code] = word[0];
        bytes[1][code] = word[1];
        code += 1;
    }
    bytes
}

/// What [`WideLevels::wide_levels4`] has in a lane of one of eight vectors, two of which are one of sixteen lanes.
pub(super) fn wide_level(codes: &[u8; WIDE_BYTES], vector: usize, lane: usize) -> f32 {
    // Vectors 0 to 3 have the lower half bytes, the others the upper ones; two of each four have the first half of each
    // half of the bytes; they alternate byte by byte.
    let (nibble, part, parity) = (vector / 4, vector / 2 % 2, vector % 2);
    let byte = lane / 4 * 16 + part * 8 + lane % 4 * 2 + parity;
    f32::from(LEVEL_WORDS[usize::from(codes[byte] >> (4 * nibble) & 15)]) * 65_536.0
}

/// Where a dimension lies among the laid out ones: the inverse of what [`wide_level`] says.
#[inline(always)]
fn place_of(dim: usize) -> usize {
    let (wide, byte, nibble) = (dim / WIDE, dim % WIDE / 2, dim % 2);
    let vector = nibble * 4 + byte % 16 / 8 * 2 + byte % 2;
    wide * WIDE + vector * 8 + byte / 16 * 4 + byte % 8 / 2
}

/// Numbers `[head][dim]` in the order in which codes are decoded: queries that records are scored with, or sums over
/// records.
#[derive(Clone, Debug, Default)]
pub struct Laid {
    heads: usize,
    dim: usize,
    /// `[head][dim / 64][8]`, with zeros where there is no dimension.
    vectors: Vec<[f32; 8]>,
}

impl Laid {
    /// All zeros.
    ///
    /// # Panics
    /// If `dim` is not supported or there is no head.
    pub fn reset(&mut self, heads: usize, dim: usize) {
        assert!(is_supported_dim(dim), "dimension {dim} is not supported");
        assert!(heads > 0, "there must be at least one head");
        (self.heads, self.dim) = (heads, dim);
        self.vectors.clear();
        self.vectors.resize(heads * self.vectors_each(), [0.0; 8]);
    }

    /// Queries: `rows`, `[heads, dim]`, each element times that of its dimension in `scales`, those that the records were
    /// coded with.
    ///
    /// # Panics
    /// As [`Laid::reset`], and if `rows` are not `heads` rows.
    pub fn set(&mut self, rows: &[f32], heads: usize, scales: &[f32]) {
        self.reset(heads, scales.len());
        assert!(
            rows.len() == heads * self.dim,
            "{} elements are not {heads} rows of {}",
            rows.len(),
            self.dim
        );
        let each = self.vectors_each() * 8;
        let laid = self.vectors.as_flattened_mut().chunks_exact_mut(each);
        for (row, laid) in rows.chunks_exact(self.dim).zip(laid) {
            for (dim, (x, scale)) in row.iter().zip(scales).enumerate() {
                laid[place_of(dim)] = x * (scale / LEVEL_UNIT);
            }
        }
    }

    /// Sums: adds those of the heads from `first` on to `rows`, `[heads, dim]`, each element times that of its dimension in
    /// `scales`.
    ///
    /// # Panics
    /// If `scales` are not of the sums' dimension, or `rows` not whole rows of as many heads as there are from `first` on, or
    /// fewer.
    pub fn add_to(&self, first: usize, scales: &[f32], rows: &mut [f32]) {
        assert!(scales.len() == self.dim, "expected {} scales, found {}", self.dim, scales.len());
        let heads = rows.len() / self.dim;
        assert!(rows.len() == heads * self.dim && first + heads <= self.heads, "{} elements", rows.len());
        let each = self.vectors_each() * 8;
        let laid = self.vectors.as_flattened().chunks_exact(each).skip(first);
        for (row, laid) in rows.chunks_exact_mut(self.dim).zip(laid) {
            for (dim, (x, scale)) in row.iter_mut().zip(scales).enumerate() {
                *x += laid[place_of(dim)] * (scale / LEVEL_UNIT);
            }
        }
    }

    /// Multiplies what `head` has.
    ///
    /// # Panics
    /// If there is no such head.
    pub fn scale(&mut self, head: usize, factor: f32) {
        let each = self.vectors_each();
        self.vectors[head * each..][..each].as_flattened_mut().iter_mut().for_each(|x| *x *= factor);
    }

    /// Heads.
    pub fn heads(&self) -> usize {
        self.heads
    }

    fn vectors_each(&self) -> usize {
        self.dim.div_ceil(WIDE) * WIDE_VECTORS
    }

    fn of_head(&self, head: usize) -> &[[[f32; 8]; WIDE_VECTORS]] {
        self.vectors[head * self.vectors_each()..][..self.vectors_each()].as_chunks().0
    }
}

/// Records in 4 bits ([`encode4`](crate::codec::encode4)), one after the other, and which of them an operation is about.
#[derive(Clone, Copy, Debug)]
pub struct Summaries<'a> {
    bytes: &'a [u8],
    dim: usize,
    listed: Option<&'a [u32]>,
}

impl<'a> Summaries<'a> {
    /// All records.
    ///
    /// # Panics
    /// If `dim` is not supported, or `bytes` not whole records of it.
    pub fn all(bytes: &'a [u8], dim: usize) -> Self {
        assert!(is_supported_dim(dim), "dimension {dim} is not supported");
        assert!(
            bytes.len().is_multiple_of(record_len(dim)),
            "{} bytes are not whole records of {dim}",
            bytes.len()
        );
        Summaries { bytes, dim, listed: None }
    }

    /// The listed records, in the order of the list. Others are not read.
    ///
    /// # Panics
    /// As [`Summaries::all`], and if an index is out of range.
    pub fn listed(bytes: &'a [u8], dim: usize, indices: &'a [u32]) -> Self {
        let all = Summaries::all(bytes, dim);
        let most = indices.iter().fold(0, |most, &index| most.max(index as usize + 1));
        assert!(most <= all.len(), "record {} of {}", most - 1, all.len());
        Summaries { listed: Some(indices), ..all }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.listed.map_or(self.bytes.len() / record_len(self.dim), <[u32]>::len)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    #[inline(always)]
    fn record(&self, place: usize) -> (&'a [u8], f16) {
        let index = self.listed.map_or(place, |listed| listed[place] as usize);
        let record = &self.bytes[index * record_len(self.dim)..][..record_len(self.dim)];
        let (codes, factor) = record.split_at(self.dim / 2);
        (codes, f16::from_le_bytes([factor[0], factor[1]]))
    }

    /// Asks for a record. Those that follow each other as well: what the processor foresees comes late, when a record takes no
    /// longer than a line does from memory.
    #[inline(always)]
    fn prefetch<L: Lanes<N>, const N: usize>(&self, isa: L, place: usize) {
        let index = match self.listed {
            Some(listed) => listed.get(place).map(|&index| index as usize),
            None => Some(place),
        };
        let start = index.map(|index| index * record_len(self.dim));
        if let Some(record) = start.and_then(|start| self.bytes.get(start..start + record_len(self.dim))) {
            prefetch(isa, record);
        }
    }
}

impl Kernels {
    /// `scores[head * stride + place] = add[head] + factor * Σ_i query[head][i] * level[i]` for every record, at its place
    /// in the list. A score depends on nothing but its query and its record.
    ///
    /// # Panics
    /// If the dimensions differ, `add` is not one number a head, or there is no room for the last score of the last head.
    pub fn scores_summaries(
        &self,
        query: &Laid,
        records: Summaries<'_>,
        add: &[f32],
        stride: usize,
        scores: &mut [f32],
    ) {
        assert!(query.dim == records.dim, "queries of {}, records of {}", query.dim, records.dim);
        assert!(add.len() == query.heads, "{} numbers for {} heads", add.len(), query.heads);
        check_room(query.heads, stride, records.len(), scores.len());
        (self.scores_summaries)(query, records, add, stride, scores);
    }

    /// `sums[head][i] += Σ weights[head * stride + place] * factor * level[i]` over the records, by their places in the list. 32
    /// records at a time are summed by themselves and then added.
    ///
    /// # Panics
    /// If the dimensions differ, or there is no weight for a record.
    pub fn sum_summaries(&self, weights: &[f32], stride: usize, records: Summaries<'_>, sums: &mut Laid) {
        assert!(sums.dim == records.dim, "sums of {}, records of {}", sums.dim, records.dim);
        check_room(sums.heads, stride, records.len(), weights.len());
        (self.sum_summaries)(weights, stride, records, sums);
    }
}

#[track_caller]
fn check_room(heads: usize, stride: usize, count: usize, found: usize) {
    let room = count == 0 || (stride >= count && found >= (heads - 1) * stride + count);
    assert!(room, "{found} numbers for {count} records and {heads} heads at a stride of {stride}");
}

/// The bytes of the codes from `start` on, filled up with zeros.
#[inline(always)]
fn wide_codes(codes: &[u8], start: usize) -> [u8; WIDE_BYTES] {
    match codes[start..].first_chunk() {
        Some(codes) => *codes,
        None => {
            let mut filled = [0; WIDE_BYTES];
            filled[..codes.len() - start].copy_from_slice(&codes[start..]);
            filled
        }
    }
}

/// See [`Kernels::scores_summaries`].
#[inline(always)]
pub(crate) fn scores_summaries<L: WideLevels<8, 8>>(
    isa: L,
    query: &Laid,
    records: Summaries<'_>,
    add: &[f32],
    stride: usize,
    scores: &mut [f32],
) {
    let mut head = 0;
    while head < query.heads {
        let group = (query.heads - head).min(4);
        match group {
            4 => score_group::<L, 4>(isa, query, head, records, add, stride, scores),
            3 => score_group::<L, 3>(isa, query, head, records, add, stride, scores),
            2 => score_group::<L, 2>(isa, query, head, records, add, stride, scores),
            _ => score_group::<L, 1>(isa, query, head, records, add, stride, scores),
        }
        head += group;
    }
}

/// Scores of heads `head..head + H`: two accumulators a head, eight records at a time.
#[inline(always)]
fn score_group<L: WideLevels<8, 8>, const H: usize>(
    isa: L,
    query: &Laid,
    head: usize,
    records: Summaries<'_>,
    add: &[f32],
    stride: usize,
    scores: &mut [f32],
) {
    let wides = query.dim.div_ceil(WIDE);
    let mut queries: [&[[[f32; 8]; WIDE_VECTORS]]; H] = [&[]; H];
    for (h, queries) in queries.iter_mut().enumerate() {
        *queries = &query.of_head(head + h)[..wides];
    }
    let len = records.len();
    for first in (0..len).step_by(8) {
        let count = (len - first).min(8);
        // By head, then by record: what is not there stays 0.
        let mut sums = [[isa.splat(0.0); 8]; H];
        let mut factors = [f16::ZERO; 8];
        for (at, factor) in factors.iter_mut().enumerate().take(count) {
            records.prefetch(isa, first + at + AHEAD);
            let codes;
            (codes, *factor) = records.record(first + at);
            let mut even = [isa.splat(0.0); H];
            let mut odd = [isa.splat(0.0); H];
            #[expect(clippy::needless_range_loop, reason = "several queries are walked along together")]
            for wide in 0..wides {
                let levels = isa.wide_levels4(&wide_codes(codes, wide * WIDE_BYTES));
                for v in (0..WIDE_VECTORS).step_by(2) {
                    for h in 0..H {
                        even[h] = isa.mul_add(levels[v], isa.load(&queries[h][wide][v]), even[h]);
                        odd[h] = isa.mul_add(levels[v + 1], isa.load(&queries[h][wide][v + 1]), odd[h]);
                    }
                }
            }
            for h in 0..H {
                sums[h][at] = isa.add(even[h], odd[h]);
            }
        }
        for h in 0..H {
            let totals = isa.mul_add(isa.sum_each(sums[h]), isa.load_f16(&factors), isa.splat(add[head + h]));
            isa.store_first(totals, &mut scores[(head + h) * stride + first..][..count]);
        }
    }
}

/// See [`Kernels::sum_summaries`].
#[inline(always)]
pub(crate) fn sum_summaries<L: WideLevels<N, M>, const N: usize, const M: usize>(
    isa: L,
    weights: &[f32],
    stride: usize,
    records: Summaries<'_>,
    sums: &mut Laid,
) {
    let each = sums.vectors_each() * 8;
    let mut levels = [[[0.0; N]; M]; BLOCK];
    for start in (0..records.len()).step_by(BLOCK) {
        let count = (records.len() - start).min(BLOCK);
        let mut codes: [&[u8]; BLOCK] = [&[]; BLOCK];
        let mut factors = [f16::ZERO; BLOCK];
        for at in 0..count {
            records.prefetch(isa, start + at + BLOCK);
            (codes[at], factors[at]) = records.record(start + at);
        }
        let mut widened = [0.0; BLOCK];
        for (factors, widened) in factors.as_chunks().0.iter().zip(widened.as_chunks_mut().0) {
            isa.store(isa.load_f16(factors), widened);
        }
        for first in (0..sums.heads).step_by(HEADS) {
            let heads = (sums.heads - first).min(HEADS);
            let mut scaled = [[0.0; HEADS]; BLOCK];
            for at in 0..count {
                for h in 0..heads {
                    scaled[at][h] = weights[(first + h) * stride + start + at] * widened[at];
                }
            }
            for wide in 0..each / WIDE {
                for at in 0..count {
                    let decoded = isa.wide_levels4(&wide_codes(codes[at], wide * WIDE_BYTES));
                    for (decoded, levels) in decoded.into_iter().zip(&mut levels[at]) {
                        isa.store(decoded, levels);
                    }
                }
                let mut head = 0;
                while head < heads {
                    let group = (heads - head).min(4);
                    let out = &mut sums.vectors.as_flattened_mut()[(first + head) * each + wide * WIDE..];
                    match group {
                        4 => sum_group::<L, N, M, 4>(isa, &scaled, head, &levels[..count], each, out),
                        3 => sum_group::<L, N, M, 3>(isa, &scaled, head, &levels[..count], each, out),
                        2 => sum_group::<L, N, M, 2>(isa, &scaled, head, &levels[..count], each, out),
                        _ => sum_group::<L, N, M, 1>(isa, &scaled, head, &levels[..count], each, out),
                    }
                    head += group;
                }
            }
        }
    }
}

/// Adds a block's records to the sums of heads `head..head + H`, which lie `each` numbers apart, two vectors of dimensions at a time.
#[inline(always)]
fn sum_group<L: WideLevels<N, M>, const N: usize, const M: usize, const H: usize>(
    isa: L,
    weights: &[[f32; HEADS]; BLOCK],
    head: usize,
    levels: &[[[f32; N]; M]],
    each: usize,
    out: &mut [f32],
) {
    for v in (0..M).step_by(2) {
        let mut sums = [[isa.splat(0.0); 2]; H];
        for (levels, weights) in levels.iter().zip(weights) {
            let (a, b) = (isa.load(&levels[v]), isa.load(&levels[v + 1]));
            for h in 0..H {
                let weight = isa.splat(weights[head + h]);
                sums[h] = [isa.mul_add(weight, a, sums[h][0]), isa.mul_add(weight, b, sums[h][1])];
            }
        }
        for h in 0..H {
            let (out, _) = out[h * each + v * N..].as_chunks_mut();
            for (out, sum) in out.iter_mut().zip(sums[h]) {
                isa.store(isa.add(isa.load(out), sum), out);
            }
        }
    }
}
