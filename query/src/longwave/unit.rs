//! One position and KV head under way: its attempts, and what they cost together.

use super::head::{Head, Ladders};
use super::predict;
use super::probe::{Clusters, Rough, Steady};
use super::rows::Zone;
use super::softcap::Softcap;
use super::touched::Touched;
use crate::error::Error;
use crate::plan::{ClusterId, HeadPlan};
use crate::report::{Operator, Timings, Traffic};
use crate::rule::{Attempt, Next, TauRule};
use crate::view::{LayerView, QueryBatch, Shape};
use crate::work::{HeadQueries, Reading, Source, pieces, read_piece, reading};
use longwave_index::ladder::columns::CLUSTER_SIZE;
use longwave_kernels::codec::record_len;
use longwave_kernels::{AttentionState, Kernels, rotate};
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
    pub(super) timings: Timings,
}

/// Tau, and how far it gives way to a cap on the bytes.
pub(super) struct Threshold {
    pub(super) tau: f32,
    bytes_max: Option<u64>,
    raised: bool,
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
    fn raise(&mut self, fixed: u64, quarters: u64, mut bytes: impl FnMut(f32) -> u64) {
        let Some(bytes_max) = self.bytes_max else { return };
        let allowed = bytes_max.saturating_sub(fixed) / 4 * quarters;
        while self.tau < TAU_MAX && bytes(self.tau) > allowed {
            (self.tau, self.raised) = (self.tau * RAISE, true);
        }
    }
}

/// One position and KV head under way.
pub(super) struct Call<'a, 'v> {
    kernels: &'a Kernels,
    pub(super) view: &'a LayerView<'v>,
    queries: HeadQueries,
    pub(super) kv_head: usize,
    pub(super) head: Head<'a>,
    pub(super) clusters: Clusters,
    pub(super) steady: Steady,
    pub(super) touched: Touched,
    /// Rows that are read one by one in any case.
    plain: Reading,
    timings: Timings,
}

impl<'a, 'v: 'a> Call<'a, 'v> {
    /// Reads the rows that are exact in any case and scores the centroids.
    pub(super) fn open(
        kernels: &'a Kernels,
        view: &'a LayerView<'v>,
        batch: &QueryBatch<'_>,
        ladders: &'a Ladders<'v>,
        (position, kv_head): (usize, usize),
        scratch: &mut Vec<f32>,
    ) -> Result<Self, Error> {
        let mut timings = Timings::default();
        let mut started = Instant::now();
        let queries = HeadQueries::gather(view, batch, kv_head, position..position + 1);
        let mut state = AttentionState::new(queries.heads, view.shape.value_dim);
        let plain = ladders.plain.iter().flat_map(|segment| pieces(kv_head, Source::Segment(segment)));
        for piece in plain.chain(view.blocks.iter().flat_map(|block| pieces(kv_head, Source::Block(block)))) {
            read_piece(kernels, view, &queries, &piece, &mut state, scratch)?;
        }
        let plain = reading(view, kv_head, queries.span, &ladders.plain)?;
        let steady = Steady::new(view, state, kv_head);
        timings.add(Operator::Tail, started.elapsed());

        started = Instant::now();
        let head = Head::open(view, ladders, &queries, kv_head)?;
        let mut scores = Vec::with_capacity(head.clusters * queries.heads);
        for segment in &head.segments {
            scores.extend(segment.score_centroids(kernels, &head.bases, &queries, view.shape.key_dim));
        }
        let softcap = Softcap(view.scoring.softcap);
        let clusters = Clusters::new(kernels, &head, scores, softcap, &steady, view.shape.value_dim);
        let touched = Touched::new(&head);
        timings.add(Operator::Score, started.elapsed());
        Ok(Call { kernels, view, queries, kv_head, head, clusters, steady, touched, plain, timings })
    }

    /// Answers one position and KV head, trying again with lower taus for as long as `rule` says so.
    pub(super) fn answer(
        kernels: &'a Kernels,
        view: &'a LayerView<'v>,
        batch: &QueryBatch<'_>,
        ladders: &'a Ladders<'v>,
        unit: (usize, usize),
        rule: &dyn TauRule,
        scratch: &mut Vec<f32>,
    ) -> Result<Unit, Error> {
        let (position, kv_head) = unit;
        let mut call = Self::open(kernels, view, batch, ladders, unit, scratch)?;
        let Some(start) = rule.start(position, kv_head) else { return call.read_all(0, scratch) };
        let bytes_max = rule.bytes_share_max().map(|share| {
            let row_bytes = 2 * (view.shape.key_dim + view.shape.value_dim);
            let rows: usize = view.segments.iter().map(|segment| segment.rows()).sum();
            (share * (rows * row_bytes) as f64) as u64
        });
        let mut threshold = Threshold { tau: start, bytes_max, raised: false };
        for attempts in 1.. {
            let (zone, mut answer) = call.attempt(&mut threshold)?;
            let started = Instant::now();
            let predicted = call.predicted(&zone, &answer);
            let attempt = Attempt { position, kv_head, tau: threshold.tau, predicted: &predicted };
            // Without a summary in use the answer is exact already.
            let next = if call.head.clusters == 0 { Next::Accept } else { rule.next(&attempt) };
            call.timings.add(Operator::Estimate, started.elapsed());
            match next {
                Next::Lower(tau) if tau > 0.0 && tau < threshold.tau => threshold.tau = tau,
                Next::Lower(_) | Next::Exact => return call.read_all(attempts, scratch),
                Next::Accept => {
                    let started = Instant::now();
                    rotate(&mut answer.output, view.shape.value_dim, true);
                    let lse = call.lse(&zone);
                    let plan = call.plan(&zone);
                    call.timings.add(Operator::Estimate, started.elapsed());
                    return Ok(Unit {
                        output: answer.output,
                        lse,
                        predicted,
                        plan,
                        tail_rows: call.plain.tail_rows,
                        tau: if call.head.clusters == 0 { 0.0 } else { threshold.tau },
                        capped: threshold.raised,
                        attempts,
                        timings: call.timings,
                    });
                }
            }
        }
        unreachable!("the attempts end where tau no longer falls")
    }

    /// Chooses and reads with one tau. Centroid scores and value means of earlier attempts are used again.
    fn attempt(&mut self, threshold: &mut Threshold) -> Result<(Zone, Rough), Error> {
        let mut zone = self.zone(threshold)?;
        let answer = self.read(&mut zone, threshold)?;
        self.touched.add(&self.clusters, &zone);
        Ok((zone, answer))
    }

    /// Opens clusters and scans their sketches.
    pub(super) fn zone(&mut self, threshold: &mut Threshold) -> Result<Zone, Error> {
        let mut started = Instant::now();
        let (head, steady) = (&self.head, &self.steady);
        let above = self.clusters.mass_above(self.queries.heads);
        let fixed = self.fixed_traffic().bytes();
        let record = record_len(self.view.shape.value_dim) as u64;
        let means = |tau| Clusters::means_wanted(&above, tau) * record;
        threshold.raise(fixed, 1, means);
        self.clusters.read_means(head, &above, threshold.tau);
        self.clusters.probe(head, steady, threshold.tau);
        let clusters = &mut self.clusters;
        threshold.raise(fixed, 2, |tau| {
            clusters.probe(head, steady, tau);
            let probed = (0..head.clusters).filter(|&cluster| clusters.probed[cluster]);
            means(tau) + probed.map(|cluster| head.sketch_bytes(cluster)).sum::<u64>()
        });
        self.timings.add(Operator::Plan, started.elapsed());
        started = Instant::now();
        let zone = Zone::scan(self.kernels, self.view, &self.head, &self.clusters)?;
        self.timings.add(Operator::Scan, started.elapsed());
        Ok(zone)
    }

    /// Chooses and reads rows.
    fn read(&mut self, zone: &mut Zone, threshold: &mut Threshold) -> Result<Rough, Error> {
        let Call { kernels, view, queries, kv_head, head, clusters, steady, timings, .. } = self;
        let shape = view.shape;
        let fixed = Self::fixed(&shape, head).bytes();
        let mut started = Instant::now();
        zone.select_keys(head, clusters, steady, threshold.tau);
        threshold.raise(fixed, 3, |tau| {
            zone.select_keys(head, clusters, steady, tau);
            Self::chosen_bytes(&shape, head, clusters, zone)
        });
        timings.add(Operator::Select, started.elapsed());
        started = Instant::now();
        zone.read_keys(kernels, view, head, clusters, queries, *kv_head)?;
        timings.add(Operator::Read, started.elapsed());
        started = Instant::now();
        zone.select_values(head, clusters, steady, threshold.tau);
        threshold.raise(fixed, 4, |tau| {
            zone.select_values(head, clusters, steady, tau);
            Self::chosen_bytes(&shape, head, clusters, zone)
        });
        timings.add(Operator::Select, started.elapsed());
        started = Instant::now();
        let answer = zone.read_values(kernels, view, head, clusters, steady, *kv_head)?;
        timings.add(Operator::Read, started.elapsed());
        Ok(answer)
    }

    /// Bytes of means, sketches and rows that an attempt reads.
    fn chosen_bytes(shape: &Shape, head: &Head<'_>, clusters: &Clusters, zone: &Zone) -> u64 {
        let mut touched = Touched::new(head);
        touched.add(clusters, zone);
        Self::traffic(shape, head, &touched).bytes() - Self::fixed(shape, head).bytes()
    }

    /// Reads every row, after `attempts` attempts that did not meet their bound.
    fn read_all(mut self, attempts: u64, scratch: &mut Vec<f32>) -> Result<Unit, Error> {
        let started = Instant::now();
        let (view, kv_head) = (self.view, self.kv_head);
        let mut state = AttentionState::new(self.queries.heads, view.shape.value_dim);
        let segments = view.segments.iter().flat_map(|&s| pieces(kv_head, Source::Segment(s)));
        for piece in segments.chain(view.blocks.iter().flat_map(|b| pieces(kv_head, Source::Block(b)))) {
            read_piece(self.kernels, view, &self.queries, &piece, &mut state, scratch)?;
        }
        self.plain = reading(view, kv_head, self.queries.span, &view.segments)?;
        let steady = Steady::new(view, state, kv_head);
        let mut output = steady.output;
        rotate(&mut output, view.shape.value_dim, true);
        // Rows that attempts had read in full are among those read now.
        self.touched.forget_full_rows();
        let mut plan = self.plan(&Zone::default());
        plan.rows_estimated = 0;
        self.timings.add(Operator::Read, started.elapsed());
        Ok(Unit {
            output,
            lse: steady.lse,
            predicted: vec![0.0; self.queries.heads],
            plan,
            tail_rows: self.plain.tail_rows,
            tau: 0.0,
            capped: false,
            attempts: attempts + 1,
            timings: self.timings,
        })
    }

    fn predicted(&self, zone: &Zone, answer: &Rough) -> Vec<f32> {
        let head = &self.head;
        let deviation = |cluster| head.segments[head.segment_of(cluster)].ladder.mean_deviation;
        predict::predicted_error(self.kernels, head, &self.clusters, zone, &deviation, answer)
    }

    fn lse(&self, zone: &Zone) -> Vec<f32> {
        let total = self.clusters.totals(&zone.cluster_weight, self.queries.heads);
        total.iter().zip(&self.clusters.top).map(|(total, top)| top + total.ln()).collect()
    }

    fn fixed_traffic(&self) -> Traffic {
        Self::fixed(&self.view.shape, &self.head)
    }

    /// What is read at any tau: centroids, counts and bases.
    fn fixed(shape: &Shape, head: &Head<'_>) -> Traffic {
        let clusters = head.clusters as u64;
        Traffic {
            centroids: clusters * record_len(shape.key_dim) as u64,
            counts: clusters * CLUSTER_SIZE as u64,
            bases: head.basis_bytes(shape.key_dim, shape.value_dim),
            ..Traffic::default()
        }
    }

    fn traffic(shape: &Shape, head: &Head<'_>, touched: &Touched) -> Traffic {
        let (rows, means) = (touched.count(), touched.means.iter().filter(|&&mean| mean).count() as u64);
        Traffic {
            keys: rows.keys * shape.key_bytes() as u64,
            values: rows.values * shape.value_bytes() as u64,
            value_means: means * record_len(shape.value_dim) as u64,
            sketches: touched.sketch_bytes(head),
            key_codes: rows.key_codes * record_len(shape.key_dim) as u64,
            value_codes: rows.value_codes * record_len(shape.value_dim) as u64,
            ..Self::fixed(shape, head)
        }
    }

    /// What was read: `zone` is what the answer rests on, the bytes are those of all attempts.
    pub(super) fn plan(&self, zone: &Zone) -> HeadPlan {
        let rows = self.touched.count();
        let mut traffic = self.plain.traffic + Self::traffic(&self.view.shape, &self.head, &self.touched);
        traffic.pages += self.pages(&self.touched);
        let opened = zone.opened.iter().map(|opened| ClusterId {
            segment: opened.segment as u32,
            cluster: (opened.cluster - self.head.segments[opened.segment].first) as u32,
        });
        HeadPlan {
            position: self.queries.span.oldest,
            kv_head: self.kv_head,
            clusters: self.head.clusters,
            read: opened.collect(),
            estimated: Vec::new(),
            rows_scanned: zone.key.len() as u64,
            rows_coded: rows.coded,
            rows_read: rows.full,
            rows_estimated: (self.head.rows() - zone.key.len()) as u64,
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
