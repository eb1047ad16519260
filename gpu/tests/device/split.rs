//! Whole calls on RetroInfer's clusters: by the CPU, by the device, and divided at every proportion.

use crate::layers::{LAYER, Layer, MACHINE, SHARES, places};
use longwave_gpu::cache::{BlockCache, LeastRecentlyUsed, Scored};
use longwave_gpu::placement::Place;
use longwave_gpu::{Device, Division, Effort, Error, Tier};
use longwave_gpu_emulation::install;
use longwave_kernels::Dtype;
use std::sync::Arc;

#[test]
fn every_division_gives_the_same_answer() {
    let _emulation = install();
    let device = Arc::new(Device::open(0).unwrap());
    for (dtype, dim, softcap) in
        [(Dtype::F16, 64, None), (Dtype::Bf16, 128, Some(20.0)), (Dtype::F16, 96, None)]
    {
        let layer = Layer::new(dtype, dim, softcap);
        let reads = layer.reads();
        assert!(reads.len() > 10);
        let cache = Arc::new(BlockCache::new(&device, Box::new(LeastRecentlyUsed), 200, 8, dim).unwrap());
        let tier = Tier::new(&device, MACHINE, Some(cache.clone()), 1 << 17).unwrap();
        for pinned in [0, reads.len() / 2, reads.len()] {
            for &(block, rows) in &reads[..pinned] {
                cache.pin(block, rows as u32, &layer.source());
            }
            cache.settle();
            assert_eq!(cache.slots().len(), pinned);
            for per_mille in [0, 100, 200, 300, 400, 500, 600, 700, 800, 900, 1000] {
                let answer = layer.ask(&tier, &SHARES, Division::HostPerMille(per_mille));
                let [slots, transfer, host] = places(&answer);
                assert_eq!(host, reads.len() * per_mille as usize / 1000);
                assert!(slots <= pinned && transfer <= reads.len() - pinned);
                layer.expect(
                    &answer,
                    &SHARES,
                    &format!("{dtype} {dim}, {pinned} pinned, {per_mille} of 1000 on the CPU"),
                );
            }
            let answer = layer.ask(&tier, &SHARES, Division::Cost);
            assert_eq!(places(&answer)[0], pinned);
            layer.expect(&answer, &SHARES, "by cost");
        }
        assert_eq!(tier.metrics().fallbacks, 0);
    }
}

#[test]
fn what_was_read_is_there_the_next_time_and_is_not_copied_again() {
    let emulation = install();
    let device = Arc::new(Device::open(0).unwrap());
    let layer = Layer::new(Dtype::F16, 64, None);
    let cache = Arc::new(BlockCache::new(&device, Box::new(LeastRecentlyUsed), 200, 4, 64).unwrap());
    let tier = Tier::new(&device, MACHINE, Some(cache.clone()), 1 << 16).unwrap();
    let first = layer.ask(&tier, &SHARES, Division::HostPerMille(0));
    assert_eq!(places(&first), [0, layer.reads().len(), 0]);
    let scored = layer.reads().into_iter().map(|(block, rows)| Scored {
        block,
        rows: rows as u32,
        score: 0.1,
        wanted: true,
    });
    cache.note(0, scored.collect(), &layer.source());
    cache.settle();
    let copied = emulation.is_emulated().then(|| emulation.copied());
    let second = layer.ask(&tier, &SHARES, Division::HostPerMille(0));
    assert_eq!(places(&second), [layer.reads().len(), 0, 0]);
    // Queries and lists, and no row.
    if let Some(copied) = copied {
        assert!(emulation.copied() - copied < 8192, "{} bytes", emulation.copied() - copied);
    }
    layer.expect(&second, &SHARES, "from slots");
    let report = cache.report();
    assert_eq!((report.hits, report.admissions), (0, layer.reads().len() as u64));
}

#[test]
fn blocks_that_leave_are_not_served_from_slots_that_others_have() {
    let _emulation = install();
    let device = Arc::new(Device::open(0).unwrap());
    let layer = Layer::new(Dtype::F16, 64, None);
    let reads = layer.reads();
    // Room for a third of what is read: every step throws out what the one before brought in.
    let slots = reads.iter().map(|(_, rows)| rows.div_ceil(4)).sum::<usize>() / 3;
    let cache = Arc::new(BlockCache::new(&device, Box::new(LeastRecentlyUsed), slots, 4, 64).unwrap());
    let tier = Tier::new(&device, MACHINE, Some(cache.clone()), 1 << 16).unwrap();
    for step in 0..12 {
        let some = reads.iter().skip(step % 4).step_by(4);
        let scored = some.map(|&(block, rows)| Scored { block, rows: rows as u32, score: 0.1, wanted: true });
        cache.note(step as u64, scored.collect(), &layer.source());
        // Answered while the thread is at work, and when it is done.
        layer.expect(
            &layer.ask(&tier, &SHARES, Division::HostPerMille(0)),
            &SHARES,
            "while blocks come and go",
        );
        cache.settle();
        layer.expect(
            &layer.ask(&tier, &SHARES, Division::HostPerMille(300)),
            &SHARES,
            "after blocks came and went",
        );
    }
    assert!(cache.report().evictions > 10, "{:?}", cache.report());
}

#[test]
fn calls_without_kernels_are_the_cpus_and_no_failure() {
    let _emulation = install();
    let device = Arc::new(Device::open(0).unwrap());
    let tier = Tier::new(&device, MACHINE, None, 1 << 16).unwrap();
    let layer = Layer::new(Dtype::F16, 80, None);
    let answer = layer.ask(&tier, &SHARES, Division::HostPerMille(0));
    assert!(answer.report.placement.is_none());
    layer.expect(&answer, &SHARES, "80 elements");
    assert_eq!(tier.metrics().fallbacks, 0);
}

#[test]
fn several_positions_are_answered_in_one_call() {
    let _emulation = install();
    let device = Arc::new(Device::open(0).unwrap());
    for (dtype, dim, positions) in [(Dtype::F16, 64, 2), (Dtype::Bf16, 96, 7)] {
        let layer = Layer::with_positions(dtype, dim, None, positions);
        let tier = Tier::new(&device, MACHINE, None, 1 << 20).unwrap();
        for per_mille in [0, 250, 500, 1000] {
            let what = format!("{positions} positions, {per_mille} of 1000 on the CPU");
            let answer = layer.ask(&tier, &SHARES, Division::HostPerMille(per_mille));
            assert!(answer.report.placement.is_some(), "{what}");
            layer.expect(&answer, &SHARES, &what);
        }
    }
}

#[test]
fn a_plan_says_where_each_cluster_would_be_read_and_how_long_that_takes() {
    let _emulation = install();
    let device = Arc::new(Device::open(0).unwrap());
    let layer = Layer::new(Dtype::F16, 64, None);
    let cache = Arc::new(BlockCache::new(&device, Box::new(LeastRecentlyUsed), 200, 8, 64).unwrap());
    let tier = Tier::new(&device, MACHINE, Some(cache.clone()), 1 << 17).unwrap();
    let explain = || tier.explain(LAYER, &layer.view(), &layer.batch(), &SHARES).unwrap();
    let before = explain();
    let [step] = &before.steps[..] else { panic!("{before}") };
    assert_eq!((step.what, step.placement.places.len()), ("clusters", layer.reads().len()));
    assert!(step.placement.places.iter().all(|&place| place != Place::Slots), "the cache is empty");
    assert_eq!(step.placement.predicted, MACHINE.predict(step.bytes[0], step.bytes[1], step.bytes[2]));
    let answer = layer.ask(&tier, &SHARES, Division::Cost);
    assert_eq!(answer.report.placement.as_ref(), Some(&step.placement), "what was planned is what was done");
    assert_eq!((answer.report.bytes, answer.report.machine), (step.bytes, MACHINE));
    cache.note(0, answer.report.wanted, &layer.source());
    cache.settle();
    let after = explain();
    assert!(after.steps[0].placement.places.iter().all(|&place| place == Place::Slots), "{after}");
    assert!(after.total_s() < before.total_s());
    let text = after.to_string();
    assert!(
        text.contains("machine: link 20.0 GB/s, device 2000.0 GB/s, cpu 1.0 GB/s, launch 10.0 us"),
        "{text}"
    );
    assert!(text.contains("clusters placement slots ") && text.contains("predicted in all "), "{text}");
}

#[test]
fn constants_are_measured_where_none_are_given_and_stand_in_the_report() {
    let _emulation = install();
    let device = Arc::new(Device::open(0).unwrap());
    let layer = Layer::new(Dtype::F16, 64, None);
    let cache = Arc::new(BlockCache::new(&device, Box::new(LeastRecentlyUsed), 20, 8, 64).unwrap());
    let effort = Effort { bytes: 1 << 16, rounds: 1 };
    let tier = Tier::measured(&device, effort, Some(cache), 1 << 17).unwrap();
    let machine = tier.machine();
    assert!(machine.constants().iter().all(|(_, value)| value.is_finite() && *value > 0.0), "{machine:?}");
    let answer = layer.ask(&tier, &SHARES, Division::Cost);
    assert_eq!(answer.report.machine, machine);
    assert_eq!(answer.report.cache, Some(tier.metrics().cache.unwrap()));
    let text = tier.metrics().to_string();
    let line = format!("longwave_machine_launch_s {:e}", machine.launch_s);
    for expected in
        ["longwave_device_calls_total{side=\"device\"} 1", "longwave_cache_hit_ratio 0.0000", &line]
    {
        assert!(text.lines().any(|found| found == expected), "{expected} in\n{text}");
    }
}

/// What needs a device that does as it is told.
mod emulated {
    use super::*;

    #[test]
    fn a_device_that_fails_leaves_the_answer_to_the_cpu() {
        let emulation = install();
        let device = Arc::new(Device::open(0).unwrap());
        let layer = Layer::new(Dtype::F16, 64, None);
        let tier = Tier::new(&device, MACHINE, None, 1 << 16).unwrap();
        for nth in 1..=6 {
            emulation.fail_allocation(nth);
            let answer = layer.ask(&tier, &SHARES, Division::HostPerMille(0));
            assert_eq!(
                (answer.report.placement.is_none(), tier.metrics().fallbacks),
                (true, nth as u64),
                "allocation {nth}"
            );
            layer.expect(&answer, &SHARES, "out of memory");
        }
        emulation.fail_allocation(0);
        for nth in 1..=3 {
            emulation.fail_launch(nth);
            let answer = layer.ask(&tier, &SHARES, Division::HostPerMille(0));
            assert_eq!(
                (answer.report.placement.is_none(), tier.metrics().fallbacks),
                (true, 6 + nth as u64),
                "launch {nth}"
            );
            layer.expect(&answer, &SHARES, "a launch that is refused");
        }
        emulation.fail_launch(0);
        let answer = layer.ask(&tier, &SHARES, Division::HostPerMille(0));
        assert!(answer.report.placement.is_some() && tier.metrics().fallbacks == 9, "the device goes on");
        layer.expect(&answer, &SHARES, "afterwards");
        // Clusters that do not fit into the staging area are the CPU's, too.
        let small = Tier::new(&device, MACHINE, None, 64).unwrap();
        layer.expect(&layer.ask(&small, &SHARES, Division::HostPerMille(0)), &SHARES, "no room to stage");
        assert_eq!(small.metrics().fallbacks, 1);
    }

    #[test]
    fn a_device_without_memory_makes_no_cache() {
        let emulation = install();
        let device = Arc::new(Device::open(0).unwrap());
        emulation.set_memory(1 << 20);
        let error = BlockCache::new(&device, Box::new(LeastRecentlyUsed), 1000, 8, 64).unwrap_err();
        assert_eq!(error, Error::OutOfMemory { what: "a buffer", bytes: 1000 * 8 * 2 * 64 * 2 });
    }
}
