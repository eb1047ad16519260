//! Seeded rows and queries, and kernels run under every order of threads.

use half::{bf16, f16};
use longwave_gpu::{Device, RowShape};
use longwave_gpu_emulation::{Emulation, SCHEDULES};
use longwave_kernels::{Dtype, Rows};

/// Multiplicative congruential numbers: quick, and the same everywhere.
pub struct Numbers(pub u64);

impl Numbers {
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % bound
    }

    /// About -1 to 1.
    pub fn unit(&mut self) -> f32 {
        self.below(1 << 20) as f32 / (1 << 19) as f32 - 1.0
    }

    pub fn units(&mut self, count: usize, scale: f32) -> Vec<f32> {
        (0..count).map(|_| self.unit() * scale).collect()
    }
}

/// Every shape that there are kernels for.
pub fn shapes() -> impl Iterator<Item = RowShape> {
    [Dtype::F16, Dtype::Bf16].into_iter().flat_map(|dtype| {
        longwave_gpu::DIMS.into_iter().flat_map(move |dim| {
            (1..=longwave_gpu::GROUP_MAX).map(move |group| RowShape::new(dtype, dim, dim, group).unwrap())
        })
    })
}

/// Numbers as 16-bit elements.
pub fn stored(dtype: Dtype, numbers: &[f32]) -> Vec<u16> {
    numbers
        .iter()
        .map(|&x| if dtype == Dtype::Bf16 { bf16::from_f32(x).to_bits() } else { f16::from_f32(x).to_bits() })
        .collect()
}

pub fn rows_of(dtype: Dtype, stored: &[u16]) -> Rows<'_> {
    Rows::from_bytes(dtype, bytemuck::cast_slice(stored)).unwrap()
}

/// What `run` computes under every order of threads, which must be the same bits. NaN is no result.
pub fn under_all_schedules(
    emulation: &Emulation,
    device: &Device,
    what: &str,
    run: impl Fn(&Device) -> Vec<Vec<f32>>,
) -> Vec<Vec<f32>> {
    let mut first: Option<Vec<Vec<f32>>> = None;
    for schedule in SCHEDULES {
        emulation.schedule(schedule);
        let result = run(device);
        for (number, values) in result.iter().enumerate() {
            if let Some(place) = values.iter().position(|x| x.is_nan()) {
                panic!("{what}: {schedule:?}: result {number} is not a number at {place}");
            }
        }
        let bits = |result: &[Vec<f32>]| -> Vec<Vec<u32>> {
            result.iter().map(|values| values.iter().map(|x| x.to_bits()).collect()).collect()
        };
        match &first {
            None => first = Some(result),
            Some(first) => {
                assert!(bits(first) == bits(&result), "{what}: {schedule:?} changes the result: a race")
            }
        }
    }
    first.unwrap()
}
