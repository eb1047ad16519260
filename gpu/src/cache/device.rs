//! The block cache on a device: decided and filled on a thread of its own.

use super::directory::{Admission, BlockId, CacheReport, Directory, Scored};
use super::policy::Policy;
use crate::device::{Buffer, Device};
use crate::error::Error;
use crate::launch::Staging;
use parking_lot::{Mutex, RwLock};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// Where a cache reads the rows of a block.
pub trait RowSource: Send + Sync {
    /// Writes the block's keys and values, row by row as 16-bit elements; there is room for just its rows.
    ///
    /// # Errors
    /// [`Error::Rows`]. The block then stays out.
    fn read(&self, block: BlockId, keys: &mut [u16], values: &mut [u16]) -> Result<(), Error>;
}

/// The slots of each block that is there. While one is held, none of its slots changes.
pub type Slots = Arc<HashMap<BlockId, Vec<u32>>>;

/// Clusters' rows in device memory. Looking a block up and telling what happened take no time worth speaking of; what comes
/// and goes is decided, read and copied by a thread of the cache.
#[derive(Debug)]
pub struct BlockCache {
    shared: Arc<Shared>,
    jobs: Option<Sender<Job>>,
    worker: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    device: Arc<Device>,
    slots: Mutex<Slots>,
    pool: RwLock<Buffer<u16>>,
    report: Mutex<CacheReport>,
    slot_rows: usize,
    dim: usize,
}

enum Job {
    Step(u64, Vec<Scored>, Arc<dyn RowSource>),
    Pin(BlockId, u32, Arc<dyn RowSource>),
    /// Answers when everything before it is done.
    Settle(Sender<()>),
}

impl BlockCache {
    /// An empty cache of `slots` slots of `slot_rows` rows, keys and values of `dim` elements each.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] or [`Error::Driver`].
    ///
    /// # Panics
    /// If `slot_rows` is no power of two, or the thread cannot be started.
    pub fn new(
        device: &Arc<Device>,
        policy: Box<dyn Policy>,
        slots: usize,
        slot_rows: usize,
        dim: usize,
    ) -> Result<BlockCache, Error> {
        assert!(slot_rows.is_power_of_two(), "slots of {slot_rows} rows");
        let shared = Arc::new(Shared {
            device: device.clone(),
            slots: Mutex::default(),
            pool: RwLock::new(device.room(slots * slot_rows * 2 * dim)?),
            report: Mutex::default(),
            slot_rows,
            dim,
        });
        let worker = Worker {
            directory: Directory::new(policy, slots, slot_rows as u32, 4 * dim),
            staging: Staging::new(device, (slot_rows * 2 * dim).max(STAGED_MIN))?,
            room: (slot_rows * 2 * dim).max(STAGED_MIN),
            staged: 0,
            shared: shared.clone(),
        };
        let (jobs, received) = channel();
        let thread = std::thread::Builder::new().name("longwave-cache".into());
        let worker = thread.spawn(move || worker.run(&received)).expect("a thread can be started");
        Ok(BlockCache { shared, jobs: Some(jobs), worker: Some(worker) })
    }

    /// What is there now. Kernels that read these slots must be done before it is dropped.
    pub fn slots(&self) -> Slots {
        self.shared.slots.lock().clone()
    }

    /// Rows of a slot.
    pub fn slot_rows(&self) -> usize {
        self.shared.slot_rows
    }

    /// Elements of a key, and of a value.
    pub fn dim(&self) -> usize {
        self.shared.dim
    }

    /// Runs `work` with the memory that holds the slots, for launching kernels.
    pub fn with_pool<R>(&self, work: impl FnOnce(&Buffer<u16>) -> R) -> R {
        work(&self.shared.pool.read())
    }

    /// Takes note of one decode step. Returns at once.
    pub fn note(&self, step: u64, scored: Vec<Scored>, source: &Arc<dyn RowSource>) {
        self.send(Job::Step(step, scored, source.clone()));
    }

    /// Keeps a block for good, if there is room. Returns at once.
    pub fn pin(&self, block: BlockId, rows: u32, source: &Arc<dyn RowSource>) {
        self.send(Job::Pin(block, rows, source.clone()));
    }

    /// Waits until everything noted so far has come in.
    pub fn settle(&self) {
        let (done, wait) = channel();
        self.send(Job::Settle(done));
        // The thread that would answer is gone only if it panicked; there is nothing to wait for then.
        let _ = wait.recv();
    }

    /// What happened so far.
    pub fn report(&self) -> CacheReport {
        *self.shared.report.lock()
    }

    fn send(&self, job: Job) {
        // As in `settle`.
        let _ = self.jobs.as_ref().map(|jobs| jobs.send(job));
    }
}

impl Drop for BlockCache {
    fn drop(&mut self) {
        drop(self.jobs.take());
        let _ = self.worker.take().map(JoinHandle::join);
    }
}

/// Least elements of pinned memory: slots are copied without a wait until it is full.
const STAGED_MIN: usize = 1 << 16;

struct Worker {
    directory: Directory,
    staging: Staging,
    /// Elements of the pinned memory, and how many of them copies under way may read.
    room: usize,
    staged: usize,
    shared: Arc<Shared>,
}

impl Worker {
    fn run(mut self, jobs: &Receiver<Job>) {
        while let Ok(job) = jobs.recv() {
            match job {
                Job::Step(step, scored, source) => {
                    let admissions = self.directory.step(step, &scored);
                    self.bring_in(admissions, source.as_ref());
                }
                Job::Pin(block, rows, source) => {
                    let admissions = self.directory.pin(block, rows).into_iter().collect();
                    self.bring_in(admissions, source.as_ref());
                }
                Job::Settle(done) => {
                    let _ = done.send(());
                }
            }
            *self.shared.report.lock() = self.directory.report();
        }
    }

    fn bring_in(&mut self, admissions: Vec<Admission>, source: &dyn RowSource) {
        if admissions.is_empty() {
            return;
        }
        // Blocks that leave are out of sight before their slots are written, and out of use once nobody holds an older table.
        let before = self.shared.slots.lock().clone();
        let stays = |(block, slots): &(&BlockId, &Vec<u32>)| {
            self.directory.slots_of(**block) == Some(slots.as_slice())
        };
        let mut slots: HashMap<_, _> =
            before.iter().filter(stays).map(|(block, slots)| (*block, slots.clone())).collect();
        *self.shared.slots.lock() = Arc::new(slots.clone());
        while Arc::strong_count(&before) > 1 {
            std::thread::sleep(Duration::from_micros(50));
        }
        for admission in admissions {
            match self.copy(&admission, source) {
                Ok(()) => {
                    slots.insert(admission.block, admission.slots);
                }
                Err(error) => {
                    tracing::warn!(block = ?admission.block, %error, "a cluster could not be copied to the device");
                    self.directory.discard(admission.block);
                }
            }
        }
        if let Err(error) = self.shared.device.finish_copies() {
            tracing::warn!(%error, "the device's block cache is given up");
            slots.clear();
        }
        *self.shared.slots.lock() = Arc::new(slots);
    }

    /// Copies a block slot by slot: its keys, then its values.
    fn copy(&mut self, admission: &Admission, source: &dyn RowSource) -> Result<(), Error> {
        let Shared { slot_rows, dim, .. } = *self.shared;
        let rows = admission.rows as usize;
        let (mut keys, mut values) = (vec![0; rows * dim], vec![0; rows * dim]);
        source.read(admission.block, &mut keys, &mut values)?;
        let half = slot_rows * dim;
        for ((slot, keys), values) in admission.slots.iter().zip(keys.chunks(half)).zip(values.chunks(half)) {
            if self.staged + 2 * half > self.room {
                self.staging.fill()?;
                self.staged = 0;
            }
            let part = self.staged..self.staged + 2 * half;
            let room = &mut self.staging.unread()?[part.clone()];
            room[..keys.len()].copy_from_slice(keys);
            room[half..half + values.len()].copy_from_slice(values);
            self.staged = part.end;
            let mut pool = self.shared.pool.write();
            let at = *slot as usize * 2 * half;
            self.staging.copy_part(&self.shared.device, part, &mut pool, at)?;
        }
        Ok(())
    }
}
