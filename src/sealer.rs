//! The threads that seal: segments are built beside each other, and written beside the building of the next ones.

use crate::background::stand_back;
use crate::error::Error;
use crate::sealing::{Built, SealJob, SealRows, Sealed};
use longwave_index::ladder::Basis;
use parking_lot::{Condvar, Mutex};
use rayon::ThreadPool;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender, SyncSender, TrySendError, channel, sync_channel};
use std::sync::{Arc, OnceLock};

/// Segments that are built at a time. Their heads share the threads of one pool, those of the older segment first: when it has
/// fewer heads left than there are threads, the others go on with the next.
const AT_ONCE: usize = 2;

/// Where the result of a job arrives. One whose sender is gone says that the job was cancelled, or ended with a panic.
pub(crate) type Sealing = Receiver<Result<Sealed, Error>>;

type Work = (SealJob, Sender<Result<Sealed, Error>>);
type ToWrite = (Built, Sender<Result<Sealed, Error>>);
type Bases = Arc<OnceLock<Vec<Basis>>>;

/// Jobs that wait, and what keeps them from being started.
#[derive(Debug, Default)]
struct Queue {
    /// Segments that are built again come behind all rows of tails.
    seals: VecDeque<Work>,
    rebuilds: VecDeque<Work>,
    /// Bases that a job under way is going to set.
    unset: Vec<Bases>,
    threads: usize,
    /// Whether there will be no more jobs.
    is_closed: bool,
}

impl Queue {
    fn push(&mut self, work: Work) {
        match work.0.rows {
            SealRows::Tail(_) => self.seals.push_back(work),
            SealRows::Segments(_) | SealRows::Kept(..) => self.rebuilds.push_back(work),
        }
    }

    fn is_empty(&self) -> bool {
        self.seals.is_empty() && self.rebuilds.is_empty()
    }

    /// The next job, if it may be started, and the bases that it is going to set: the segments of a layer are built with those
    /// that its first one sets.
    fn take(&mut self) -> Option<(Work, Option<Bases>)> {
        let jobs = if self.seals.is_empty() { &mut self.rebuilds } else { &mut self.seals };
        let unset = unset_bases(&jobs.front()?.0);
        if let Some(bases) = &unset {
            if self.unset.iter().any(|other| Arc::ptr_eq(other, bases)) {
                return None;
            }
            self.unset.push(Arc::clone(bases));
        }
        Some((jobs.pop_front()?, unset))
    }
}

/// The bases that a job sets, if nobody has.
fn unset_bases(job: &SealJob) -> Option<Bases> {
    job.ladder.as_ref().map(|ladder| &ladder.bases).filter(|bases| bases.get().is_none()).cloned()
}

/// What the threads of a sealer share.
#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

impl Shared {
    /// Waits for a job as [`Queue::take`] gives it; `None` when there will be none.
    fn next(&self) -> Option<(Work, Option<Bases>)> {
        let mut queue = self.queue.lock();
        loop {
            if let Some(taken) = queue.take() {
                return Some(taken);
            }
            if queue.is_closed && queue.is_empty() {
                return None;
            }
            self.changed.wait(&mut queue);
        }
    }

    /// The job that was going to set these bases has ended.
    fn release(&self, bases: &Bases) {
        self.queue.lock().unset.retain(|other| !Arc::ptr_eq(other, bases));
        self.changed.notify_all();
    }
}

/// The sealing threads of a store. They start with the first job and end with the store, when what waits is done.
#[derive(Debug)]
pub(crate) struct Sealer {
    threads: usize,
    shared: Arc<Shared>,
}

impl Sealer {
    /// A sealer that clusters on `threads` threads; 0 takes as many as the machine has.
    pub(crate) fn new(threads: usize) -> Self {
        Sealer { threads, shared: Arc::default() }
    }

    /// Queues a job. The result arrives at the receiver.
    pub(crate) fn start(&self, job: SealJob) -> Sealing {
        let (result, receiver) = channel();
        let mut queue = self.shared.queue.lock();
        if queue.threads == 0 {
            queue.threads = spawn(self.threads, &self.shared);
        }
        // Without a thread its sender goes with it.
        if queue.threads > 0 {
            queue.push((job, result));
        }
        drop(queue);
        self.shared.changed.notify_one();
        receiver
    }
}

impl Drop for Sealer {
    fn drop(&mut self) {
        self.shared.queue.lock().is_closed = true;
        self.shared.changed.notify_all();
    }
}

/// Starts the threads; returns how many there are.
fn spawn(threads: usize, shared: &Arc<Shared>) -> usize {
    // Its own pool: a query must not wait in a queue behind a clustering.
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|i| format!("longwave-seal-{i}"))
        .start_handler(|_| stand_back())
        .build();
    let pool = pool.ok().map(Arc::new);
    let writer = spawn_writer();
    let started = (0..AT_ONCE).map(|_| {
        let (shared, pool, writer) = (Arc::clone(shared), pool.clone(), writer.clone());
        let thread = std::thread::Builder::new().name("longwave-seal".into());
        thread.spawn(move || seal(&shared, pool.as_deref(), &writer))
    });
    let (mut count, mut failure) = (0, None);
    for thread in started {
        match thread {
            Ok(_) => count += 1,
            Err(error) => failure = Some(error),
        }
    }
    if let Some(error) = failure {
        tracing::error!(%error, threads = count, "a sealing thread could not start; without any, rows stay in the tail");
    }
    count
}

fn seal(shared: &Shared, pool: Option<&ThreadPool>, writer: &SyncSender<ToWrite>) {
    stand_back();
    while let Some(((job, result), unset)) = shared.next() {
        // A panic is that job's: its receiver learns of it when its sender goes.
        let built = if job.cancelled.load(Ordering::Acquire) {
            None
        } else {
            catch_unwind(AssertUnwindSafe(|| job.build(pool))).ok()
        };
        if let Some(bases) = unset {
            shared.release(&bases);
        }
        match built {
            Some(Ok(built)) => match writer.try_send((built, result)) {
                Ok(()) => {}
                // Two writes beside each other are faster than one behind the other: one waits for the disk while
                // the other is copied. There may also be no writer.
                Err(TrySendError::Full((built, result)) | TrySendError::Disconnected((built, result))) => {
                    finish(built, &result);
                }
            },
            Some(Err(failure)) => drop(result.send(Err(failure))),
            None => {}
        }
    }
}

/// Writes a segment. A panic is that segment's, as in building.
fn finish(built: Built, result: &Sender<Result<Sealed, Error>>) {
    drop(catch_unwind(AssertUnwindSafe(|| built.finish(result))));
}

/// A thread that writes segments beside the building of the next ones, one at a time.
fn spawn_writer() -> SyncSender<ToWrite> {
    let (writer, built) = sync_channel::<ToWrite>(0);
    let write = move || {
        stand_back();
        built.into_iter().for_each(|(built, result)| finish(built, &result));
    };
    if let Err(error) = std::thread::Builder::new().name("longwave-write".into()).spawn(write) {
        tracing::warn!(%error, "no thread to write segments beside their building");
    }
    writer
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metric::Metric;
    use crate::model::ModelSpec;
    use crate::sample::QuerySample;
    use crate::sealing::SealLadder;
    use longwave_index::ClusterOptions;
    use longwave_storage::{Expected, Identity, MemoryBackend, RowForm, SegmentHeader};
    use std::sync::mpsc::RecvTimeoutError;
    use std::time::Duration;

    /// A job without rows, which no context queues: there is nothing to build, and the building panics.
    fn job_of_nothing(model: &Arc<ModelSpec>, bases: &Bases) -> SealJob {
        let header = SegmentHeader {
            id: [1; 16],
            identity: Identity([2; 32]),
            layer: 0,
            geometry: crate::record::geometry(model),
            first_position: 0,
            rows: 0,
            prefix_hash: [0; 32],
        };
        let metric = Metric::new(0, model, &QuerySample::new(3, 4), None);
        SealJob {
            backend: Arc::new(MemoryBackend::new()),
            header,
            expected: Expected::of_model(Identity([2; 32])),
            sequence: 0,
            sealed_at: 0,
            context_id: [1; 16],
            shape: model.shape(),
            clusters: Some(ClusterOptions::default()),
            ladder: Some(SealLadder { metric, bases: Arc::clone(bases), slope_rows: 1 }),
            rows: SealRows::Segments(Vec::new()),
            offsets: None,
            form: RowForm::Full,
            cancelled: Arc::default(),
        }
    }

    #[test]
    fn a_panic_ends_the_job_and_neither_a_thread_nor_the_wait_for_its_bases() {
        let (sealer, bases) = (Sealer::new(2), Bases::default());
        let model = Arc::new(crate::model::tests::model());
        let results: Vec<Sealing> =
            (0..2 * AT_ONCE + 1).map(|_| sealer.start(job_of_nothing(&model, &bases))).collect();
        for result in results {
            // Were a thread gone with each, or the bases still waited for, the last ones would wait for ever.
            let ended = result.recv_timeout(Duration::from_secs(60)).map(|sealed| sealed.is_ok());
            assert_eq!(ended, Err(RecvTimeoutError::Disconnected));
        }
        assert!(sealer.shared.queue.lock().unset.is_empty());
    }
}
