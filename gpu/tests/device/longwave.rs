//! Whole calls of the ladder: by the CPU, by the device, and divided at every proportion.

use crate::layers::{LAYER, Layer, MACHINE, SHARES, places, row_caches};
use longwave_gpu::cache::{BlockCache, LeastRecentlyUsed};
use longwave_gpu::placement::Place;
use longwave_gpu::{Caches, Device, Division, Effort, Tier, TierAnswer};
use longwave_gpu_emulation::{Emulation, install};
use longwave_kernels::Dtype;
use longwave_kernels::codec::Depth;
use longwave_query::{Answer, Budget, PlannedRows};
use std::sync::Arc;

/// Reads keys and values, each as half a code, as a whole one and in full, of every layer here.
const TAU: Budget = Budget::Tau(0.003);

/// Leaves enough to means that it matters how values follow their keys.
const FOLLOWS: Budget = Budget::Tau(0.03);

/// Checks that the device read as the CPU did: of keys and of values as half a code, as a whole one and in full. Reports count the
/// two kinds of codes together.
fn expect_rows(layer: &Layer, (rows, again): (&[u64; 6], &[u64; 3]), answer: &Answer) {
    let traffic = answer.report.traffic;
    // A segment that no summary may stand for is read in full besides.
    let plain = if layer.positions == 1 { 40 } else { 0 };
    let plain = (plain * layer.shape.kv_heads * layer.shape.key_bytes()) as u64;
    let dim = layer.shape.key_dim;
    let [half, whole] = [Depth::Half, Depth::Whole].map(|depth| depth.len(dim) as u64);
    let (keys, values) = rows.split_at(3);
    for (rows, twice, codes, full) in
        [(keys, again[0], traffic.key_codes, traffic.keys), (values, 0, traffic.value_codes, traffic.values)]
    {
        // What two readings share counts once.
        assert_eq!((rows[0] - twice) * half + rows[1] * whole, codes, "codes of {rows:?}, {twice} twice");
        assert_eq!(rows[2] * layer.shape.key_bytes() as u64, full - plain, "full rows of {rows:?}");
    }
}

fn expect(layer: &Layer, answer: &TierAnswer, what: &str) {
    layer.expect(answer, &TAU, what);
}

#[test]
fn every_division_gives_the_same_answer() {
    let _emulation = install();
    let device = Arc::new(Device::open(0).unwrap());
    for (dtype, dim, softcap) in [
        (Dtype::F16, 64, None),
        (Dtype::Bf16, 128, Some(20.0)),
        (Dtype::F16, 96, None),
        (Dtype::Bf16, 256, None),
    ] {
        let layer = Layer::new(dtype, dim, softcap);
        let cpu = layer.cpu(&TAU);
        let tier = Tier::new(&device, MACHINE, row_caches(&device, dim, 4000), 1 << 17).unwrap();
        for resident in [false, true] {
            for per_mille in [0, 100, 200, 300, 400, 500, 600, 700, 800, 900, 1000] {
                let what = format!("{dtype} {dim}, resident {resident}, {per_mille} of 1000 on the CPU");
                let answer = layer.ask(&tier, &TAU, Division::HostPerMille(per_mille));
                let rows = answer.report.rows;
                let again = answer.report.again;
                assert!(
                    rows.iter().chain(&again[..2]).all(|&count| count > 0),
                    "{what}: {rows:?}, {again:?}"
                );
                expect_rows(&layer, (&rows, &again), &cpu);
                let ([slots, transfer, host], all) = (places(&answer), rows.iter().sum::<u64>() as usize);
                assert_eq!(slots + transfer + host, all, "{what}");
                match (per_mille, resident) {
                    (1000, _) => assert_eq!(host, all),
                    (0, false) => assert_eq!(transfer, all),
                    (0, true) => assert_eq!(slots, all),
                    _ => assert!(host > 0 && host < all, "{what}: {host} of {all}"),
                }
                expect(&layer, &answer, &what);
            }
            let answer = layer.ask(&tier, &TAU, Division::Cost);
            expect(&layer, &answer, "by cost");
            tier.note(u64::from(resident), &answer.report.wanted, &layer.sources());
            settle(&tier);
        }
        let metrics = tier.metrics();
        assert_eq!((metrics.calls_device, metrics.fallbacks), (24, 0));
        assert!(metrics.bytes.iter().all(|&bytes| bytes > 0), "{metrics}");
        let [_, codes, full] = metrics.caches.map(Option::unwrap_or_default);
        assert!(codes.hits > 0 && full.hits > 0 && codes.bytes_moved > 0, "{metrics}");
    }
}

#[test]
fn keys_that_matter_only_when_others_are_known_are_read_then() {
    let _emulation = install();
    let device = Arc::new(Device::open(0).unwrap());
    let mut missed = 0;
    for (times, turn) in (0..24).map(|number| (1.5 + 0.5 * (number % 3) as f32, number)) {
        let mut layer = Layer::new(Dtype::F16, 96, None);
        layer.queries.iter_mut().for_each(|x| *x *= times);
        layer.queries.rotate_left(17 * turn);
        let tier = Tier::new(&device, MACHINE, Caches::default(), 1 << 17).unwrap();
        let answer = layer.ask(&tier, &TAU, Division::HostPerMille(300));
        assert!(answer.report.placement.is_some(), "{times} times, turned by {turn}");
        expect(&layer, &answer, &format!("{times} times, turned by {turn}"));
        let again = answer.report.again;
        expect_rows(&layer, (&answer.report.rows, &again), &layer.cpu(&TAU));
        missed += again[2];
    }
    assert!(missed > 0, "none of them");
}

fn settle(tier: &Tier) {
    let Caches { codes, rows, .. } = tier.caches();
    codes.iter().chain(rows).for_each(|cache| cache.settle());
}

#[test]
fn several_positions_are_answered_in_one_call() {
    let _emulation = install();
    let device = Arc::new(Device::open(0).unwrap());
    for (dtype, dim, positions) in [(Dtype::F16, 64, 2), (Dtype::Bf16, 96, 7)] {
        let layer = Layer::with_positions(dtype, dim, None, positions);
        let tier = Tier::new(&device, MACHINE, Caches::default(), 1 << 20).unwrap();
        for per_mille in [0, 250, 500, 1000] {
            let what = format!("{positions} positions, {per_mille} of 1000 on the CPU");
            for budget in [TAU, SHARES] {
                let answer = layer.ask(&tier, &budget, Division::HostPerMille(per_mille));
                assert!(answer.report.placement.is_some(), "{what}");
                layer.expect(&answer, &budget, &what);
            }
        }
    }
}

#[test]
fn a_plan_says_where_each_row_would_be_read_and_how_long_that_takes() {
    let _emulation = install();
    let device = Arc::new(Device::open(0).unwrap());
    let layer = Layer::new(Dtype::F16, 64, None);
    let tier = Tier::new(&device, MACHINE, row_caches(&device, 64, 4000), 1 << 17).unwrap();
    let explain = |budget: &Budget| tier.explain(LAYER, &layer.view(), &layer.batch(), budget).unwrap();
    let before = explain(&TAU);
    assert_eq!(before.steps.iter().map(|step| step.what).collect::<Vec<_>>(), ["keys", "values"]);
    for (step, count) in before.steps.iter().zip([
        |rows: &PlannedRows| rows.key_halves.len() + rows.key_codes.len() + rows.keys.len(),
        |rows: &PlannedRows| rows.value_halves.len() + rows.value_codes.len() + rows.values.len(),
    ]) {
        let all = before.plan.heads.iter().map(|head| count(&head.rows)).sum::<usize>();
        assert!(all > 100 && step.placement.places.len() == all, "{}: {all}", step.what);
        assert!(step.placement.places.iter().all(|&place| place != Place::Slots), "the caches are empty");
        assert_eq!(step.placement.predicted, MACHINE.predict(step.bytes[0], step.bytes[1], step.bytes[2]));
    }
    // The answer's keys are those of the plan, of which some are read once more; the values differ in a few.
    let answer = layer.ask(&tier, &TAU, Division::Cost);
    let (rows, again) = (answer.report.rows, answer.report.again);
    let first = rows[..3].iter().sum::<u64>() - again.iter().sum::<u64>();
    assert_eq!(first, before.steps[0].placement.places.len() as u64);
    tier.note(0, &answer.report.wanted, &layer.sources());
    settle(&tier);
    let after = explain(&TAU);
    assert!(after.steps[0].placement.places.iter().all(|&place| place == Place::Slots), "{after}");
    assert!(after.total_s() < before.total_s());
    let text = after.to_string();
    assert!(
        text.contains("machine: link 20.0 GB/s, device 2000.0 GB/s, cpu 1.0 GB/s, launch 10.0 us"),
        "{text}"
    );
    assert!(text.contains("keys     placement slots ") && text.contains("predicted in all "), "{text}");
    assert_eq!(answer.report.machine, MACHINE);

    let clusters = explain(&SHARES);
    let places = &clusters.steps[0].placement.places;
    assert_eq!((clusters.steps[0].what, places.len()), ("clusters", layer.reads().len()));
    assert!(explain(&Budget::Exact).steps.is_empty());
}

#[test]
fn constants_are_measured_where_none_are_given_and_stand_in_the_report() {
    let _emulation = install();
    let device = Arc::new(Device::open(0).unwrap());
    let layer = Layer::new(Dtype::F16, 64, None);
    let effort = Effort { bytes: 1 << 16, rounds: 1 };
    let tier = Tier::measured(&device, effort, row_caches(&device, 64, 400), 1 << 17).unwrap();
    let machine = tier.machine();
    assert!(machine.constants().iter().all(|(_, value)| value.is_finite() && *value > 0.0), "{machine:?}");
    let answer = layer.ask(&tier, &TAU, Division::Cost);
    assert_eq!(answer.report.machine, machine);
    let text = tier.metrics().to_string();
    let line = format!("longwave_machine_launch_s {:e}", machine.launch_s);
    for expected in [
        "longwave_device_calls_total{side=\"device\"} 1",
        "longwave_cache_hit_ratio{cache=\"codes\"} 0.0000",
        &line,
    ] {
        assert!(text.lines().any(|found| found == expected), "{expected} in\n{text}");
    }
}

#[test]
fn what_is_demoted_stays_closed() {
    let _emulation = install();
    let device = Arc::new(Device::open(0).unwrap());
    let mut layer = Layer::new(Dtype::F16, 64, None);
    let before = layer.cpu(&TAU);
    let clusters = |segment: usize| layer.segments[segment].ladder().unwrap().unwrap().postings().clusters();
    // Some of each head in one segment, nothing of the other, and of one that is read row by row.
    let first = (0..clusters(0)).map(|cluster| cluster % 3 != 1).collect();
    layer.demoted = vec![first];
    let after = layer.cpu(&TAU);
    assert!(after.report.demoted_clusters > 0 && after.output != before.output);
    let tier = Tier::new(&device, MACHINE, Caches::default(), 1 << 17).unwrap();
    let answer = layer.ask(&tier, &TAU, Division::HostPerMille(300));
    assert!(answer.report.placement.is_some());
    expect(&layer, &answer, "with demoted clusters");
    // Later a view may know of others, while the same ladders lie on the device.
    layer.demoted = vec![vec![], (0..clusters(1)).map(|cluster| cluster % 2 == 0).collect()];
    expect(&layer, &layer.ask(&tier, &TAU, Division::HostPerMille(300)), "with other demoted clusters");
    assert_eq!(tier.metrics().fallbacks, 0);
}

/// By how much the outputs differ at most.
fn furthest(a: &Answer, b: &Answer) -> f32 {
    a.output.iter().zip(&b.output).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn segments_that_do_not_say_how_values_follow_keys_follow_earlier_ones_of_their_basis() {
    let _emulation = install();
    let device = Arc::new(Device::open(0).unwrap());
    for is_shared in [true, false] {
        let mut layer = Layer::built(Dtype::F16, 96, None, 2, is_shared);
        let mut answers = vec![layer.cpu(&FOLLOWS)];
        // Without the slopes of the second segment, and then of both that the ladder answers for.
        for segment in [None, Some(1), Some(0)] {
            if let Some(segment) = segment {
                layer.forget_slopes(segment);
                answers.push(layer.cpu(&FOLLOWS));
            }
            let tier = Tier::new(&device, MACHINE, Caches::default(), 1 << 17).unwrap();
            for per_mille in [0, 300, 1000] {
                let what = format!("shared {is_shared}, without the slopes of {segment:?}, {per_mille}");
                let answer = layer.ask(&tier, &FOLLOWS, Division::HostPerMille(per_mille));
                assert!(answer.report.placement.is_some(), "{what}");
                layer.expect(&answer, &FOLLOWS, &what);
            }
        }
        // What is read does not depend on it, and what is answered does.
        for pair in answers.windows(2) {
            assert_eq!(pair[0].lse, pair[1].lse);
            assert!(furthest(&pair[0], &pair[1]) > 1e-4, "{}", furthest(&pair[0], &pair[1]));
        }
    }
}

#[test]
fn slopes_that_could_not_matter_are_not_followed() {
    let _emulation = install();
    let device = Arc::new(Device::open(0).unwrap());
    let layer = Layer::new(Dtype::F16, 96, None);
    let mut without = Layer::new(Dtype::F16, 96, None);
    [0, 1].into_iter().for_each(|segment| without.forget_slopes(segment));
    let tier = Tier::new(&device, MACHINE, Caches::default(), 1 << 17).unwrap();
    let mut followed = Vec::new();
    for tau in [0.03, 0.1, 0.4, 0.8] {
        let budget = Budget::Tau(tau);
        let answer = layer.ask(&tier, &budget, Division::HostPerMille(300));
        assert!(answer.report.placement.is_some());
        layer.expect(&answer, &budget, &format!("tau {tau}"));
        let (with, without) = (layer.cpu(&budget), without.cpu(&budget));
        followed.push(with.output.chunks(96).zip(without.output.chunks(96)).filter(|(a, b)| a != b).count());
    }
    assert!(followed[0] > 0 && followed.last() == Some(&0), "heads that follow slopes: {followed:?}");
}

#[test]
fn calls_whose_scores_are_less_sure_than_a_models_are_the_cpus() {
    let _emulation = install();
    let device = Arc::new(Device::open(0).unwrap());
    let ask = |power: i32, turn: usize, softcap: Option<f32>| {
        let mut layer = Layer::new(Dtype::F16, 96, softcap);
        layer.queries.iter_mut().for_each(|x| *x *= 2f32.powi(power));
        layer.queries.rotate_left(17 * turn);
        let tier = Tier::new(&device, MACHINE, Caches::default(), 1 << 17).unwrap();
        let answer = layer.ask(&tier, &TAU, Division::HostPerMille(300));
        assert_eq!(tier.metrics().fallbacks, 0);
        expect(&layer, &answer, &format!("times 2^{power}, turned by {turn}"));
        answer.report.placement.is_some()
    };
    // Twice as long as the other tests' they are still a model's; a soft-cap keeps deviations below it.
    assert!(ask(1, 0, None) && ask(6, 0, Some(20.0)));
    // At 2^12, once, both sides would choose otherwise, and the device's answer would be of another row.
    for (power, turn) in [(6, 0), (11, 7), (12, 1), (13, 7), (14, 1)] {
        assert!(!ask(power, turn, None), "times 2^{power}");
    }
}

#[test]
fn caches_of_other_rows_are_not_read() {
    let _emulation = install();
    let device = Arc::new(Device::open(0).unwrap());
    let layer = Layer::new(Dtype::F16, 64, None);
    let cache = |rows, dim| {
        Some(Arc::new(BlockCache::new(&device, Box::new(LeastRecentlyUsed), 4000, rows, dim).unwrap()))
    };
    // What a call wants, from one whose caches fit.
    let fitting = Tier::new(&device, MACHINE, row_caches(&device, 64, 4000), 1 << 17).unwrap();
    let [wanted, clusters] = [TAU, SHARES].map(|budget| layer.ask(&fitting, &budget, Division::Cost));
    for (caches, budget, wanted) in [
        (Caches { codes: cache(4, 64 / 4 + 1), ..Caches::default() }, TAU, &wanted),
        (Caches { rows: cache(2, 64), ..Caches::default() }, TAU, &wanted),
        (Caches { rows: cache(1, 32), ..Caches::default() }, TAU, &wanted),
        (Caches { clusters: cache(8, 32), ..Caches::default() }, SHARES, &clusters),
    ] {
        let tier = Tier::new(&device, MACHINE, caches, 1 << 17).unwrap();
        tier.note(0, &wanted.report.wanted, &layer.sources());
        let Caches { clusters, codes, rows } = tier.caches();
        clusters.iter().chain(codes).chain(rows).for_each(|cache| cache.settle());
        let answer = layer.ask(&tier, &budget, Division::Cost);
        layer.expect(&answer, &budget, "read by the CPU");
        assert_eq!((answer.report.placement.is_none(), tier.metrics().fallbacks), (true, 1), "{budget}");
    }
}

/// What needs a device that does as it is told.
mod emulated {
    use super::*;

    #[test]
    fn wherever_the_device_fails_the_cpu_answers() {
        let emulation = install();
        let device = Arc::new(Device::open(0).unwrap());
        let layer = Layer::new(Dtype::F16, 64, None);
        let tier = Tier::new(&device, MACHINE, Caches::default(), 1 << 17).unwrap();
        let mut failures = 0;
        for fail in [Emulation::fail_allocation, Emulation::fail_launch] {
            let before = failures;
            for nth in 1.. {
                fail(&emulation, nth);
                let answer = layer.ask(&tier, &TAU, Division::HostPerMille(200));
                expect(&layer, &answer, &format!("failure {nth}"));
                if answer.report.placement.is_some() {
                    break;
                }
                failures += 1;
                assert_eq!(tier.metrics().fallbacks, failures, "failure {nth}");
            }
            fail(&emulation, 0);
            assert!(failures > before + 15, "{failures} failures: every step of a call can fail");
        }
        let answer = layer.ask(&tier, &TAU, Division::HostPerMille(200));
        assert!(answer.report.placement.is_some(), "the device goes on");
        drop((tier, answer));
        drop(device);
        assert_eq!(emulation.leaks(), 0);
    }

    #[test]
    fn a_device_too_small_for_the_ladder_leaves_the_call_to_the_cpu() {
        let emulation = install();
        let device = Arc::new(Device::open(0).unwrap());
        let layer = Layer::new(Dtype::F16, 64, None);
        let tier = Tier::new(&device, MACHINE, Caches::default(), 1 << 10).unwrap();
        emulation.set_memory(16 << 10);
        let answer = layer.ask(&tier, &TAU, Division::Cost);
        assert_eq!((answer.report.placement.is_none(), tier.metrics().fallbacks), (true, 1));
        expect(&layer, &answer, "out of memory");
    }
}
