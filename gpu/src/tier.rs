//! One attention call on CPU and device together: RetroInfer's clusters, each read where the placement says.
//!
//! The CPU plans and starts the device on the slots that it has; while the transfer of staged clusters and their kernel run, the
//! CPU reads its own share, estimates from summaries and reads the tail. Both sides give partial states, which merge. What fails on
//! the device is answered by the CPU alone.

use crate::cache::{BlockCache, BlockId, Slots};
use crate::device::{Buffer, Device};
use crate::error::Error;
use crate::launch::{Parts, RowList, Staging};
use crate::placement::{Item, Machine, Place, Placement};
use crate::rows::{Clustered, cluster_rows, is_whole};
use crate::shape::RowShape;
use longwave_kernels::{AttentionState, Kernels, Rows};
use longwave_query::{Budget, HeadPlan, LayerView, QueryBatch};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// How clusters are divided between the sides.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Division {
    /// By predicted time.
    Cost,
    /// So many of a thousand clusters, evenly among those read, by the CPU; the rest by the device.
    HostPerMille(u32),
}

/// An answer of both sides.
#[derive(Clone, Debug)]
pub struct TierAnswer {
    /// `[query_heads, value_dim]`.
    pub output: Vec<f32>,
    /// Log-sum-exps `[query_heads]`, natural.
    pub lse: Vec<f32>,
    /// Where the clusters were read, heads in order; none where the device did not take part.
    pub placement: Option<Placement>,
}

/// A device, with what one layer's calls need of it.
#[derive(Debug)]
pub struct Tier {
    device: Arc<Device>,
    machine: Machine,
    cache: Option<Arc<BlockCache>>,
    staged: Mutex<Staged>,
    fallbacks: AtomicU64,
}

/// Where transferred clusters are put: a pool of one slot for each row.
#[derive(Debug)]
struct Staged {
    staging: Staging,
    rows: Buffer<u16>,
    room: usize,
}

impl Tier {
    /// A tier that transfers up to `staged` elements (16 bits each) in a call.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] or [`Error::Driver`].
    pub fn new(
        device: &Arc<Device>,
        machine: Machine,
        cache: Option<Arc<BlockCache>>,
        staged: usize,
    ) -> Result<Tier, Error> {
        let staged =
            Staged { staging: Staging::new(device, staged)?, rows: device.room(staged)?, room: staged };
        let (staged, fallbacks) = (Mutex::new(staged), AtomicU64::new(0));
        Ok(Tier { device: device.clone(), machine, cache, staged, fallbacks })
    }

    /// Calls that the CPU answered because the device could not.
    pub fn fallbacks(&self) -> u64 {
        self.fallbacks.load(Ordering::Relaxed)
    }

    /// Answers the query at the last position of `layer`. Calls that the device has no kernels for are answered by the CPU without
    /// a word; those in which it fails, with a warning.
    ///
    /// # Errors
    /// [`longwave_query::Error`], where rows cannot be read.
    pub fn attend(
        &self,
        layer: u32,
        view: &LayerView<'_>,
        queries: &QueryBatch<'_>,
        (retrieve, estimate): (f64, f64),
        division: Division,
    ) -> Result<TierAnswer, longwave_query::Error> {
        let budget = Budget::RetroInfer { retrieve, estimate };
        let tried = self.try_attend(layer, view, queries, &budget, division);
        match tried {
            Ok(answer) => return Ok(answer),
            Err(Error::Unsupported { .. }) => {}
            Err(error) => {
                self.fallbacks.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(%error, "the device failed; the CPU answers");
            }
        }
        let answer = longwave_query::attend(view, queries, &budget)?;
        Ok(TierAnswer { output: answer.output, lse: answer.lse, placement: None })
    }

    fn try_attend(
        &self,
        layer: u32,
        view: &LayerView<'_>,
        queries: &QueryBatch<'_>,
        budget: &Budget,
        division: Division,
    ) -> Result<TierAnswer, Error> {
        let call = Call::plan(layer, view, queries, budget)?;
        let slots = self.cache.as_ref().map(|cache| cache.slots());
        let (placement, slots) = (self.divide(&call, slots.as_deref(), division), slots.unwrap_or_default());
        let mut staged = self.staged.lock();
        let started = self.start(&call, &placement, &slots, &mut staged)?;
        let mut states = call.host(&placement)?;
        if let Some(parts) = started {
            let (out, lse) = self.device.merge(&parts)?;
            let (out, lse) = (self.device.download(&out)?, self.device.download(&lse)?);
            call.merge(&mut states, &out, &lse);
        }
        // The kernels that read them are done.
        drop(slots);
        let (output, lse) = call.finish(states);
        Ok(TierAnswer { output, lse, placement: Some(placement) })
    }

    fn divide(&self, call: &Call<'_, '_>, slots: Option<&Resident>, division: Division) -> Placement {
        let is_resident = |block: BlockId| slots.is_some_and(|slots| slots.contains_key(&block));
        let items: Vec<Item> = call
            .reads
            .iter()
            .map(|read| Item { bytes: call.bytes_of(read), is_resident: is_resident(read.block) })
            .collect();
        let Division::HostPerMille(share) = division else { return self.machine.place(&items) };
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

    /// Launches what the device does: the slots first, then the transfer and what was transferred.
    fn start(
        &self,
        call: &Call<'_, '_>,
        placement: &Placement,
        slots: &Resident,
        staged: &mut Staged,
    ) -> Result<Option<Parts>, Error> {
        if placement.places.iter().all(|&place| place == Place::Host) {
            return Ok(None);
        }
        let (shape, heads) = (&call.shape, call.plans.len());
        let slot_rows = self.cache.as_ref().map_or(1, |cache| cache.slot_rows());
        let mut lists = [(Vec::new(), vec![0u32]), (Vec::new(), vec![0u32])];
        let mut elements = 0;
        for head in 0..heads {
            for (read, &place) in
                call.reads.iter().zip(&placement.places).filter(|(read, _)| read.unit == head)
            {
                match place {
                    Place::Host => {}
                    Place::Slots => {
                        let of_block = slots.get(&read.block).ok_or_else(|| missing(read.block))?;
                        lists[0].0.extend((0..read.rows.len()).map(|row| {
                            of_block[row / slot_rows] * slot_rows as u32 + (row % slot_rows) as u32
                        }));
                    }
                    Place::Transfer => {
                        let first = elements / (2 * shape.dim());
                        lists[1].0.extend((first..first + read.rows.len()).map(|row| row as u32));
                        elements += read.rows.len() * 2 * shape.dim();
                    }
                }
            }
            lists.iter_mut().for_each(|(rows, starts)| starts.push(rows.len() as u32));
        }
        if elements > staged.room {
            return Err(Error::OutOfMemory { what: "staged clusters", bytes: 2 * elements });
        }
        let queries = self.device.upload(&call.queries)?;
        let [hits, transfers] = lists.map(|(rows, starts)| RowList::new(&self.device, &rows, &starts));
        let (hits, transfers) = (hits?, transfers?);
        let count = self.device.splits(heads);
        let mut parts = Parts::new(&self.device, 2 * count, heads * shape.group(), shape.dim())?;
        let softcap = call.view.scoring.softcap.unwrap_or(0.0);
        let pooled = |pool: &Buffer<u16>, parts: &mut Parts| {
            self.device.attend(shape, &queries, pool, slot_rows, &hits, softcap, (0, count), parts)
        };
        match &self.cache {
            Some(cache) => cache.with_pool(|pool| pooled(pool, &mut parts))?,
            None => pooled(&staged.rows, &mut parts)?,
        }
        call.stage(placement, staged.staging.fill()?)?;
        staged.staging.copy(&self.device, elements, &mut staged.rows, 0)?;
        let splits = (count, count);
        self.device.attend(shape, &queries, &staged.rows, 1, &transfers, softcap, splits, &mut parts)?;
        Ok(Some(parts))
    }
}

type Resident = <Slots as std::ops::Deref>::Target;

fn missing(block: BlockId) -> Error {
    Error::Rows(format!("{block:?} is not in its slots"))
}

/// A cluster that is read.
struct Read {
    /// Index into the plans: the KV head.
    unit: usize,
    block: BlockId,
    rows: std::ops::Range<usize>,
}

/// One call: what is read, and the CPU's part of it.
struct Call<'c, 'v> {
    view: &'c LayerView<'v>,
    shape: RowShape,
    clustered: Vec<Clustered<'v>>,
    /// One a KV head.
    plans: Vec<HeadPlan>,
    reads: Vec<Read>,
    /// `[kv_heads, group, key_dim]`, scaled.
    queries: Vec<f32>,
}

impl<'c, 'v> Call<'c, 'v> {
    fn plan(
        layer: u32,
        view: &'c LayerView<'v>,
        batch: &QueryBatch<'_>,
        budget: &Budget,
    ) -> Result<Self, Error> {
        let s = view.shape;
        let shape = RowShape::new(s.dtype, s.key_dim, s.value_dim, s.group())?;
        if batch.positions != 1 || !is_whole(view, batch.first_position) {
            return Err(Error::Unsupported {
                what: "a call",
                expected: "one position that sees every row",
                found: format!("{} positions from {}", batch.positions, batch.first_position),
            });
        }
        let rows = |error: longwave_storage::Error| Error::Rows(error.to_string());
        let clustered = Clustered::of(view, batch.first_position).map_err(rows)?;
        let plan =
            longwave_query::explain(view, batch, budget).map_err(|error| Error::Rows(error.to_string()))?;
        let mut reads = Vec::new();
        for (unit, head) in plan.heads.iter().enumerate() {
            for id in &head.read {
                let rows = clustered[id.segment as usize].rows_of(head.kv_head, id.cluster).map_err(rows)?;
                let (kv_head, segment, cluster) = (head.kv_head as u32, id.segment, id.cluster);
                reads.push(Read { unit, block: BlockId { layer, kv_head, segment, cluster }, rows });
            }
        }
        let queries = batch.data.iter().map(|q| q * view.scoring.scale).collect();
        Ok(Call { view, shape, clustered, plans: plan.heads, reads, queries })
    }

    fn bytes_of(&self, read: &Read) -> u64 {
        (read.rows.len() * (self.view.shape.key_bytes() + self.view.shape.value_bytes())) as u64
    }

    fn rows_of(&self, read: &Read) -> Result<(Rows<'v>, Rows<'v>), Error> {
        let segment = &self.clustered[read.block.segment as usize];
        cluster_rows(&self.view.shape, segment.segment, read.block.kv_head as usize, read.rows.clone())
    }

    fn query_of(&self, unit: usize) -> &[f32] {
        let len = self.shape.group() * self.shape.dim();
        &self.queries[unit * len..][..len]
    }

    /// Puts the transferred clusters one behind the other, each row's key and then its value.
    fn stage(&self, placement: &Placement, room: &mut [u16]) -> Result<(), Error> {
        let dim = self.shape.dim();
        let mut rest = room;
        for (read, _) in
            self.reads.iter().zip(&placement.places).filter(|(_, place)| **place == Place::Transfer)
        {
            let (keys, values) = self.rows_of(read)?;
            let (mine, later) = rest.split_at_mut(read.rows.len() * 2 * dim);
            rest = later;
            let (keys, values): (&[u16], &[u16]) =
                (bytemuck::cast_slice(keys.as_bytes()), bytemuck::cast_slice(values.as_bytes()));
            let pairs = keys.chunks_exact(dim).zip(values.chunks_exact(dim));
            for (row, (key, value)) in mine.chunks_exact_mut(2 * dim).zip(pairs) {
                row[..dim].copy_from_slice(key);
                row[dim..].copy_from_slice(value);
            }
        }
        Ok(())
    }

    /// What the CPU reads: its clusters, the summaries, and the rows that are exact in any case. One state a KV head.
    fn host(&self, placement: &Placement) -> Result<Vec<AttentionState>, Error> {
        let (kernels, shape) = (Kernels::get(), &self.view.shape);
        let mut scratch = Vec::new();
        let mut states = Vec::new();
        for (unit, plan) in self.plans.iter().enumerate() {
            let mut state = AttentionState::new(self.shape.group(), self.shape.dim());
            let mut read = |keys: Rows<'_>, values: Rows<'_>, state: &mut AttentionState| {
                let softcap = self.view.scoring.softcap;
                kernels.attend_rows(
                    state,
                    self.query_of(unit),
                    shape.key_dim,
                    keys,
                    values,
                    softcap,
                    &mut scratch,
                );
            };
            for (mine, _) in self
                .reads
                .iter()
                .zip(&placement.places)
                .filter(|(read, place)| read.unit == unit && **place == Place::Host)
            {
                let (keys, values) = self.rows_of(mine)?;
                read(keys, values, &mut state);
            }
            for segment in self.view.segments.iter().filter(|s| !self.clustered.iter().any(|c| c.is(s))) {
                let (keys, values) = cluster_rows(shape, segment, plan.kv_head, 0..segment.rows())?;
                read(keys, values, &mut state);
            }
            for block in &self.view.blocks {
                read(block.keys[plan.kv_head], block.values[plan.kv_head], &mut state);
            }
            self.estimate(unit, plan, &mut state)?;
            states.push(state);
        }
        Ok(states)
    }

    fn estimate(&self, unit: usize, plan: &HeadPlan, state: &mut AttentionState) -> Result<(), Error> {
        let kernels = Kernels::get();
        for of_segment in plan.estimated.chunk_by(|a, b| a.segment == b.segment) {
            let segment = &self.clustered[of_segment[0].segment as usize];
            let head = segment.index.head(plan.kv_head).map_err(|error| Error::Rows(error.to_string()))?;
            let indices: Vec<u32> = of_segment.iter().map(|id| id.cluster).collect();
            let counts: Vec<f32> = indices.iter().map(|&cluster| head.counts[cluster as usize]).collect();
            let mut scores = vec![0.0; indices.len() * self.shape.group()];
            let query = self.query_of(unit);
            kernels.scores_gathered(
                query,
                self.shape.group(),
                self.shape.dim(),
                head.centroids,
                &indices,
                &mut scores,
            );
            if let Some(cap) = self.view.scoring.softcap {
                kernels.softcap(&mut scores, cap);
            }
            state.absorb_estimates_gathered(kernels, &mut scores, &counts, head.value_means, &indices);
        }
        Ok(())
    }

    /// Takes in the device's states, `[heads, dim]` and `[heads]`.
    fn merge(&self, states: &mut [AttentionState], out: &[f32], lse: &[f32]) {
        let (group, dim) = (self.shape.group(), self.shape.dim());
        for (unit, state) in states.iter_mut().enumerate() {
            // A finished state is one row for its own head, whose score is the log-sum-exp.
            let mut scores = vec![f32::NEG_INFINITY; group * group];
            for head in 0..group {
                scores[head * group + head] = lse[unit * group + head];
            }
            let values = Rows::F32(&out[unit * group * dim..][..group * dim]);
            state.absorb(Kernels::get(), &mut scores, values);
        }
    }

    fn finish(&self, states: Vec<AttentionState>) -> (Vec<f32>, Vec<f32>) {
        let (group, dim) = (self.shape.group(), self.shape.dim());
        let (mut output, mut lse) =
            (vec![0.0; self.plans.len() * group * dim], vec![0.0; self.plans.len() * group]);
        let places = output.chunks_exact_mut(group * dim).zip(lse.chunks_exact_mut(group));
        for ((unit, mut state), (output, lse)) in states.into_iter().enumerate().zip(places) {
            for head in 0..group {
                if let Some(&logit) = self.view.scoring.sink_logits.get(unit * group + head) {
                    state.absorb_logit(head, logit);
                }
            }
            state.finish(output, lse);
        }
        (output, lse)
    }
}
