//! The thread that audits calls behind the back of those who make them.

use super::calibration::{Audit, Band, BandErrors};
use crate::background::stand_back;
use crate::error::Error;
use crate::layer::LayerRows;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

/// Queries to be audited on the rows of one layer at one moment.
#[derive(Debug)]
pub(crate) struct AuditJob {
    pub(crate) rows: LayerRows,
    /// Each `[query_heads, key_dim]`.
    pub(crate) queries: Vec<Vec<f32>>,
    pub(crate) bands: Vec<Band>,
    /// Tau of each KV head in the call that is audited; empty where queries are replayed.
    pub(crate) asked: Vec<f32>,
    /// Set when the context goes.
    pub(crate) cancelled: Arc<AtomicBool>,
}

/// What a job found.
#[derive(Debug)]
pub(crate) struct Audits {
    pub(crate) found: Result<Vec<BandErrors>, Error>,
    /// Of `found`, the heads in the bands that they were answered in by the call.
    pub(crate) of_call: Vec<BandErrors>,
    pub(crate) kind: Audit,
    /// How long it took.
    pub(crate) spent: Duration,
}

impl AuditJob {
    pub(crate) fn run(&self) -> Audits {
        let started = Instant::now();
        let found = super::audit(&self.rows, &self.queries, &self.bands);
        let of_call = found.as_deref().map(|found| self.of_call(found)).unwrap_or_default();
        let kind = if self.asked.is_empty() { Audit::Replayed } else { Audit::Asked };
        Audits { found, of_call, kind, spent: started.elapsed() }
    }

    fn of_call(&self, found: &[BandErrors]) -> Vec<BandErrors> {
        let group = self.rows.shape.group();
        let band = |head: usize| self.asked.get(head / group).and_then(|&tau| Band::of(tau.into()));
        let of_band = |errors: &BandErrors| {
            let heads = errors.heads.iter().filter(|(head, ..)| band(*head) == Some(errors.band));
            BandErrors { heads: heads.copied().collect(), ..*errors }
        };
        found.iter().map(of_band).filter(|errors| !errors.heads.is_empty()).collect()
    }
}

type Work = (AuditJob, Sender<Audits>);

/// The audit thread of a store. It starts with the first job and ends with the store.
#[derive(Debug, Default)]
pub(crate) struct Auditor {
    queue: Mutex<Option<Sender<Work>>>,
}

impl Auditor {
    /// Queues a job. The result arrives at the receiver, unless the thread ended or the job was cancelled.
    pub(crate) fn start(&self, job: AuditJob) -> Receiver<Audits> {
        let (result, receiver) = channel();
        let mut queue = self.queue.lock();
        let sender = queue.get_or_insert_with(spawn);
        if let Err(returned) = sender.send((job, result)) {
            // The thread ended with a panic. A new one takes the job; its receiver tells if that ends as well.
            let sender = queue.insert(spawn());
            drop(sender.send(returned.0));
        }
        receiver
    }
}

fn spawn() -> Sender<Work> {
    let (sender, jobs) = channel::<Work>();
    let run = move || {
        // A pool of one thread: an audit must take no more than one core from the calls it goes beside.
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(1)
            .thread_name(|_| "longwave-audit-pool".into())
            .start_handler(|_| stand_back())
            .build();
        while let Ok((job, result)) = jobs.recv() {
            if job.cancelled.load(Ordering::Acquire) {
                continue;
            }
            let audits = match &pool {
                Ok(pool) => pool.install(|| job.run()),
                Err(_) => job.run(),
            };
            // Nobody looks when the context was dropped.
            drop(result.send(audits));
        }
    };
    if let Err(error) = std::thread::Builder::new().name("longwave-audit".into()).spawn(run) {
        tracing::error!(%error, "the audit thread could not start; bounds stay as calibrated");
    }
    sender
}
