//! What a clustering is asked for.

/// How the rows of one (segment, layer, KV head) are clustered.
///
/// The options are written into every segment they built, so that an index says how it was made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ClusterOptions {
    /// Rows per cluster aimed at: `max(1, rows / tokens_per_cluster)` clusters are asked for. At least 1.
    pub tokens_per_cluster: u32,
    /// Rounds of assignment and update before the final assignment. With 0, rows go to the evenly strided start.
    pub iterations: u32,
    /// Clusters with more rows than this multiple of the mean cluster size are split, and rows far from the rest of their
    /// cluster become clusters of their own, alone or, where they are many, with each other, and all are lined up so that near ones
    /// follow each other; `None` leaves clusters whole and as k-means has numbered them. At least 1.
    pub split_factor: Option<f32>,
    /// Seed of the generator that re-seeds empty clusters.
    pub seed: u64,
}

impl ClusterOptions {
    /// Options of the resolution ladder: 32 tokens a cluster, 6 iterations, clusters over 4 times the mean split.
    pub const fn ladder() -> Self {
        Self { tokens_per_cluster: 32, iterations: 6, split_factor: Some(4.0), seed: 0 }
    }

    /// Options of RetroInfer's published index: 16 tokens a cluster, 10 iterations, no splitting.
    pub const fn retroinfer() -> Self {
        Self { tokens_per_cluster: 16, iterations: 10, split_factor: None, seed: 0 }
    }

    /// The same for a segment with a ladder whose first row lies at `position` of its context: clusters of twice as many tokens from
    /// 16,384 on, and of four times as many from 131,072 on.
    ///
    /// Every call reads all centroids, the more of them the longer a context is, while the rows that matter to an answer are about as
    /// many in a long context as in a short one.
    pub fn at(self, position: u64) -> Self {
        let larger = match position {
            ..16_384 => 1,
            16_384..131_072 => 2,
            131_072.. => 4,
        };
        Self { tokens_per_cluster: self.tokens_per_cluster.saturating_mul(larger), ..self }
    }

    /// Checks the ranges that the fields' documentation states.
    ///
    /// # Errors
    /// Names the field that is out of range and what it held.
    pub fn check(&self) -> Result<(), OptionsError> {
        if self.tokens_per_cluster == 0 {
            return Err(OptionsError::TokensPerCluster);
        }
        match self.split_factor {
            Some(factor) if !(factor.is_finite() && factor >= 1.0) => Err(OptionsError::SplitFactor(factor)),
            _ => Ok(()),
        }
    }
}

impl Default for ClusterOptions {
    fn default() -> Self {
        Self::ladder()
    }
}

/// A clustering option out of its range.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum OptionsError {
    /// `tokens_per_cluster` was 0.
    #[error("tokens_per_cluster must be at least 1, found 0")]
    TokensPerCluster,
    /// `split_factor` was below 1 or not finite.
    #[error("split_factor must be a finite number of at least 1, found {0}")]
    SplitFactor(f32),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clusters_grow_with_the_position_and_with_nothing_else() {
        let options = ClusterOptions { tokens_per_cluster: 24, seed: 5, ..ClusterOptions::ladder() };
        let at = |position| options.at(position).tokens_per_cluster;
        assert_eq!([0, 16_383, 16_384, 131_071, 131_072, u64::MAX].map(at), [24, 24, 48, 48, 96, 96]);
        assert_eq!(ClusterOptions { tokens_per_cluster: 24, ..options.at(20_000) }, options);
        let most = ClusterOptions { tokens_per_cluster: u32::MAX, ..options };
        assert_eq!(most.at(20_000), most);
    }

    #[test]
    fn check_names_the_field() {
        let good = ClusterOptions::default();
        assert_eq!(good.check(), Ok(()));
        assert_eq!(ClusterOptions::retroinfer().check(), Ok(()));
        let none = ClusterOptions { tokens_per_cluster: 0, ..good };
        assert_eq!(none.check(), Err(OptionsError::TokensPerCluster));
        let small = ClusterOptions { split_factor: Some(0.5), ..good };
        assert_eq!(small.check(), Err(OptionsError::SplitFactor(0.5)));
        let nan = ClusterOptions { split_factor: Some(f32::NAN), ..good };
        assert!(matches!(nan.check(), Err(OptionsError::SplitFactor(_))));
    }
}
