//! The method `retroinfer` against a plain float64 version of it that reads the index columns.

use crate::sample::{Kv, UNEQUAL, logits, memory_store, model, queries, query_view, small_options};
use crate::truth::{Pool, check_exact, check_head, scores};
use longwave::index::HeadIndex;
use longwave::storage::ColumnKind;
use longwave::{
    Answer, Budget, ClusterId, ClusterOptions, Context, ContextOptions, Dtype, HeadPlan, LayerKind,
    LayerSegment, Method, ModelSpec, Plan, Snapshot, Traffic,
};
use std::collections::BTreeSet;

const LAYER: usize = 1;

struct Case {
    model: ModelSpec,
    options: ContextOptions,
    kv: Kv,
    snapshot: Snapshot,
}

impl Case {
    /// Layer 1 of 2 holds `tokens` rows, sealed in bulk and then while decoding.
    fn new(model: ModelSpec, options: ContextOptions, tokens: usize) -> Case {
        let kv = Kv::new(40, tokens, &model);
        let mut context = memory_store().create_with("sparse", &model, options.clone()).unwrap();
        Self::fill(&mut context, &kv);
        Case { model, options, kv, snapshot: context.snapshot().unwrap() }
    }

    fn fill(context: &mut Context, kv: &Kv) {
        let bulk = kv.tokens() * 3 / 4;
        kv.append(context, LAYER, 0..bulk);
        context.seal().unwrap();
        for token in bulk..kv.tokens() {
            kv.append(context, LAYER, token..token + 1);
        }
        // The last call waits for what decoding has queued.
        context.seal().unwrap();
    }

    fn default() -> Case {
        Case::new(model(UNEQUAL, Dtype::F16, 2), small_options(), 700)
    }

    fn queries(&self, positions: usize) -> Vec<f32> {
        queries(6 + positions as u64, positions, &self.model)
    }

    /// Segments before this index may be summarised for queries at the last `positions` positions.
    fn summarised(&self, positions: usize) -> usize {
        let oldest = self.kv.tokens() - positions;
        let last = (oldest as u64 + 1).saturating_sub(u64::from(self.options.window));
        let segments = self.snapshot.segments(LAYER).unwrap();
        segments.iter().take_while(|segment| segment.end() <= last).count()
    }

    fn clusters(&self, head: usize, segments: usize) -> Vec<ClusterId> {
        let of_segment = |(segment, stored): (usize, &LayerSegment)| {
            let clusters = head_index(stored, head).clusters() as u32;
            (0..clusters).map(|cluster| ClusterId { segment: segment as u32, cluster }).collect::<Vec<_>>()
        };
        self.snapshot
            .segments(LAYER)
            .unwrap()
            .into_iter()
            .enumerate()
            .take(segments)
            .flat_map(of_segment)
            .collect()
    }

    /// The centroid of a cluster, its value mean and its rows' positions.
    fn cluster(&self, head: usize, id: ClusterId) -> (Vec<f32>, Vec<f32>, Vec<u64>) {
        let segment = self.snapshot.segments(LAYER).unwrap()[id.segment as usize];
        let index = head_index(segment, head);
        let (key, value) = (self.model.key_dim, self.model.value_dim);
        let cluster = id.cluster as usize;
        let centroid = (cluster * key..(cluster + 1) * key).map(|i| index.centroids.get(i)).collect();
        let mean = (cluster * value..(cluster + 1) * value).map(|i| index.value_means.get(i)).collect();
        let column = segment.segment().column(ColumnKind::POSITIONS).unwrap().all().unwrap();
        let rows = index.offsets[cluster] as usize..index.offsets[cluster + 1] as usize;
        let offset = |row: usize| {
            let at = (head * segment.rows() + row) * 4;
            u32::from_le_bytes(column[at..at + 4].try_into().unwrap())
        };
        (centroid, mean, rows.map(|row| segment.first_position() + u64::from(offset(row))).collect())
    }

    /// Softmax share of every cluster, summed over the group of `head`, in float64.
    fn shares(&self, head: usize, clusters: &[ClusterId], queries: &[f32]) -> Vec<f64> {
        let group = self.model.query_heads / self.model.kv_heads;
        let start = head * group * self.model.key_dim;
        let centroids: Vec<f32> = clusters.iter().flat_map(|&id| self.cluster(head, id).0).collect();
        let scores = scores(&self.model, &queries[start..start + group * self.model.key_dim], &centroids);
        let mut shares = vec![0.0; clusters.len()];
        for query in 0..group {
            let of_query = || scores.values.iter().skip(query).step_by(group);
            let top = of_query().copied().fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = of_query().map(|score| (score - top).exp()).sum();
            shares
                .iter_mut()
                .zip(of_query())
                .for_each(|(share, score)| *share += (score - top).exp() / total);
        }
        shares
    }

    /// Checks the answer, the plan and the report of one call.
    fn check(&self, positions: usize, budget: Budget) -> Plan {
        let queries = self.queries(positions);
        let view = query_view(&queries, &self.model);
        let plan = self.snapshot.explain(LAYER, &view, &budget).unwrap();
        let answer = self.snapshot.attend(LAYER, &view, &budget).unwrap();
        assert_eq!(plan.heads.len(), positions * self.model.kv_heads);
        for (entry, head) in plan.heads.iter().enumerate() {
            let (at, kv_head) = (entry / self.model.kv_heads, entry % self.model.kv_heads);
            assert_eq!(head.position, (self.kv.tokens() - positions + at) as u64);
            assert_eq!(head.kv_head, kv_head);
            self.check_selection(head, positions, budget, &queries[at * queries.len() / positions..]);
            check_head(&self.model, LAYER, (at, kv_head), &queries, self.pool(head, positions), &answer);
            assert_eq!(head.traffic.bytes(), self.bytes(head, positions));
        }
        check_report(&plan, &answer, self.model.kv_heads);
        plan
    }

    /// The best clusters are read, the next best estimated, and rounding alone decides between equals.
    fn check_selection(&self, head: &HeadPlan, positions: usize, budget: Budget, queries: &[f32]) {
        let Budget::RetroInfer { retrieve, estimate } = budget else { panic!("{budget}") };
        let clusters = self.clusters(head.kv_head, self.summarised(positions));
        let shares = self.shares(head.kv_head, &clusters, queries);
        let count = |share: f64| (share * clusters.len() as f64).round_ties_even() as usize;
        let read = count(retrieve).max(1).min(clusters.len());
        assert_eq!(head.clusters, clusters.len());
        assert_eq!(head.read.len(), read);
        assert_eq!(head.estimated.len(), count(estimate).min(clusters.len() - read));
        let (read, estimated): (BTreeSet<_>, BTreeSet<_>) =
            (head.read.iter().copied().collect(), head.estimated.iter().copied().collect());
        assert!(read.is_disjoint(&estimated) && head.read.is_sorted() && head.estimated.is_sorted());
        let rank =
            |id: &ClusterId| if read.contains(id) { 0 } else { 1 + usize::from(!estimated.contains(id)) };
        let mut least = [f64::INFINITY; 3];
        let mut most = [0.0f64; 3];
        for (id, &share) in clusters.iter().zip(&shares) {
            least[rank(id)] = least[rank(id)].min(share);
            most[rank(id)] = most[rank(id)].max(share);
        }
        assert!(
            least[0] >= most[1] * (1.0 - 1e-4) && least[0] >= most[2] * (1.0 - 1e-4),
            "{least:?} {most:?}"
        );
        assert!(least[1] >= most[2] * (1.0 - 1e-4), "{least:?} {most:?}");
        let rows = |ids: &[ClusterId]| {
            ids.iter().map(|&id| self.cluster(head.kv_head, id).2.len() as u64).sum::<u64>()
        };
        assert_eq!((head.rows_read, head.rows_estimated), (rows(&head.read), rows(&head.estimated)));
    }

    /// What the plan says stands in the softmax: rows read, means of what is estimated, and all that is not summarised.
    fn pool(&self, head: &HeadPlan, positions: usize) -> Pool {
        let mut pool = Pool::default();
        for &id in &head.read {
            for position in self.cluster(head.kv_head, id).2 {
                pool.push_rows(&self.kv, head.kv_head, position..position + 1);
            }
        }
        for &id in &head.estimated {
            let (centroid, mean, rows) = self.cluster(head.kv_head, id);
            pool.push(&centroid, &mean, rows.len() as f32);
        }
        let sinks = u64::from(self.options.sinks);
        let segments = self.snapshot.segments(LAYER).unwrap();
        let end = self.summarised(positions).checked_sub(1).map_or(sinks, |last| segments[last].end());
        pool.push_rows(&self.kv, head.kv_head, 0..sinks);
        pool.push_rows(&self.kv, head.kv_head, end..head.position + 1);
        pool
    }

    /// Bytes of sealed columns: rows, centroids, counts and value means, and where a mask applies, positions.
    fn bytes(&self, head: &HeadPlan, positions: usize) -> u64 {
        let size = self.model.dtype.size_of();
        let (key, value) = (self.model.key_dim * size, self.model.value_dim * size);
        let (mut rows, mut masked) = (head.rows_read, 0);
        for segment in &self.snapshot.segments(LAYER).unwrap()[self.summarised(positions)..] {
            if segment.first_position() <= head.position {
                rows += segment.rows() as u64;
                masked += if segment.end() > head.position + 1 { segment.rows() } else { 0 };
            }
        }
        rows * (key + value) as u64
            + (head.clusters * (key + 4) + head.estimated.len() * value + masked * 4) as u64
    }
}

fn head_index(segment: &LayerSegment, head: usize) -> HeadIndex<'_> {
    segment.index().unwrap().unwrap().head(head).unwrap()
}

/// The report of a call says what its plan said.
fn check_report(plan: &Plan, answer: &Answer, kv_heads: usize) {
    let report = &answer.report;
    assert_eq!(report.method, plan.method);
    assert_eq!(report.traffic, plan.heads.iter().fold(Traffic::default(), |sum, head| sum + head.traffic));
    assert_eq!(report.sealed_rows, plan.sealed_rows * kv_heads as u64);
    assert_eq!(report.sealed_bytes_16bit, plan.sealed_bytes_16bit);
    assert_eq!(report.positions.len(), plan.heads.len() / kv_heads);
    for (position, heads) in report.positions.iter().zip(plan.heads.chunks(kv_heads)) {
        let sum = |of: fn(&HeadPlan) -> u64| heads.iter().map(of).sum::<u64>();
        assert_eq!(position.position, heads[0].position);
        assert_eq!(position.clusters, sum(|head| head.clusters as u64));
        assert_eq!(position.clusters_read, sum(|head| head.read.len() as u64));
        assert_eq!(position.clusters_estimated, sum(|head| head.estimated.len() as u64));
        assert_eq!(position.rows_read, sum(|head| head.rows_read + head.rows_plain));
        assert_eq!(position.bytes, sum(|head| head.traffic.bytes()));
    }
}

#[test]
fn one_position_selects_reads_and_estimates_as_published() {
    let case = Case::default();
    let plan = case.check(1, Budget::RETROINFER);
    assert_eq!(case.summarised(1), case.snapshot.segments(LAYER).unwrap().len());
    assert!(
        plan.heads.iter().all(|head| head.clusters > 80 && head.estimated.len() > 20 && head.rows_plain == 0)
    );
}

#[test]
fn budgets_from_nothing_to_everything_are_followed() {
    let case = Case::default();
    for (retrieve, estimate) in [(0.0, 0.0), (0.0, 1.0), (0.3, 0.1), (0.5, 0.9), (1.0, 0.0), (1.0, 1.0)] {
        case.check(1, Budget::RetroInfer { retrieve, estimate });
    }
    // Everything read is exact attention.
    let queries = case.queries(1);
    let all = Budget::RetroInfer { retrieve: 1.0, estimate: 0.0 };
    let answer = case.snapshot.attend(LAYER, &query_view(&queries, &case.model), &all).unwrap();
    check_exact(&case.model, LAYER, &case.kv, 700, &queries, &answer);
}

#[test]
fn several_positions_read_what_reaches_over_the_causal_edge_row_by_row() {
    let case = Case::default();
    for positions in [2, 9, 30, 60, 150] {
        let plan = case.check(positions, Budget::RETROINFER);
        assert!(plan.heads.iter().any(|head| head.rows_plain > 0), "{positions} positions");
    }
    // No segment lies wholly before the window of the first query: all of it is exact.
    let queries = case.queries(695);
    let plan = case.snapshot.explain(LAYER, &query_view(&queries, &case.model), &Budget::RETROINFER).unwrap();
    assert!(plan.heads.iter().all(|head| head.clusters == 0));
    let answer =
        case.snapshot.attend(LAYER, &query_view(&queries, &case.model), &Budget::RETROINFER).unwrap();
    check_exact(&case.model, LAYER, &case.kv, 700, &queries, &answer);
}

#[test]
fn shapes_types_softcaps_and_sink_logits_enter_every_part() {
    for (number, shape) in
        [[2, 8, 64, 64], [3, 3, 8, 40], [1, 4, 24, 16], [2, 2, 72, 8]].into_iter().enumerate()
    {
        for dtype in [Dtype::F16, Dtype::Bf16, Dtype::F32] {
            let mut model = model(shape, dtype, 2);
            model.softcap = (number != 1).then_some(2.5);
            model.sink_logits = vec![vec![], logits(5, &model)];
            let case =
                Case::new(model, small_options().with_exact_rows(number as u32, 1 + 7 * number as u32), 330);
            case.check(1, Budget::RetroInfer { retrieve: 0.1, estimate: 0.4 });
            case.check(23, Budget::RetroInfer { retrieve: 0.1, estimate: 0.4 });
        }
    }
}

#[test]
fn split_clusters_are_clusters() {
    let clusters =
        ClusterOptions { tokens_per_cluster: 12, split_factor: Some(1.5), ..ClusterOptions::ladder() };
    let case = Case::new(model(UNEQUAL, Dtype::F16, 2), small_options().with_clusters(clusters), 500);
    case.check(1, Budget::RetroInfer { retrieve: 0.2, estimate: 0.3 });
}

#[test]
fn equal_shares_go_to_the_older_cluster() {
    let model = model(UNEQUAL, Dtype::F16, 2);
    let options = small_options().with_exact_rows(0, 1).with_segment_rows(40, 40);
    let once = Kv::new(8, 40, &model);
    let mut kv = once.clone();
    for _ in 0..2 {
        kv.keys.extend_from_slice(&once.keys);
        kv.values.extend_from_slice(&once.values);
    }
    // The clustering of a segment depends on its rows only, since no cluster is empty: three segments alike.
    let mut context = memory_store().create_with("ties", &model, options.clone()).unwrap();
    kv.append(&mut context, LAYER, 0..120);
    kv.append(&mut context, LAYER, 0..1);
    context.seal().unwrap();
    let case = Case { snapshot: context.snapshot().unwrap(), options, kv, model };
    let queries = case.queries(1);
    let [first, second, third] = case.snapshot.segments(LAYER).unwrap()[..] else { panic!("three segments") };
    for head in 0..3 {
        let centroids = |segment| head_index(segment, head).centroids.as_bytes();
        assert!(centroids(first) == centroids(second) && centroids(first) == centroids(third));
    }
    let clusters = head_index(first, 0).clusters();
    for read in 1..3 * clusters {
        let budget = Budget::RetroInfer { retrieve: read as f64 / (3 * clusters) as f64, estimate: 0.1 };
        let plan = case.snapshot.explain(LAYER, &query_view(&queries, &case.model), &budget).unwrap();
        let head = &plan.heads[0];
        assert_eq!(head.read.len(), read);
        let of_segment = |segment| -> Vec<u32> {
            head.read.iter().filter(|id| id.segment == segment).map(|id| id.cluster).collect()
        };
        let [oldest, middle, newest] = [of_segment(0), of_segment(1), of_segment(2)];
        assert_eq!([oldest.len(), middle.len(), newest.len()], [read.div_ceil(3), (read + 1) / 3, read / 3]);
        assert!(middle.iter().all(|cluster| oldest.contains(cluster)));
        assert!(newest.iter().all(|cluster| middle.contains(cluster)));
    }
}

#[test]
fn layers_that_are_never_clustered_are_exact_and_report_what_a_query_sees() {
    let mut model = model(UNEQUAL, Dtype::F16, 2);
    for kind in [LayerKind::ExactOnly, LayerKind::SlidingWindow(20), LayerKind::SlidingWindow(300)] {
        model.layer_kinds = vec![LayerKind::Clustered, kind];
        let case = Case::new(model.clone(), small_options(), 600);
        for positions in [1, 70] {
            let queries = case.queries(positions);
            let view = query_view(&queries, &case.model);
            for budget in [Budget::Exact, Budget::RETROINFER] {
                let plan = case.snapshot.explain(LAYER, &view, &budget).unwrap();
                let answer = case.snapshot.attend(LAYER, &view, &budget).unwrap();
                check_exact(&case.model, LAYER, &case.kv, 600, &queries, &answer);
                check_report(&plan, &answer, 3);
                for head in &plan.heads {
                    assert_eq!(head.rows_plain, seen_rows(&case, kind, head.position), "{kind:?} {budget}");
                }
            }
        }
    }
}

/// Rows of the segments of which the query at `position` sees some.
fn seen_rows(case: &Case, kind: LayerKind, position: u64) -> u64 {
    let first = match kind {
        LayerKind::SlidingWindow(window) => (position + 1).saturating_sub(window),
        _ => 0,
    };
    let segments = case.snapshot.segments(LAYER).unwrap();
    let seen =
        segments.iter().filter(|segment| segment.end() > first && segment.first_position() <= position);
    seen.map(|segment| segment.rows() as u64).sum()
}

#[test]
fn exact_reports_every_byte_of_the_sealed_rows_for_each_position() {
    let case = Case::default();
    for positions in [1, 40] {
        let queries = case.queries(positions);
        let view = query_view(&queries, &case.model);
        let plan = case.snapshot.explain(LAYER, &view, &Budget::Exact).unwrap();
        let answer = case.snapshot.attend(LAYER, &view, &Budget::Exact).unwrap();
        check_report(&plan, &answer, 3);
        assert_eq!(plan.method, Method::Exact);
        let sealed = plan.sealed_rows;
        assert_eq!(sealed, 700 - 3 - 5);
        // Later rows than a query's own are not read for it, but in the segment that it stands in.
        for head in &plan.heads {
            assert_eq!(head.rows_plain, seen_rows(&case, LayerKind::Clustered, head.position));
        }
        if positions == 1 {
            assert_eq!(answer.report.bytes_share(), 1.0);
            assert_eq!(answer.report.traffic.bytes(), sealed * 3 * (24 + 16) * 2);
            assert_eq!(answer.report.tail_rows, 8 * 3);
        }
    }
}

#[test]
fn plans_print_every_head() {
    let case = Case::default();
    let queries = case.queries(2);
    let plan = case.snapshot.explain(LAYER, &query_view(&queries, &case.model), &Budget::RETROINFER).unwrap();
    let text = plan.to_string();
    assert!(text.starts_with("method retroinfer"), "{text}");
    assert_eq!(text.lines().count(), 3 + 2 * 3 + 1, "{text}");
    assert!(text.contains(&format!("total bytes {}", plan.traffic().bytes())), "{text}");
}
