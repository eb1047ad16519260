//! What the ladder's columns are built with.

use super::basis::Basis;
use super::linear::gram64;

/// Second moment of the queries of the heads that share a KV head.
#[derive(Clone, Debug, PartialEq)]
pub struct Moment {
    /// Elements of a query.
    pub dim: usize,
    /// Queries that were averaged; 0 when nothing is known.
    pub positions: u32,
    /// Mean of `q · qᵀ`, `[dim, dim]`, with the queries already scaled as for attention. Its size has no influence, its
    /// shape alone has.
    pub matrix: Vec<f32>,
}

impl Moment {
    /// The moment of a head of which no query is known: all directions weigh the same.
    pub fn identity(dim: usize) -> Moment {
        let mut matrix = vec![0.0; dim * dim];
        matrix.iter_mut().step_by(dim + 1).for_each(|x| *x = 1.0);
        Moment { dim, positions: 0, matrix }
    }

    /// The mean over `queries`, `[n, dim]`, already scaled; the identity where there are none.
    ///
    /// # Panics
    /// If `dim` is 0 or `queries` are not whole queries.
    pub fn from_queries(queries: &[f32], dim: usize) -> Moment {
        assert!(
            dim > 0 && queries.len().is_multiple_of(dim),
            "{} elements are no queries of {dim}",
            queries.len()
        );
        let count = queries.len() / dim;
        if count == 0 {
            return Moment::identity(dim);
        }
        let rows: Vec<f64> = queries.iter().map(|&x| f64::from(x)).collect();
        let sums = gram64(&rows, count, dim);
        let matrix = sums.iter().map(|sum| (sum / count as f64) as f32).collect();
        Moment { dim, positions: u32::try_from(count).unwrap_or(u32::MAX), matrix }
    }
}

/// Where the moments came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MomentSource {
    /// Nothing was known.
    Identity,
    /// Queries of the model in other contexts.
    Profile,
    /// Queries of the context itself.
    Context,
}

impl MomentSource {
    /// The number that stands for it in a segment.
    pub const fn code(self) -> u16 {
        match self {
            MomentSource::Identity => 0,
            MomentSource::Profile => 1,
            MomentSource::Context => 2,
        }
    }

    /// What a number stands for.
    pub const fn from_code(code: u16) -> Option<MomentSource> {
        match code {
            0 => Some(MomentSource::Identity),
            1 => Some(MomentSource::Profile),
            2 => Some(MomentSource::Context),
            _ => None,
        }
    }
}

/// What the ladder's columns of a segment are built with.
#[derive(Clone, Copy, Debug)]
pub struct LadderInput<'a> {
    /// The moment of each KV head.
    pub moments: &'a [Moment],
    /// The basis of each KV head, when an earlier segment of the layer has fixed them.
    pub bases: Option<&'a [Basis]>,
    /// Where the moments came from.
    pub source: MomentSource,
    /// Whether the segment says by itself how its values follow its keys, also where there are bases. A short one had
    /// better follow an earlier one: what it would say is less sure, and costs it more bytes a row.
    pub slopes: bool,
}
