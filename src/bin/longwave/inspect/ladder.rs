//! What a segment says of its resolution ladder.

use anyhow::Result;
use longwave::LayerSegment;
use longwave::index::ladder::MomentSource;
use serde::Serialize;

/// Keys are a contract: see docs/cli.md.
#[derive(Serialize)]
pub(super) struct Ladder {
    /// Where the query moments came from that keys were clustered and coded with.
    pub(super) moment_source: &'static str,
    /// Query positions that the moments were made of, the most of any head.
    pub(super) moment_positions: u32,
    /// Digest of the bases of all heads: equal in segments that share them.
    pub(super) basis_digest: String,
    /// One entry a KV head.
    pub(super) heads: Vec<LadderHead>,
}

#[derive(Serialize)]
pub(super) struct LadderHead {
    pub(super) kv_head: usize,
    /// Dimensions of a sketch with 4, 2, 1 and no bits.
    pub(super) sketch_dims: [usize; 4],
    /// Mean squared norm of a key less its coded centroid, in coordinates, over the rows.
    pub(super) key_spread_mean: f64,
    /// Mean squared distance of a value to the coded mean of its cluster, over the rows.
    pub(super) value_spread_mean: f64,
}

impl Ladder {
    pub(super) fn gather(segment: &LayerSegment) -> Result<Option<Ladder>> {
        let Some(ladder) = segment.ladder()? else { return Ok(None) };
        let heads = (0..ladder.postings().kv_heads()).map(|kv_head| {
            let head = ladder.head(kv_head)?;
            let dims = |bits| head.bits.iter().filter(|&&found| found == bits).count();
            let clusters: Vec<_> = (0..head.cluster_count()).map(|cluster| head.cluster(cluster)).collect();
            let rows: f64 = clusters.iter().map(|cluster| f64::from(cluster.count)).sum();
            let over_rows = |spread: fn(&longwave::index::ladder::ClusterSummary) -> f32| {
                clusters.iter().map(|c| f64::from(c.count) * f64::from(spread(c))).sum::<f64>() / rows
            };
            Ok(LadderHead {
                kv_head,
                sketch_dims: [4, 2, 1, 0].map(dims),
                key_spread_mean: over_rows(|cluster| cluster.key_spread),
                value_spread_mean: over_rows(|cluster| cluster.value_spread),
            })
        });
        Ok(Some(Ladder {
            moment_source: match ladder.moment_source() {
                MomentSource::Identity => "identity",
                MomentSource::Profile => "profile",
                MomentSource::Context => "context",
            },
            moment_positions: ladder.moment_positions(),
            basis_digest: format!("{:016x}", ladder.digest()),
            heads: heads.collect::<Result<_>>()?,
        }))
    }
}
