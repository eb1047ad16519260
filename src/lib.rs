//! Longwave: an embedded storage engine for the key-value cache of long-context language models.
//!
//! A [`Store`] is a directory of contexts. A [`Context`] takes the keys and values of a model's layers as they are
//! computed, clusters them in the background, and answers attention queries from them: the rows that matter exactly,
//! the rest from summaries. What [`Context::commit`] has acknowledged is there after a crash, and a later process
//! reopens it in milliseconds.
//!
//! ```
//! use longwave::{Budget, Durability, Dtype, ModelIdentity, ModelSpec, Store, StoreOptions, TensorView};
//!
//! # fn main() -> Result<(), longwave::Error> {
//! # let dir = std::env::temp_dir().join(format!("longwave-doc-{}", std::process::id()));
//! let model = ModelSpec {
//!     identity: ModelIdentity { weights: [1; 32], tokenizer: [2; 32], rope: "theta 10000".into() },
//!     layers: 1, query_heads: 4, kv_heads: 2, key_dim: 16, value_dim: 8, dtype: Dtype::F16,
//!     scale: 0.25, softcap: None, layer_kinds: vec![], sink_logits: vec![],
//! };
//! let store = Store::open(&dir, StoreOptions::default())?;
//! let mut context = store.create("manual", &model)?;
//! let (keys, values) = (vec![0.5; 3 * 2 * 16], vec![1.5; 3 * 2 * 8]);      // three tokens
//! context.append(0, &TensorView::token_major(&keys[..], 3, 2, 16), &TensorView::token_major(&values[..], 3, 2, 8))?;
//! context.commit(Durability::Strict)?;
//! drop(context);
//!
//! let snapshot = store.snapshot("manual")?;
//! let query = vec![0.1; 4 * 16];
//! let answer = snapshot.attend(0, &TensorView::token_major(&query[..], 1, 4, 16), &Budget::Exact)?;
//! assert!(answer.output.iter().all(|x| (x - 1.5).abs() < 1e-3));
//! # drop((snapshot, store)); let _ = std::fs::remove_dir_all(&dir);
//! # Ok(()) }
//! ```

mod accuracy;
mod background;
mod batch;
mod check;
mod context;
mod error;
mod forgetting;
mod layer;
mod metric;
mod model;
mod options;
mod profile;
#[expect(unsafe_code, reason = "reading a published pointer under an epoch guard is unsafe")]
mod published;
mod record;
mod replay;
mod rows;
mod salvage;
mod sample;
mod sealer;
mod sealing;
mod snapshot;
mod store;
mod tensor;

pub use accuracy::{
    BANDS, Band, CONFIDENCE, Calibration, KvHeadSpending, QueryHeadSpending, Spending, WINDOW,
};
pub use batch::{BatchCall, attend_batch};
pub use check::check;
pub use context::Context;
pub use error::Error;
pub use forgetting::{Forgetting, Forgotten};
pub use model::{HEADS_MAX, LAYERS_MAX, LayerKind, Mismatch, ModelIdentity, ModelSpec};
pub use options::{AuditOptions, Compaction, ContextOptions, Rebuild, SEGMENT_ROWS_MAX, StoreOptions};
pub use salvage::{Salvaged, salvage};
pub use snapshot::{Reader, Snapshot};
pub use store::{Collected, Evicted, EvictionOrder, PrefixMatch, Retained, Retention, Store};
pub use tensor::TensorView;

pub use longwave_index::ClusterOptions;
pub use longwave_kernels::{Dtype, Isa, Kernels, Rows};
pub use longwave_query::{
    Answer, Budget, ClusterId, DiskReport, HeadPlan, LayerSegment, LayerView, Method, Operator, Plan,
    PlannedRows, PositionReport, QueryBatch, Report, RowBlock, RowId, Scoring, Shape, Timings, Traffic,
};
pub use longwave_storage::{Durability, RowForm};

/// Storage, for tools that look at files: columns, checks, faults.
pub mod storage {
    pub use longwave_storage::*;
}

/// The index of a segment, for tools that look at clusters.
pub mod index {
    pub use longwave_index::*;
}
