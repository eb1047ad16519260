//! How far down the ladder answers went: what share of the clusters and rows they looked at, at each resolution. It is
//! what the time of a call depends on, so that synthetic rows are compared with recorded ones by it.

use longwave::Report;
use longwave_kernels::codec::record_len;

/// Shares of all sealed clusters and rows, over the KV heads of one layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub(crate) struct RungShares {
    /// Clusters whose value mean was read.
    pub(crate) means_share: f64,
    /// Rows whose sketches were scanned.
    pub(crate) zone_share: f64,
    /// Rows of which a key or a value was read as a code.
    pub(crate) coded_share: f64,
    /// Rows of which a key or a value was read in full.
    pub(crate) read_share: f64,
}

impl RungShares {
    /// Of a call; values have `value_dim` elements.
    pub(crate) fn of(report: &Report, value_dim: usize) -> RungShares {
        let sum = |of: fn(&longwave::PositionReport) -> u64| report.positions.iter().map(of).sum::<u64>();
        let rows = report.sealed_rows * report.positions.len() as u64;
        let share = |part: u64, whole: u64| if whole == 0 { 0.0 } else { part as f64 / whole as f64 };
        // Other methods read means of another kind.
        let means = if report.method == longwave::Method::Longwave { report.traffic.value_means } else { 0 };
        RungShares {
            means_share: share(means / record_len(value_dim) as u64, sum(|position| position.clusters)),
            zone_share: share(sum(|position| position.rows_scanned), rows),
            coded_share: share(sum(|position| position.rows_coded), rows),
            read_share: share(sum(|position| position.rows_read), rows),
        }
    }

    /// The mean of several.
    pub(crate) fn mean(all: impl Iterator<Item = RungShares>) -> RungShares {
        let (mut sum, mut count) = (RungShares::default(), 0.0);
        for shares in all {
            sum.means_share += shares.means_share;
            sum.zone_share += shares.zone_share;
            sum.coded_share += shares.coded_share;
            sum.read_share += shares.read_share;
            count += 1.0;
        }
        RungShares {
            means_share: sum.means_share / count,
            zone_share: sum.zone_share / count,
            coded_share: sum.coded_share / count,
            read_share: sum.read_share / count,
        }
    }

    /// Titles of the columns that [`RungShares::columns`] fills.
    pub(crate) const TITLES: &str = "  means    zone   coded    read";

    /// The shares in percent, as columns of a table.
    pub(crate) fn columns(&self) -> String {
        let shares = [self.means_share, self.zone_share, self.coded_share, self.read_share];
        shares.iter().map(|share| format!(" {:>6.2}%", 100.0 * share)).collect::<String>()[1..].to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn titles_stand_over_their_columns() {
        let shares = RungShares { means_share: 0.123, zone_share: 1.0, coded_share: 0.004, read_share: 0.0 };
        assert_eq!(shares.columns(), " 12.30% 100.00%   0.40%   0.00%");
        assert_eq!(shares.columns().len(), RungShares::TITLES.len());
    }

    #[test]
    fn a_mean_is_over_all_of_its_parts() {
        let one = RungShares { means_share: 0.5, zone_share: 0.25, coded_share: 0.125, read_share: 0.0625 };
        let mean = RungShares::mean([one, RungShares::default()].into_iter());
        assert_eq!(
            mean,
            RungShares { means_share: 0.25, zone_share: 0.125, coded_share: 0.0625, read_share: 0.03125 }
        );
    }
}
