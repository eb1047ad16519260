//! Element types that key and value rows are stored in.

use std::fmt;
use std::str::FromStr;

/// Element type of stored rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// IEEE 754 binary16.
    F16,
    /// bfloat16: the upper half of a binary32.
    Bf16,
    /// IEEE 754 binary32.
    F32,
}

impl Dtype {
    /// Every element type, in the order of their codes.
    pub const ALL: [Dtype; 3] = [Dtype::F16, Dtype::Bf16, Dtype::F32];

    /// Size of one element in bytes.
    pub const fn size_of(self) -> usize {
        match self {
            Dtype::F16 | Dtype::Bf16 => 2,
            Dtype::F32 => 4,
        }
    }

    /// Code of the type in files: 1 for f16, 2 for bf16, 3 for f32.
    pub const fn code(self) -> u32 {
        match self {
            Dtype::F16 => 1,
            Dtype::Bf16 => 2,
            Dtype::F32 => 3,
        }
    }

    /// The type that `code` stands for, or `None` for an unknown code.
    pub const fn from_code(code: u32) -> Option<Dtype> {
        match code {
            1 => Some(Dtype::F16),
            2 => Some(Dtype::Bf16),
            3 => Some(Dtype::F32),
            _ => None,
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Dtype::F16 => "f16",
            Dtype::Bf16 => "bf16",
            Dtype::F32 => "f32",
        })
    }
}

/// A name that is not an element type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown element type `{0}`: expected f16, bf16 or f32")]
pub struct UnknownDtype(pub String);

impl FromStr for Dtype {
    type Err = UnknownDtype;

    fn from_str(name: &str) -> Result<Dtype, UnknownDtype> {
        Dtype::ALL
            .into_iter()
            .find(|dtype| dtype.to_string() == name)
            .ok_or_else(|| UnknownDtype(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_names_round_trip_and_nothing_else_is_accepted() {
        for dtype in Dtype::ALL {
            assert_eq!(Dtype::from_code(dtype.code()), Some(dtype));
            assert_eq!(dtype.to_string().parse(), Ok(dtype));
        }
        assert_eq!(Dtype::ALL.map(Dtype::code), [1, 2, 3]);
        assert_eq!(Dtype::ALL.map(Dtype::size_of), [2, 2, 4]);
        assert_eq!(Dtype::from_code(0), None);
        assert_eq!(Dtype::from_code(4), None);
        assert_eq!("F16".parse::<Dtype>(), Err(UnknownDtype("F16".to_owned())));
    }
}
