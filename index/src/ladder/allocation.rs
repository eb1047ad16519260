//! How many bits of a sketch each dimension gets.

use longwave_kernels::codec::DISTORTION;

/// Bits for dimensions with these `variance`s, which descend, so that the least squared error is left among the
/// allocations that a sketch can have: 4, 2, 1 or 0 bits, never ascending, an even number of 2s, a multiple of four
/// 1s, an even number of half bytes in all. Spends `mean` bits a dimension, rounded to a multiple of 8 bits a row.
pub(super) fn allocate(variance: &[f64], mean: f32) -> Vec<u8> {
    let dim = variance.len();
    let budget = ((f64::from(mean) * dim as f64 / 8.0).round() as usize * 8).min(4 * dim);
    // Variance of the first so many dimensions.
    let mut before = vec![0.0];
    for &variance in variance {
        before.push(before[before.len() - 1] + variance.max(0.0));
    }
    let between = |start: usize, end: usize| before[end] - before[start];
    let left = DISTORTION.map(f64::from);

    let mut best: Option<(f64, [usize; 3])> = None;
    for fours in 0..=dim.min(budget / 4) {
        for twos in (0..=(dim - fours).min((budget - 4 * fours) / 2)).step_by(2) {
            let ones = budget - 4 * fours - 2 * twos;
            if !ones.is_multiple_of(4) || fours + twos + ones > dim {
                continue;
            }
            let error = left[4] * between(0, fours)
                + left[2] * between(fours, fours + twos)
                + left[1] * between(fours + twos, fours + twos + ones)
                + between(fours + twos + ones, dim);
            if best.is_none_or(|(least, _)| error < least) {
                best = Some((error, [fours, twos, ones]));
            }
        }
    }
    // Fours alone meet every budget, so there is a best; without a finite error, nothing gets bits.
    let [fours, twos, ones] = best.map_or([0; 3], |(_, counts)| counts);
    let mut bits = vec![4; fours];
    bits.resize(fours + twos, 2);
    bits.resize(fours + twos + ones, 1);
    bits.resize(dim, 0);
    bits
}

#[cfg(test)]
mod tests {
    use longwave_kernels::codec::SketchLayout;

    use super::*;

    #[test]
    fn equal_variances_get_equal_bits_and_steep_ones_most() {
        assert_eq!(allocate(&[2.5; 24], 1.0), [1; 24]);
        let steep: Vec<f64> = (0..24).map(|i| 0.3f64.powi(i)).collect();
        let bits = allocate(&steep, 1.0);
        assert_eq!(bits[..4], [4; 4], "{bits:?}");
        assert_eq!(bits.iter().map(|&b| u32::from(b)).sum::<u32>(), 24);
    }

    #[test]
    fn every_dimension_and_budget_has_a_layout_and_is_spent() {
        for dim in (8..=576).step_by(56) {
            let variance: Vec<f64> = (0..dim).map(|i| 1.0 / (1.0 + i as f64).powf(1.3)).collect();
            for mean in [0.5, 1.0, 1.5, 4.0] {
                let bits = allocate(&variance, mean);
                let layout = SketchLayout::checked(&bits).unwrap();
                let budget = (f64::from(mean) * dim as f64 / 8.0).round() as usize;
                assert_eq!(layout.bytes(), budget, "{dim} {mean}");
            }
        }
    }
}
