//! Choosing the rows of the opened clusters that are read, and reading them: keys by their sketches, keys again by what the codes
//! that were read say, then values.

use super::answer::Rough;
use super::read::Known;
use super::unit::{Call, Room, Threshold};
use super::zone::{Choice, Zone, is_listed};
use crate::error::Error;
use crate::report::Operator;
use crate::stored::Side;
use std::time::Instant;

impl<'a, 'v: 'a> Call<'a, 'v> {
    /// The answer as it stands when every cluster's rows have its mean value.
    pub(super) fn rough(&mut self) -> Rough {
        let Room { clusters, zone, closed, opened, opened_weights, weights, .. } = &mut self.room;
        let head = &self.reader.head;
        zone.weights(clusters, opened_weights, weights);
        opened.reset(head, head.group, self.reader.view.shape.value_dim);
        opened.add(self.reader.kernels, head, &clusters.opened, opened_weights);
        Rough::of(head, &[closed, opened], (weights, weights), (&self.steady, &clusters.steady), None)
    }

    /// Chooses the keys to read, by the answer `rough` as it stands.
    pub(super) fn select_keys(&mut self, threshold: &mut Threshold, rough: &Rough) -> Result<(), Error> {
        let started = Instant::now();
        self.measure_off(rough);
        let Room { clusters, zone, off, gains, .. } = &mut self.room;
        gains.select_keys(self.reader.kernels, zone, clusters, (rough, off), threshold.tau);
        let fixed = Self::fixed(&self.reader.view.shape, &self.reader.head).bytes();
        threshold.raise(fixed, 3, |tau| {
            gains.select_keys(self.reader.kernels, zone, clusters, (rough, off), tau);
            Self::chosen_bytes(&self.reader.view.shape, &self.reader.head, clusters, zone)
        });
        self.keep(|zone| &mut zone.keys, Side::Keys)?;
        self.timings.add(Operator::Select, started.elapsed());
        Ok(())
    }

    /// Chooses the keys to read once more, by the answer `rough` as it stands with the codes that were read.
    pub(super) fn select_again(&mut self, threshold: &mut Threshold, rough: &Rough) -> Result<(), Error> {
        let started = Instant::now();
        self.measure_off(rough);
        let Room { clusters, zone, off, gains, .. } = &mut self.room;
        gains.select_again(self.reader.kernels, zone, clusters, (rough, off), threshold.tau);
        let fixed = Self::fixed(&self.reader.view.shape, &self.reader.head).bytes();
        threshold.raise(fixed, 3, |tau| {
            gains.select_again(self.reader.kernels, zone, clusters, (rough, off), tau);
            Self::chosen_bytes(&self.reader.view.shape, &self.reader.head, clusters, zone)
        });
        self.keep(|zone| &mut zone.again, Side::Keys)?;
        self.keep(|zone| &mut zone.missed, Side::Keys)?;
        // A full row that is not to be had is left to its code, which some have been read as.
        let Zone { keys, again, .. } = &mut self.room.zone;
        again.code.retain(|chosen| is_listed(&keys.half, chosen.at));
        self.timings.add(Operator::Select, started.elapsed());
        Ok(())
    }

    /// Takes the squared distances of the opened clusters' means to an answer.
    fn measure_off(&mut self, rough: &Rough) {
        let Room { clusters, distances, off, .. } = &mut self.room;
        let list = (&clusters.opened[..], &clusters.opened_numbers.norm[..]);
        rough.distances(self.reader.kernels, &self.reader.head, list, distances);
        let count = clusters.opened.len();
        off.clear();
        off.extend((0..count).flat_map(|number| distances[number..].iter().step_by(count)));
    }

    /// Chooses the values to read, by the answer `rough` as it stands.
    pub(super) fn select_values(&mut self, threshold: &mut Threshold, rough: &Rough) -> Result<(), Error> {
        let started = Instant::now();
        let Room { clusters, zone, gains, .. } = &mut self.room;
        gains.select_values(self.reader.kernels, zone, clusters, rough, threshold.tau);
        let fixed = Self::fixed(&self.reader.view.shape, &self.reader.head).bytes();
        threshold.raise(fixed, 4, |tau| {
            gains.select_values(self.reader.kernels, zone, clusters, rough, tau);
            Self::chosen_bytes(&self.reader.view.shape, &self.reader.head, clusters, zone)
        });
        self.keep(|zone| &mut zone.values, Side::Values)?;
        self.timings.add(Operator::Select, started.elapsed());
        Ok(())
    }

    /// Leaves out the rows of a choice that a cap on what comes from disk keeps from being read.
    fn keep(&mut self, of: fn(&mut Zone) -> &mut Choice, side: Side) -> Result<(), Error> {
        let Some(fetches) = &mut self.fetches else { return Ok(()) };
        let zone = &mut self.room.zone;
        let mut choice = std::mem::take(of(zone));
        let kept = fetches.keep(zone, side, &mut choice);
        *of(zone) = choice;
        Ok(kept?)
    }

    /// Reads the keys of a choice, of whose rows `known` is known; returns the answer as it then stands.
    pub(super) fn read_keys(
        &mut self,
        of: fn(&mut Zone) -> &mut Choice,
        known: Known,
    ) -> Result<Rough, Error> {
        let started = Instant::now();
        let Room { clusters, zone, changed, closed, .. } = &mut self.room;
        let tops = clusters.top.clone();
        let keys = std::mem::take(of(zone));
        self.reader.read_keys(zone, clusters, changed, &keys, known)?;
        *of(zone) = keys;
        closed.rescale(&tops, &clusters.top);
        let rough = self.rough();
        self.timings.add(Operator::Read, started.elapsed());
        Ok(rough)
    }

    /// Reads the values that were chosen; returns the answer.
    pub(super) fn read_values(&mut self, threshold: &mut Threshold) -> Result<Rough, Error> {
        let started = Instant::now();
        let Room { zone, values, .. } = &mut self.room;
        self.reader.read_values(zone, values)?;
        let answer = self.finished(threshold);
        self.timings.add(Operator::Read, started.elapsed());
        Ok(answer)
    }

    /// The answer with all rows read. The sums over opened clusters are those that the values were chosen by; what rows read
    /// in full take from a mean comes off.
    fn finished(&mut self, threshold: &mut Threshold) -> Rough {
        let (kernels, head) = (self.reader.kernels, &self.reader.head);
        let Room {
            clusters,
            zone,
            closed,
            opened,
            taken,
            taking,
            less,
            weights,
            on_mean,
            values,
            slopes,
            touched,
            ..
        } = &mut self.room;
        on_mean.clone_from(weights);
        zone.take_full(head.group, on_mean, (taking, less));
        taken.reset(head, head.group, self.reader.view.shape.value_dim);
        taken.add(kernels, head, taking, less);
        let (weights, steady) = ((&weights[..], &on_mean[..]), (&self.steady, &clusters.steady[..]));
        let mut answer = Rough::of(head, &[closed, opened, taken], weights, steady, Some(values));
        slopes.rise(kernels, head, clusters, zone);
        let (shape, known) = (&self.reader.view.shape, &touched.slopes[..]);
        let most = threshold.bytes_max.map_or(usize::MAX, |most| {
            Self::slopes_within(most, shape, head, (clusters, zone)).saturating_sub(known.len())
        });
        threshold.raised |= slopes.choose(head, &answer, threshold.tau, (known, most));
        slopes.follow(kernels, head, &mut answer);
        answer
    }
}
