//! Exponentials of many numbers at once.

use longwave_kernels::Kernels;

/// Below this a few terms of the series are closer than the difference of the exponential and 1.
const SERIES_MAX: f32 = 1.0 / 16.0;

/// Every number's exponential, in its place.
pub(super) fn exp(kernels: &Kernels, numbers: &mut [f32]) {
    kernels.exp_weights(numbers, 1, &[0.0], &mut [0.0]);
}

/// `exp(x) - 1` of every number x, none of them negative. Off by 1e-5 of the result at most.
pub(super) fn exp_m1(kernels: &Kernels, numbers: &[f32]) -> Vec<f32> {
    let mut exponentials = numbers.to_vec();
    exp(kernels, &mut exponentials);
    for (exponential, &x) in exponentials.iter_mut().zip(numbers) {
        let series = x * (1.0 + x / 2.0 * (1.0 + x / 3.0));
        *exponential = if x < SERIES_MAX { series } else { *exponential - 1.0 };
    }
    exponentials
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_and_large_differences_keep_their_digits() {
        let numbers: Vec<f32> =
            (0..400).map(|i| 1e-12 * 1.075f32.powi(i)).chain([0.0, 0.0624, 0.0626]).collect();
        let numbers: Vec<f32> = numbers.into_iter().map(|x| x.min(20.0)).collect();
        for (x, found) in numbers.iter().zip(exp_m1(Kernels::get(), &numbers)) {
            let expected = f64::from(*x).exp_m1();
            assert!((f64::from(found) - expected).abs() <= 1e-5 * expected, "{x}: {found} for {expected}");
        }
    }
}
