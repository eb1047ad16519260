//! Summaries: what is known of a cluster without reading its rows.

use longwave_kernels::{Dtype, bf16, f16};

use crate::Clustering;

/// Summaries of one kind of rows (keys or values) of one head.
#[derive(Debug, Default)]
pub(crate) struct Summaries {
    /// Mean row of each cluster in the rows' type, `[clusters, dim]`.
    pub(crate) means: Vec<u8>,
    /// Mean squared distance of a cluster's rows to the mean as stored.
    pub(crate) spreads: Vec<f32>,
}

impl Summaries {
    /// Summarises `rows` (`[rows, dim]`, original order, widened from `dtype`). Sums are in f64: they are exact for
    /// 16-bit rows of like magnitude, and never overflow.
    pub(crate) fn of(rows: &[f32], dim: usize, dtype: Dtype, clustering: &Clustering) -> Self {
        let clusters = clustering.clusters();
        let mut summaries = Self {
            means: Vec::with_capacity(clusters * dim * dtype.size_of()),
            spreads: Vec::with_capacity(clusters),
        };
        let (mut mean, mut squares) = (vec![0.0f64; dim], vec![0.0f64; dim]);
        for bounds in clustering.offsets.windows(2) {
            let members = &clustering.order[bounds[0] as usize..bounds[1] as usize];
            let members = || members.iter().map(|&row| &rows[row as usize * dim..][..dim]);
            let count = f64::from(bounds[1] - bounds[0]);

            mean.fill(0.0);
            for row in members() {
                mean.iter_mut().zip(row).for_each(|(sum, &x)| *sum += f64::from(x));
            }
            mean.iter_mut().for_each(|sum| *sum /= count);
            // From here on `mean` is what a reader will see, so that the spread includes its rounding.
            narrow(&mut mean, dtype, &mut summaries.means);

            squares.fill(0.0);
            for row in members() {
                for ((square, &x), m) in squares.iter_mut().zip(row).zip(&mean) {
                    let difference = f64::from(x) - m;
                    *square += difference * difference;
                }
            }
            let spread = squares.iter().sum::<f64>() / count;
            summaries.spreads.push(spread.min(f64::from(f32::MAX)) as f32);
        }
        summaries
    }
}

/// Appends `mean` in `dtype` to `bytes` and replaces it by what was stored. The range is clamped: rounding a mean of the
/// largest numbers must not make an infinity.
fn narrow(mean: &mut [f64], dtype: Dtype, bytes: &mut Vec<u8>) {
    for x in mean {
        match dtype {
            Dtype::F16 => {
                let stored = f16::from_f64(x.clamp(f16::MIN.to_f64(), f16::MAX.to_f64()));
                bytes.extend(stored.to_le_bytes());
                *x = stored.to_f64();
            }
            Dtype::Bf16 => {
                let stored = bf16::from_f64(x.clamp(bf16::MIN.to_f64(), bf16::MAX.to_f64()));
                bytes.extend(stored.to_le_bytes());
                *x = stored.to_f64();
            }
            Dtype::F32 => {
                let stored = x.clamp(f64::from(f32::MIN), f64::from(f32::MAX)) as f32;
                bytes.extend(stored.to_le_bytes());
                *x = f64::from(stored);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_rows_have_finite_summaries() {
        let clustering = Clustering { order: vec![2, 0, 1], offsets: vec![0, 1, 3] };
        let most =
            [(Dtype::F16, f16::MAX.to_f32()), (Dtype::Bf16, bf16::MAX.to_f32()), (Dtype::F32, f32::MAX)];
        for (dtype, most) in most {
            let rows = [most, most, most, -most, -most, most];
            let summaries = Summaries::of(&rows, 2, dtype, &clustering);
            let means = longwave_kernels::Rows::from_bytes(dtype, &summaries.means)
                .map(|means| (0..means.len()).map(|i| means.get(i)).collect::<Vec<_>>());
            assert_eq!(means, Some(vec![-most, most, most, 0.0]), "{dtype}");
            assert_eq!(summaries.spreads[0], 0.0);
            assert!(summaries.spreads[1].is_finite() && summaries.spreads[1] >= most, "{dtype}");
        }
    }

    #[test]
    fn the_spread_counts_the_rounding_of_the_mean() {
        // The mean 1 + 2^-12 is no f16: 1 is stored, 2^-12 away from the mean.
        let rows = [1.0, 1.0 + 1.0 / 2048.0];
        let clustering = Clustering { order: vec![0, 1], offsets: vec![0, 2] };
        let summaries = Summaries::of(&rows, 1, Dtype::F16, &clustering);
        assert_eq!(summaries.means, f16::ONE.to_le_bytes());
        assert_eq!(summaries.spreads, [0.5 / (2048.0 * 2048.0)]);
    }
}
