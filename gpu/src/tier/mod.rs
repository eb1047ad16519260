//! One attention call on CPU and device together: RetroInfer's clusters, and the rows of the ladder, each read where the placement
//! says.
//!
//! What fails on the device is answered by the CPU alone.

mod clusters;
mod ladder;
mod picks;
mod report;

use crate::cache::{BlockCache, RowKind, Slots};
use crate::device::{Buffer, Device};
use crate::error::Error;
use crate::explained::Explained;
use crate::launch::Staging;
use crate::measure::Effort;
use crate::placement::{Item, Machine, Place, Placement};
use crate::resident::Resident;
use crate::zone::Resolution;
use longwave_kernels::codec::Depth;
use longwave_kernels::{AttentionState, rotate};
use longwave_query::{Budget, LayerSegment, LayerView, QueryBatch, read_steady};
use longwave_storage::RowForm;
use parking_lot::Mutex;
pub use report::{Metrics, Sources, TierAnswer, TierReport, Wanted};
use std::collections::HashMap;
use std::sync::Arc;

/// How clusters and rows are divided between the sides.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Division {
    /// By predicted time.
    Cost,
    /// So many of a thousand, evenly among those read, by the CPU; the rest by the device.
    HostPerMille(u32),
}

/// What a tier keeps in device memory from call to call.
#[derive(Clone, Debug, Default)]
pub struct Caches {
    /// Clusters' rows, for RetroInfer's method.
    pub clusters: Option<Arc<BlockCache>>,
    /// Codes of rows, for the ladder: blocks of one row whose key and value are records of codes.
    pub codes: Option<Arc<BlockCache>>,
    /// Full rows, for the ladder: blocks of one row.
    pub rows: Option<Arc<BlockCache>>,
}

/// A device, with what one layer's calls need of it.
#[derive(Debug)]
pub struct Tier {
    device: Arc<Device>,
    machine: Machine,
    caches: Caches,
    staged: Mutex<StagedPools>,
    /// The ladders that are on the device, by layer.
    resident: Mutex<HashMap<u32, Arc<Resident>>>,
    metrics: Mutex<Metrics>,
}

/// Where transferred rows are put: full ones, codes, and halves of codes.
#[derive(Debug)]
struct StagedPools {
    rows: Staged,
    codes: Staged,
    halves: Staged,
}

impl StagedPools {
    fn of(&mut self, resolution: Resolution) -> &mut Staged {
        match resolution {
            Resolution::Code(Depth::Half) => &mut self.halves,
            Resolution::Code(Depth::Whole) => &mut self.codes,
            Resolution::Full => &mut self.rows,
        }
    }
}

/// A pool of one slot for each row.
#[derive(Debug)]
struct Staged {
    staging: Staging,
    pool: Buffer<u16>,
    room: usize,
}

impl Staged {
    fn new(device: &Device, room: usize) -> Result<Staged, Error> {
        Ok(Staged { staging: Staging::new(device, room)?, pool: device.room(room)?, room })
    }

    fn check_room(&self, elements: usize) -> Result<(), Error> {
        if elements > self.room {
            return Err(Error::OutOfMemory { what: "staged rows", bytes: 2 * elements });
        }
        Ok(())
    }
}

impl Tier {
    /// A tier that transfers up to `staged` elements (16 bits each) in a call, as many of codes, and as many of halves of codes.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] or [`Error::Driver`].
    pub fn new(device: &Arc<Device>, machine: Machine, caches: Caches, staged: usize) -> Result<Tier, Error> {
        let pool = || Staged::new(device, staged);
        let pools = StagedPools { rows: pool()?, codes: pool()?, halves: pool()? };
        Ok(Tier {
            device: device.clone(),
            machine,
            caches,
            staged: Mutex::new(pools),
            resident: Mutex::default(),
            metrics: Mutex::default(),
        })
    }

    /// As [`Tier::new`], with the constants measured now; see [`Machine::measure`].
    ///
    /// # Errors
    /// As [`Tier::new`].
    pub fn measured(
        device: &Arc<Device>,
        effort: Effort,
        caches: Caches,
        staged: usize,
    ) -> Result<Tier, Error> {
        let machine = Machine::measure(device, effort)?;
        for (name, value) in machine.constants() {
            tracing::info!(name, value, "measured");
        }
        Tier::new(device, machine, caches, staged)
    }

    /// The plan of a call, with where it would be read now and how long that should take. Nothing is answered.
    ///
    /// # Errors
    /// As [`longwave_query::explain`].
    pub fn explain(
        &self,
        layer: u32,
        view: &LayerView<'_>,
        queries: &QueryBatch<'_>,
        budget: &Budget,
    ) -> Result<Explained, longwave_query::Error> {
        let Caches { clusters, codes, rows } = &self.caches;
        let slots = [clusters, codes, rows].map(|cache| slots_of(cache.as_ref()));
        let is_resident = |kind: RowKind, block| {
            let of_kind = match kind {
                RowKind::Clusters => &slots[0],
                RowKind::Codes => &slots[1],
                RowKind::Full => &slots[2],
            };
            of_kind.contains_key(&block)
        };
        Explained::new(view, queries, budget, (layer, self.machine), &is_resident)
    }

    /// The constants that placements follow from.
    pub fn machine(&self) -> Machine {
        self.machine
    }

    /// What it keeps in device memory.
    pub fn caches(&self) -> &Caches {
        &self.caches
    }

    /// What the calls so far have done.
    pub fn metrics(&self) -> Metrics {
        let mut metrics = self.metrics.lock().clone();
        metrics.caches = report::cache_reports(&self.caches);
        metrics.machine = Some(self.machine);
        metrics
    }

    /// Answers queries of `layer`: those of [`Budget::RetroInfer`] and [`Budget::Tau`] together with the device. Calls that it has no
    /// kernels for are answered by the CPU without a word; those in which it fails, with a warning.
    ///
    /// # Errors
    /// [`longwave_query::Error`], where rows cannot be read or the budget needs the state of a context.
    pub fn attend(
        &self,
        layer: u32,
        view: &LayerView<'_>,
        queries: &QueryBatch<'_>,
        budget: &Budget,
        division: Division,
    ) -> Result<TierAnswer, longwave_query::Error> {
        let tried = check_rows(view).and_then(|()| match *budget {
            Budget::RetroInfer { .. } => self.attend_clusters(layer, view, queries, budget, division),
            Budget::Tau(tau) if tau > 0.0 => self.attend_ladder(layer, view, queries, tau as f32, division),
            _ => Err(Error::Unsupported {
                what: "a budget",
                expected: "RetroInfer's shares or a tau above 0",
                found: budget.to_string(),
            }),
        });
        match tried {
            Ok(answer) => {
                self.metrics.lock().count(&answer.report);
                return Ok(answer);
            }
            Err(Error::Unsupported { .. }) => self.metrics.lock().calls_host += 1,
            Err(error) => {
                self.metrics.lock().fallbacks += 1;
                tracing::warn!(%error, "the device failed; the CPU answers");
            }
        }
        let answer = longwave_query::attend(view, queries, budget)?;
        let report = TierReport::of_host(self.machine, report::cache_reports(&self.caches));
        Ok(TierAnswer { output: answer.output, lse: answer.lse, report })
    }

    /// Places what is read: by predicted time, or evenly as told.
    fn divide(&self, items: &[Item], division: Division) -> Placement {
        let Division::HostPerMille(share) = division else { return self.machine.place(items) };
        let mut bytes = [0u64; 3];
        let places = items.iter().enumerate().map(|(number, item)| {
            // Evenly: the whole part of the share rises at the host's items.
            let upto = |number: usize| number as u64 * u64::from(share.min(1000)) / 1000;
            let place = match (upto(number + 1) > upto(number), item.is_resident) {
                (true, _) => Place::Host,
                (false, true) => Place::Slots,
                (false, false) => Place::Transfer,
            };
            bytes[place as usize] += item.bytes;
            place
        });
        let places = places.collect();
        Placement { places, predicted: self.machine.predict(bytes[0], bytes[1], bytes[2]) }
    }

    /// The ladders of `segments` on the device; they are copied when a call first needs them.
    fn resident(
        &self,
        layer: u32,
        view: &LayerView<'_>,
        segments: &[&LayerSegment],
    ) -> Result<Arc<Resident>, Error> {
        let mut resident = self.resident.lock();
        if let Some(known) = resident.get(&layer).filter(|known| known.is_of(segments)) {
            return Ok(known.clone());
        }
        // The old one's memory is given back first, unless a call still reads it.
        resident.remove(&layer);
        let new = Arc::new(Resident::new(&self.device, &view.shape, segments)?);
        resident.insert(layer, new.clone());
        Ok(new)
    }
}

/// The slots of a cache, and nothing without one.
fn slots_of(cache: Option<&Arc<BlockCache>>) -> Slots {
    cache.map(|cache| cache.slots()).unwrap_or_default()
}

/// As [`slots_of`], of a cache for rows of `dim` elements, in slots of so many rows if that matters.
fn fitting_slots(
    cache: Option<&Arc<BlockCache>>,
    what: &'static str,
    (rows, dim): (Option<usize>, usize),
) -> Result<Slots, Error> {
    let shown = |rows: usize, dim: usize| format!("slots of {rows} rows of {dim} elements");
    match cache.map(|cache| (cache.slot_rows(), cache.dim())) {
        Some((found_rows, found_dim)) if found_dim != dim || rows.is_some_and(|rows| found_rows != rows) => {
            let (expected, found) = (shown(rows.unwrap_or(found_rows), dim), shown(found_rows, found_dim));
            Err(Error::Cache { what, expected, found })
        }
        _ => Ok(slots_of(cache)),
    }
}

fn rows_error(error: longwave_storage::Error) -> Error {
    Error::Rows(error.to_string())
}

fn query_error(error: longwave_query::Error) -> Error {
    Error::Rows(error.to_string())
}

/// The device's kernels and the transfers know rows in full alone.
fn check_rows(view: &LayerView<'_>) -> Result<(), Error> {
    match view.segments.iter().map(|segment| segment.row_form()).find(|form| *form != RowForm::Full) {
        None => Ok(()),
        Some(form) => {
            Err(Error::Unsupported { what: "rows", expected: "rows in full", found: form.to_string() })
        }
    }
}

/// One state for each unit of the call: the rows that are read one by one whatever the budget.
fn steady_states(
    view: &LayerView<'_>,
    queries: &QueryBatch<'_>,
    plain: &[&LayerSegment],
) -> Result<Vec<AttentionState>, Error> {
    let heads = view.shape.kv_heads;
    let units = (0..queries.positions).flat_map(|position| (0..heads).map(move |head| (position, head)));
    units.map(|unit| read_steady(view, queries, plain, unit).map_err(query_error)).collect()
}

/// Finishes a state; learned sink logits enter here.
fn finished(view: &LayerView<'_>, unit: usize, mut state: AttentionState) -> (Vec<f32>, Vec<f32>) {
    let (group, dim) = (view.shape.group(), view.shape.value_dim);
    for head in 0..group {
        if let Some(&logit) = view.scoring.sink_logits.get(unit % view.shape.kv_heads * group + head) {
            state.absorb_logit(head, logit);
        }
    }
    let (mut output, mut lse) = (vec![0.0; group * dim], vec![0.0; group]);
    state.finish(&mut output, &mut lse);
    (output, lse)
}

/// The steady rows of all units as the ladder takes them in: log-sum-exps, and outputs, rotated.
fn rotated_steady(view: &LayerView<'_>, states: Vec<AttentionState>) -> (Vec<f32>, Vec<f32>) {
    let (mut outputs, mut lses) = (Vec::new(), Vec::new());
    for (unit, state) in states.into_iter().enumerate() {
        let (output, lse) = finished(view, unit, state);
        outputs.extend(output);
        lses.extend(lse);
    }
    rotate(&mut outputs, view.shape.value_dim, false);
    (lses, outputs)
}
