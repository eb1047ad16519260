//! One position and KV head under way: its attempts, and what they cost together.

use super::answer::{MeanSums, Rough, RowValues, Steady};
use super::clusters::Clusters;
use super::disk::Fetches;
use super::head::{Head, Ladders};
use super::predict::Prediction;
use super::read::Reader;
use super::select::Gains;
use super::slope::Slopes;
use super::softcap::Softcap;
use super::steps::{Accepted, Step};
use super::touched::{Touched, sketch_bytes};
use super::zone::Zone;
use crate::error::Error;
use crate::importance::equal_share;
use crate::plan::{ClusterId, HeadPlan, PlannedRows};
use crate::report::{Operator, Timings, Traffic};
use crate::view::{LayerView, QueryBatch};
use crate::work::{HeadQueries, Reading, Source, pieces, read_piece, reading};
use longwave_kernels::codec::record_len;
use longwave_kernels::{AttentionState, Kernels, rotate};
use std::cell::RefCell;
use std::time::Instant;

/// The finished answer of one position and KV head.
pub(super) struct Unit {
    /// `[group, value_dim]`.
    pub(super) output: Vec<f32>,
    pub(super) lse: Vec<f32>,
    pub(super) predicted: Vec<f32>,
    pub(super) plan: HeadPlan,
    pub(super) tail_rows: u64,
    /// 0 where every row was read.
    pub(super) tau: f32,
    pub(super) capped: bool,
    pub(super) attempts: u64,
    /// Demoted clusters that would have been opened.
    pub(super) kept_closed: u64,
    /// Clusters that held an important row, numbered through the head, ascending; `None` where nobody asks, or every row
    /// was read.
    pub(super) important: Option<Vec<u32>>,
    pub(super) timings: Timings,
}

/// Tau, and how far it gives way to a cap on the bytes.
#[derive(Clone, Copy)]
pub(super) struct Threshold {
    pub(super) tau: f32,
    pub(super) bytes_max: Option<u64>,
    pub(super) raised: bool,
}

/// A cap raises tau by this factor until it holds.
const RAISE: f32 = std::f32::consts::SQRT_2;
/// Above this tau nothing is opened or read.
const TAU_MAX: f32 = 1e6;

impl Threshold {
    pub(super) fn of(tau: f32) -> Self {
        Threshold { tau, bytes_max: None, raised: false }
    }

    /// Raises tau until `bytes` at it is no more than the quarters `quarters` of what the cap leaves beside `fixed`.
    pub(super) fn raise(&mut self, fixed: u64, quarters: u64, mut bytes: impl FnMut(f32) -> u64) {
        let Some(bytes_max) = self.bytes_max else { return };
        let allowed = bytes_max.saturating_sub(fixed) / 4 * quarters;
        while self.tau < TAU_MAX && bytes(self.tau) > allowed {
            (self.tau, self.raised) = (self.tau * RAISE, true);
        }
    }
}

/// One position and KV head under way.
pub(super) struct Call<'a, 'v> {
    pub(super) reader: Reader<'a, 'v>,
    pub(super) steady: Steady,
    /// Rows that are read one by one in any case.
    plain: Reading,
    pub(super) timings: Timings,
    pub(super) room: Room,
    /// Where what comes from disk is capped.
    pub(super) fetches: Option<Fetches<'a, 'v>>,
    /// Its position in the batch, and its KV head.
    pub(super) unit: (usize, usize),
    pub(super) at: Step,
}

/// Everything that a call works in. A thread keeps it from call to call, so that no call has to ask for memory whose rows are in
/// memory; where several wait for the disk, each has its own.
#[derive(Default)]
pub(super) struct Room {
    pub(super) clusters: Clusters,
    pub(super) zone: Zone,
    pub(super) touched: Touched,
    /// Sums over the means of the clusters that are not opened, of those that are, and over what rows read in full take
    /// from the latter.
    pub(super) closed: MeanSums,
    pub(super) opened: MeanSums,
    pub(super) taken: MeanSums,
    /// Clusters that have such rows, and what these take, as a weight: planes for each head of the group.
    pub(super) taking: Vec<u32>,
    pub(super) less: Vec<f32>,
    /// What opened clusters weigh, a plane for each head, and all clusters of each segment; and what of the latter rests on
    /// mean values, both `[segments, group]`.
    pub(super) opened_weights: Vec<f32>,
    pub(super) weights: Vec<f32>,
    pub(super) on_mean: Vec<f32>,
    /// Squared distances of the opened clusters' means to the answer, by head and by cluster.
    pub(super) distances: Vec<f32>,
    pub(super) off: Vec<f32>,
    pub(super) gains: Gains,
    /// Whether a row of an opened cluster was read.
    pub(super) changed: Vec<bool>,
    pub(super) values: RowValues,
    pub(super) slopes: Slopes,
    pub(super) prediction: Prediction,
}

/// Rooms that a thread keeps.
const ROOMS_MAX: usize = 2;

thread_local! {
    static ROOMS: RefCell<Vec<Room>> = const { RefCell::new(Vec::new()) };
}

impl Drop for Call<'_, '_> {
    fn drop(&mut self) {
        let room = std::mem::take(&mut self.room);
        // A thread that ends has nothing to keep, and one that has taken up calls while it waited for others no use for all.
        let _ = ROOMS.try_with(|rooms| {
            let mut rooms = rooms.borrow_mut();
            if rooms.len() < ROOMS_MAX {
                rooms.push(room);
            }
        });
    }
}

impl<'a, 'v: 'a> Call<'a, 'v> {
    /// Reads the rows that are exact in any case and scores the centroids.
    pub(super) fn open(
        kernels: &'a Kernels,
        view: &'a LayerView<'v>,
        batch: &QueryBatch<'_>,
        ladders: &'a Ladders<'v>,
        unit: (usize, usize),
        scratch: &mut Vec<f32>,
    ) -> Result<Self, Error> {
        let (position, kv_head) = unit;
        let mut timings = Timings::default();
        let mut started = Instant::now();
        let queries = HeadQueries::gather(view, batch, kv_head, position..position + 1);
        let fetches = ladders.disk.as_ref();
        let mut fetches = fetches.map(|disk| Fetches::new(disk, view, &ladders.numbers, unit));
        if let Some(fetches) = &mut fetches {
            fetches.count(queries.span, &ladders.plain)?;
        }
        let mut state = AttentionState::new(queries.heads, view.shape.value_dim);
        let plain = ladders.plain.iter().flat_map(|segment| pieces(kv_head, Source::Segment(segment)));
        for piece in plain.chain(view.blocks.iter().flat_map(|block| pieces(kv_head, Source::Block(block)))) {
            read_piece(kernels, view, &queries, &piece, &mut state, scratch)?;
        }
        let plain = reading(view, kv_head, queries.span, &ladders.plain)?;
        let steady = Steady::new(view, state, kv_head);
        timings.add(Operator::Tail, started.elapsed());

        started = Instant::now();
        let head = Head::open(kernels, view, ladders, &queries, kv_head)?;
        let mut room = ROOMS.with(|rooms| rooms.borrow_mut().pop()).unwrap_or_default();
        let softcap = Softcap(view.scoring.softcap);
        room.clusters.score(kernels, &head, &queries, softcap, &steady);
        room.clusters.demote(&head, &ladders.demoted(view, kv_head));
        room.touched.clear();
        room.zone.sharing = ladders.sharing;
        timings.add(Operator::Score, started.elapsed());
        let reader = Reader { kernels, view, head, queries, kv_head, ahead: fetches.is_none() };
        let at = Step::default();
        Ok(Call { reader, steady, plain, timings, room, fetches, unit, at })
    }

    /// The finished answer.
    pub(super) fn finish(mut self, accepted: Accepted) -> Unit {
        let Accepted { mut answer, predicted, threshold, attempts, traffic } = accepted;
        let started = Instant::now();
        rotate(&mut answer.output, self.reader.view.shape.value_dim, true);
        let tops = answer.total.iter().zip(&self.room.clusters.top);
        let lse = tops.map(|(total, top)| top + total.ln()).collect();
        let plan = self.plan(traffic);
        let important = self.reader.view.watched.then(|| self.important(&answer));
        self.timings.add(Operator::Estimate, started.elapsed());
        Unit {
            output: answer.output,
            lse,
            predicted,
            plan,
            tail_rows: self.plain.tail_rows,
            tau: if self.reader.head.clusters == 0 { 0.0 } else { threshold.tau },
            capped: threshold.raised || self.fetches.as_ref().is_some_and(|fetches| fetches.is_cut),
            attempts,
            kept_closed: self.room.clusters.kept_closed,
            important,
            timings: self.timings,
        }
    }

    /// The clusters that hold a row of more than an equal share of a head's softmax, or may hold one.
    fn important(&self, answer: &Rough) -> Vec<u32> {
        let (clusters, zone, head) = (&self.room.clusters, &self.room.zone, &self.reader.head);
        let (group, share) = (head.group, equal_share(self.reader.queries.span.oldest));
        let mut opened = zone.opened.iter().enumerate().peekable();
        let mut held = |segment, cluster: usize| {
            let number = opened.next_if(|(_, opened)| opened.cluster == cluster).map(|(number, _)| number);
            (0..group).any(|g| {
                let least = share * answer.total[g];
                number.map_or_else(
                    || clusters.row_at_most(segment, cluster, g) > least,
                    |number| zone.holds_above(number, (g, group), least),
                )
            })
        };
        let mut important = Vec::new();
        for segment in &head.segments {
            important.extend(segment.clusters().filter(|&cluster| held(segment, cluster)).map(|c| c as u32));
        }
        important
    }

    /// Opens clusters. Centroid scores of earlier attempts are used again.
    pub(super) fn open_clusters(&mut self, threshold: &mut Threshold) {
        let started = Instant::now();
        let (kernels, head, steady) = (self.reader.kernels, &self.reader.head, &self.steady);
        let Room { clusters, closed, .. } = &mut self.room;
        let fixed = Self::fixed(&self.reader.view.shape, head).bytes();
        let record = record_len(self.reader.view.shape.value_dim) as u64;
        threshold.raise(fixed, 1, |tau| clusters.means_wanted(tau) * record);
        clusters.read_means(kernels, head, threshold.tau);
        clusters.probe(kernels, head, steady);
        clusters.open(threshold.tau);
        threshold.raise(fixed, 2, |tau| {
            clusters.open(tau);
            clusters.means_wanted(tau) * record + sketch_bytes(head, &clusters.opened)
        });
        clusters.close(kernels, head, self.reader.view.shape.value_dim, closed);
        self.timings.add(Operator::Plan, started.elapsed());
    }

    /// Scans the sketches of the opened clusters.
    pub(super) fn scan(&mut self) -> Result<(), Error> {
        let started = Instant::now();
        let softcap = Softcap(self.reader.view.scoring.softcap);
        let Room { clusters, zone, .. } = &mut self.room;
        zone.scan(self.reader.kernels, softcap, &self.reader.head, clusters)?;
        self.timings.add(Operator::Scan, started.elapsed());
        Ok(())
    }

    /// Reads every row, after `attempts` attempts that did not meet their bound.
    pub(super) fn read_all(mut self, attempts: u64, scratch: &mut Vec<f32>) -> Result<Unit, Error> {
        let started = Instant::now();
        let (view, kv_head) = (self.reader.view, self.reader.kv_head);
        if let Some(fetches) = &mut self.fetches {
            fetches.count(self.reader.queries.span, &view.segments)?;
        }
        let mut state = AttentionState::new(self.reader.queries.heads, view.shape.value_dim);
        let segments = view.segments.iter().flat_map(|&s| pieces(kv_head, Source::Segment(s)));
        for piece in segments.chain(view.blocks.iter().flat_map(|b| pieces(kv_head, Source::Block(b)))) {
            read_piece(self.reader.kernels, view, &self.reader.queries, &piece, &mut state, scratch)?;
        }
        // What the rows of a segment with a ladder are decoded with was read to score its clusters.
        let of_plain = self.plain.summaries;
        self.plain = reading(view, kv_head, self.reader.queries.span, &view.segments)?;
        self.plain.summaries = of_plain;
        let steady = Steady::new(view, state, kv_head);
        let mut output = steady.output;
        rotate(&mut output, view.shape.value_dim, true);
        // What attempts had read of the rows is read again: in full, or as codes where these are all there is.
        self.room.touched.forget_rows(&self.reader.head);
        self.room.zone.clear();
        let mut plan = self.plan(Self::traffic(&view.shape, &self.reader.head, &self.room.touched));
        plan.rows_estimated = 0;
        self.timings.add(Operator::Read, started.elapsed());
        Ok(Unit {
            output,
            lse: steady.lse,
            predicted: vec![0.0; self.reader.queries.heads],
            plan,
            tail_rows: self.plain.tail_rows,
            tau: 0.0,
            capped: false,
            attempts: attempts + 1,
            kept_closed: 0,
            important: None,
            timings: self.timings,
        })
    }

    /// What was read: the zone is what the answer rests on, the bytes are those of all attempts, of which `traffic` are those of
    /// what was touched.
    pub(super) fn plan(&self, traffic: Traffic) -> HeadPlan {
        let Room { zone, touched, .. } = &self.room;
        let [coded, full] = touched.coded_and_full();
        let mut traffic = self.plain.all() + traffic;
        traffic.pages += self.pages(touched);
        let opened = zone.opened.iter().map(|opened| ClusterId {
            segment: opened.segment as u32,
            cluster: (opened.cluster - self.reader.head.segments[opened.segment].first) as u32,
        });
        HeadPlan {
            position: self.reader.queries.span.oldest,
            kv_head: self.reader.kv_head,
            clusters: self.reader.head.clusters,
            read: opened.collect(),
            estimated: Vec::new(),
            rows: PlannedRows::default(),
            rows_scanned: zone.rows as u64,
            rows_coded: coded,
            rows_read: full,
            rows_estimated: (self.reader.head.rows - zone.rows) as u64,
            rows_plain: self.plain.sealed_rows,
            traffic,
        }
    }
}

impl Steady {
    /// Finishes the rows that are read exactly; learned sink logits are among them.
    fn new(view: &LayerView<'_>, mut state: AttentionState, kv_head: usize) -> Self {
        let (heads, dim) = (state.heads(), view.shape.value_dim);
        if !view.scoring.sink_logits.is_empty() {
            for local in 0..heads {
                state.absorb_logit(local, view.scoring.sink_logits[kv_head * heads + local]);
            }
        }
        let (mut output, mut lse) = (vec![0.0; heads * dim], vec![0.0; heads]);
        state.finish(&mut output, &mut lse);
        rotate(&mut output, dim, false);
        Steady { lse, output }
    }
}
