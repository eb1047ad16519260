//! The directory of a block cache: what is there, what leaves, and that slots are never shared.

use longwave_gpu::cache::{BlockId, Directory, Frequency, LeastRecentlyUsed, PlannerScore, Scored, policies};
use std::collections::HashSet;

fn block(cluster: u32) -> BlockId {
    BlockId { layer: 3, kv_head: 1, segment: 0, number: cluster }
}

fn wanted(cluster: u32, rows: u32) -> Scored {
    Scored { block: block(cluster), rows, score: 0.25, wanted: true }
}

fn resident(directory: &Directory, clusters: u32) -> Vec<u32> {
    (0..clusters).filter(|&cluster| directory.slots_of(block(cluster)).is_some()).collect()
}

#[test]
fn the_least_recently_used_leaves_first() {
    let mut directory = Directory::new(Box::new(LeastRecentlyUsed), 3, 8, 512);
    for step in 0..3 {
        directory.step(step, &[wanted(step as u32, 8)]);
    }
    directory.step(3, &[wanted(0, 8)]);
    let admitted = directory.step(4, &[wanted(3, 5)]);
    assert_eq!(admitted.iter().map(|a| a.block).collect::<Vec<_>>(), [block(3)]);
    assert_eq!(resident(&directory, 9), [0, 2, 3], "1 was wanted longest ago");
    let report = directory.report();
    assert_eq!((report.wanted, report.hits, report.admissions, report.evictions), (5, 1, 4, 1));
    assert_eq!((report.rows_wanted, report.rows_hit, report.rows_moved), (37, 8, 29));
}

#[test]
fn what_is_wanted_often_outlasts_what_is_wanted_once() {
    let mut directory = Directory::new(Box::new(Frequency { half_life: 100.0 }), 2, 8, 512);
    for step in 0..6 {
        directory.step(step, &[wanted(0, 8)]);
    }
    for step in 6..9 {
        directory.step(step, &[wanted(step as u32, 8)]);
    }
    assert!(directory.slots_of(block(0)).is_some(), "wanted six times, and as good as lately");
}

#[test]
fn the_planner_brings_in_what_it_scores_high_before_it_is_wanted() {
    let policy = PlannerScore { half_life: 8.0, exponent: 1.0, wanted: 0.0 };
    let mut directory = Directory::new(Box::new(policy), 2, 8, 512);
    let scored = |cluster, score| Scored { block: block(cluster), rows: 8, score, wanted: false };
    directory.step(0, &[scored(4, 0.1), scored(5, 0.3), scored(6, 0.2)]);
    assert_eq!(resident(&directory, 9), [5, 6]);
    directory.step(1, &[scored(4, 0.9)]);
    assert_eq!(resident(&directory, 9), [4, 5]);
    assert_eq!(directory.report().wanted, 0);
}

#[test]
fn pinned_blocks_stay_and_take_no_more_than_there_is() {
    let mut directory = Directory::new(Box::new(LeastRecentlyUsed), 4, 8, 512);
    assert_eq!(directory.pin(block(0), 20).unwrap().slots.len(), 3);
    assert!(directory.pin(block(1), 9).is_none(), "one slot is left, two are needed");
    assert!(directory.slots_of(block(1)).is_none());
    for step in 0..5 {
        directory.step(step, &[wanted(2 + step as u32, 8)]);
        assert!(directory.slots_of(block(0)).is_some());
    }
    directory.unpin(block(0));
    directory.step(5, &[wanted(8, 8), wanted(7, 8)]);
    assert!(directory.slots_of(block(0)).is_none());
}

#[test]
fn a_block_larger_than_the_cache_is_left_where_it_lies() {
    let mut directory = Directory::new(Box::new(LeastRecentlyUsed), 2, 8, 512);
    directory.step(0, &[wanted(0, 8)]);
    assert_eq!(directory.step(1, &[wanted(1, 17)]), []);
    assert_eq!(resident(&directory, 3), [0], "nothing leaves for what does not fit");
}

#[test]
fn no_slot_ever_holds_two_blocks() {
    for policy in policies() {
        let name = policy.name();
        let mut directory = Directory::new(policy, 23, 4, 512);
        let mut state = 9u64;
        let mut next = |bound: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % bound
        };
        for step in 0..400 {
            let scored: Vec<Scored> = (0..1 + next(6))
                .map(|_| {
                    let cluster = next(40) as u32;
                    let (score, wanted) = (next(100) as f32 / 100.0, next(2) == 0);
                    Scored { block: block(cluster), rows: 1 + cluster % 11, score, wanted }
                })
                .collect();
            let admitted = directory.step(step, &scored);
            let mut held = HashSet::new();
            for cluster in 0..40u32 {
                let Some(slots) = directory.slots_of(block(cluster)) else { continue };
                assert_eq!(slots.len(), (1 + cluster % 11).div_ceil(4) as usize, "{name}");
                assert!(slots.iter().all(|&slot| slot < 23 && held.insert(slot)), "{name}: a slot is shared");
            }
            assert_eq!(held.len() + directory.free_slots(), 23, "{name}: a slot is lost");
            assert!(admitted.iter().all(|a| directory.slots_of(a.block) == Some(&a.slots)), "{name}");
        }
        let report = directory.report();
        assert!(report.hits > 0 && report.evictions > 0 && report.hits < report.wanted, "{name}: {report:?}");
    }
}
