//! The shapes that there are kernels for.

use crate::error::Error;
use longwave_kernels::Dtype;

/// Elements of a row that kernels exist for.
pub const DIMS: [usize; 4] = [64, 96, 128, 256];
/// Most query heads that share a KV head.
pub const GROUP_MAX: usize = 8;

/// Element type, dimension and group of the rows that a kernel works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowShape {
    dtype: Dtype,
    dim: usize,
    group: usize,
}

impl RowShape {
    /// The shape, if there are kernels for it: f16 or bf16, keys and values of 64, 96, 128 or 256 elements, 1 to 8 query heads
    /// for each KV head.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for any other; the CPU answers those.
    pub fn new(dtype: Dtype, key_dim: usize, value_dim: usize, group: usize) -> Result<Self, Error> {
        let unsupported = |what, expected, found: String| Err(Error::Unsupported { what, expected, found });
        if dtype == Dtype::F32 {
            return Err(Error::dtype(dtype));
        }
        if key_dim != value_dim {
            return unsupported("values", "values as long as keys", format!("{key_dim} and {value_dim}"));
        }
        if !DIMS.contains(&key_dim) {
            return unsupported("a head dimension", "64, 96, 128 or 256", key_dim.to_string());
        }
        if !(1..=GROUP_MAX).contains(&group) {
            return unsupported("a group", "1 to 8 query heads for a KV head", group.to_string());
        }
        Ok(RowShape { dtype, dim: key_dim, group })
    }

    /// Element type of keys and values.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Elements of a row.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Query heads of a KV head.
    pub fn group(&self) -> usize {
        self.group
    }

    /// Lanes that share a row.
    #[cfg(feature = "device")]
    pub(crate) fn lanes(&self) -> usize {
        match self.dim {
            64 => 8,
            96 | 128 => 16,
            _ => 32,
        }
    }

    /// Heads that the kernel is compiled for.
    #[cfg(feature = "device")]
    pub(crate) fn compiled_group(&self) -> usize {
        self.group.next_power_of_two()
    }

    /// Teams of lanes in a block.
    #[cfg(feature = "device")]
    pub(crate) fn teams(&self) -> usize {
        BLOCK_THREADS as usize / self.lanes()
    }
}

/// Threads of a block, `cuk::kThreads` of the kernels.
#[cfg(feature = "device")]
pub(crate) const BLOCK_THREADS: u32 = 128;
/// An entry of a list that stands for no row.
pub const EMPTY: u32 = u32::MAX;
