//! Why a call of the public API was refused. Every refusal leaves the store and the context as they were.

use crate::model::Mismatch;

/// Errors of the public API.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Reading or writing the store failed, or its bytes are not what was written.
    #[error(transparent)]
    Storage(#[from] longwave_storage::Error),
    /// A tensor does not have the shape that the model asks for, or its strides leave its data.
    #[error("{what}: expected {expected}, found {found}")]
    Shape {
        /// The argument.
        what: &'static str,
        /// The shape that is asked for.
        expected: String,
        /// The shape that came.
        found: String,
    },
    /// A tensor has an element type that the store cannot take without losing what it says.
    #[error("{what}: expected {expected}, found {found}")]
    Dtype {
        /// The argument.
        what: &'static str,
        /// The types that are taken.
        expected: String,
        /// The type that came.
        found: String,
    },
    /// A number is NaN or infinite, or becomes so in the store's element type.
    #[error("{what}: {value} at token {token}, head {head}, element {element} is not finite as {dtype}")]
    NotFinite {
        /// The argument.
        what: &'static str,
        /// The number as it came.
        value: f32,
        /// Token (or query position) inside the argument.
        token: usize,
        /// Head inside the argument.
        head: usize,
        /// Element inside the row.
        element: usize,
        /// The store's element type.
        dtype: longwave_kernels::Dtype,
    },
    /// The model has no such layer.
    #[error("layer {layer} is out of range: the model has {layers} layers")]
    LayerOutOfRange {
        /// The layer asked for.
        layer: usize,
        /// Layers of the model.
        layers: usize,
    },
    /// The layer holds no keys and values.
    #[error("layer {layer} holds no KV in this model")]
    LayerAbsent {
        /// The layer asked for.
        layer: usize,
    },
    /// More query positions were given than the layer has rows.
    #[error("layer {layer} holds {length} rows, but {positions} query positions were given")]
    TooManyPositions {
        /// The layer.
        layer: usize,
        /// Rows of the layer.
        length: u64,
        /// Query positions given.
        positions: usize,
    },
    /// A commit found layers of different lengths.
    #[error("layers differ in length: layer {first} holds {expected} rows, layer {layer} holds {found}")]
    UnequalLayers {
        /// The layer compared with.
        first: usize,
        /// Its rows.
        expected: u64,
        /// The layer that differs.
        layer: usize,
        /// Its rows.
        found: u64,
    },
    /// A commit found token ids, but not one for each row.
    #[error("{tokens} token ids were given for {rows} rows: give one for each row, or none at all")]
    TokenCount {
        /// Ids given.
        tokens: u64,
        /// Rows held.
        rows: u64,
    },
    /// The context was made by another model.
    #[error("context {name} was made by another model: {difference}")]
    ModelMismatch {
        /// The context.
        name: String,
        /// What differs first.
        difference: Mismatch,
    },
    /// A model, an option or a budget holds a value that cannot be worked with.
    #[error("{what}: expected {expected}, found {found}")]
    Invalid {
        /// The field.
        what: &'static str,
        /// What is taken.
        expected: String,
        /// What came.
        found: String,
    },
    /// A context of this name exists already.
    #[error("context {name} exists already")]
    ContextExists {
        /// The name.
        name: String,
    },
    /// There is no context of this name.
    #[error("there is no context {name} in this store")]
    ContextMissing {
        /// The name.
        name: String,
    },
    /// The sealing of rows ended early. The rows are still where they were.
    #[error("sealing ended before rows {first} to {end} of layer {layer} were sealed")]
    SealingEnded {
        /// The layer.
        layer: usize,
        /// First position.
        first: u64,
        /// Position after the last.
        end: u64,
    },
}

impl From<longwave_query::Error> for Error {
    fn from(error: longwave_query::Error) -> Self {
        match error {
            longwave_query::Error::Storage(error) => Error::Storage(error),
            other => Error::Invalid {
                what: "query",
                expected: "a query that can run".into(),
                found: other.to_string(),
            },
        }
    }
}
