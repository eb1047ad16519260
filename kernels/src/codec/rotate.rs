//! The fixed rotation that makes values look Gaussian in every dimension.

/// Seed of the signs: part of the format, since coded values are stored rotated.
const SIGNS: u64 = 0x4c6f_6e67_7761_7665;

/// Rotates rows of `dim` elements in place, or with `inverse` turns them back.
///
/// The rotation flips the signs of some dimensions, always the same ones, and then applies the normalised
/// Walsh-Hadamard transform to blocks of dimensions whose sizes are the powers of two that `dim` is the sum of, the
/// largest first. It is orthogonal: lengths and products are kept up to rounding.
///
/// # Panics
/// If `dim` is 0 or `rows` are not whole rows.
pub fn rotate(rows: &mut [f32], dim: usize, inverse: bool) {
    assert!(dim > 0 && rows.len().is_multiple_of(dim), "{} elements are not whole rows of {dim}", rows.len());
    let signs: Vec<f32> = (0..dim as u64).map(sign).collect();
    for row in rows.chunks_exact_mut(dim) {
        if !inverse {
            row.iter_mut().zip(&signs).for_each(|(x, sign)| *x *= sign);
        }
        let mut rest = &mut *row;
        while !rest.is_empty() {
            let (block, after) = rest.split_at_mut(1 << rest.len().ilog2());
            walsh_hadamard(block);
            rest = after;
        }
        if inverse {
            row.iter_mut().zip(&signs).for_each(|(x, sign)| *x *= sign);
        }
    }
}

/// 1 or -1, by a bit of a hash (splitmix64) of the dimension.
fn sign(dimension: u64) -> f32 {
    let mut x = SIGNS.wrapping_add((dimension + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    if (x ^ (x >> 31)) & 1 == 0 { 1.0 } else { -1.0 }
}

/// The transform of a block whose length is a power of two, scaled to be orthogonal; it is its own inverse.
fn walsh_hadamard(block: &mut [f32]) {
    let mut half = 1;
    while half < block.len() {
        for pair in block.chunks_exact_mut(2 * half) {
            let (low, high) = pair.split_at_mut(half);
            for (a, b) in low.iter_mut().zip(high) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        half *= 2;
    }
    let scale = (block.len() as f32).sqrt().recip();
    block.iter_mut().for_each(|x| *x *= scale);
}
