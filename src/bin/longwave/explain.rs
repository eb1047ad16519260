//! `longwave explain`: what one query would read, without reading it.
//!
//! The query is one of those that the context keeps as a sample. A snapshot places queries at its end, so the plan is
//! that of the sampled query asked at the context's last position.

use crate::method::{MethodName, Shares, TAUS};
use crate::opening::open_store;
use crate::output;
use anyhow::{Context as _, Result, bail};
use longwave::{Budget, ClusterId, HeadPlan, Plan, QueryBatch, Snapshot, TensorView, Traffic};
use longwave_gpu::Explained;
use longwave_gpu::placement::{Machine, PUBLISHED, Place};
use std::collections::BTreeMap;
use std::path::PathBuf;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Directory of the store.
    store: PathBuf,
    /// Name of the context.
    name: String,
    /// The layer that is asked.
    #[arg(long)]
    layer: usize,
    /// Which of the context's sampled queries is asked, by its position; the latest by default. The plan is for that
    /// query asked at the context's end.
    #[arg(long)]
    position: Option<u64>,
    /// The method that plans.
    #[arg(long, value_enum, default_value = "longwave")]
    method: MethodName,
    /// Threshold of `longwave`: a smaller one reads more and is more accurate.
    #[arg(long, default_value_t = TAUS[1])]
    tau: f64,
    /// Most bytes of codes and rows that `longwave` may fetch from disk: pages are looked at, and what is not in memory now counts.
    #[arg(long, conflicts_with = "machine")]
    disk_bytes: Option<u64>,
    #[command(flatten)]
    shares: Shares,
    /// Also says where clusters and rows would be read on a machine with a GPU whose caches are empty, and how long that should take:
    /// h100, a100 or rtx4090 (published bandwidths), or five numbers: GB/s of the link, the device and the CPU, microseconds of a
    /// launch and of a transfer.
    #[arg(long, value_name = "MACHINE", value_parser = machine)]
    machine: Option<Machine>,
    /// The plan as one JSON document, with every cluster.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let budgets = arguments.method.budgets(&[arguments.tau], &arguments.shares)?;
    let budget = match (*budgets.first().context("expected a budget")?, arguments.disk_bytes) {
        (Budget::Tau(tau), Some(bytes)) => crate::method::checked(vec![Budget::FromDisk { tau, bytes }])?[0],
        (_, Some(_)) => bail!("--disk-bytes is for the method longwave"),
        (budget, None) => budget,
    };
    let snapshot = open_store(&arguments.store)?.snapshot(&arguments.name)?;
    let layer = arguments.layer;
    let length = snapshot.length(layer)?;
    let (position, queries) = sampled(&snapshot, layer, arguments.position)?;
    let model = snapshot.model();
    let queries = TensorView::token_major(queries, 1, model.query_heads, model.key_dim);
    let plan = snapshot.explain(layer, &queries, &budget)?;
    let placed = arguments.machine.map(|machine| {
        let numbers: Vec<f32> =
            sampled(&snapshot, layer, arguments.position)?.1.iter().map(|q| q.to_f32()).collect();
        let batch = QueryBatch { data: &numbers, first_position: length - 1, positions: 1 };
        let nothing = |_, _| false;
        anyhow::Ok(Explained::new(
            &snapshot.view(layer)?,
            &batch,
            &budget,
            (layer as u32, machine),
            &nothing,
        )?)
    });
    let placed = placed.transpose()?;
    if arguments.json {
        return output::print_document(&Document::new(
            &snapshot,
            layer,
            position,
            length,
            &budget,
            (&plan, placed.as_ref()),
        ));
    }
    let shown = placed.as_ref().map_or_else(|| plan.to_string(), Explained::to_string);
    output::print(&format!(
        "context {}, layer {layer}: the query sampled at position {position}, asked at the context's end, position {}\n\
         budget {budget}\n{shown}\n",
        snapshot.name(),
        length - 1
    ))
}

/// The sampled query at `position`, or the latest.
fn sampled(snapshot: &Snapshot, layer: usize, position: Option<u64>) -> Result<(u64, &[half::f16])> {
    let samples = snapshot.sampled_queries(layer)?;
    let (Some((first, _)), Some((last, latest))) = (samples.first(), samples.last()) else {
        bail!("layer {layer} of context {} holds no sampled queries", snapshot.name());
    };
    let Some(position) = position else { return Ok((*last, latest)) };
    match samples.binary_search_by_key(&position, |(position, _)| *position) {
        Ok(at) => Ok((position, &samples[at].1)),
        Err(at) => {
            let nearest =
                samples[at.saturating_sub(1)..].iter().take(2).map(|(position, _)| position.to_string());
            bail!(
                "no query is sampled at position {position}; {} are, between {first} and {last}, nearest {}",
                samples.len(),
                nearest.collect::<Vec<_>>().join(" and ")
            )
        }
    }
}

/// The plan as JSON. Keys are a contract: see docs/cli.md.
#[derive(serde::Serialize)]
struct Document<'a> {
    context: &'a str,
    layer: usize,
    sampled_position: u64,
    position: u64,
    method: &'static str,
    budget: String,
    sealed_rows: u64,
    tail_rows: u64,
    bytes: u64,
    pages: u64,
    bytes_share: Option<f64>,
    row_form: String,
    /// Null where nothing is capped.
    disk_bytes: Option<u64>,
    disk_bytes_max: Option<u64>,
    heads: Vec<Head>,
    #[serde(skip_serializing_if = "Option::is_none")]
    placement: Option<Placed>,
}

/// Where everything would be read.
#[derive(serde::Serialize)]
struct Placed {
    machine: BTreeMap<&'static str, f64>,
    steps: Vec<Step>,
    total_s: f64,
}

#[derive(serde::Serialize)]
struct Step {
    what: &'static str,
    slots: usize,
    transfer: usize,
    cpu: usize,
    slots_bytes: u64,
    transfer_bytes: u64,
    cpu_bytes: u64,
    transfer_s: f64,
    device_s: f64,
    cpu_s: f64,
    total_s: f64,
}

impl Placed {
    fn new(explained: &Explained) -> Placed {
        let steps = explained.steps.iter().map(|step| {
            let count = |of: Place| step.placement.places.iter().filter(|&&place| place == of).count();
            let predicted = step.placement.predicted;
            Step {
                what: step.what,
                slots: count(Place::Slots),
                transfer: count(Place::Transfer),
                cpu: count(Place::Host),
                slots_bytes: step.bytes[Place::Slots as usize],
                transfer_bytes: step.bytes[Place::Transfer as usize],
                cpu_bytes: step.bytes[Place::Host as usize],
                transfer_s: predicted.transfer_s,
                device_s: predicted.device_s,
                cpu_s: predicted.host_s,
                total_s: predicted.total_s,
            }
        });
        let machine = explained.machine.constants().into_iter().collect();
        Placed { machine, steps: steps.collect(), total_s: explained.total_s() }
    }
}

/// A machine by its name or its constants.
fn machine(text: &str) -> Result<Machine, String> {
    if let Some((_, machine)) = PUBLISHED.iter().find(|(name, _)| *name == text) {
        return Ok(*machine);
    }
    let numbers: Result<Vec<f64>, _> = text.split(',').map(str::parse).collect();
    match numbers.as_deref() {
        Ok(&[link, device, cpu, launch, transfer]) if [link, device, cpu].iter().all(|&rate| rate > 0.0) => {
            Ok(Machine {
                transfer_bytes_per_s: link * 1e9,
                device_bytes_per_s: device * 1e9,
                host_bytes_per_s: cpu * 1e9,
                launch_s: launch * 1e-6,
                transfer_s: transfer * 1e-6,
            })
        }
        _ => Err("expected h100, a100, rtx4090, or five numbers of which the first three are above 0".into()),
    }
}

#[derive(serde::Serialize)]
struct Head {
    kv_head: usize,
    clusters: usize,
    rows_scanned: u64,
    rows_coded: u64,
    rows_read: u64,
    rows_estimated: u64,
    rows_plain: u64,
    bytes: Bytes,
    pages: u64,
    read: Vec<Cluster>,
    estimated: Vec<Cluster>,
}

#[derive(serde::Serialize)]
struct Bytes {
    keys: u64,
    values: u64,
    centroids: u64,
    counts: u64,
    value_means: u64,
    bases: u64,
    sketches: u64,
    key_codes: u64,
    value_codes: u64,
    positions: u64,
}

#[derive(serde::Serialize)]
struct Cluster {
    segment: u32,
    cluster: u32,
}

impl<'a> Document<'a> {
    fn new(
        snapshot: &'a Snapshot,
        layer: usize,
        sampled_position: u64,
        length: u64,
        budget: &Budget,
        (plan, placed): (&Plan, Option<&Explained>),
    ) -> Self {
        let Traffic { pages, .. } = plan.traffic();
        let (bytes, full) = (plan.traffic().bytes(), plan.sealed_bytes_16bit);
        Document {
            context: snapshot.name(),
            layer,
            sampled_position,
            position: length - 1,
            method: plan.method.name(),
            budget: budget.to_string(),
            sealed_rows: plan.sealed_rows,
            tail_rows: plan.tail_rows,
            bytes,
            pages,
            row_form: plan.row_form.to_string(),
            disk_bytes: plan.disk.map(|disk| disk.bytes),
            disk_bytes_max: plan.disk.map(|disk| disk.bytes_max),
            bytes_share: (full > 0).then(|| bytes as f64 / full as f64),
            heads: plan.heads.iter().map(Head::new).collect(),
            placement: placed.map(Placed::new),
        }
    }
}

impl Head {
    fn new(head: &HeadPlan) -> Self {
        let clusters = |ids: &[ClusterId]| {
            ids.iter().map(|id| Cluster { segment: id.segment, cluster: id.cluster }).collect()
        };
        let Traffic { keys, values, centroids, counts, value_means, bases, pages, .. } = head.traffic;
        let Traffic { sketches, key_codes, value_codes, positions, .. } = head.traffic;
        let rows = Bytes {
            keys,
            values,
            centroids,
            counts,
            value_means,
            bases,
            sketches,
            key_codes,
            value_codes,
            positions,
        };
        Head {
            kv_head: head.kv_head,
            clusters: head.clusters,
            rows_scanned: head.rows_scanned,
            rows_coded: head.rows_coded,
            rows_read: head.rows_read,
            rows_estimated: head.rows_estimated,
            rows_plain: head.rows_plain,
            bytes: rows,
            pages,
            read: clusters(&head.read),
            estimated: clusters(&head.estimated),
        }
    }
}
