//! `longwave eval --cache`: the decode steps of a trace run through the policies of the device's block cache.
//!
//! The recorded queries are consecutive positions, so they are decode steps of the text. Each asks every layer what it would read;
//! the clusters and rows named are looked up in caches that all layers share, one for each kind of block, and then the policy decides
//! what comes in. Nothing is computed on a device.

use super::layer::Layer;
use crate::method::{IndexKind, MethodName, Shares};
use crate::output;
use crate::progress;
use anyhow::{Result, ensure};
use longwave::{Budget, Dtype, Kernels, Method, RowId, TensorView};
use longwave_gpu::cache::{BlockId, CacheReport, Directory, Policy, Scored, policies};
use serde::Serialize;

/// Rows of a slot that clusters are kept in. Single rows have slots of their own size.
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
    slot_rows: u32,
}

/// Blocks of one kind that a trace's steps ask for under one budget.
struct Steps {
    kind: Kind,
    /// Per step, over all layers.
    scored: Vec<Vec<Scored>>,
}

/// All that they ask for.
struct Asked {
    kinds: Vec<Steps>,
    /// Bytes of the keys and values of all layers and KV heads.
    bytes: usize,
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
            let asked = Asked::ask(layers, steps, &budget)?;
            for of_kind in &asked.kinds {
                for policy in policies() {
                    table.push(of_kind.run(policy, &budget, (share, asked.bytes), layers.len()));
                }
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

impl Asked {
    fn ask(layers: &[Layer<'_>], steps: usize, budget: &Budget) -> Result<Asked> {
        let bar = progress::bar("planning", layers.len());
        let index = IndexKind::of(budget);
        let full = layers.first().map_or(0, Layer::full_row_bytes);
        let kind = |name, row_bytes, slot_rows| Kind { name, row_bytes, slot_rows };
        let kinds = match (budget.method(), layers.first()) {
            (Method::Longwave, Some(layer)) => vec![
                kind("codes", layer.coded_row_bytes()?, SLOT_ROWS),
                kind("row_codes", layer.code_bytes(), 1),
                kind("rows", full, 1),
            ],
            _ => vec![kind("clusters", full, SLOT_ROWS)],
        };
        let kinds = kinds.into_iter().map(|kind| Steps { kind, scored: vec![Vec::new(); steps] });
        let mut asked = Asked { kinds: kinds.collect(), bytes: 0 };
        for layer in layers {
            for step in 0..steps {
                for (of_kind, scored) in asked.kinds.iter_mut().zip(layer.scored(index, step, budget)?) {
                    of_kind.scored[step].extend(scored);
                }
            }
            asked.bytes += layer.sealed_rows(index)? * full;
            bar.inc(1);
        }
        bar.finish_and_clear();
        Ok(asked)
    }
}

impl Steps {
    fn run(
        &self,
        policy: Box<dyn Policy>,
        budget: &Budget,
        (share, bytes): (f64, usize),
        layers: usize,
    ) -> Row {
        let Kind { name, row_bytes, slot_rows } = self.kind;
        let slots = (share * bytes as f64 / (row_bytes * slot_rows as usize) as f64) as usize;
        let mut directory = Directory::new(policy, slots, slot_rows, row_bytes);
        for (step, scored) in self.scored.iter().enumerate() {
            directory.step(step as u64, scored);
        }
        let report: CacheReport = directory.report();
        let label = super::Label::of(budget);
        Row {
            method: budget.method().to_string(),
            budget: label.budget,
            block: name,
            policy: directory.policy(),
            cache_share: share,
            slots,
            layers,
            steps: self.scored.len(),
            hit_ratio: report.hit_ratio(),
            row_hit_ratio: report.row_hit_ratio(),
            bytes_wanted: report.rows_wanted * row_bytes as u64,
            bytes_moved: report.bytes_moved,
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
    /// Every cluster of the layer with its softmax share at recorded query `step`, those that `budget` reads marked; and for the
    /// ladder the rows that it reads in codes and in full, each with its part of its cluster's share.
    fn scored(&self, kind: IndexKind, step: usize, budget: &Budget) -> Result<[Vec<Scored>; 3]> {
        let (trace, snapshot) = (self.trace, self.snapshot(kind));
        let (group, dim) = (trace.query_heads / trace.kv_heads, trace.key_dim);
        let queries = self.query(step);
        let plan = snapshot.explain(
            self.number,
            &TensorView::token_major(queries, 1, trace.query_heads, dim),
            budget,
        )?;
        let scaled: Vec<f32> = queries.iter().map(|q| q * snapshot.model().scale).collect();
        let [mut all, mut codes, mut rows] = [(); 3].map(|()| Vec::new());
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
                        segment: number as u64,
                        number: cluster as u32,
                    };
                    all.push(Scored { block, rows: bounds[1] - bounds[0], score: 0.0, wanted: false });
                }
            }
            share(&scores, group, &mut all[first..]);
            let of = &head.rows;
            let coded = [&of.key_halves, &of.key_codes, &of.value_halves, &of.value_codes];
            codes.extend(self.rows_scored(kind, head.kv_head, &coded, &all[first..])?);
            rows.extend(self.rows_scored(kind, head.kv_head, &[&of.keys, &of.values], &all[first..])?);
            for id in &head.read {
                let named = |scored: &&mut Scored| {
                    scored.block.segment == u64::from(id.segment) && scored.block.number == id.cluster
                };
                if let Some(scored) = all[first..].iter_mut().find(named) {
                    scored.wanted = true;
                }
            }
        }
        Ok([all, codes, rows])
    }

    /// The rows in either list, with their parts of their clusters' shares.
    fn rows_scored(
        &self,
        kind: IndexKind,
        kv_head: usize,
        lists: &[&Vec<RowId>],
        clusters: &[Scored],
    ) -> Result<Vec<Scored>> {
        let mut rows: Vec<RowId> = lists.iter().flat_map(|list| list.iter()).copied().collect();
        rows.sort_unstable();
        rows.dedup();
        let mut scored = Vec::with_capacity(rows.len());
        let segments = self.snapshot(kind).segments(self.number)?;
        for of_segment in rows.chunk_by(|a, b| a.segment == b.segment) {
            let segment = of_segment[0].segment;
            let Some(index) = segments[segment as usize].index()? else { continue };
            let offsets = index.head(kv_head)?.offsets;
            let first = clusters.partition_point(|cluster| cluster.block.segment < u64::from(segment));
            for row in of_segment {
                let cluster = &clusters[first + offsets.partition_point(|&start| start <= row.row) - 1];
                let block = BlockId { number: row.row, ..cluster.block };
                let score = cluster.score / cluster.rows as f32;
                scored.push(Scored { block, rows: 1, score, wanted: true });
            }
        }
        Ok(scored)
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
        Ok(self.code_bytes() + bytes.div_ceil(rows.max(1)))
    }

    /// Bytes of a row's key code and value code.
    fn code_bytes(&self) -> usize {
        self.trace.key_dim / 2 + self.trace.value_dim / 2 + 4
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
