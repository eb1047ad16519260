//! Whole calls on RetroInfer's clusters: by the CPU, by the device, and divided at every proportion.

use crate::layers::{Layer, MACHINE, SHARES, places};
use longwave_gpu::cache::{BlockCache, LeastRecentlyUsed, Scored};
use longwave_gpu::{Caches, Device, Division, Error, Tier};
use longwave_gpu_emulation::install;
use longwave_kernels::Dtype;
use longwave_query::Budget;
use std::sync::Arc;

fn with(cache: &Arc<BlockCache>) -> Caches {
    Caches { clusters: Some(cache.clone()), ..Caches::default() }
}

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
        let tier = Tier::new(&device, MACHINE, with(&cache), 1 << 17).unwrap();
        for pinned in [0, reads.len() / 2, reads.len()] {
            for &(block, rows) in &reads[..pinned] {
                cache.pin(block, rows as u32, &layer.sources().clusters);
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
    let tier = Tier::new(&device, MACHINE, with(&cache), 1 << 16).unwrap();
    let first = layer.ask(&tier, &SHARES, Division::HostPerMille(0));
    assert_eq!(places(&first), [0, layer.reads().len(), 0]);
    let scored = layer.reads().into_iter().map(|(block, rows)| Scored {
        block,
        rows: rows as u32,
        score: 0.1,
        wanted: true,
    });
    cache.note(0, scored.collect(), &layer.sources().clusters);
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
    let tier = Tier::new(&device, MACHINE, with(&cache), 1 << 16).unwrap();
    for step in 0..12 {
        let some = reads.iter().skip(step % 4).step_by(4);
        let scored = some.map(|&(block, rows)| Scored { block, rows: rows as u32, score: 0.1, wanted: true });
        cache.note(step as u64, scored.collect(), &layer.sources().clusters);
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
    let tier = Tier::new(&device, MACHINE, Caches::default(), 1 << 16).unwrap();
    let layer = Layer::new(Dtype::F16, 80, None);
    let answer = layer.ask(&tier, &SHARES, Division::HostPerMille(0));
    assert!(answer.report.placement.is_none());
    layer.expect(&answer, &SHARES, "80 elements");
    // Rows that are kept as codes alone.
    let mut layer = Layer::new(Dtype::F16, 64, None);
    layer.keep_codes_alone();
    for budget in [SHARES, Budget::Tau(0.003)] {
        let answer = layer.ask(&tier, &budget, Division::HostPerMille(0));
        assert!(answer.report.placement.is_none());
        layer.expect(&answer, &budget, "codes");
    }
    let metrics = tier.metrics();
    assert_eq!((metrics.calls_host, metrics.fallbacks), (3, 0));
}

/// What needs a device that does as it is told.
mod emulated {
    use super::*;

    #[test]
    fn a_device_that_fails_leaves_the_answer_to_the_cpu() {
        let emulation = install();
        let device = Arc::new(Device::open(0).unwrap());
        let layer = Layer::new(Dtype::F16, 64, None);
        let tier = Tier::new(&device, MACHINE, Caches::default(), 1 << 16).unwrap();
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
        let small = Tier::new(&device, MACHINE, Caches::default(), 64).unwrap();
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
