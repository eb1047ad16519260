//! Random lives of a store of contexts, forked, cut, renamed, removed and collected, against plain lists of rows.

use crate::sample::{
    Kv, UNEQUAL, as_backend, bits, faults, logits, merging_store_on, model, queries, query_view,
    small_options,
};
use crate::truth::check_exact;
use longwave::storage::{Crash, MemoryBackend};
use longwave::{Budget, Context, Dtype, Durability, LayerKind, ModelSpec, Snapshot, Store};
use proptest::prelude::*;
use std::rc::Rc;

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
    /// Cuts at this share of the length; what is appended from then on differs.
    Truncate(f64),
    /// Forks, and goes on with the fork if so.
    Fork(bool),
    /// Forks another context at this share of its last commit, beside its writer.
    ForkCommitted(usize, f64),
    /// Goes on with another context.
    Switch(usize),
    Rename,
    /// Removes another context.
    Remove(usize),
    Collect,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (1usize..90).prop_map(Step::Append),
        3 => (1usize..25).prop_map(Step::Decode),
        1 => Just(Step::Seal),
        2 => Just(Step::Commit(Durability::Strict)),
        1 => Just(Step::Commit(Durability::Flushed)),
        2 => Just(Step::Commit(Durability::None)),
        1 => Just(Step::Reopen),
        2 => Just(Step::PowerLoss),
        3 => (0..LAYERS, 1usize..60).prop_map(|(layer, positions)| Step::Attend { layer, positions }),
        1 => Just(Step::Snapshot),
        2 => (0.0..1.0).prop_map(Step::Truncate),
        2 => any::<bool>().prop_map(Step::Fork),
        1 => (any::<usize>(), 0.0..1.0).prop_map(|(which, share)| Step::ForkCommitted(which, share)),
        2 => any::<usize>().prop_map(Step::Switch),
        1 => Just(Step::Rename),
        1 => any::<usize>().prop_map(Step::Remove),
        1 => Just(Step::Collect),
    ]
}

fn spec(dtype: Dtype) -> ModelSpec {
    let mut model = model(UNEQUAL, dtype, LAYERS);
    model.layer_kinds = vec![LayerKind::Clustered, LayerKind::SlidingWindow(33), LayerKind::ExactOnly];
    model.sink_logits = vec![logits(2, &model), vec![], logits(3, &model)];
    model.softcap = Some(6.0);
    model
}

/// Rows and token ids that a context has, or would have if it went on.
struct Text {
    kv: Vec<Kv>,
    ids: Vec<u32>,
}

impl Text {
    fn new(seed: u64, model: &ModelSpec) -> Text {
        let kv = (0..LAYERS as u64).map(|layer| Kv::new(60 + layer + 97 * seed, ROWS, model)).collect();
        Text { kv, ids: (0..ROWS as u32).map(|token| token ^ 99 ^ (seed as u32) << 10).collect() }
    }

    /// The first `length` of this, then another text.
    fn branch(&self, length: usize, seed: u64, model: &ModelSpec) -> Text {
        let other = Text::new(seed, model);
        let kv = self.kv.iter().zip(&other.kv).map(|(ours, theirs)| ours.joined(length, theirs)).collect();
        Text { kv, ids: [&self.ids[..length], &other.ids[length..]].concat() }
    }
}

#[derive(Clone)]
struct State {
    text: Rc<Text>,
    length: usize,
}

/// A context, as it must be.
struct Branch {
    name: String,
    now: State,
    committed: State,
    generation: u64,
    /// What a power loss may leave: generations with their states.
    durable: Vec<(u64, State)>,
}

impl Branch {
    fn new(name: String, state: State) -> Branch {
        let durable = vec![(1, state.clone())];
        Branch { name, now: state.clone(), committed: state, generation: 1, durable }
    }

    fn commit(&mut self, generation: u64, durability: Durability) {
        (self.generation, self.committed) = (generation, self.now.clone());
        if durability == Durability::Strict {
            self.durable.clear();
        }
        self.durable.push((generation, self.now.clone()));
    }
}

/// A store, one context of it open, and what it must hold.
struct Machine {
    memory: MemoryBackend,
    model: ModelSpec,
    context: Option<Context>,
    branches: Vec<Branch>,
    active: usize,
    texts: u64,
    kept: Vec<(State, Snapshot, Vec<u32>)>,
}

impl Machine {
    fn new(dtype: Dtype) -> Machine {
        let (memory, model) = (MemoryBackend::new(), spec(dtype));
        let context =
            merging_store_on(&as_backend(&memory)).create_with("random", &model, small_options()).unwrap();
        let state = State { text: Rc::new(Text::new(0, &model)), length: 0 };
        let branches = vec![Branch::new("random".into(), state)];
        Machine { memory, model, context: Some(context), branches, active: 0, texts: 0, kept: Vec::new() }
    }

    fn store(&self) -> Store {
        merging_store_on(&as_backend(&self.memory))
    }

    fn context(&mut self) -> &mut Context {
        self.context.as_mut().unwrap()
    }

    fn branch(&mut self) -> &mut Branch {
        &mut self.branches[self.active]
    }

    fn append(&mut self, rows: usize) {
        let Machine { context: Some(context), branches, active, .. } = self else { return };
        let State { text, length } = &mut branches[*active].now;
        let tokens = *length..*length + rows.min(ROWS - *length);
        *length = tokens.end;
        if tokens.is_empty() {
            return;
        }
        for (layer, kv) in text.kv.iter().enumerate() {
            kv.append(context, layer, tokens.clone());
        }
        context.extend_tokens(&text.ids[tokens]).unwrap();
    }

    /// Opens the active context. It must hold what was committed last.
    fn open(&mut self) {
        let name = self.branch().name.clone();
        self.context = Some(self.store().context(&name, &self.model).unwrap());
        let branch = &mut self.branches[self.active];
        branch.now = branch.committed.clone();
    }

    fn take(&mut self, step: &Step) {
        match *step {
            Step::Append(rows) => self.append(rows),
            Step::Decode(rows) => (0..rows).for_each(|_| self.append(1)),
            Step::Seal => self.context().seal().unwrap(),
            Step::Commit(durability) => {
                self.context().commit(durability).unwrap();
                let generation = self.context().generation();
                self.branch().commit(generation, durability);
            }
            Step::Reopen => {
                self.context = None;
                self.open();
            }
            Step::PowerLoss => self.power_loss(),
            Step::Attend { layer, positions } => self.attend(layer, positions),
            Step::Snapshot => self.keep(),
            Step::Truncate(share) => {
                let length = (self.branch().now.length as f64 * share) as usize;
                self.context().truncate(length as u64).unwrap();
                let text = self.next_text(length);
                self.branch().now = State { text, length };
            }
            Step::Fork(follow) => self.fork(follow),
            Step::ForkCommitted(which, share) => self.fork_committed(which % self.branches.len(), share),
            Step::Switch(which) => {
                self.context = None;
                let branch = self.branch();
                branch.now = branch.committed.clone();
                self.active = which % self.branches.len();
                self.open();
            }
            Step::Rename => self.rename(),
            Step::Remove(which) => {
                let which = which % self.branches.len();
                if which != self.active {
                    let gone = self.branches.remove(which);
                    self.active -= usize::from(which < self.active);
                    self.store().remove(&gone.name).unwrap();
                }
            }
            Step::Collect => drop(self.store().collect(false).unwrap()),
        }
        self.check_active();
    }

    fn check_active(&mut self) {
        let State { text, length } = self.branch().now.clone();
        let generation = self.branch().generation;
        let context = self.context();
        assert_eq!(context.generation(), generation);
        assert!((0..LAYERS).all(|layer| context.length(layer).unwrap() == length as u64));
        assert_eq!(context.tokens(), &text.ids[..length]);
        let mut names: Vec<&str> = self.branches.iter().map(|branch| branch.name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(self.store().contexts().unwrap(), names);
    }

    /// The active context's text with another end.
    fn next_text(&mut self, length: usize) -> Rc<Text> {
        self.texts += 1;
        let seed = self.texts;
        Rc::new(self.branches[self.active].now.text.branch(length, seed, &self.model))
    }

    fn power_loss(&mut self) {
        self.context = None;
        let seed = self.texts ^ self.branch().generation;
        self.memory = self.memory.after(Crash::Torn { seed });
        let store = self.store();
        for branch in &mut self.branches {
            let found = store.snapshot(&branch.name).unwrap().generation();
            let left = branch.durable.iter().find(|(generation, _)| *generation == found);
            let left = left.unwrap_or_else(|| panic!("{} at commit {found}", branch.name)).1.clone();
            // What is on the device now stays; a commit that was undone is gone for good once it is written on.
            (branch.generation, branch.committed, branch.now) = (found, left.clone(), left.clone());
            branch.durable = vec![(found, left)];
        }
        self.open();
    }

    fn fork(&mut self, follow: bool) {
        let name = format!("fork-{}", self.texts);
        let fork = self.context().fork(&name).unwrap();
        let generation = self.context().generation();
        if generation != self.branch().generation {
            self.branch().commit(generation, Durability::Strict);
        }
        let length = self.branch().now.length;
        let text = self.next_text(length);
        self.branches.push(Branch::new(name, State { text, length }));
        if follow {
            let branch = self.branch();
            branch.now = branch.committed.clone();
            self.context = Some(fork);
            self.active = self.branches.len() - 1;
        }
    }

    fn fork_committed(&mut self, which: usize, share: f64) {
        let (name, source) = (format!("beside-{}", self.texts), &self.branches[which]);
        let length = (source.committed.length as f64 * share) as usize;
        drop(self.store().fork(&source.name, &name, &self.model, Some(length as u64)).unwrap());
        self.texts += 1;
        let text = Rc::new(source.committed.text.branch(length, self.texts, &self.model));
        self.branches.push(Branch::new(name, State { text, length }));
    }

    fn rename(&mut self) {
        self.context = None;
        let (old, new) = (self.branch().name.clone(), format!("renamed-{}", self.texts));
        self.texts += 1;
        let store = self.store();
        store.rename(&old, &new).unwrap();
        self.branch().name = new;
        self.open();
        let generation = self.context().generation();
        let branch = self.branch();
        if generation != branch.generation {
            branch.commit(generation, Durability::Strict);
        }
    }

    fn attend(&mut self, layer: usize, positions: usize) {
        let State { text, length } = self.branch().now.clone();
        let positions = positions.min(length);
        if positions == 0 {
            return;
        }
        let model = self.model.clone();
        let queries = queries(length as u64, positions, &model);
        for budget in [Budget::Exact, Budget::RetroInfer { retrieve: 1.0, estimate: 0.0 }] {
            let answer = self.context().attend(layer, &query_view(&queries, &model), &budget).unwrap();
            check_exact(&model, layer, &text.kv[layer], length as u64, &queries, &answer);
        }
    }

    fn keep(&mut self) {
        let state = self.branch().committed.clone();
        if state.length == 0 {
            return;
        }
        let (name, generation) = (self.branch().name.clone(), self.branch().generation);
        let snapshot = self.store().snapshot(&name).unwrap();
        assert_eq!(snapshot.generation(), generation);
        let queries = queries(5, 1, &self.model);
        let answer = snapshot.attend(0, &query_view(&queries, &self.model), &Budget::Exact).unwrap();
        check_exact(&self.model, 0, &state.text.kv[0], state.length as u64, &queries, &answer);
        self.kept.push((state, snapshot, bits(&answer)));
    }

    fn finish(mut self) {
        self.context().commit(Durability::Strict).unwrap();
        let generation = self.context().generation();
        self.branch().commit(generation, Durability::Strict);
        self.context = None;
        let queries = queries(5, 1, &self.model);
        for (state, snapshot, expected) in &self.kept {
            assert_eq!(snapshot.length(0).unwrap(), state.length as u64);
            let answer = snapshot.attend(0, &query_view(&queries, &self.model), &Budget::Exact).unwrap();
            assert_eq!(bits(&answer), *expected);
        }
        for active in 0..self.branches.len() {
            self.active = active;
            self.open();
            self.check_active();
            (0..LAYERS).for_each(|layer| self.attend(layer, 4));
            self.context = None;
        }
        self.store().collect(false).unwrap();
        let backend = as_backend(&self.memory);
        assert_eq!(faults(&backend), Vec::<String>::new());
        let names = self.store().contexts().unwrap();
        let mut named: Vec<String> =
            names.iter().flat_map(|name| self.store().manifest(name).unwrap().files(name)).collect();
        named.sort();
        named.dedup();
        let mut files = self.memory.files();
        files.retain(|file| file.starts_with("segments/") || file.starts_with("logs/"));
        // Weak commits keep what the durable one before them names.
        let weak = self.memory.files().iter().any(|file| file.ends_with(".recent"));
        assert!(files == named || weak && named.iter().all(|file| files.contains(file)), "{files:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 80, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_life_of_contexts_holds_the_rows_of_the_model(
        steps in prop::collection::vec(step(), 1..32),
        dtype in prop::sample::select(vec![Dtype::F16, Dtype::Bf16, Dtype::F32]),
    ) {
        let mut machine = Machine::new(dtype);
        steps.iter().for_each(|step| machine.take(step));
        machine.finish();
    }
}
