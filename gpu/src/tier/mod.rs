//! One attention call on CPU and device together: RetroInfer's clusters, each read where the placement says.
//!
//! What fails on the device is answered by the CPU alone.

mod clusters;
mod report;

use crate::cache::{BlockCache, RowKind, Slots};
use crate::device::{Buffer, Device};
use crate::error::Error;
use crate::explained::Explained;
use crate::launch::Staging;
use crate::measure::Effort;
use crate::placement::{Item, Machine, Place, Placement};
use longwave_kernels::AttentionState;
use longwave_query::{Budget, LayerSegment, LayerView, QueryBatch, read_steady};
use parking_lot::Mutex;
pub use report::{Metrics, TierAnswer, TierReport};
use std::sync::Arc;

/// How clusters and rows are divided between the sides.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Division {
    /// By predicted time.
    Cost,
    /// So many of a thousand, evenly among those read, by the CPU; the rest by the device.
    HostPerMille(u32),
}

/// A device, with what one layer's calls need of it.
#[derive(Debug)]
pub struct Tier {
    device: Arc<Device>,
    machine: Machine,
    cache: Option<Arc<BlockCache>>,
    staged: Mutex<Staged>,
    metrics: Mutex<Metrics>,
}

/// Where transferred clusters are put: a pool of one slot for each row.
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
    /// A tier that transfers up to `staged` elements (16 bits each) in a call, and keeps clusters in `cache`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] or [`Error::Driver`].
    pub fn new(
        device: &Arc<Device>,
        machine: Machine,
        cache: Option<Arc<BlockCache>>,
        staged: usize,
    ) -> Result<Tier, Error> {
        let staged = Mutex::new(Staged::new(device, staged)?);
        Ok(Tier { device: device.clone(), machine, cache, staged, metrics: Mutex::default() })
    }

    /// As [`Tier::new`], with the constants measured now; see [`Machine::measure`].
    ///
    /// # Errors
    /// As [`Tier::new`].
    pub fn measured(
        device: &Arc<Device>,
        effort: Effort,
        cache: Option<Arc<BlockCache>>,
        staged: usize,
    ) -> Result<Tier, Error> {
        let machine = Machine::measure(device, effort)?;
        for (name, value) in machine.constants() {
            tracing::info!(name, value, "measured");
        }
        Tier::new(device, machine, cache, staged)
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
        let slots = slots_of(self.cache.as_ref());
        let is_resident = |kind: RowKind, block| kind == RowKind::Clusters && slots.contains_key(&block);
        Explained::new(view, queries, budget, (layer, self.machine), &is_resident)
    }

    /// The constants that placements follow from.
    pub fn machine(&self) -> Machine {
        self.machine
    }

    /// What the calls so far have done.
    pub fn metrics(&self) -> Metrics {
        let mut metrics = self.metrics.lock().clone();
        metrics.cache = self.cache.as_ref().map(|cache| cache.report());
        metrics.machine = Some(self.machine);
        metrics
    }

    /// Answers queries of `layer`: those of [`Budget::RetroInfer`] together with the device. Calls that it has no
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
        let tried = match *budget {
            Budget::RetroInfer { .. } => self.attend_clusters(layer, view, queries, budget, division),
            _ => Err(Error::Unsupported {
                what: "a budget",
                expected: "RetroInfer's shares",
                found: budget.to_string(),
            }),
        };
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
        let report = TierReport::of_host(self.machine, self.cache.as_ref().map(|cache| cache.report()));
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
}

/// The slots of a cache, and nothing without one.
fn slots_of(cache: Option<&Arc<BlockCache>>) -> Slots {
    cache.map(|cache| cache.slots()).unwrap_or_default()
}

fn rows_error(error: longwave_storage::Error) -> Error {
    Error::Rows(error.to_string())
}

fn query_error(error: longwave_query::Error) -> Error {
    Error::Rows(error.to_string())
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
