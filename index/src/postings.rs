//! Where the clusters of a segment are, without their summaries.

use longwave_storage::{Error, Segment};

use crate::columns::{CLUSTER_HEADS, POSTINGS};
use crate::view::{corrupt, elements};

/// Which rows each cluster of a segment has. All offsets in it have been checked.
#[derive(Clone, Copy, Debug)]
pub struct Postings<'a> {
    rows: usize,
    cluster_heads: &'a [u32],
    postings: &'a [u32],
}

impl<'a> Postings<'a> {
    /// Reads the postings of a segment that has an index, and nothing else of it.
    pub(crate) fn read(segment: &'a Segment) -> Result<Self, Error> {
        let header = segment.header();
        let (kv_heads, rows) = (header.geometry.kv_heads as usize, header.rows as usize);
        let cluster_heads: &[u32] = elements(segment, CLUSTER_HEADS, kv_heads + 1)?;
        check_cluster_heads(segment, cluster_heads, rows)?;
        let clusters = cluster_heads[kv_heads] as usize;
        let postings = elements(segment, POSTINGS, clusters + kv_heads)?;
        let postings = Self { rows, cluster_heads, postings };
        for head in 0..kv_heads {
            check_offsets(segment, &postings, head)?;
        }
        Ok(postings)
    }

    /// Rows of each head.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// KV heads.
    pub fn kv_heads(&self) -> usize {
        self.cluster_heads.len() - 1
    }

    /// Clusters of all heads.
    pub fn clusters(&self) -> usize {
        self.first_cluster(self.kv_heads())
    }

    /// Clusters of the heads before `head`; the entry of its first one in a column of one entry per cluster.
    ///
    /// # Panics
    /// When `head` is more than the number of heads.
    pub fn first_cluster(&self, head: usize) -> usize {
        self.cluster_heads[head] as usize
    }

    /// Cluster `c` of KV head `head` is rows `offsets[c]..offsets[c + 1]` of it: clusters + 1 entries, strictly ascending
    /// from 0 to the rows of the segment.
    ///
    /// # Errors
    /// [`Error::Limit`] when there is no such head.
    pub fn offsets(&self, head: usize) -> Result<&'a [u32], Error> {
        if head >= self.kv_heads() {
            let limit = self.kv_heads() as u64 - 1;
            return Err(Error::Limit { what: "KV head".to_owned(), limit, found: head as u64 });
        }
        Ok(self.of(head))
    }

    /// Every head before this one has one offset more than it has clusters.
    pub(crate) fn of(&self, head: usize) -> &'a [u32] {
        &self.postings[self.first_cluster(head) + head..self.first_cluster(head + 1) + head + 1]
    }
}

/// Every head of a segment has rows, so it has at least one cluster, and none is empty.
fn check_cluster_heads(segment: &Segment, cluster_heads: &[u32], rows: usize) -> Result<(), Error> {
    let wrong = |at: usize, expected: String| {
        let column = segment.column(CLUSTER_HEADS)?;
        Err(corrupt(segment, column, at * 4, expected, cluster_heads[at]))
    };
    if cluster_heads[0] != 0 {
        return wrong(0, "0".to_owned());
    }
    for (head, bounds) in cluster_heads.windows(2).enumerate() {
        let (least, most) = (u64::from(bounds[0]) + 1, u64::from(bounds[0]) + rows as u64);
        if !(least..=most).contains(&u64::from(bounds[1])) {
            return wrong(head + 1, format!("{least} to {most}"));
        }
    }
    Ok(())
}

fn check_offsets(segment: &Segment, postings: &Postings<'_>, head: usize) -> Result<(), Error> {
    let offsets = postings.of(head);
    // At least two: a head has a cluster. Folding over all of them instead of stopping early is what vectorises.
    let ascending = offsets.iter().zip(&offsets[1..]).fold(true, |sound, (a, b)| sound & (a < b));
    if offsets[0] == 0 && ascending && offsets[offsets.len() - 1] as usize == postings.rows {
        return Ok(());
    }
    let column = segment.column(POSTINGS)?;
    let at = (postings.first_cluster(head) + head) * 4;
    let expected = format!("offsets of head {head} that ascend from 0 to {}", postings.rows);
    let found = match offsets.windows(2).find(|pair| pair[0] >= pair[1]) {
        Some(pair) => format!("{} before {}", pair[0], pair[1]),
        None => format!("{} to {}", offsets[0], offsets[offsets.len() - 1]),
    };
    Err(corrupt(segment, column, at, expected, found))
}
