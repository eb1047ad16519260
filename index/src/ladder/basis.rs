//! The basis that keys are coded in.

use longwave_kernels::bf16;
use longwave_kernels::codec::SketchLayout;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use xxhash_rust::xxh3::Xxh3;

use super::allocation::allocate;
use super::columns::{SKETCH_BITS, SKETCH_METRIC};
use super::input::Moment;
use super::linear::{Eigen, inverse, mix, narrowed, product64, root, second_moment};

/// Seed of the rotations among dimensions of equal bits.
const MIXING_SEED: u64 = 0x6d69_7869_6e67;

/// What a context's layer and KV head fixes with its first segment, so that every segment is queried alike.
#[derive(Clone, Debug, PartialEq)]
pub struct Basis {
    /// The matrix that queries are multiplied by, `[dim, dim]`, row by row in units of `inverse_scale`.
    pub inverse: Vec<i8>,
    /// Coordinate i of a query is `inverse_scale[i]` times row i of `inverse` times the query.
    pub inverse_scale: Vec<f32>,
    /// Bits of each coordinate in a sketch: 4, 2, 1 or 0, never ascending.
    pub bits: Vec<u8>,
    /// Scale of each coordinate of a residual key in sketches.
    pub sketch_sigma: Vec<f32>,
    /// Scale of each coordinate, in key codes, of what the sketch leaves of a residual key.
    pub key_sigma: Vec<f32>,
    /// Scale of each coordinate of a centroid less the middle of all.
    pub centroid_sigma: Vec<f32>,
    /// Scale of each element of a rotated value less its cluster's mean.
    pub value_sigma: Vec<f32>,
    /// Scale of each element of a rotated value mean less the mean of all values.
    pub value_mean_sigma: Vec<f32>,
}

impl Basis {
    /// Dimensions of a key.
    pub fn key_dim(&self) -> usize {
        self.bits.len()
    }

    /// Dimensions of a value.
    pub fn value_dim(&self) -> usize {
        self.value_sigma.len()
    }

    /// A hash (XXH3) of all its bytes, that tells whether two segments share it.
    pub fn digest(&self) -> u64 {
        let scales: [&[f32]; 6] = [
            &self.inverse_scale,
            &self.sketch_sigma,
            &self.key_sigma,
            &self.centroid_sigma,
            &self.value_sigma,
            &self.value_mean_sigma,
        ];
        digest_of(&self.inverse, &self.bits, scales)
    }

    /// Panics where the basis is not one of keys and values of these dimensions.
    pub(super) fn check(&self, key_dim: usize, value_dim: usize) {
        let keys = [&self.inverse_scale, &self.sketch_sigma, &self.key_sigma, &self.centroid_sigma];
        let values = [&self.value_sigma, &self.value_mean_sigma];
        let sound = self.inverse.len() == key_dim * key_dim
            && self.bits.len() == key_dim
            && self.layout().is_some()
            && keys.iter().all(|scales| scales.len() == key_dim)
            && values.iter().all(|scales| scales.len() == value_dim);
        assert!(sound, "a basis that is not one of keys of {key_dim} and values of {value_dim}");
    }

    /// How sketches in this basis are laid out; `None` where the bits are none that a sketch can have.
    pub fn layout(&self) -> Option<SketchLayout> {
        SketchLayout::checked(&self.bits)
    }
}

/// A scale as it is stored, in bfloat16.
pub(super) fn stored(scale: f32) -> f32 {
    let most = bf16::MAX.to_f32();
    bf16::from_f32(scale.clamp(-most, most)).to_f32()
}

/// The digest of a basis by its parts, of scales those of inverses, sketches, keys, centroids, values and value means. Numbers
/// lie in memory as they do on disk, least byte first.
pub(super) fn digest_of(inverse: &[i8], bits: &[u8], scales: [&[f32]; 6]) -> u64 {
    let mut hash = Xxh3::new();
    hash.update(bytemuck::cast_slice(inverse));
    hash.update(bits);
    scales.into_iter().for_each(|scales| hash.update(bytemuck::cast_slice(scales)));
    hash.digest()
}

/// The digest of the bases of all KV heads, by that of each.
pub(super) fn digest_of_all(digests: impl IntoIterator<Item = u64>) -> u64 {
    let mut hash = Xxh3::new();
    digests.into_iter().for_each(|digest| hash.update(&digest.to_le_bytes()));
    hash.digest()
}

/// The quantised inverse, what it is the inverse of, and the bits of the coordinates.
pub(super) struct Axes {
    pub(super) inverse: Vec<i8>,
    pub(super) inverse_scale: Vec<f32>,
    pub(super) bits: Vec<u8>,
    /// A key times this is its coordinates: `[dim, dim]`.
    pub(super) forward: Vec<f32>,
    /// Coordinates times this are the key, and this times a query is its coordinates: `[dim, dim]`.
    pub(super) backward: Vec<f32>,
}

impl Axes {
    /// The axes of `basis`; `None` when its matrix has no inverse.
    pub(super) fn of(basis: &Basis) -> Option<Axes> {
        Axes::new(basis.inverse.clone(), basis.inverse_scale.clone(), basis.bits.clone())
    }

    fn new(quantised: Vec<i8>, inverse_scale: Vec<f32>, bits: Vec<u8>) -> Option<Axes> {
        let dim = bits.len();
        let rows = quantised.chunks_exact(dim).zip(&inverse_scale);
        let backward: Vec<f64> = rows
            .flat_map(|(row, &scale)| row.iter().map(move |&x| f64::from(x) * f64::from(scale)))
            .collect();
        let forward = narrowed(&inverse(&backward, dim)?);
        let sound = forward.iter().all(|x| x.is_finite());
        sound.then(|| Axes {
            inverse: quantised,
            inverse_scale,
            bits,
            forward,
            backward: narrowed(&backward),
        })
    }

    /// The principal axes that `residuals` (keys less their centroids, `[rows, dim]`) have in the metric of the queries'
    /// moment, those of equal bits mixed so that each coordinate looks Gaussian.
    pub(super) fn fit(residuals: &[f32], moment: &Moment) -> Axes {
        let dim = moment.dim;
        let [forward, backward] = root(&moment.matrix, dim, f64::from(SKETCH_METRIC));
        let spread = second_moment(residuals, dim);
        let spread = product64(&product64(&forward, &spread, dim, dim, dim), &forward, dim, dim, dim);
        let Some(Eigen { values, mut vectors }) = Eigen::of(&spread, dim) else { return Axes::plain(dim) };

        let bits = allocate(&values, SKETCH_BITS);
        let mut random = ChaCha8Rng::seed_from_u64(MIXING_SEED);
        let mut start = 0;
        for group in bits.chunk_by(|a, b| a == b) {
            mix(&mut vectors[start * dim..][..group.len() * dim], dim, &mut random);
            start += group.len();
        }
        let inverse = product64(&vectors, &backward, dim, dim, dim);
        let (mut quantised, mut scales) = (Vec::with_capacity(dim * dim), Vec::with_capacity(dim));
        for row in inverse.chunks_exact(dim) {
            let largest = row.iter().fold(0.0f64, |most, x| most.max(x.abs()));
            let scale = stored(((largest / 127.0) as f32).max(f32::MIN_POSITIVE));
            quantised.extend(row.iter().map(|x| (x / f64::from(scale)).round().clamp(-127.0, 127.0) as i8));
            scales.push(scale);
        }
        Axes::new(quantised, scales, bits).unwrap_or_else(|| Axes::plain(dim))
    }

    /// The coordinates of keys as they are: what remains where keys or moments are not finite.
    fn plain(dim: usize) -> Axes {
        let mut quantised = vec![0; dim * dim];
        quantised.iter_mut().step_by(dim + 1).for_each(|x| *x = 127);
        let mut unit = vec![0.0; dim * dim];
        unit.iter_mut().step_by(dim + 1).for_each(|x| *x = 1.0);
        let scale = stored(1.0 / 127.0);
        let bits = allocate(&vec![1.0; dim], SKETCH_BITS);
        Axes {
            inverse: quantised,
            inverse_scale: vec![scale; dim],
            bits,
            forward: unit.iter().map(|x| x / (127.0 * scale)).collect(),
            backward: unit.iter().map(|x| x * 127.0 * scale).collect(),
        }
    }
}
