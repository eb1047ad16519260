//! Whose rows these are, and their shape.

use std::fmt;

use crate::error::{Error, Result};

/// Digest of everything that makes keys and values of one model useless to another: weights, tokenizer, RoPE
/// parameters, geometry and element kind. How it is computed is the caller's business; here it is compared.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity(pub [u8; 32]);

impl fmt::Display for Identity {
    /// The first eight bytes in hexadecimal: enough to tell two models apart in a message.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().take(8).try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({self})")
    }
}

/// Number format of keys and values.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ElementKind {
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
    /// IEEE single precision.
    F32,
}

impl ElementKind {
    /// Code on disk: 1, 2, 3.
    pub const fn code(self) -> u32 {
        match self {
            Self::F16 => 1,
            Self::Bf16 => 2,
            Self::F32 => 3,
        }
    }

    /// The kind with this code.
    pub const fn from_code(code: u32) -> Option<Self> {
        match code {
            1 => Some(Self::F16),
            2 => Some(Self::Bf16),
            3 => Some(Self::F32),
            _ => None,
        }
    }

    /// Bytes of one element.
    pub const fn size(self) -> u32 {
        match self {
            Self::F16 | Self::Bf16 => 2,
            Self::F32 => 4,
        }
    }
}

impl fmt::Display for ElementKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::F32 => "f32",
        })
    }
}

/// Shape of one layer's rows.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Geometry {
    /// KV heads.
    pub kv_heads: u32,
    /// Elements of a key.
    pub key_dim: u32,
    /// Elements of a value.
    pub value_dim: u32,
    /// Number format of both.
    pub element: ElementKind,
}

impl Geometry {
    /// Most KV heads of a layer.
    pub const KV_HEADS_MAX: u32 = 1 << 12;
    /// Most elements of a key or a value.
    pub const DIM_MAX: u32 = 1 << 16;

    /// Bytes of `rows` keys of every head.
    pub const fn key_bytes(&self, rows: u32) -> u64 {
        self.column_bytes(rows, self.key_dim)
    }

    /// Bytes of `rows` values of every head.
    pub const fn value_bytes(&self, rows: u32) -> u64 {
        self.column_bytes(rows, self.value_dim)
    }

    /// Cannot overflow within the limits: 2^12 heads, 2^32 rows, 2^16 elements, 4 bytes make 2^62.
    const fn column_bytes(&self, rows: u32, dim: u32) -> u64 {
        self.kv_heads as u64 * rows as u64 * dim as u64 * self.element.size() as u64
    }

    /// Checks that no count is zero or over its limit.
    ///
    /// # Errors
    /// [`Error::Limit`] naming the first count that is out of range.
    pub fn validate(&self) -> Result<()> {
        for (what, found, limit) in [
            ("kv_heads", self.kv_heads, Self::KV_HEADS_MAX),
            ("key_dim", self.key_dim, Self::DIM_MAX),
            ("value_dim", self.value_dim, Self::DIM_MAX),
        ] {
            if found == 0 || found > limit {
                return Err(Error::limit(format!("{what} (at least 1)"), u64::from(limit), u64::from(found)));
            }
        }
        Ok(())
    }
}

impl fmt::Display for Geometry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kv_heads, key_dim, value_dim, element } = self;
        write!(f, "{kv_heads} KV heads, key dim {key_dim}, value dim {value_dim}, {element}")
    }
}
