//! `longwave eval --cache`: the decode steps of a trace run through the policies of the device's block cache.
//!
//! The recorded queries are consecutive positions, so they are decode steps of the text. Each asks every layer what it would read;
//! the clusters named are looked up in a cache that all layers share, and then the policy decides what comes in. Nothing is
//! computed on a device.

use super::layer::Layer;
use crate::method::{IndexKind, MethodName, Shares};
use crate::output;
use crate::progress;
use anyhow::{Result, ensure};
use longwave::{Budget, Dtype, Kernels, Method, TensorView};
use longwave_gpu::cache::{BlockId, CacheReport, Directory, Policy, Scored, policies};
use serde::Serialize;

/// Rows of a slot.
const SLOT_ROWS: u32 = 8;

/// A policy's figures over a trace.
#[derive(Serialize)]
struct Row {
    method: String,
    budget: String,
    block: &'static str,
    policy: &'static str,
    cache_share: f64,
    slots: usize,
    layers: usize,
    steps: usize,
    hit_ratio: f64,
    row_hit_ratio: f64,
    bytes_wanted: u64,
    bytes_moved: u64,
    admissions: u64,
    evictions: u64,
}

/// What a block holds.
#[derive(Clone, Copy)]
struct Kind {
    name: &'static str,
    row_bytes: usize,
}

/// All that a trace's steps ask for under one budget.
struct Steps {
    /// Per step, over all layers.
    scored: Vec<Vec<Scored>>,
    /// Rows of all layers and KV heads.
    rows: usize,
    /// Bytes of a coded row: sketch, key and value.
    coded_row: usize,
}

/// What is asked for.
pub(super) struct Request<'a> {
    /// Recorded queries of the trace, a step each.
    pub(super) steps: usize,
    /// Room of the cache as a share of the bytes of the layers' keys and values.
    pub(super) share: f64,
    pub(super) methods: &'a [MethodName],
    pub(super) tau: f64,
    pub(super) shares: &'a Shares,
    pub(super) json: bool,
}

/// Runs the steps of `layers` through every policy.
pub(super) fn run(layers: &[Layer<'_>], request: &Request<'_>) -> Result<()> {
    let Request { steps, share, methods, tau, shares, json } = *request;
    let mut table = Vec::new();
    for method in methods {
        for budget in method.budgets(&[tau], shares)? {
            let asked = Steps::ask(layers, steps, &budget)?;
            let full = layers.first().map_or(0, |layer| layer.full_row_bytes());
            let kind = match budget.method() {
                Method::Longwave => Kind { name: "codes", row_bytes: asked.coded_row },
                _ => Kind { name: "clusters", row_bytes: full },
            };
            for policy in policies() {
                table.push(asked.run(policy, &budget, kind, (share, full), layers.len()));
            }
        }
    }
    if json { output::print_lines(&table) } else { output::print(&shown(&table)) }
}

/// Refuses a share that no cache can have.
pub(super) fn check(share: f64) -> Result<()> {
    ensure!(share > 0.0 && share <= 1.0, "--cache: expected a share above 0 and up to 1, found {share}");
    Ok(())
}

impl Steps {
    fn ask(layers: &[Layer<'_>], steps: usize, budget: &Budget) -> Result<Steps> {
        let bar = progress::bar("planning", layers.len());
        let mut asked = Steps { scored: vec![Vec::new(); steps], rows: 0, coded_row: 0 };
        for layer in layers {
            let kind = IndexKind::of(budget);
            for (step, scored) in asked.scored.iter_mut().enumerate() {
                scored.extend(layer.scored(kind, step, budget)?);
            }
            asked.rows += layer.sealed_rows(kind)?;
            if kind == IndexKind::Ladder {
                asked.coded_row = layer.coded_row_bytes()?;
            }
            bar.inc(1);
        }
        bar.finish_and_clear();
        Ok(asked)
    }

    fn run(
        &self,
        policy: Box<dyn Policy>,
        budget: &Budget,
        kind: Kind,
        (share, full): (f64, usize),
        layers: usize,
    ) -> Row {
        let room = share * (self.rows * full) as f64;
        let slots = (room / (kind.row_bytes * SLOT_ROWS as usize) as f64) as usize;
        let mut directory = Directory::new(policy, slots, SLOT_ROWS);
        for (step, scored) in self.scored.iter().enumerate() {
            directory.step(step as u64, scored);
        }
        let report: CacheReport = directory.report();
        let label = super::Label::of(budget);
        Row {
            method: budget.method().to_string(),
            budget: label.budget,
            block: kind.name,
            policy: directory.policy(),
            cache_share: share,
            slots,
            layers,
            steps: self.scored.len(),
            hit_ratio: report.hit_ratio(),
            row_hit_ratio: report.row_hit_ratio(),
            bytes_wanted: report.rows_wanted * kind.row_bytes as u64,
            bytes_moved: report.rows_moved * kind.row_bytes as u64,
            admissions: report.admissions,
            evictions: report.evictions,
        }
    }
}

fn shown(table: &[Row]) -> String {
    let mut text = format!(
        "{:<11} {:<22} {:<9} {:<10} {:>6} {:>6} {:>9} {:>9} {:>12} {:>12} {:>10}\n",
        "method",
        "budget",
        "block",
        "policy",
        "slots",
        "steps",
        "hits",
        "row hits",
        "bytes wanted",
        "bytes moved",
        "evictions"
    );
    for row in table {
        text += &format!(
            "{:<11} {:<22} {:<9} {:<10} {:>6} {:>6} {:>9.4} {:>9.4} {:>12} {:>12} {:>10}\n",
            row.method,
            row.budget,
            row.block,
            row.policy,
            row.slots,
            row.steps,
            row.hit_ratio,
            row.row_hit_ratio,
            row.bytes_wanted,
            row.bytes_moved,
            row.evictions
        );
    }
    text
}

impl Layer<'_> {
    /// Every cluster of the layer with its softmax share at recorded query `step`, those that `budget` reads marked.
    fn scored(&self, kind: IndexKind, step: usize, budget: &Budget) -> Result<Vec<Scored>> {
        let (trace, snapshot) = (self.trace, self.snapshot(kind));
        let (group, dim) = (trace.query_heads / trace.kv_heads, trace.key_dim);
        let queries = self.query(step);
        let plan = snapshot.explain(
            self.number,
            &TensorView::token_major(queries, 1, trace.query_heads, dim),
            budget,
        )?;
        let scaled: Vec<f32> = queries.iter().map(|q| q * snapshot.model().scale).collect();
        let mut all = Vec::new();
        for head in &plan.heads {
            let mine = &scaled[head.kv_head * group * dim..][..group * dim];
            let first = all.len();
            let mut scores: Vec<f32> = Vec::new();
            for (number, segment) in snapshot.segments(self.number)?.into_iter().enumerate() {
                let Some(index) = segment.index()? else { continue };
                let of_head = index.head(head.kv_head)?;
                let start = scores.len();
                scores.resize(start + of_head.clusters() * group, 0.0);
                Kernels::get().scores(mine, group, dim, of_head.centroids, &mut scores[start..]);
                for (cluster, bounds) in of_head.offsets.windows(2).enumerate() {
                    let block = BlockId {
                        layer: self.number as u32,
                        kv_head: head.kv_head as u32,
                        segment: number as u32,
                        cluster: cluster as u32,
                    };
                    all.push(Scored { block, rows: bounds[1] - bounds[0], score: 0.0, wanted: false });
                }
            }
            share(&scores, group, &mut all[first..]);
            for id in &head.read {
                let named = |scored: &&mut Scored| {
                    scored.block.segment == id.segment && scored.block.cluster == id.cluster
                };
                if let Some(scored) = all[first..].iter_mut().find(named) {
                    scored.wanted = true;
                }
            }
        }
        Ok(all)
    }

    fn sealed_rows(&self, kind: IndexKind) -> Result<usize> {
        let rows: usize =
            self.snapshot(kind).segments(self.number)?.iter().map(|segment| segment.rows()).sum();
        Ok(rows * self.trace.kv_heads)
    }

    /// Bytes of a key and a value as they are stored.
    fn full_row_bytes(&self) -> usize {
        (self.trace.key_dim + self.trace.value_dim) * if self.dtype == Dtype::F32 { 4 } else { 2 }
    }

    /// Mean bytes of a row's sketch, key code and value code.
    fn coded_row_bytes(&self) -> Result<usize> {
        let (mut bytes, mut rows) = (0, 0);
        for segment in self.snapshot(IndexKind::Ladder).segments(self.number)? {
            let Some(ladder) = segment.ladder()? else { continue };
            for head in 0..self.trace.kv_heads {
                let head = ladder.head(head)?;
                bytes +=
                    (0..head.cluster_count()).map(|cluster| head.sketch_range(cluster).len()).sum::<usize>();
                rows += head.rows();
            }
        }
        let codes = self.trace.key_dim / 2 + self.trace.value_dim / 2 + 4;
        Ok(codes + bytes.div_ceil(rows.max(1)))
    }
}

/// Softmax shares of `[clusters, group]` scores, summed over the group.
fn share(scores: &[f32], group: usize, clusters: &mut [Scored]) {
    for head in 0..group {
        let of_head = || scores.iter().skip(head).step_by(group);
        let top = of_head().fold(f32::NEG_INFINITY, |top, &score| top.max(score));
        let total: f32 = of_head().map(|score| (score - top).exp()).sum();
        for (cluster, score) in clusters.iter_mut().zip(of_head()) {
            cluster.score += (score - top).exp() / total;
        }
    }
}
