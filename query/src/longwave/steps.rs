//! One call in steps, each of which asks for what the next one reads. Where that has to come from disk, its thread goes on with other
//! calls meanwhile.

use super::answer::Rough;
use super::disk::Fetches;
use super::head::Ladders;
use super::read::Known;
use super::sharing::Sharing;
use super::unit::{Call, Room, Threshold, Unit};
use super::zone::{Choice, Zone};
use crate::error::Error;
use crate::report::{Operator, Traffic};
use crate::rule::{Attempt, Next, TauRule};
use crate::stored::Side;
use crate::view::{LayerView, QueryBatch};
use longwave_kernels::Kernels;
use rayon::prelude::*;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// Calls of a thread that may wait for the disk at a time. Each has its room.
const WAITING_MAX: usize = 4;
/// Positions of a KV head that one thread answers one after the other, at most: what one has read is in the caches for the next.
const POSITIONS_TOGETHER: usize = 4;

/// What a call does next.
#[derive(Default)]
pub(super) enum Step {
    #[default]
    Begin,
    /// Chooses clusters.
    Open(Attempted),
    /// Scans their sketches, and chooses keys by them.
    Scan(Attempted),
    /// Reads these keys, and chooses again.
    Keys(Attempted, Rough),
    /// Reads the keys of the second choice, and chooses values.
    Again(Attempted, Rough),
    /// Reads these values.
    Values(Attempted),
}

/// The attempt that is under way, from 1, and its threshold.
#[derive(Clone, Copy)]
pub(super) struct Attempted {
    number: u64,
    threshold: Threshold,
}

enum Progress<'a, 'v> {
    /// What comes next is on its way from the disk.
    Waits(Box<Call<'a, 'v>>),
    Done(Box<Unit>),
}

/// Whether a call goes on with its next step.
enum After {
    Goes,
    Waits,
    /// Every row is read, after so many attempts.
    Exact(u64),
    Done(Box<Accepted>),
}

/// An answer that is good enough.
pub(super) struct Accepted {
    pub(super) answer: Rough,
    /// Its error, of each head of the group.
    pub(super) predicted: Vec<f32>,
    pub(super) threshold: Threshold,
    pub(super) attempts: u64,
    /// What was touched.
    pub(super) traffic: Traffic,
}

impl After {
    fn of(comes_from_disk: bool) -> After {
        if comes_from_disk { After::Waits } else { After::Goes }
    }
}

/// What all calls of one request share.
pub(super) struct Calls<'a, 'v> {
    pub(super) kernels: &'a Kernels,
    pub(super) view: &'a LayerView<'v>,
    pub(super) batch: &'a QueryBatch<'a>,
    pub(super) ladders: &'a Ladders<'v>,
    pub(super) rule: &'a dyn TauRule,
}

impl<'a, 'v: 'a> Calls<'a, 'v> {
    /// Answers all positions and KV heads, which are `units`, on the threads of the pool; in the order of the units.
    pub(super) fn answer(&self, units: &[(usize, usize)]) -> Result<Vec<Unit>, Error> {
        // All positions of a KV head lie together.
        let mut order: Vec<usize> = (0..units.len()).collect();
        order.sort_by_key(|&number| units[number].1);
        let threads = rayon::current_num_threads().clamp(1, units.len().max(1));
        // Few enough for each thread to take several parts, so that all end at about the same time.
        let together = (units.len() / (2 * threads)).clamp(1, POSITIONS_TOGETHER);
        let of_heads = order.chunk_by(|&a, &b| units[a].1 == units[b].1);
        let parts: Vec<&[usize]> = of_heads.flat_map(|positions| positions.chunks(together)).collect();
        let taken = AtomicUsize::new(0);
        let work = |_| {
            // Where one fails, nothing more is begun.
            self.work(units, &parts, &taken).inspect_err(|_| taken.store(parts.len(), Ordering::Relaxed))
        };
        let done = (0..threads).into_par_iter().with_max_len(1);
        let done: Vec<_> = done.map(work).collect::<Result<_, Error>>()?;
        let mut done: Vec<(usize, Unit)> = done.into_iter().flatten().collect();
        done.sort_unstable_by_key(|(number, _)| *number);
        Ok(done.into_iter().map(|(_, unit)| unit).collect())
    }

    /// What one thread does: it takes parts of the units for as long as there are any.
    fn work(
        &self,
        units: &[(usize, usize)],
        parts: &[&[usize]],
        taken: &AtomicUsize,
    ) -> Result<Vec<(usize, Unit)>, Error> {
        let (mut done, mut waiting, mut scratch) = (Vec::new(), VecDeque::new(), Vec::new());
        let mut mine: &[usize] = &[];
        // Where there are fewer units than threads, another has nothing else to do.
        let most = if self.ladders.sharing == Sharing::Shared { 1 } else { WAITING_MAX };
        loop {
            if mine.is_empty() && waiting.len() < most {
                mine = parts.get(taken.fetch_add(1, Ordering::Relaxed)).copied().unwrap_or_default();
            }
            let (number, call) = match mine.split_first() {
                Some((&number, rest)) if waiting.len() < most => {
                    mine = rest;
                    (number, Box::new(self.open(units[number], &mut scratch)?))
                }
                _ => match waiting.pop_front() {
                    Some(waiting) => waiting,
                    None => return Ok(done),
                },
            };
            match call.go_on(self.rule, &mut scratch)? {
                Progress::Waits(call) => waiting.push_back((number, call)),
                Progress::Done(unit) => done.push((number, *unit)),
            }
        }
    }

    fn open(&self, unit: (usize, usize), scratch: &mut Vec<f32>) -> Result<Call<'a, 'v>, Error> {
        Call::open(self.kernels, self.view, self.batch, self.ladders, unit, scratch)
    }
}

impl<'a, 'v: 'a> Call<'a, 'v> {
    /// Goes on until the answer is there, or until something has to come from disk.
    fn go_on(
        mut self: Box<Self>,
        rule: &dyn TauRule,
        scratch: &mut Vec<f32>,
    ) -> Result<Progress<'a, 'v>, Error> {
        loop {
            match self.step(rule)? {
                After::Goes => {}
                After::Waits => return Ok(Progress::Waits(self)),
                After::Exact(attempts) => {
                    return Ok(Progress::Done(Box::new(self.read_all(attempts, scratch)?)));
                }
                After::Done(accepted) => return Ok(Progress::Done(Box::new(self.finish(*accepted)))),
            }
        }
    }

    fn step(&mut self, rule: &dyn TauRule) -> Result<After, Error> {
        match std::mem::take(&mut self.at) {
            Step::Begin => {
                let (position, kv_head) = self.unit;
                let Some(tau) = rule.start(position, kv_head) else { return Ok(After::Exact(0)) };
                let bytes_max = rule.bytes_share_max().map(|share| (share * self.whole()) as u64);
                let threshold = Threshold { tau, bytes_max, raised: false };
                self.at = Step::Open(Attempted { number: 1, threshold });
                Ok(After::Goes)
            }
            Step::Open(mut attempted) => {
                self.open_clusters(&mut attempted.threshold);
                self.at = Step::Scan(attempted);
                let started = Instant::now();
                let comes = self.reader.head.expect_sketches(&self.room.clusters.opened);
                self.timings.add(Operator::Scan, started.elapsed());
                Ok(After::of(comes))
            }
            Step::Scan(attempted) => self.scan_and_choose(attempted),
            Step::Keys(attempted, rough) => self.read_and_choose_again(attempted, rough),
            Step::Again(attempted, rough) => self.read_again_and_choose_values(attempted, rough),
            Step::Values(mut attempted) => {
                let answer = self.read_values(&mut attempted.threshold)?;
                self.judge(rule, answer, attempted)
            }
        }
    }

    fn scan_and_choose(&mut self, mut attempted: Attempted) -> Result<After, Error> {
        self.scan()?;
        let rough = self.rough();
        self.select_keys(&mut attempted.threshold, &rough)?;
        self.at = Step::Keys(attempted, rough);
        Ok(After::of(self.expect(&[|zone| &zone.keys], Side::Keys)?))
    }

    fn read_and_choose_again(&mut self, mut attempted: Attempted, mut rough: Rough) -> Result<After, Error> {
        if !self.room.zone.keys.is_empty() {
            rough = self.read_keys(|zone| &mut zone.keys, Known::Sketch)?;
            self.select_again(&mut attempted.threshold, &rough)?;
        }
        self.at = Step::Again(attempted, rough);
        Ok(After::of(self.expect(&[|zone| &zone.again, |zone| &zone.missed], Side::Keys)?))
    }

    fn read_again_and_choose_values(
        &mut self,
        mut attempted: Attempted,
        mut rough: Rough,
    ) -> Result<After, Error> {
        if !self.room.zone.again.is_empty() {
            rough = self.read_keys(|zone| &mut zone.again, Known::Code)?;
        }
        if !self.room.zone.missed.is_empty() {
            rough = self.read_keys(|zone| &mut zone.missed, Known::Sketch)?;
        }
        self.select_values(&mut attempted.threshold, &rough)?;
        self.at = Step::Values(attempted);
        Ok(After::of(self.expect(&[|zone| &zone.values], Side::Values)?))
    }

    /// Asks for the rows of these choices; says whether some of them come from disk.
    fn expect(&mut self, choices: &[fn(&Zone) -> &Choice], side: Side) -> Result<bool, Error> {
        let started = Instant::now();
        let mut comes = self.fetches.as_mut().is_some_and(Fetches::has_asked);
        let choices: Vec<&Choice> = choices.iter().map(|choice| choice(&self.room.zone)).collect();
        comes |= self.reader.expect(&self.room.zone, &choices, side)?;
        self.timings.add(Operator::Read, started.elapsed());
        Ok(comes)
    }

    /// Bytes of all rows in 16 bits.
    fn whole(&self) -> f64 {
        let view = self.reader.view;
        let rows: usize = view.segments.iter().map(|segment| segment.rows()).sum();
        (rows * 2 * (view.shape.key_dim + view.shape.value_dim)) as f64
    }

    /// Asks the rule about an answer.
    fn judge(&mut self, rule: &dyn TauRule, answer: Rough, attempted: Attempted) -> Result<After, Error> {
        let started = Instant::now();
        let Attempted { number, mut threshold } = attempted;
        let Room { clusters, zone, touched, prediction, closed, slopes, .. } = &mut self.room;
        touched.add(&self.reader.head, clusters, zone, slopes);
        let sums = (&answer, &*closed, &*slopes);
        let predicted = prediction.errors(self.reader.kernels, &self.reader.head, clusters, zone, sums);
        if !answer.is_known() || predicted.iter().any(|error| !error.is_finite()) {
            return Ok(After::Exact(number));
        }
        let traffic = Self::traffic(&self.reader.view.shape, &self.reader.head, &self.room.touched);
        let bytes_share = traffic.bytes() as f64 / self.whole().max(1.0);
        let (position, kv_head) = self.unit;
        let attempt = Attempt { position, kv_head, tau: threshold.tau, predicted: &predicted, bytes_share };
        // Without a summary in use the answer is exact already.
        let next = if self.reader.head.clusters == 0 { Next::Accept } else { rule.next(&attempt) };
        self.timings.add(Operator::Estimate, started.elapsed());
        Ok(match next {
            Next::Lower(tau) if tau > 0.0 && tau < threshold.tau => {
                threshold.tau = tau;
                self.at = Step::Open(Attempted { number: number + 1, threshold });
                After::Goes
            }
            Next::Lower(_) | Next::Exact => After::Exact(number),
            Next::Accept => {
                After::Done(Box::new(Accepted { answer, predicted, threshold, attempts: number, traffic }))
            }
        })
    }
}
