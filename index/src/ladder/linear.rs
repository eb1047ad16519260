//! Linear algebra in `f64` on one thread in a fixed order, so that the same matrices give the same bits.

use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::evd::{ComputeEigenvectors, self_adjoint_evd, self_adjoint_evd_scratch};
use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatMut, MatRef, Par};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::RngCore;

/// Eigenvalues and eigenvectors of a symmetric matrix, the largest first.
pub(super) struct Eigen {
    pub(super) values: Vec<f64>,
    /// Eigenvector `i` is `vectors[i * dim..][..dim]`; its element of largest size is positive.
    pub(super) vectors: Vec<f64>,
}

impl Eigen {
    /// Of the symmetric `matrix`, `[dim, dim]`; `None` when it is not finite or the iteration fails.
    pub(super) fn of(matrix: &[f64], dim: usize) -> Option<Eigen> {
        if !matrix.iter().all(|x| x.is_finite()) {
            return None;
        }
        let mut vectors = Mat::zeros(dim, dim);
        let mut values = Diag::zeros(dim);
        let scratch =
            self_adjoint_evd_scratch::<f64>(dim, ComputeEigenvectors::Yes, Par::Seq, Default::default());
        self_adjoint_evd(
            MatRef::from_row_major_slice(matrix, dim, dim),
            values.as_mut(),
            Some(vectors.as_mut()),
            Par::Seq,
            MemStack::new(&mut MemBuffer::new(scratch)),
            Default::default(),
        )
        .ok()?;
        // They come in ascending order.
        let mut eigen = Eigen { values: Vec::with_capacity(dim), vectors: Vec::with_capacity(dim * dim) };
        for i in (0..dim).rev() {
            let vector = vectors.col(i);
            let largest = vector.iter().fold(0.0f64, |most, &x| if x.abs() > most.abs() { x } else { most });
            eigen.values.push(values.column_vector()[i]);
            eigen.vectors.extend(vector.iter().map(|x| if largest < 0.0 { -x } else { *x }));
        }
        Some(eigen)
    }
}

/// Square root of `moment` (`[dim, dim]`, scaled to trace `dim`) plus `regularisation` times the identity, and the
/// inverse of that root. Of the identity where the moment is not finite or 0.
pub(super) fn root(moment: &[f32], dim: usize, regularisation: f64) -> [Vec<f64>; 2] {
    let trace: f64 = moment.iter().step_by(dim + 1).map(|&x| f64::from(x)).sum();
    let scale = dim as f64 / trace;
    let scaled: Vec<f64> = moment.iter().map(|&x| f64::from(x) * scale).collect();
    let flat = || {
        let mut identity = vec![0.0; dim * dim];
        identity.iter_mut().step_by(dim + 1).for_each(|x| *x = 1.0);
        Eigen { values: vec![1.0; dim], vectors: identity }
    };
    let eigen =
        if scale.is_finite() && scale > 0.0 { Eigen::of(&scaled, dim) } else { None }.unwrap_or_else(flat);
    [0.5, -0.5].map(|power| {
        let mut weighted = vec![0.0; dim * dim];
        for (i, (value, vector)) in eigen.values.iter().zip(eigen.vectors.chunks_exact(dim)).enumerate() {
            // A moment has no negative eigenvalue but by rounding.
            let weight = (value.max(0.0) + regularisation).powf(power);
            weighted.iter_mut().skip(i).step_by(dim).zip(vector).for_each(|(x, v)| *x = weight * v);
        }
        product64(&weighted, &eigen.vectors, dim, dim, dim)
    })
}

/// The inverse of `matrix`, `[dim, dim]`, by elimination with row pivots; `None` when it has none or is not finite.
pub(super) fn inverse(matrix: &[f64], dim: usize) -> Option<Vec<f64>> {
    let wide = 2 * dim;
    let mut rows = vec![0.0; dim * wide];
    for (i, (row, from)) in rows.chunks_exact_mut(wide).zip(matrix.chunks_exact(dim)).enumerate() {
        row[..dim].copy_from_slice(from);
        row[dim + i] = 1.0;
    }
    let largest = matrix.iter().fold(0.0f64, |most, x| most.max(x.abs()));
    let mut pivot_row = vec![0.0; wide];
    for i in 0..dim {
        let size = |row: usize| rows[row * wide + i].abs();
        let best = (i..dim).fold(i, |best, row| if size(row) > size(best) { row } else { best });
        let pivot = rows[best * wide + i];
        if !(pivot.is_finite() && pivot.abs() > largest * 1e-12) {
            return None;
        }
        pivot_row.copy_from_slice(&rows[best * wide..][..wide]);
        rows.copy_within(i * wide..(i + 1) * wide, best * wide);
        pivot_row.iter_mut().for_each(|x| *x /= pivot);
        for (r, row) in rows.chunks_exact_mut(wide).enumerate() {
            if r == i {
                row.copy_from_slice(&pivot_row);
                continue;
            }
            let factor = row[i];
            if factor != 0.0 {
                // Columns before this one are those of the identity by now.
                row[i..].iter_mut().zip(&pivot_row[i..]).for_each(|(x, p)| *x -= factor * p);
            }
        }
    }
    let inverse: Vec<f64> = rows.chunks_exact(wide).flat_map(|row| &row[dim..]).copied().collect();
    inverse.iter().all(|x| x.is_finite()).then_some(inverse)
}

/// Turns the `dim`-vectors `vectors` among themselves by a random rotation.
pub(super) fn mix(vectors: &mut [f64], dim: usize, random: &mut ChaCha8Rng) {
    let count = vectors.len() / dim;
    let rotation = rotation(count, random);
    let mixed: Vec<f64> = product64(&rotation, vectors, count, count, dim);
    vectors.copy_from_slice(&mixed);
}

/// A random orthogonal matrix, `[count, count]`: Gaussian rows made orthonormal, each twice to lose no digits.
fn rotation(count: usize, random: &mut ChaCha8Rng) -> Vec<f64> {
    // Twelve uniform numbers less 6 are as good as Gaussian here, and need no function whose bits a library may change.
    let mut gaussian = || (0..12).map(|_| f64::from(random.next_u32())).sum::<f64>() / 2f64.powi(32) - 6.0;
    let mut rows: Vec<f64> = Vec::with_capacity(count * count);
    while rows.len() < count * count {
        let mut row: Vec<f64> = (0..count).map(|_| gaussian()).collect();
        for _ in 0..2 {
            for before in rows.chunks_exact(count) {
                let along: f64 = before.iter().zip(&row).map(|(a, b)| a * b).sum();
                row.iter_mut().zip(before).for_each(|(x, a)| *x -= along * a);
            }
        }
        let norm = row.iter().map(|x| x * x).sum::<f64>().sqrt();
        // A row that lies among those before by bad luck is drawn again.
        if norm > 1e-6 {
            rows.extend(row.iter().map(|x| x / norm));
        }
    }
    rows
}

/// `a · b` for `a` of `[m, k]` and `b` of `[k, n]`.
pub(super) fn product64(a: &[f64], b: &[f64], m: usize, k: usize, n: usize) -> Vec<f64> {
    let mut out = vec![0.0; m * n];
    let product = MatMut::from_row_major_slice_mut(&mut out, m, n);
    let (a, b) = (MatRef::from_row_major_slice(a, m, k), MatRef::from_row_major_slice(b, k, n));
    matmul(product, Accum::Replace, a, b, 1.0, Par::Seq);
    out
}

/// `rowsᵀ · rows` for rows of `[count, dim]`.
pub(super) fn gram64(rows: &[f64], count: usize, dim: usize) -> Vec<f64> {
    let mut out = vec![0.0; dim * dim];
    let product = MatMut::from_row_major_slice_mut(&mut out, dim, dim);
    let rows = MatRef::from_row_major_slice(rows, count, dim);
    matmul(product, Accum::Replace, rows.transpose(), rows, 1.0, Par::Seq);
    out
}

/// `rows · matrix` for rows of `[n, dim]` and a matrix of `[dim, dim]`.
pub(super) fn transform(rows: &[f32], matrix: &[f32], dim: usize, out: &mut [f32]) {
    let count = rows.len() / dim;
    matmul(
        MatMut::from_column_major_slice_mut(out, dim, count),
        Accum::Replace,
        MatRef::from_column_major_slice(matrix, dim, dim),
        MatRef::from_column_major_slice(rows, dim, count),
        1.0,
        Par::Seq,
    );
}

/// Mean of `row · rowᵀ` over rows of `[n, dim]`.
pub(super) fn second_moment(rows: &[f32], dim: usize) -> Vec<f64> {
    let count = rows.len() / dim;
    let mut out = vec![0.0f32; dim * dim];
    let columns = MatRef::from_column_major_slice(rows, dim, count);
    let product = MatMut::from_column_major_slice_mut(&mut out, dim, dim);
    matmul(product, Accum::Replace, columns, columns.transpose(), 1.0 / count as f32, Par::Seq);
    out.iter().map(|&x| f64::from(x)).collect()
}

/// Mean of `a · bᵀ` over pairs of rows of `[n, dims.0]` and `[n, dims.1]`.
pub(super) fn cross_moment(a: &[f32], b: &[f32], dims: (usize, usize)) -> Vec<f32> {
    let count = a.len() / dims.0;
    let mut out = vec![0.0; dims.0 * dims.1];
    let a = MatRef::from_column_major_slice(a, dims.0, count);
    let b = MatRef::from_column_major_slice(b, dims.1, count);
    let product = MatMut::from_row_major_slice_mut(&mut out, dims.0, dims.1);
    matmul(product, Accum::Replace, a, b.transpose(), 1.0 / count as f32, Par::Seq);
    out
}

/// Sum of the squares, in eight parts that are added up last.
pub(crate) fn squared_norm(x: &[f32]) -> f64 {
    let (eights, rest) = x.as_chunks::<8>();
    let mut sums = [0.0f64; 8];
    for eight in eights {
        sums.iter_mut().zip(eight).for_each(|(sum, &x)| *sum += f64::from(x) * f64::from(x));
    }
    sums.iter_mut().zip(rest).for_each(|(sum, &x)| *sum += f64::from(x) * f64::from(x));
    sums.iter().sum()
}

/// Squared distance of two vectors, in parts as [`squared_norm`].
pub(crate) fn squared_distance(a: &[f32], b: &[f32]) -> f64 {
    let ((eights, rest), (others, other_rest)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    let mut sums = [0.0f64; 8];
    let mut add = |a: &[f32], b: &[f32]| {
        for (sum, (&a, &b)) in sums.iter_mut().zip(a.iter().zip(b)) {
            let off = f64::from(a) - f64::from(b);
            *sum += off * off;
        }
    };
    eights.iter().zip(others).for_each(|(a, b)| add(a, b));
    add(rest, other_rest);
    sums.iter().sum()
}

/// `f32` of every element.
pub(super) fn narrowed(matrix: &[f64]) -> Vec<f32> {
    matrix.iter().map(|&x| x as f32).collect()
}
