//! The method `longwave` against the float64 version of it: answer, log-sum-exp, predicted error, what was read.

use crate::reference::{
    Case, Choice, MARGIN, Reference, Resolution, StoredHead, case_options, centred, distance2, dot, pieces,
    plain_pieces, traffic,
};
use crate::sample::{logits, model, queries, query_view};
use longwave::index::ladder::columns as ladder;
use longwave::storage::{BLOCK_SIZE, ColumnKind};
use longwave::{
    Answer, Budget, ClusterId, ClusterOptions, ContextOptions, Dtype, LayerSegment, ModelSpec, Plan, RowForm,
    Traffic,
};
use longwave_query::FixedTau;
use std::collections::BTreeSet;

/// What the answers of several calls rested on, to show that the data needs every part of the method.
#[derive(Default)]
struct Seen {
    /// Positions and KV heads that were compared, and that were not for a decision too close to its threshold.
    compared: usize,
    close: usize,
    /// The largest share that each term had in a squared prediction.
    terms: [f64; 6],
    jensen: f64,
    rise: f64,
    /// Rows by the resolutions of key and value.
    rows: [[usize; 4]; 4],
    /// Keys that were read once more: the whole of half a code, the row after half of it, and after the whole.
    again: [usize; 3],
    /// And those that were read only then.
    missed: usize,
    /// Segments whose slopes were left alone, and those whose slopes were read.
    slopes: [usize; 2],
}

impl Seen {
    /// Panics unless most calls were compared, each term made up a twentieth of some prediction (but that of slopes, which these
    /// values hardly have), and rows were read at every resolution.
    fn check(&self) {
        assert!(self.compared >= 3 * self.close, "{} compared, {} too close", self.compared, self.close);
        let [others @ .., of_slopes] = self.terms;
        assert!(others.iter().all(|&term| term > 0.05) && of_slopes > 0.001, "{:?}", self.terms);
        assert!(self.slopes.iter().all(|&n| n > 0), "{:?}", self.slopes);
        assert!(self.jensen > 0.05, "{}", self.jensen);
        let [coarse, half, code, full] = self.rows;
        for (rows, of) in [("coarse", &coarse[..2]), ("half", &half[..3]), ("code", &code[1..3])] {
            assert!(of.iter().all(|&n| n > 0), "{rows}: {:?}", self.rows);
        }
        assert!(full[2] + full[3] > 0 && code[3] + full[3] > 0, "{:?}", self.rows);
        assert!(self.again[0] > 0 && self.again[2] > 0, "read once more: {:?}", self.again);
    }

    fn add(&mut self, reference: &Reference) {
        self.compared += 1;
        for terms in &reference.terms {
            self.terms.iter_mut().zip(terms).for_each(|(most, term)| *most = most.max(*term));
        }
        self.rise = reference.rise.iter().copied().fold(self.rise, f64::max);
        self.jensen = reference.jensen.iter().copied().fold(self.jensen, f64::max);
        for &read in &reference.choice.slopes {
            self.slopes[usize::from(read)] += 1;
        }
        for row in reference.choice.rows.iter().flatten() {
            self.rows[row[0] as usize][row[1] as usize] += 1;
        }
        self.missed += reference.choice.missed;
        let befores = reference.choice.before.iter().flatten();
        for (before, [key, _]) in befores.zip(reference.choice.rows.iter().flatten()) {
            match (before, key) {
                (Resolution::Half, Resolution::Code) => self.again[0] += 1,
                (Resolution::Half, Resolution::Full) => self.again[1] += 1,
                (Resolution::Code, Resolution::Full) => self.again[2] += 1,
                _ => {}
            }
        }
    }
}

/// Compares the engine's answers to `positions` queries, sharpened by `sharp`.
fn compare(case: &Case, seed: u64, positions: usize, sharp: f32, tau: f64, seen: &mut Seen) {
    let queries: Vec<f32> = queries(seed, positions, &case.model).iter().map(|x| sharp * x).collect();
    compare_to(case, &queries, seed, tau, seen);
}

fn compare_to(case: &Case, queries: &[f32], seed: u64, tau: f64, seen: &mut Seen) {
    let positions = queries.len() / case.model.query_heads / case.model.key_dim;
    let view = query_view(queries, &case.model);
    let answer = case.snapshot.attend(0, &view, &Budget::Tau(tau)).unwrap();
    let plan = case.snapshot.explain(0, &view, &Budget::Tau(tau)).unwrap();
    let ladders = case.ladders(positions);
    let mut touched = Some(Traffic::default());
    for at in 0..positions {
        let mut counts = Some([0; 6]);
        for (kv_head, ladder) in ladders.iter().enumerate() {
            let reference = case.answer(ladder, queries, (at, kv_head), tau);
            if reference.margin < MARGIN {
                (touched, counts) = (None, None);
                seen.close += 1;
                continue;
            }
            let place = format!("seed {seed}, tau {tau}, query {at}, KV head {kv_head}");
            check_unit(case, (at, kv_head), &reference, &answer, &place);
            check_plan(case, (at, kv_head), &reference.choice, &plan, &place);
            let position = (case.kv.tokens() - positions + at) as u64;
            let mut read = pieces(&case.model, &case.segments(), ladder, kv_head, &reference.choice);
            read.extend(plain_pieces(case, case.summarised(positions), kv_head, position));
            touched.iter_mut().for_each(|sum| *sum += traffic(&read));
            let mine = count(ladder.clusters.len(), &reference.choice);
            counts.iter_mut().flatten().zip(mine).for_each(|(sum, mine)| *sum += mine);
            seen.add(&reference);
        }
        if let Some([clusters, opened, scanned, coded, full, _]) = counts {
            let report = &answer.report.positions[at];
            let found = [report.clusters, report.clusters_read, report.rows_scanned, report.rows_coded];
            assert_eq!(found, [clusters, opened, scanned, coded]);
            let plain: u64 = plan.heads[at * case.model.kv_heads..][..case.model.kv_heads]
                .iter()
                .map(|head| head.rows_plain)
                .sum();
            assert_eq!(report.rows_read, full + plain);
        }
    }
    if let Some(touched) = touched {
        assert_eq!(answer.report.traffic, touched, "seed {seed}, tau {tau}");
    }
}

/// Clusters, clusters opened, rows scanned, coded, read in full, and left to summaries.
fn count(clusters: usize, choice: &Choice) -> [u64; 6] {
    let rows = |with: &dyn Fn(usize, &[Resolution; 3]) -> bool| {
        let of_cluster = |(c, rows): (usize, &Vec<[Resolution; 2]>)| {
            let rows = rows.iter().zip(&choice.before[c]);
            rows.filter(|([key, value], before)| with(c, &[*key, *value, **before])).count()
        };
        choice.rows.iter().enumerate().map(of_cluster).sum::<usize>() as u64
    };
    [
        clusters as u64,
        choice.opened.iter().filter(|&&opened| opened).count() as u64,
        rows(&|c, _| choice.opened[c]),
        rows(&|_, row| row.contains(&Resolution::Half) || row.contains(&Resolution::Code)),
        rows(&|_, row| row.contains(&Resolution::Full)),
        rows(&|c, _| !choice.opened[c]),
    ]
}

fn check_unit(
    case: &Case,
    (at, kv_head): (usize, usize),
    reference: &Reference,
    answer: &Answer,
    place: &str,
) {
    let (group, dim) = (case.group(), case.model.value_dim);
    for g in 0..group {
        let head = at * case.model.query_heads + kv_head * group + g;
        let output: Vec<f64> = answer.output[head * dim..][..dim].iter().map(|&x| f64::from(x)).collect();
        let expected = &reference.output[g];
        let off = (distance2(&output, expected) / dot(expected, expected)).sqrt();
        assert!(off < 2e-5, "{place}, head {g}: output off by {off}");
        let (lse, expected) = (f64::from(answer.lse[head]), reference.lse[g]);
        assert!((lse - expected).abs() < 2e-5, "{place}, head {g}: log-sum-exp {lse} for {expected}");
        let (error, expected) = (f64::from(answer.report.predicted_error[head]), reference.predicted[g]);
        // What is so small rests on exponentials of large differences.
        let off = (error - expected).abs() / expected.max(1e-8);
        assert!(off < 1e-4, "{place}, head {g}: predicted {error} for {expected}: {:?}", reference.terms[g]);
    }
}

/// The plan opens what the answer opens.
fn check_plan(case: &Case, (at, kv_head): (usize, usize), choice: &Choice, plan: &Plan, place: &str) {
    let head = &plan.heads[at * case.model.kv_heads + kv_head];
    let ladder = &case.ladders(plan.heads.len() / case.model.kv_heads)[kv_head];
    let opened = ladder.clusters.iter().zip(&choice.opened).filter(|(_, opened)| **opened);
    let opened: Vec<ClusterId> = opened
        .map(|(cluster, _)| ClusterId { segment: cluster.segment as u32, cluster: cluster.local as u32 })
        .collect();
    assert_eq!(head.read, opened, "{place}");
    let [clusters, _, scanned, _, _, estimated] = count(ladder.clusters.len(), choice);
    assert_eq!(
        [head.clusters as u64, head.rows_scanned, head.rows_estimated],
        [clusters, scanned, estimated]
    );
}

fn case(model: ModelSpec, seed: u64, tokens: usize, tight: [f32; 2]) -> Case {
    let kv = centred(seed, tokens, &model, tight);
    let observed = queries(seed ^ 90, 8, &model);
    Case::new(model, case_options(), kv, &observed)
}

/// Clusters as they come: no row is set apart, however far from the others of its cluster.
fn without_rows_apart() -> ContextOptions {
    let clusters = ClusterOptions { tokens_per_cluster: 12, split_factor: None, ..ClusterOptions::ladder() };
    case_options().with_clusters(clusters)
}

#[test]
fn answers_and_predictions_are_those_of_the_reference_at_every_tau() {
    let case = case(model([3, 6, 24, 16], Dtype::F16, 1), 21, 760, [1.0, 0.05]);
    assert!(case.summarised(1) >= 3);
    let mut seen = Seen::default();
    for (number, tau) in [0.0005, 0.004, 0.02, 0.1, 0.6, 3.0].into_iter().enumerate() {
        for (sharp, seed) in [(0.6, 0), (1.5, 10), (4.0, 20)] {
            compare(&case, seed + number as u64, 1, sharp, tau, &mut seen);
        }
    }
    seen.check();
    assert!(seen.again.iter().all(|&n| n > 0), "read once more: {:?}", seen.again);
    assert!(seen.missed > 0, "keys that were read only when others were read once more");
}

/// Exact attention is over the rows as the reference decodes them from what is stored, and says what it has read for it.
fn check_exact_over_kept(case: &Case, queries: &[f32]) {
    let answer = case.snapshot.attend(0, &query_view(queries, &case.model), &Budget::Exact).unwrap();
    let (dim, mut touched) = (case.model.value_dim, Traffic::default());
    for (kv_head, ladder) in case.ladders(1).iter().enumerate() {
        let (scaled, steady) = case.unit(queries, 0, kv_head);
        for (g, (query, steady)) in scaled.iter().zip(&steady).enumerate() {
            let (mut total, mut output) = (1.0, steady.output.clone());
            for row in ladder.clusters.iter().flat_map(|cluster| &cluster.rows) {
                let weight = (dot(query, &row.key) - steady.lse).exp();
                total += weight;
                output.iter_mut().zip(&row.value).for_each(|(sum, x)| *sum += weight * x);
            }
            output.iter_mut().for_each(|x| *x /= total);
            let head = kv_head * case.group() + g;
            let found: Vec<f64> = answer.output[head * dim..][..dim].iter().map(|&x| f64::from(x)).collect();
            let off = (distance2(&found, &output) / dot(&output, &output)).sqrt();
            assert!(off < 2e-5, "head {head}: off by {off}");
            assert!((f64::from(answer.lse[head]) - steady.lse - total.ln()).abs() < 2e-5);
        }
        touched += traffic(&plain_pieces(case, 0, kv_head, case.kv.tokens() as u64 - 1));
    }
    assert_eq!(answer.report.traffic, touched);
}

#[test]
fn rows_that_are_not_kept_in_full_are_what_is_kept_of_them() {
    for (number, form) in [RowForm::EightBits, RowForm::Codes].into_iter().enumerate() {
        let model = model([3, 6, 24, 16], Dtype::F16, 1);
        let kv = centred(28 + number as u64, 760, &model, [1.0, 0.05]);
        let case = Case::new(model.clone(), case_options().with_rows(form), kv, &queries(92, 8, &model));
        let found: Vec<RowForm> = case.segments().iter().map(|segment| segment.row_form()).collect();
        assert!(found.iter().filter(|found| **found == form).count() >= 2, "{found:?}");
        let mut seen = Seen::default();
        for (seed, tau) in [(1, 0.0005), (2, 0.004), (3, 0.03), (4, 0.3)] {
            for sharp in [0.6, 1.5, 4.0] {
                compare(&case, seed, 1, sharp, tau, &mut seen);
            }
        }
        assert!(seen.compared > 3 * seen.close, "{} compared, {} too close", seen.compared, seen.close);
        assert!(seen.rows[Resolution::Code as usize].iter().sum::<usize>() > 0, "{:?}", seen.rows);
        check_exact_over_kept(&case, &queries(5, 1, &model));
    }
}

/// Pages that hold rows in full, of a segment whose codes lie on pages of their own.
fn pages_of_full_rows(segment: &LayerSegment) -> BTreeSet<usize> {
    let of = |kinds: [ColumnKind; 2]| -> BTreeSet<usize> {
        let columns = segment.segment().columns().filter(|info| kinds.contains(&info.kind));
        columns
            .flat_map(|info| {
                info.offset as usize / BLOCK_SIZE..((info.offset + info.len) as usize).div_ceil(BLOCK_SIZE)
            })
            .collect()
    };
    let full = of([ColumnKind::KEYS, ColumnKind::VALUES]);
    assert!(!full.is_empty() && full.is_disjoint(&of([ladder::KEY_CODE, ladder::VALUE_CODE])));
    full
}

#[test]
fn rows_that_are_not_to_be_had_in_full_are_left_to_the_codes_that_were_read() {
    let case = case(model([3, 6, 24, 16], Dtype::F16, 1), 21, 760, [1.0, 0.05]);
    for segment in case.segments() {
        let cold = pages_of_full_rows(segment);
        case.memory.set_cold(segment.segment().path(), |page| cold.contains(&page)).unwrap();
    }
    let ladders = case.ladders(1);
    let (mut compared, mut left, mut left_again) = (0, 0, 0);
    for (seed, tau) in [(1, 0.0005), (2, 0.001), (3, 0.004), (4, 0.02)] {
        for sharp in [0.6, 1.5, 4.0] {
            let queries: Vec<f32> = queries(seed, 1, &case.model).iter().map(|x| sharp * x).collect();
            let budget = Budget::FromDisk { tau, bytes: 0 };
            let answer = case.reopened().attend(0, &query_view(&queries, &case.model), &budget).unwrap();
            assert_eq!(answer.report.disk.unwrap().bytes, 0);
            for (kv_head, ladder) in ladders.iter().enumerate() {
                let reference = case.answer_with(ladder, &queries, (0, kv_head), tau, false);
                let whole = case.answer(ladder, &queries, (0, kv_head), tau);
                if reference.margin.min(whole.margin) < MARGIN {
                    continue;
                }
                let place = format!("seed {seed}, tau {tau}, KV head {kv_head}");
                check_unit(&case, (0, kv_head), &reference, &answer, &place);
                compared += 1;
                let befores = whole.choice.before.iter().flatten();
                for (before, [key, value]) in befores.zip(whole.choice.rows.iter().flatten()) {
                    left += usize::from([key, value].contains(&&Resolution::Full));
                    left_again += usize::from((before, key) == (&Resolution::Code, &Resolution::Full));
                }
            }
        }
    }
    assert!(compared > 12 && left > 100 && left_again > 5, "{compared}, {left}, {left_again}");
}

#[test]
fn softcaps_and_sink_logits_enter_every_estimate() {
    for (number, cap) in [2.5, 9.0].into_iter().enumerate() {
        let mut model = model([2, 8, 40, 24], Dtype::Bf16, 1);
        model.softcap = Some(cap);
        model.sink_logits = vec![logits(4, &model).iter().map(|logit| logit + 4.0).collect()];
        let kv = centred(34 + number as u64, 700, &model, [0.1, 1.0]);
        let observed = queries((34 + number as u64) ^ 90, 8, &model);
        let case = Case::new(model, without_rows_apart(), kv, &observed);
        let mut seen = Seen::default();
        for (seed, tau) in [(1, 0.001), (2, 0.01), (3, 0.06), (4, 0.5)] {
            for sharp in [0.7, 2.0, 5.0] {
                compare(&case, seed, 1, sharp, tau, &mut seen);
            }
        }
        seen.check();
    }
}

#[test]
fn several_positions_are_answered_each_by_itself() {
    let case = case(model([2, 6, 16, 40], Dtype::F32, 1), 25, 700, [0.3, 1.0]);
    let mut seen = Seen::default();
    for (seed, positions, tau) in [(5, 3, 0.005), (6, 20, 0.03), (7, 7, 0.2)] {
        compare(&case, seed, positions, 1.3, tau, &mut seen);
    }
    seen.check();
}

#[test]
fn a_row_far_above_every_centroid_keeps_its_weight() {
    let model = model([2, 6, 24, 16], Dtype::F32, 1);
    let mut kv = centred(27, 760, &model, [0.2, 1.0]);
    let (observed, queries) = (queries(9, 8, &model), queries(31, 1, &model));
    // The first query of each group finds a row tens of nats above all others, in a cluster of many.
    for head in 0..2 {
        let query = &queries[head * 3 * 24..][..24];
        let along = 34.0 / (query.iter().map(|q| q * q).sum::<f32>() * model.scale);
        let key = &mut kv.keys[(200 * 2 + head) * 24..][..24];
        key.iter_mut().zip(query).for_each(|(k, q)| *k += along * q);
    }
    let case = Case::new(model, without_rows_apart(), kv, &observed);
    let mut seen = Seen::default();
    for tau in [0.001, 0.01, 0.1, 0.5] {
        compare_to(&case, &queries, 31, tau, &mut seen);
    }
    assert!(seen.rise > 25.0 && seen.compared >= 5, "{} in {}", seen.rise, seen.compared);
}

#[test]
fn every_segment_is_read_in_its_own_basis() {
    let model = model([2, 4, 24, 16], Dtype::F16, 1);
    let kv = centred(26, 760, &model, [0.2, 1.0]);
    let cases =
        [3, 4].map(|seed| Case::new(model.clone(), case_options(), kv.clone(), &queries(seed, 8, &model)));
    // Of the same rows, clustered and coded after other queries.
    let other = cases[1].segments();
    let segments: Vec<_> = cases[0]
        .segments()
        .into_iter()
        .enumerate()
        .map(|(number, mine)| if number % 2 == 1 { other[number] } else { mine })
        .collect();
    let case = &cases[0];
    let mut compared = 0;
    for (seed, tau) in [(1, 0.002), (2, 0.01), (3, 0.05), (4, 0.4)] {
        let queries = queries(seed, 1, &model);
        let answer = case.attend_over(&segments, &queries, &FixedTau::new(tau));
        let mut touched = Some(Traffic::default());
        for kv_head in 0..model.kv_heads {
            let ladder = StoredHead::read(&segments, &model, kv_head);
            assert!(ladder.segments[0].digest != ladder.segments[1].digest);
            let reference = case.answer(&ladder, &queries, (0, kv_head), tau);
            if reference.margin < MARGIN {
                touched = None;
                continue;
            }
            check_unit(case, (0, kv_head), &reference, &answer, &format!("tau {tau}, KV head {kv_head}"));
            let read = pieces(&model, &segments, &ladder, kv_head, &reference.choice);
            touched.iter_mut().for_each(|sum| *sum += traffic(&read));
            compared += 1;
        }
        touched.iter().for_each(|touched| assert_eq!(answer.report.traffic, *touched));
    }
    assert!(compared >= 5, "{compared} of 8 compared");
}
