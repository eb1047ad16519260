//! What is in which slot, and what comes and goes. Nothing here knows a device.

use super::policy::{Access, Policy};
use longwave_query::LayerSegment;
use std::collections::{BTreeSet, HashMap, HashSet};
use xxhash_rust::xxh3::xxh3_64;

/// A cluster or a row of a layer, as the unit that is kept or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockId {
    /// The layer.
    pub layer: u32,
    /// The KV head.
    pub kv_head: u32,
    /// What names the segment: see `segment_key`. Segments are merged and built again, and contexts share them, so that their place
    /// in a layer names none.
    pub segment: u64,
    /// Number of the cluster in the segment, or of the row, for this KV head.
    pub number: u32,
}

/// What the blocks of a cache hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowKind {
    /// Whole clusters of full rows.
    Clusters,
    /// The codes of one row.
    Codes,
    /// One full row.
    Full,
}

/// What names a segment in a [`BlockId`]: a hash (XXH3) of its identifier and its file's path in the store. The identifier alone is
/// that of the context that made it, which all segments of the context share.
pub fn segment_key(segment: &LayerSegment) -> u64 {
    let segment = segment.segment();
    xxh3_64(&[segment.header().id.as_slice(), segment.path().as_bytes()].concat())
}

/// A block that was scored in a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scored {
    /// The block.
    pub block: BlockId,
    /// Rows of the cluster.
    pub rows: u32,
    /// The planner's score.
    pub score: f32,
    /// Whether it was to be read.
    pub wanted: bool,
}

/// A block that is to be copied into its slots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admission {
    /// The block.
    pub block: BlockId,
    /// Its rows.
    pub rows: u32,
    /// Its slots, in the order of its rows.
    pub slots: Vec<u32>,
}

/// What a cache has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheReport {
    /// Blocks that were wanted, and of them those that were there.
    pub wanted: u64,
    /// Of the blocks wanted, those that were there.
    pub hits: u64,
    /// Rows of the blocks wanted.
    pub rows_wanted: u64,
    /// Rows of those that were there.
    pub rows_hit: u64,
    /// Blocks that came in.
    pub admissions: u64,
    /// Rows that came in.
    pub rows_moved: u64,
    /// Bytes of those.
    pub bytes_moved: u64,
    /// Blocks that left.
    pub evictions: u64,
}

impl CacheReport {
    /// Share of the blocks wanted that were there; 0 where none was wanted.
    pub fn hit_ratio(&self) -> f64 {
        if self.wanted == 0 { 0.0 } else { self.hits as f64 / self.wanted as f64 }
    }

    /// Share of the rows wanted that were there.
    pub fn row_hit_ratio(&self) -> f64 {
        if self.rows_wanted == 0 { 0.0 } else { self.rows_hit as f64 / self.rows_wanted as f64 }
    }
}

/// The blocks of a cache of fixed-size slots.
#[derive(Debug)]
pub struct Directory {
    policy: Box<dyn Policy>,
    slot_rows: u32,
    row_bytes: u64,
    slots: usize,
    free: Vec<u32>,
    resident: HashMap<BlockId, Vec<u32>>,
    pinned: HashSet<BlockId>,
    /// Of every block that was ever scored, there or not.
    priorities: HashMap<BlockId, Priority>,
    /// The resident blocks that may leave, the least worth first.
    order: BTreeSet<(Priority, BlockId)>,
    report: CacheReport,
}

/// A priority that has an order.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Priority(f64);

impl Eq for Priority {}

impl PartialOrd for Priority {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Priority {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

impl Directory {
    /// An empty cache of `slots` slots of `slot_rows` rows of `row_bytes` bytes each.
    ///
    /// # Panics
    /// If slots have no rows.
    pub fn new(policy: Box<dyn Policy>, slots: usize, slot_rows: u32, row_bytes: usize) -> Directory {
        assert!(slot_rows > 0, "slots without rows");
        Directory {
            policy,
            slot_rows,
            row_bytes: row_bytes as u64,
            slots,
            free: (0..slots as u32).rev().collect(),
            resident: HashMap::new(),
            pinned: HashSet::new(),
            priorities: HashMap::new(),
            order: BTreeSet::new(),
            report: CacheReport::default(),
        }
    }

    /// The slots of a block, in the order of its rows; `None` where it is not there.
    pub fn slots_of(&self, block: BlockId) -> Option<&[u32]> {
        self.resident.get(&block).map(Vec::as_slice)
    }

    /// Rows of a slot.
    pub fn slot_rows(&self) -> u32 {
        self.slot_rows
    }

    /// Slots in all.
    pub fn slot_count(&self) -> usize {
        self.slots
    }

    /// Slots that hold nothing.
    pub fn free_slots(&self) -> usize {
        self.free.len()
    }

    /// What happened so far.
    pub fn report(&self) -> CacheReport {
        self.report
    }

    /// The policy's name.
    pub fn policy(&self) -> &'static str {
        self.policy.name()
    }

    /// Keeps a block for good: it comes in now, and never leaves until it is [unpinned](Self::unpin). `None` where there is no
    /// room beside the other pinned ones; nothing is changed then.
    pub fn pin(&mut self, block: BlockId, rows: u32) -> Option<Admission> {
        if self.pinned.contains(&block) {
            return None;
        }
        if self.resident.contains_key(&block) {
            self.unlist(block);
            self.pinned.insert(block);
            return None;
        }
        let slots = self.make_room(self.slots_for(rows), None)?;
        self.pinned.insert(block);
        self.enter(block, slots.clone(), rows);
        Some(Admission { block, rows, slots })
    }

    /// Lets a pinned block leave again, as the least worth of all until it is wanted.
    pub fn unpin(&mut self, block: BlockId) {
        if self.pinned.remove(&block) {
            let priority = *self.priorities.entry(block).or_insert(Priority(f64::NEG_INFINITY));
            self.order.insert((priority, block));
        }
    }

    /// Takes out a block that could not be copied. Its slots are free again.
    pub fn discard(&mut self, block: BlockId) {
        self.pinned.remove(&block);
        self.unlist(block);
        self.free.extend(self.resident.remove(&block).unwrap_or_default());
    }

    /// Takes note of one step: what was wanted, and how the planner scored the rest. Returns the blocks that come in, into slots
    /// that are free or whose blocks have left.
    pub fn step(&mut self, step: u64, scored: &[Scored]) -> Vec<Admission> {
        for scored in scored.iter().filter(|scored| scored.wanted) {
            let (rows, is_there) = (u64::from(scored.rows), self.resident.contains_key(&scored.block));
            self.report.wanted += 1;
            self.report.rows_wanted += rows;
            if is_there {
                self.report.hits += 1;
                self.report.rows_hit += rows;
            }
        }
        for scored in scored {
            self.rank(step, scored);
        }
        let prefetches = self.policy.prefetches();
        let mut candidates: Vec<(Priority, &Scored)> = scored
            .iter()
            .filter(|scored| (scored.wanted || prefetches) && !self.resident.contains_key(&scored.block))
            .filter_map(|scored| Some((*self.priorities.get(&scored.block)?, scored)))
            .collect();
        candidates.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.block.cmp(&b.1.block)));
        let mut admissions = Vec::new();
        for (priority, scored) in candidates {
            if self.resident.contains_key(&scored.block) {
                continue;
            }
            // What comes next is worth no more: once there is no room for one, only smaller blocks would still fit.
            let Some(slots) = self.make_room(self.slots_for(scored.rows), Some(priority)) else { break };
            self.enter(scored.block, slots.clone(), scored.rows);
            self.order.insert((priority, scored.block));
            admissions.push(Admission { block: scored.block, rows: scored.rows, slots });
        }
        // A block that came in and left again for a better one in the same step is not copied.
        admissions.retain(|admission| self.resident.contains_key(&admission.block));
        admissions
    }

    fn slots_for(&self, rows: u32) -> usize {
        rows.div_ceil(self.slot_rows) as usize
    }

    fn rank(&mut self, step: u64, scored: &Scored) {
        let access = Access { step, score: scored.score, wanted: scored.wanted };
        let before = self.priorities.get(&scored.block).copied();
        let Some(priority) = self.policy.priority(before.map(|p| p.0), &access).map(Priority) else { return };
        if before == Some(priority) {
            return;
        }
        if self.resident.contains_key(&scored.block) && !self.pinned.contains(&scored.block) {
            self.unlist(scored.block);
            self.order.insert((priority, scored.block));
        }
        self.priorities.insert(scored.block, priority);
    }

    fn unlist(&mut self, block: BlockId) {
        if let Some(&priority) = self.priorities.get(&block) {
            self.order.remove(&(priority, block));
        }
    }

    /// Takes `count` free slots, after blocks worth less than `than` have left if it must be; all of them, without it.
    fn make_room(&mut self, count: usize, than: Option<Priority>) -> Option<Vec<u32>> {
        let leaving =
            || self.order.iter().take_while(|(priority, _)| than.is_none_or(|than| *priority < than));
        let (mut room, mut leave) = (self.free.len(), Vec::new());
        for &(priority, block) in leaving() {
            if room >= count {
                break;
            }
            room += self.resident[&block].len();
            leave.push((priority, block));
        }
        if room < count {
            return None;
        }
        for entry in leave {
            self.order.remove(&entry);
            self.free.extend(self.resident.remove(&entry.1).unwrap_or_default());
            self.report.evictions += 1;
        }
        Some(self.free.split_off(self.free.len() - count))
    }

    fn enter(&mut self, block: BlockId, slots: Vec<u32>, rows: u32) {
        self.resident.insert(block, slots);
        self.report.admissions += 1;
        self.report.rows_moved += u64::from(rows);
        self.report.bytes_moved += u64::from(rows) * self.row_bytes;
    }
}
