//! RetroInfer's clusters on both sides.
//!
//! The CPU plans and starts the device on the slots that it has; while the transfer of staged clusters and their kernel run, the
//! CPU reads its own share, estimates from summaries and reads the tail. Both sides give partial states, which merge.

use super::{
    Division, Staged, Tier, TierAnswer, TierReport, Wanted, finished, fitting_slots, query_error, rows_error,
    steady_states,
};
use crate::cache::{BlockId, Scored, Slots, segment_key};
use crate::device::Buffer;
use crate::error::Error;
use crate::launch::{Parts, RowList};
use crate::placement::{Item, Place, Placement};
use crate::rows::cluster_rows;
use crate::shape::RowShape;
use longwave_index::IndexView;
use longwave_kernels::{AttentionState, Kernels, Rows};
use longwave_query::{Budget, Divided, HeadPlan, LayerSegment, LayerView, QueryBatch, Summaries};

impl Tier {
    pub(super) fn attend_clusters(
        &self,
        layer: u32,
        view: &LayerView<'_>,
        queries: &QueryBatch<'_>,
        budget: &Budget,
        division: Division,
    ) -> Result<TierAnswer, Error> {
        let call = Call::plan(layer, view, queries, budget)?;
        let dim = call.view.shape.key_dim;
        let slots = fitting_slots(self.caches.clusters.as_ref(), "clusters", (None, dim))?;
        let items: Vec<Item> = call
            .reads
            .iter()
            .map(|read| Item { bytes: call.bytes_of(read), is_resident: slots.contains_key(&read.block) })
            .collect();
        let placement = self.divide(&items, division);
        let mut staged = self.staged.lock();
        let started = self.start(&call, &placement, &slots, &mut staged.rows)?;
        let mut states = call.host(queries, &placement)?;
        if let Some(parts) = started {
            let (out, lse) = self.device.merge(&parts)?;
            let (out, lse) = (self.device.download(&out)?, self.device.download(&lse)?);
            call.merge(&mut states, &out, &lse);
        }
        // The kernels that read them are done.
        drop(slots);
        let (output, lse) = call.finish(states);
        let mut bytes = [0; 3];
        for (item, place) in items.iter().zip(&placement.places) {
            bytes[*place as usize] += item.bytes;
        }
        let clusters = call.reads.iter().map(|read| Scored {
            block: read.block,
            rows: read.rows.len() as u32,
            score: 0.0,
            wanted: true,
        });
        let wanted = Wanted { clusters: clusters.collect(), ..Wanted::default() };
        let mut report = TierReport::new(self, placement, bytes, wanted);
        report.opened = call.reads.len() as u64;
        Ok(TierAnswer { output, lse, report })
    }

    /// Launches what the device does: the slots first, then the transfer and what was transferred.
    fn start(
        &self,
        call: &Call<'_, '_>,
        placement: &Placement,
        slots: &Slots,
        staged: &mut Staged,
    ) -> Result<Option<Parts>, Error> {
        if placement.places.iter().all(|&place| place == Place::Host) {
            return Ok(None);
        }
        let (shape, heads) = (&call.shape, call.plans.len());
        let slot_rows = self.caches.clusters.as_ref().map_or(1, |cache| cache.slot_rows());
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
        staged.check_room(elements)?;
        let queries = self.device.upload(&call.queries)?;
        let [hits, transfers] = lists.map(|(rows, starts)| RowList::new(&self.device, &rows, &starts));
        let (hits, transfers) = (hits?, transfers?);
        let count = self.device.splits(heads);
        let mut parts = Parts::new(&self.device, 2 * count, heads * shape.group(), shape.dim())?;
        let softcap = call.view.scoring.softcap.unwrap_or(0.0);
        let pooled = |pool: &Buffer<u16>, parts: &mut Parts| {
            self.device.attend(shape, &queries, pool, slot_rows, &hits, softcap, (0, count), parts)
        };
        match &self.caches.clusters {
            Some(cache) => cache.with_pool(|pool| pooled(pool, &mut parts))?,
            None => pooled(&staged.pool, &mut parts)?,
        }
        call.stage(placement, staged.staging.fill()?)?;
        staged.staging.copy(&self.device, elements, &mut staged.pool, 0)?;
        let splits = (count, count);
        self.device.attend(shape, &queries, &staged.pool, 1, &transfers, softcap, splits, &mut parts)?;
        Ok(Some(parts))
    }
}

fn missing(block: BlockId) -> Error {
    Error::Rows(format!("{block:?} is not in its slots"))
}

/// A cluster that is read.
struct Read<'v> {
    /// Index into the plans.
    unit: usize,
    segment: &'v LayerSegment,
    block: BlockId,
    rows: std::ops::Range<usize>,
}

/// One call: what is read, and the CPU's part of it.
struct Call<'c, 'v> {
    view: &'c LayerView<'v>,
    shape: RowShape,
    segments: Divided<'v>,
    indexes: Vec<IndexView<'v>>,
    /// One a unit: query positions, and KV heads within them.
    plans: Vec<HeadPlan>,
    reads: Vec<Read<'v>>,
    /// `[units, group, key_dim]`, scaled.
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
        let segments = view.divided(batch.first_position, Summaries::Index).map_err(query_error)?;
        let mut indexes = Vec::new();
        for segment in &segments.summarised {
            let index = segment.index().map_err(rows_error)?;
            indexes.push(index.ok_or_else(|| Error::Rows("a segment without an index".into()))?);
        }
        let plan = longwave_query::explain(view, batch, budget).map_err(query_error)?;
        let mut reads = Vec::new();
        for (unit, head) in plan.heads.iter().enumerate() {
            for id in &head.read {
                let index = indexes[id.segment as usize].head(head.kv_head).map_err(rows_error)?;
                let rows = index.offsets[id.cluster as usize] as usize
                    ..index.offsets[id.cluster as usize + 1] as usize;
                let segment = segments.summarised[id.segment as usize];
                let (kv_head, number) = (head.kv_head as u32, id.cluster);
                let block = BlockId { layer, kv_head, segment: segment_key(segment), number };
                reads.push(Read { unit, segment, block, rows });
            }
        }
        let queries = batch.data.iter().map(|q| q * view.scoring.scale).collect();
        Ok(Call { view, shape, segments, indexes, plans: plan.heads, reads, queries })
    }

    fn bytes_of(&self, read: &Read<'_>) -> u64 {
        (read.rows.len() * (self.view.shape.key_bytes() + self.view.shape.value_bytes())) as u64
    }

    fn rows_of(&self, read: &Read<'v>) -> Result<(Rows<'v>, Rows<'v>), Error> {
        cluster_rows(&self.view.shape, read.segment, read.block.kv_head as usize, read.rows.clone())
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

    /// What the CPU reads: its clusters, the summaries, and the rows that are exact in any case. One state a unit.
    fn host(&self, batch: &QueryBatch<'_>, placement: &Placement) -> Result<Vec<AttentionState>, Error> {
        let (kernels, dim) = (Kernels::get(), self.view.shape.key_dim);
        let (softcap, mut scratch) = (self.view.scoring.softcap, Vec::new());
        let mut states = steady_states(self.view, batch, &self.segments.plain)?;
        for (unit, (plan, state)) in self.plans.iter().zip(&mut states).enumerate() {
            for (mine, _) in self
                .reads
                .iter()
                .zip(&placement.places)
                .filter(|(read, place)| read.unit == unit && **place == Place::Host)
            {
                let (keys, values) = self.rows_of(mine)?;
                kernels.attend_rows(state, self.query_of(unit), dim, keys, values, softcap, &mut scratch);
            }
            self.estimate(unit, plan, state)?;
        }
        Ok(states)
    }

    fn estimate(&self, unit: usize, plan: &HeadPlan, state: &mut AttentionState) -> Result<(), Error> {
        let kernels = Kernels::get();
        for of_segment in plan.estimated.chunk_by(|a, b| a.segment == b.segment) {
            let index = &self.indexes[of_segment[0].segment as usize];
            let head = index.head(plan.kv_head).map_err(rows_error)?;
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
        let (mut outputs, mut lses) = (Vec::new(), Vec::new());
        for (unit, state) in states.into_iter().enumerate() {
            let (output, lse) = finished(self.view, unit, state);
            outputs.extend(output);
            lses.extend(lse);
        }
        (outputs, lses)
    }
}
