//! Every target on its kept corpus and on seeded mutations of it.

use longwave_fuzz::{Mutator, TARGETS, Target, corpus_directory};
use std::time::{Duration, Instant};

/// Executions of a target, unless they take longer than [`TIME_MAX`].
const EXECUTIONS: u64 = 40_000;
const TIME_MAX: Duration = Duration::from_secs(8);

/// The kept inputs, in the order of their names, and what the target reads in ordinary life.
fn inputs(target: &Target) -> Vec<Vec<u8>> {
    let mut files: Vec<_> =
        std::fs::read_dir(corpus_directory(target)).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let kept = files.iter().map(|file| std::fs::read(file).unwrap());
    kept.chain((target.seeds)()).collect()
}

#[test]
fn every_target_takes_its_corpus_and_mutations_of_it() {
    let mut total = 0;
    for target in TARGETS {
        let inputs = inputs(target);
        assert!(!inputs.is_empty(), "{}: nothing to start from", target.name);
        inputs.iter().for_each(|input| (target.run)(input));
        let (mut mutator, started) = (Mutator::new(2026), Instant::now());
        let mut executions = inputs.len() as u64;
        while executions < EXECUTIONS && started.elapsed() < TIME_MAX {
            for input in &inputs {
                (target.run)(&mutator.mutate(input, target.size_max));
                executions += 1;
            }
        }
        println!("{}: {executions} executions, {} kept inputs", target.name, inputs.len());
        total += executions;
    }
    println!("fuzz executions: {total}");
    assert!(total > 10 * TARGETS.len() as u64);
}

/// What is fed in ordinary life is taken: the targets get past the first check.
#[test]
fn seeds_are_there_and_fit() {
    for target in TARGETS {
        let seeds = (target.seeds)();
        assert!(!seeds.is_empty(), "{}", target.name);
        assert!(seeds.iter().all(|seed| seed.len() <= target.size_max), "{}", target.name);
    }
}
