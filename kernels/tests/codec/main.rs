//! Codecs against their definitions in `f64`, on every instruction set.

#[path = "../kernels/isas.rs"]
mod isas;

mod code4;
mod code8;
mod planes;
mod rotation;
mod scoring;
mod sketches;
mod summaries;

use isas::every_isa;

/// Every dimension that rows can have.
fn dims() -> impl Iterator<Item = usize> {
    (8..=576).step_by(8)
}

/// A generator of numbers with nothing in common from seed to seed.
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// From 0 to below 1.
    fn uniform(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Of zero mean and unit variance, by Box and Muller.
    fn gaussian(&mut self) -> f32 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        (radius * (std::f64::consts::TAU * self.uniform()).cos()) as f32
    }

    fn gaussians(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.gaussian()).collect()
    }

    /// Scales between a tenth and ten.
    fn scales(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| 10f64.powf(2.0 * self.uniform() - 1.0) as f32).collect()
    }
}

/// Gaussian rows with the deviation `sigma` in each dimension.
fn rows(random: &mut Random, count: usize, sigma: &[f32]) -> Vec<f32> {
    (0..count).flat_map(|_| sigma.iter().map(|s| s * random.gaussian()).collect::<Vec<_>>()).collect()
}

fn squares(x: impl IntoIterator<Item = f64>) -> f64 {
    x.into_iter().map(|x| x * x).sum()
}
