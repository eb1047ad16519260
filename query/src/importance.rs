//! Which clusters held an important row: CORM's measure (arXiv 2404.15949). A row is important to a query that gives it
//! more than an equal share of its softmax, one by the number of rows that it sees.
//!
//! The ladder knows it from what it looked at: weights of the rows of opened clusters, upper estimates for the others.
//! Answers that come about otherwise have their keys scored once more.

use crate::error::Error;
use crate::report::Answer;
use crate::view::{LayerSegment, LayerView, QueryBatch};
use crate::work::{HeadQueries, PIECE_ROWS};
use longwave_kernels::Kernels;
use rayon::prelude::*;

/// What a query at a position gives to each row that it sees, if to all alike.
pub(crate) fn equal_share(position: u64) -> f32 {
    1.0 / (position + 1) as f32
}

/// Fills in which clusters were important, where the view asks for it and the method does not know.
pub(crate) fn complete(
    kernels: &Kernels,
    view: &LayerView<'_>,
    queries: &QueryBatch<'_>,
    mut answer: Answer,
) -> Result<Answer, Error> {
    if view.watched && answer.important.is_none() {
        let of_segment = |segment: &&LayerSegment| by_rows(kernels, view, queries, &answer.lse, segment);
        answer.important = Some(view.segments.par_iter().map(of_segment).collect::<Result<_, Error>>()?);
    }
    Ok(answer)
}

/// All clusters of every segment: where nothing is known, nothing is to be forgotten.
pub(crate) fn every_cluster(view: &LayerView<'_>) -> Result<Vec<Vec<u32>>, Error> {
    let of_segment = |segment: &&LayerSegment| -> Result<Vec<u32>, Error> {
        Ok((0..segment.ladder()?.map_or(0, |ladder| ladder.postings().clusters() as u32)).collect())
    };
    view.segments.iter().map(of_segment).collect()
}

/// The important clusters of a segment, by the scores of all its rows. Rows that a query does not see yet count as if it
/// did: what lies so near to it is not to be forgotten.
fn by_rows(
    kernels: &Kernels,
    view: &LayerView<'_>,
    queries: &QueryBatch<'_>,
    lse: &[f32],
    segment: &LayerSegment,
) -> Result<Vec<u32>, Error> {
    let Some(ladder) = segment.ladder()? else { return Ok(Vec::new()) };
    let (postings, group, mut important) = (ladder.postings(), view.shape.group(), Vec::new());
    for head in 0..view.shape.kv_heads {
        let mine = HeadQueries::gather(view, queries, head, 0..queries.positions);
        let least: Vec<f32> = (0..queries.positions)
            .flat_map(|position| {
                let share = equal_share(queries.first_position + position as u64).ln();
                let first = position * view.shape.query_heads + head * group;
                lse[first..first + group].iter().map(move |lse| lse + share)
            })
            .collect();
        let mut above = Vec::with_capacity(segment.rows());
        for start in (0..segment.rows()).step_by(PIECE_ROWS) {
            let rows = start..segment.rows().min(start + PIECE_ROWS);
            let mut scores = vec![0.0; rows.len() * mine.heads];
            segment.read_rows(&view.shape, head, rows, |first, keys, _| {
                let scores =
                    &mut scores[first * mine.heads..][..keys.len() / view.shape.key_dim * mine.heads];
                kernels.scores(&mine.data, mine.heads, view.shape.key_dim, keys, scores);
            })?;
            if let Some(cap) = view.scoring.softcap {
                kernels.softcap(&mut scores, cap);
            }
            let rows = scores.chunks_exact(mine.heads);
            above.extend(rows.map(|scores| scores.iter().zip(&least).any(|(score, least)| score > least)));
        }
        let first = postings.first_cluster(head) as u32;
        for (cluster, bounds) in (first..).zip(postings.offsets(head)?.windows(2)) {
            if above[bounds[0] as usize..bounds[1] as usize].contains(&true) {
                important.push(cluster);
            }
        }
    }
    Ok(important)
}
