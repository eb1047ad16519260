//! The rows of one layer at one moment: sealed segments and the tail.

use crate::accuracy::{self, Calibration, Spending, Steering};
use crate::error::Error;
use crate::forgetting::{Forgetting, Memory};
use crate::rows::Tail;
use crate::sealing::Sealed;
use crate::tensor::TensorView;
use longwave_kernels::{Dtype, Kernels, Rows};
use longwave_query::{Answer, Budget, LayerView, Plan, QueryBatch, Scoring, Shape};
use std::sync::Arc;

/// Immutable once shared: a snapshot holds a clone, and the writer copies what it changes.
#[derive(Clone, Debug)]
pub(crate) struct LayerRows {
    pub(crate) shape: Shape,
    pub(crate) scoring: Arc<Scoring>,
    pub(crate) segments: Vec<Arc<Sealed>>,
    pub(crate) tail: Tail,
    /// Changed by the writer alone, as the steering is.
    pub(crate) calibration: Arc<Calibration>,
    pub(crate) steering: Steering,
    pub(crate) spending: Arc<Spending>,
    pub(crate) memory: Arc<Memory>,
}

impl LayerRows {
    pub(crate) fn new(shape: Shape, scoring: Scoring, sinks: u64) -> Self {
        LayerRows {
            shape,
            scoring: Arc::new(scoring),
            segments: Vec::new(),
            tail: Tail::new(shape, sinks),
            calibration: Arc::new(Calibration::new(shape.query_heads)),
            steering: Steering::default(),
            spending: Arc::new(Spending::new(&shape)),
            memory: Arc::new(Memory::default()),
        }
    }

    pub(crate) fn length(&self) -> u64 {
        self.tail.length()
    }

    /// The position after the last sealed row, dropped or not; 0 when nothing was sealed.
    pub(crate) fn sealed_end(&self) -> u64 {
        let kept = self.segments.last().map_or(0, |sealed| sealed.segment.end());
        kept.max(self.memory.dropped.end())
    }

    pub(crate) fn attend(
        &self,
        layer: usize,
        queries: &TensorView<'_>,
        budget: &Budget,
    ) -> Result<Answer, Error> {
        self.attend_watched(layer, queries, budget, false)
    }

    /// As [`Self::attend`]; with `watched` the answer says which clusters were important.
    pub(crate) fn attend_watched(
        &self,
        layer: usize,
        queries: &TensorView<'_>,
        budget: &Budget,
        watched: bool,
    ) -> Result<Answer, Error> {
        let (batch, view) = self.prepare(layer, queries, budget)?;
        let view = LayerView { watched, ..view };
        let state = (&*self.calibration, &self.steering);
        let mut answer = accuracy::attend(&view, &batch.view(), budget, state)?;
        answer.report.dropped_rows = self.memory.dropped.count();
        if answer.report.dropped_rows > 0 {
            // Nobody knows what they would have added.
            answer.report.bound.fill(None);
        }
        Ok(answer)
    }

    /// Whether the layer forgets: rows of others are not looked at one by one.
    pub(crate) fn forgets(&self) -> bool {
        self.memory.policy != Forgetting::Never
    }

    pub(crate) fn explain(
        &self,
        layer: usize,
        queries: &TensorView<'_>,
        budget: &Budget,
    ) -> Result<Plan, Error> {
        let (batch, view) = self.prepare(layer, queries, budget)?;
        let state = (&*self.calibration, &self.steering);
        let budget = accuracy::explain_budget(budget, self.shape.group(), state);
        Ok(longwave_query::explain(&view, &batch.view(), &budget)?)
    }

    /// The position of the first of queries that stand at the layer's last positions.
    pub(crate) fn first_of(&self, layer: usize, queries: &TensorView<'_>) -> Result<u64, Error> {
        let (length, positions) = (self.length(), queries.tokens());
        length.checked_sub(positions as u64).ok_or(Error::TooManyPositions { layer, length, positions })
    }

    fn prepare(
        &self,
        layer: usize,
        queries: &TensorView<'_>,
        budget: &Budget,
    ) -> Result<(OwnedBatch, LayerView<'_>), Error> {
        if let Some(found) = budget.fault() {
            return Err(Error::Invalid { what: "budget", expected: "numbers in their range".into(), found });
        }
        let batch = OwnedBatch::take(self, self.first_of(layer, queries)?, queries)?;
        Ok((batch, self.view()))
    }

    pub(crate) fn view(&self) -> LayerView<'_> {
        let segments = self.segments.iter().map(|sealed| sealed.segment.as_ref()).collect();
        LayerView {
            shape: self.shape,
            scoring: &self.scoring,
            segments,
            blocks: self.tail.view(),
            demoted: self.memory.demoted(),
            watched: false,
        }
    }
}

/// Checked queries, as f32.
pub(crate) struct OwnedBatch {
    /// `[positions, query_heads, key_dim]`.
    pub(crate) data: Vec<f32>,
    pub(crate) first_position: u64,
    pub(crate) positions: usize,
}

impl OwnedBatch {
    pub(crate) fn take(
        rows: &LayerRows,
        first_position: u64,
        queries: &TensorView<'_>,
    ) -> Result<Self, Error> {
        let Shape { query_heads, key_dim, .. } = rows.shape;
        queries.check("queries", query_heads, key_dim)?;
        let positions = queries.tokens();
        let mut data = vec![0.0; positions * query_heads * key_dim];
        for (at, out) in data.chunks_exact_mut(key_dim).enumerate() {
            let (token, head) = (at / query_heads, at % query_heads);
            match queries.row(token, head) {
                Rows::F32(row) => out.copy_from_slice(row),
                row => Kernels::get().widen(row, out),
            }
            if let Some(element) = out.iter().position(|x| !x.is_finite()) {
                let (what, value, dtype) = ("queries", out[element], Dtype::F32);
                return Err(Error::NotFinite { what, value, token, head, element, dtype });
            }
        }
        Ok(OwnedBatch { data, first_position, positions })
    }

    fn view(&self) -> QueryBatch<'_> {
        QueryBatch { data: &self.data, first_position: self.first_position, positions: self.positions }
    }
}
