//! What a model's queries look like, over all contexts of a store: their second moment, for the first segment of a
//! context of which no query is known yet.

use crate::model::ModelSpec;
use half::f16;
use longwave_index::ladder::Moment;
use longwave_storage::{Profile, ProfileLayer, ProfileShape};

/// What was learnt before counts for at most so many positions: with 128 from each context, the last 32 contexts count.
const POSITIONS_MAX: u32 = 4096;

/// Queries of one layer, `[query_heads, key_dim]` a position.
pub(crate) type NewQueries<'a> = (usize, Vec<&'a [f16]>);

pub(crate) fn shape(model: &ModelSpec) -> ProfileShape {
    ProfileShape {
        identity: model.digest(),
        layers: model.layers as u32,
        kv_heads: model.kv_heads as u32,
        key_dim: model.key_dim as u32,
    }
}

/// Takes queries into the profile as it was: a running mean, in which what was there counts for the positions behind
/// it, though for [`POSITIONS_MAX`] at most. Layers rise.
pub(crate) fn learnt(mut profile: Profile, new: &[NewQueries<'_>]) -> Profile {
    for (number, queries) in new.iter().filter(|(_, queries)| !queries.is_empty()) {
        let number = *number as u32;
        let at = profile.layers.partition_point(|layer| layer.layer < number);
        if profile.layers.get(at).is_none_or(|layer| layer.layer != number) {
            let elements = profile.shape.kv_heads as usize * profile.shape.triangle() as usize;
            let unknown = ProfileLayer { layer: number, positions: 0, moments: vec![0.0; elements] };
            profile.layers.insert(at, unknown);
        }
        let shape = profile.shape;
        learn_layer(&mut profile.layers[at], queries, &shape);
    }
    profile
}

fn learn_layer(layer: &mut ProfileLayer, queries: &[&[f16]], shape: &ProfileShape) {
    let (dim, heads) = (shape.key_dim as usize, shape.kv_heads as usize);
    let old = layer.positions.min(POSITIONS_MAX);
    let positions = old + queries.len() as u32;
    for (head, moment) in layer.moments.chunks_exact_mut(shape.triangle() as usize).enumerate() {
        let mut sums = vec![0.0f64; moment.len()];
        let mut count = 0usize;
        for position in queries {
            let group = position.len() / heads;
            for query in position[head * group..][..group].chunks_exact(dim) {
                add_outer(&mut sums, query);
                count += 1;
            }
        }
        let share = f64::from(positions - old) / f64::from(positions);
        for (mean, sum) in moment.iter_mut().zip(&sums) {
            *mean = (f64::from(*mean) * (1.0 - share) + sum / count.max(1) as f64 * share) as f32;
        }
    }
    layer.positions = positions;
}

/// Adds the upper triangle of `q · qᵀ`.
fn add_outer(sums: &mut [f64], query: &[f16]) {
    let query: Vec<f64> = query.iter().map(|x| x.to_f64()).collect();
    let mut sums = sums.iter_mut();
    for (row, a) in query.iter().enumerate() {
        // One sum for each column from the diagonal on.
        query[row..].iter().zip(&mut sums).for_each(|(b, sum)| *sum += a * b);
    }
}

/// The moments of a layer's KV heads; `None` where the profile knows no query of the layer.
pub(crate) fn moments(profile: &Profile, layer: usize, model: &ModelSpec) -> Option<Vec<Moment>> {
    let known = profile.layers.iter().find(|known| known.layer as usize == layer)?;
    let (dim, group) = (model.key_dim, (model.query_heads / model.kv_heads) as u32);
    let heads = known.moments.chunks_exact(profile.shape.triangle() as usize);
    let moment = |triangle: &[f32]| {
        let mut matrix = vec![0.0; dim * dim];
        let mut elements = triangle.iter();
        for row in 0..dim {
            for (column, x) in (row..dim).zip(&mut elements) {
                let scaled = x * model.scale * model.scale;
                (matrix[row * dim + column], matrix[column * dim + row]) = (scaled, scaled);
            }
        }
        Moment { dim, positions: known.positions.saturating_mul(group), matrix }
    };
    Some(heads.map(moment).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::tests::model;

    /// Queries of `model()`: 6 heads of 24 elements, all different.
    fn queries(seed: usize, positions: usize) -> Vec<Vec<f16>> {
        let element = |position: usize, i: usize| {
            let phase = (seed * 31 + position * 7 + i * i) as f32;
            f16::from_f32(phase.sin() * (1.0 + (i / 24) as f32))
        };
        (0..positions).map(|position| (0..6 * 24).map(|i| element(position, i)).collect()).collect()
    }

    fn empty() -> Profile {
        Profile { shape: shape(&model()), layers: Vec::new() }
    }

    fn learn(profile: Profile, layer: usize, queries: &[Vec<f16>]) -> Profile {
        learnt(profile, &[(layer, queries.iter().map(Vec::as_slice).collect())])
    }

    /// The moments that a context computes from the same queries.
    fn direct(queries: &[Vec<f16>]) -> Vec<Moment> {
        let head = |head: usize| {
            let group = queries.iter().flat_map(|all| &all[head * 48..][..48]);
            let scaled: Vec<f32> = group.map(|x| x.to_f32() * model().scale).collect();
            Moment::from_queries(&scaled, 24)
        };
        (0..3).map(head).collect()
    }

    fn assert_near(found: &[Moment], expected: &[Moment]) {
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(expected) {
            assert_eq!((found.dim, found.positions), (expected.dim, expected.positions));
            let largest = expected.matrix.iter().fold(0.0f32, |most, x| most.max(x.abs()));
            for (a, b) in found.matrix.iter().zip(&expected.matrix) {
                assert!((a - b).abs() < 1e-5 * largest, "{a} for {b}");
            }
        }
    }

    #[test]
    fn a_profile_gives_the_moment_of_what_it_learnt_whatever_the_parts() {
        let all = queries(1, 40);
        let parts = learn(learn(empty(), 1, &all[..9]), 1, &all[9..]);
        assert_near(&moments(&parts, 1, &model()).unwrap(), &direct(&all));
        assert!(moments(&parts, 0, &model()).is_none());
        let both = learn(parts, 0, &queries(2, 5));
        assert_eq!(both.layers.iter().map(|layer| layer.layer).collect::<Vec<_>>(), [0, 1]);
        assert_near(&moments(&both, 0, &model()).unwrap(), &direct(&queries(2, 5)));
        assert_near(&moments(&both, 1, &model()).unwrap(), &direct(&all));
    }

    #[test]
    fn old_content_counts_for_a_bounded_number_of_positions() {
        let old = queries(3, 1);
        let mut profile = learn(empty(), 0, &old);
        profile.layers[0].positions = 1_000_000;
        let before = profile.layers[0].moments[0];
        let new = queries(4, 1024);
        let profile = learn(profile, 0, &new);
        assert_eq!(profile.layers[0].positions, POSITIONS_MAX + 1024);
        // A fifth is new: 1024 positions beside 4096.
        let mean = direct(&new)[0].matrix[0] / (model().scale * model().scale);
        let expected = 0.8 * before + 0.2 * mean;
        assert!((profile.layers[0].moments[0] - expected).abs() < 1e-4 * expected.abs());
        assert!((before - mean).abs() > 0.01, "the two are told apart");
    }
}
