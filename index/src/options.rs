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
    /// cluster become clusters of their own; `None` leaves clusters whole. At least 1.
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
