//! Which tau each position and KV head is answered with.

/// An answer under way: one position and KV head, as read with one tau.
#[derive(Clone, Copy, Debug)]
pub struct Attempt<'a> {
    /// Index of the position in the batch.
    pub position: usize,
    /// The KV head.
    pub kv_head: usize,
    /// The tau that was read with.
    pub tau: f32,
    /// Predicted relative error of each query head of the group.
    pub predicted: &'a [f32],
    /// What the position and KV head has read so far, with all attempts, as a share of its sealed rows at 16 bits. It counts
    /// what [`TauRule::bytes_share_max`] does.
    pub bytes_share: f64,
}

/// What becomes of an attempt.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Next {
    /// It is the answer.
    Accept,
    /// It is tried again with this tau, which must be lower.
    Lower(f32),
    /// Every row is read.
    Exact,
}

/// Chooses the taus of a call. It is asked from several threads, in no fixed order, so it may not learn from its answers
/// during the call.
pub trait TauRule: Sync {
    /// The tau of the first attempt; `None` reads every row at once.
    fn start(&self, position: usize, kv_head: usize) -> Option<f32>;

    /// What becomes of an attempt.
    fn next(&self, attempt: &Attempt<'_>) -> Next;

    /// Most bytes of index and rows that a position and KV head may touch, as a share of its sealed rows at 16 bits.
    /// Where the next step would exceed it, tau is raised first. It does not count rows that no summary stands for,
    /// and centroids are scored whatever it says.
    fn bytes_share_max(&self) -> Option<f64> {
        None
    }

    /// Most bytes of codes and full rows that the call may fetch from disk, over all positions and KV heads: whole 4 KiB pages
    /// that are not in memory, of which every position and KV head may fetch an even part. Where what was chosen lies on
    /// more, rows are left to coarser resolutions. Summaries and sketches are read whatever it says, and so are rows that no
    /// summary stands for; the latter count.
    fn disk_bytes_max(&self) -> Option<u64> {
        None
    }
}

/// The same tau for all, with caps if asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FixedTau {
    tau: f32,
    bytes_share_max: Option<f64>,
    disk_bytes_max: Option<u64>,
}

impl FixedTau {
    /// One tau for every position and KV head. 0 reads every row.
    pub fn new(tau: f64) -> Self {
        FixedTau { tau: tau as f32, bytes_share_max: None, disk_bytes_max: None }
    }

    /// Caps the bytes; see [`TauRule::bytes_share_max`].
    pub fn capped(mut self, bytes_share_max: f64) -> Self {
        self.bytes_share_max = Some(bytes_share_max);
        self
    }

    /// Caps the bytes that come from disk; see [`TauRule::disk_bytes_max`].
    pub fn from_disk(mut self, bytes_max: u64) -> Self {
        self.disk_bytes_max = Some(bytes_max);
        self
    }
}

impl TauRule for FixedTau {
    fn start(&self, _position: usize, _kv_head: usize) -> Option<f32> {
        (self.tau > 0.0).then_some(self.tau)
    }

    fn next(&self, _attempt: &Attempt<'_>) -> Next {
        Next::Accept
    }

    fn bytes_share_max(&self) -> Option<f64> {
        self.bytes_share_max
    }

    fn disk_bytes_max(&self) -> Option<u64> {
        self.disk_bytes_max
    }
}
