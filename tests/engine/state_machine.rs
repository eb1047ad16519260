//! Random lives of a context against a plain list of rows.

use crate::sample::{
    Kv, UNEQUAL, as_backend, bits, faults, logits, model, queries, query_view, small_options, store_on,
};
use crate::truth::check_exact;
use longwave::storage::{Crash, MemoryBackend};
use longwave::{Budget, Context, Dtype, Durability, LayerKind, ModelSpec, Snapshot};
use proptest::prelude::*;

const LAYERS: usize = 3;
const ROWS: usize = 420;

#[derive(Clone, Debug)]
enum Step {
    /// Rows for every layer, with token ids.
    Append(usize),
    /// Rows one by one, as decoding does.
    Decode(usize),
    Seal,
    Commit(Durability),
    /// Reopens what was committed; all else is gone.
    Reopen,
    /// The machine loses power; what was committed strictly stays.
    PowerLoss,
    Attend {
        layer: usize,
        positions: usize,
    },
    Snapshot,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (1usize..90).prop_map(Step::Append),
        3 => (1usize..25).prop_map(Step::Decode),
        1 => Just(Step::Seal),
        2 => Just(Step::Commit(Durability::Strict)),
        1 => Just(Step::Commit(Durability::Flushed)),
        1 => Just(Step::Commit(Durability::None)),
        1 => Just(Step::Reopen),
        1 => Just(Step::PowerLoss),
        3 => (0..LAYERS, 1usize..60).prop_map(|(layer, positions)| Step::Attend { layer, positions }),
        1 => Just(Step::Snapshot),
    ]
}

fn spec(dtype: Dtype) -> ModelSpec {
    let mut model = model(UNEQUAL, dtype, LAYERS);
    model.layer_kinds = vec![LayerKind::Clustered, LayerKind::SlidingWindow(33), LayerKind::ExactOnly];
    model.sink_logits = vec![logits(2, &model), vec![], logits(3, &model)];
    model.softcap = Some(6.0);
    model
}

/// The context, and what it must hold.
struct Machine {
    memory: MemoryBackend,
    model: ModelSpec,
    kv: Vec<Kv>,
    context: Option<Context>,
    /// Rows now and at the last commit.
    length: usize,
    committed: usize,
    /// What a power loss may leave: generations with their rows. Nothing is promised where it is empty.
    durable: Vec<(u64, usize)>,
    generation: u64,
    kept: Vec<(usize, Snapshot, Vec<u32>)>,
}

impl Machine {
    fn new(dtype: Dtype) -> Machine {
        let (memory, model) = (MemoryBackend::new(), spec(dtype));
        let context = store_on(&as_backend(&memory)).create_with("random", &model, small_options()).unwrap();
        let kv = (0..LAYERS).map(|layer| Kv::new(60 + layer as u64, ROWS, &model)).collect();
        let context = Some(context);
        let (length, committed, durable, generation) = (0, 0, vec![(1, 0)], 1);
        Machine { memory, model, kv, context, length, committed, durable, generation, kept: Vec::new() }
    }

    fn context(&mut self) -> &mut Context {
        self.context.as_mut().unwrap()
    }

    fn append(&mut self, rows: usize) {
        let tokens = self.length..self.length + rows.min(ROWS - self.length);
        self.length = tokens.end;
        if tokens.is_empty() {
            return;
        }
        let Some(context) = &mut self.context else { return };
        for (layer, kv) in self.kv.iter().enumerate() {
            kv.append(context, layer, tokens.clone());
        }
        context.extend_tokens(&tokens.map(|token| token as u32 ^ 99).collect::<Vec<_>>()).unwrap();
    }

    fn reopen(&mut self) {
        let store = store_on(&as_backend(&self.memory));
        self.context = Some(store.context("random", &self.model).unwrap());
        let generation = self.context().generation();
        self.generation = generation;
    }

    fn take(&mut self, step: &Step) {
        match *step {
            Step::Append(rows) => self.append(rows),
            Step::Decode(rows) => (0..rows).for_each(|_| self.append(1)),
            Step::Seal => self.context().seal().unwrap(),
            Step::Commit(durability) => {
                self.context().commit(durability).unwrap();
                self.committed = self.length;
                self.generation += 1;
                match durability {
                    Durability::Strict => self.durable = vec![(self.generation, self.length)],
                    // It may bring back what was durable before, where that is known.
                    Durability::Flushed if !self.durable.is_empty() => {
                        self.durable.push((self.generation, self.length));
                    }
                    _ => self.durable.clear(),
                }
            }
            Step::Reopen => {
                self.context = None;
                self.length = self.committed;
                self.reopen();
            }
            Step::PowerLoss if !self.durable.is_empty() => {
                self.context = None;
                self.memory = self.memory.after(Crash::Torn { seed: self.generation });
                self.reopen();
                let left = self.durable.iter().find(|(generation, _)| *generation == self.generation);
                self.length = left.expect("a commit that was durable").1;
                self.committed = self.length;
                self.durable = vec![(self.generation, self.length)];
            }
            Step::PowerLoss => {}
            Step::Attend { layer, positions } => self.attend(layer, positions),
            Step::Snapshot => self.keep(),
        }
        let (length, generation) = (self.length, self.generation);
        let context = self.context();
        assert_eq!(context.generation(), generation);
        assert!((0..LAYERS).all(|layer| context.length(layer).unwrap() == length as u64));
        let ids: Vec<u32> = (0..length as u32).map(|token| token ^ 99).collect();
        assert_eq!(context.tokens(), ids);
    }

    fn attend(&mut self, layer: usize, positions: usize) {
        let positions = positions.min(self.length);
        if positions == 0 {
            return;
        }
        let (model, length) = (self.model.clone(), self.length as u64);
        let queries = queries(length, positions, &model);
        let answer = self.context().attend(layer, &query_view(&queries, &model), &Budget::Exact).unwrap();
        check_exact(&model, layer, &self.kv[layer], length, &queries, &answer);
        let all = Budget::RetroInfer { retrieve: 1.0, estimate: 0.0 };
        let answer = self.context().attend(layer, &query_view(&queries, &model), &all).unwrap();
        check_exact(&model, layer, &self.kv[layer], length, &queries, &answer);
    }

    fn keep(&mut self) {
        // A snapshot of rows that are not committed does not outlive a writer that is dropped without a commit.
        if self.length == 0 || self.length != self.committed {
            return;
        }
        let snapshot = store_on(&as_backend(&self.memory)).snapshot("random").unwrap();
        assert_eq!(snapshot.generation(), self.generation);
        let queries = queries(5, 1, &self.model);
        let answer = snapshot.attend(0, &query_view(&queries, &self.model), &Budget::Exact).unwrap();
        self.kept.push((self.length, snapshot, bits(&answer)));
    }

    fn finish(mut self) {
        for layer in 0..LAYERS {
            self.attend(layer, 3);
        }
        self.context().commit(Durability::Strict).unwrap();
        self.context = None;
        let queries = queries(5, 1, &self.model);
        for (length, snapshot, expected) in &self.kept {
            assert_eq!(snapshot.length(0).unwrap(), *length as u64);
            let answer = snapshot.attend(0, &query_view(&queries, &self.model), &Budget::Exact).unwrap();
            assert_eq!(bits(&answer), *expected);
        }
        let backend = as_backend(&self.memory);
        assert_eq!(faults(&backend), Vec::<String>::new());
        self.reopen();
        for layer in 0..LAYERS {
            self.attend(layer, 5);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_life_of_a_context_holds_the_rows_of_the_model(
        steps in prop::collection::vec(step(), 1..28),
        dtype in prop::sample::select(vec![Dtype::F16, Dtype::Bf16, Dtype::F32]),
    ) {
        let mut machine = Machine::new(dtype);
        steps.iter().for_each(|step| machine.take(step));
        machine.finish();
    }
}
