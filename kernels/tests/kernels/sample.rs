//! Test data: seeded, asymmetric, and adversarial where asked for.

use longwave_kernels::{Dtype, Rows, bf16, f16};

/// A generator of reproducible numbers (splitmix64).
pub struct Sample(u64);

impl Sample {
    pub fn new(seed: u64) -> Sample {
        Sample(seed)
    }

    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in `-scale..scale`.
    pub fn number(&mut self, scale: f32) -> f32 {
        ((self.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * scale
    }

    pub fn numbers(&mut self, count: usize, scale: f32) -> Vec<f32> {
        (0..count).map(|_| self.number(scale)).collect()
    }

    pub fn below(&mut self, end: usize) -> usize {
        (self.bits() % end as u64) as usize
    }

    pub fn stored(&mut self, dtype: Dtype, count: usize, scale: f32) -> Stored {
        Stored::narrow(dtype, &self.numbers(count, scale))
    }

    /// Numbers that break vector code: signed zeros, subnormals of every type, the largest of binary16, tiny and huge.
    pub fn adversarial(&mut self, dtype: Dtype, count: usize) -> Stored {
        let special = [
            0.0,
            -0.0,
            5.960_464_5e-8, // the smallest binary16 subnormal
            -6.097_555e-5,  // the largest, negative
            1e-40,          // a binary32 subnormal
            -9.183_55e-41,  // a bfloat16 subnormal
            f32::MIN_POSITIVE,
            65504.0,
            -65504.0,
            1.0 + f32::EPSILON,
            -1.0 / 3.0,
            if dtype == Dtype::F16 { 30000.0 } else { 1e30 },
            if dtype == Dtype::F16 { -3.0 } else { -1e30 },
        ];
        let numbers: Vec<f32> = (0..count).map(|_| special[self.below(special.len())]).collect();
        Stored::narrow(dtype, &numbers)
    }
}

/// Owned rows.
#[derive(Clone)]
pub enum Stored {
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
    F32(Vec<f32>),
}

impl Stored {
    pub fn narrow(dtype: Dtype, numbers: &[f32]) -> Stored {
        match dtype {
            Dtype::F16 => Stored::F16(numbers.iter().map(|&x| f16::from_f32(x)).collect()),
            Dtype::Bf16 => Stored::Bf16(numbers.iter().map(|&x| bf16::from_f32(x)).collect()),
            Dtype::F32 => Stored::F32(numbers.to_vec()),
        }
    }

    pub fn rows(&self) -> Rows<'_> {
        match self {
            Stored::F16(elements) => Rows::F16(elements),
            Stored::Bf16(elements) => Rows::Bf16(elements),
            Stored::F32(elements) => Rows::F32(elements),
        }
    }

    /// A copy in which every row that is not listed is NaN, so that reading one shows.
    pub fn poisoned(&self, dim: usize, listed: &[u32]) -> Stored {
        let rows = self.rows();
        let numbers: Vec<f32> = (0..rows.len())
            .map(|i| if listed.contains(&((i / dim) as u32)) { rows.get(i) } else { f32::NAN })
            .collect();
        Stored::narrow(rows.dtype(), &numbers)
    }

    /// The listed rows, one after the other.
    pub fn picked(&self, dim: usize, listed: &[u32]) -> Stored {
        let rows = self.rows();
        let numbers: Vec<f32> =
            listed.iter().flat_map(|&row| (0..dim).map(move |i| rows.get(row as usize * dim + i))).collect();
        Stored::narrow(rows.dtype(), &numbers)
    }
}

/// The first `heads` columns of `[row][columns]`.
pub fn columns(all: &[f32], columns: usize, heads: usize) -> Vec<f32> {
    all.chunks_exact(columns).flat_map(|row| row[..heads].iter().copied()).collect()
}

pub fn bits(numbers: &[f32]) -> Vec<u32> {
    numbers.iter().map(|x| x.to_bits()).collect()
}

/// Whether `call` panics with a message that contains `expected`.
pub fn panics_with(expected: &str, call: impl FnOnce()) -> bool {
    let Err(payload) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(call)) else { return false };
    payload.downcast_ref::<String>().is_some_and(|message| message.contains(expected))
}
