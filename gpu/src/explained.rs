//! The plan of a call with where each cluster and row would be read, and how long that should take. Nothing is read for it but what
//! the plan itself needs.

use crate::cache::{BlockId, RowKind, segment_key};
use crate::placement::{Item, Machine, Place, Placement};
use longwave_kernels::codec::Depth;
use longwave_query::{
    Budget, ClusterId, Error, HeadPlan, LayerSegment, LayerView, Plan, QueryBatch, RowId, Summaries, explain,
};
use std::fmt;

/// A plan with its placement. `Display` is for people.
#[derive(Clone, Debug)]
pub struct Explained {
    /// What is read.
    pub plan: Plan,
    /// The constants that the placement follows from.
    pub machine: Machine,
    /// Where, in the order of the steps.
    pub steps: Vec<PlacedStep>,
}

/// What one step reads, and where.
#[derive(Clone, Debug)]
pub struct PlacedStep {
    /// `clusters`, `keys` or `values`.
    pub what: &'static str,
    /// Bytes read from slots, after a transfer, and by the CPU.
    pub bytes: [u64; 3],
    /// One place for each cluster, or for each row: those read as half a code, as a whole one, and in full.
    pub placement: Placement,
}

impl Explained {
    /// Plans the call and places what it reads. `is_resident` says what a cache holds.
    ///
    /// # Errors
    /// As [`longwave_query::explain`].
    pub fn new(
        view: &LayerView<'_>,
        queries: &QueryBatch<'_>,
        budget: &Budget,
        (layer, machine): (u32, Machine),
        is_resident: &dyn Fn(RowKind, BlockId) -> bool,
    ) -> Result<Explained, Error> {
        let plan = explain(view, queries, budget)?;
        let summaries =
            if matches!(budget, Budget::RetroInfer { .. }) { Summaries::Index } else { Summaries::Ladder };
        let segments = view.divided(queries.first_position, summaries)?.summarised;
        let items = Items { view, segments, layer, is_resident };
        let steps = match budget {
            Budget::RetroInfer { .. } => vec![("clusters", items.clusters(&plan)?)],
            _ => items.rows(&plan).into(),
        };
        let place = |(what, items): (&'static str, Vec<Item>)| {
            let (placement, mut bytes) = (machine.place(&items), [0; 3]);
            for (item, place) in items.iter().zip(&placement.places) {
                bytes[*place as usize] += item.bytes;
            }
            PlacedStep { what, bytes, placement }
        };
        let steps = steps.into_iter().filter(|(_, items)| !items.is_empty()).map(place).collect();
        Ok(Explained { plan, machine, steps })
    }

    /// Predicted seconds of all steps, one behind the other.
    pub fn total_s(&self) -> f64 {
        self.steps.iter().map(|step| step.placement.predicted.total_s).sum()
    }
}

/// What a plan reads, as the cost model takes it.
struct Items<'a, 'v> {
    view: &'a LayerView<'v>,
    segments: Vec<&'v LayerSegment>,
    layer: u32,
    is_resident: &'a dyn Fn(RowKind, BlockId) -> bool,
}

impl Items<'_, '_> {
    fn item(&self, kind: RowKind, head: &HeadPlan, (segment, number): (u32, u32), bytes: usize) -> Item {
        let segment = segment_key(self.segments[segment as usize]);
        let block = BlockId { layer: self.layer, kv_head: head.kv_head as u32, segment, number };
        Item { bytes: bytes as u64, is_resident: (self.is_resident)(kind, block) }
    }

    fn clusters(&self, plan: &Plan) -> Result<Vec<Item>, Error> {
        let row = self.view.shape.key_bytes() + self.view.shape.value_bytes();
        let mut items = Vec::new();
        for head in &plan.heads {
            for &ClusterId { segment, cluster } in &head.read {
                let Some(index) = self.segments[segment as usize].index()? else { continue };
                let offsets = index.head(head.kv_head)?.offsets;
                let rows = (offsets[cluster as usize + 1] - offsets[cluster as usize]) as usize;
                items.push(self.item(RowKind::Clusters, head, (segment, cluster), rows * row));
            }
        }
        Ok(items)
    }

    fn rows(&self, plan: &Plan) -> [(&'static str, Vec<Item>); 2] {
        let (mut keys, mut values, shape) = (Vec::new(), Vec::new(), &self.view.shape);
        let code = |depth: Depth| (RowKind::Codes, depth.len(shape.key_dim), depth.len(shape.value_dim));
        let full = (RowKind::Full, shape.key_bytes(), shape.value_bytes());
        for (number, (kind, key, value)) in
            [code(Depth::Half), code(Depth::Whole), full].into_iter().enumerate()
        {
            for head in &plan.heads {
                let rows = &head.rows;
                let of_keys = [&rows.key_halves, &rows.key_codes, &rows.keys][number];
                let of_values = [&rows.value_halves, &rows.value_codes, &rows.values][number];
                let item = |row: &RowId, bytes| self.item(kind, head, (row.segment, row.row), bytes);
                keys.extend(of_keys.iter().map(|row| item(row, key)));
                values.extend(of_values.iter().map(|row| item(row, value)));
            }
        }
        [("keys", keys), ("values", values)]
    }
}

impl fmt::Display for Explained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Machine { transfer_bytes_per_s, device_bytes_per_s, host_bytes_per_s, launch_s, transfer_s } =
            self.machine;
        writeln!(f, "{}", self.plan)?;
        writeln!(
            f,
            "machine: link {:.1} GB/s, device {:.1} GB/s, cpu {:.1} GB/s, launch {:.1} us, transfer {:.1} us",
            transfer_bytes_per_s / 1e9,
            device_bytes_per_s / 1e9,
            host_bytes_per_s / 1e9,
            launch_s * 1e6,
            transfer_s * 1e6
        )?;
        for PlacedStep { what, bytes, placement } in &self.steps {
            let [slots, transfer, host] =
                [Place::Slots, Place::Transfer, Place::Host].map(|place| bytes[place as usize]);
            writeln!(f, "{what:<9}{placement}; bytes {slots}, {transfer}, {host}")?;
        }
        write!(f, "predicted in all {:.1} us", self.total_s() * 1e6)
    }
}
