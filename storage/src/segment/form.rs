//! How a segment keeps its rows.

use std::fmt;
use std::str::FromStr;

use super::ColumnKind;
use super::layout::{VERSION_FULL, VERSION_REDUCED};

/// In which form a segment keeps its rows, the largest first. The rows of a segment are what they are in this form.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub enum RowForm {
    /// In the model's element type.
    #[default]
    Full,
    /// In 8 bits an element, and a factor a row.
    EightBits,
    /// Only as the index codes them: there is no column of keys or values.
    Codes,
}

impl RowForm {
    /// Every form, the largest first.
    pub const ALL: [Self; 3] = [Self::Full, Self::EightBits, Self::Codes];

    /// Code in records: 0, 1, 2.
    pub const fn code(self) -> u8 {
        match self {
            Self::Full => 0,
            Self::EightBits => 1,
            Self::Codes => 2,
        }
    }

    /// The form with this code.
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Full),
            1 => Some(Self::EightBits),
            2 => Some(Self::Codes),
            _ => None,
        }
    }

    /// The columns that hold keys and values; `None` where the index alone has them.
    pub const fn columns(self) -> Option<[ColumnKind; 2]> {
        match self {
            Self::Full => Some([ColumnKind::KEYS, ColumnKind::VALUES]),
            Self::EightBits => Some([ColumnKind::KEYS_8BIT, ColumnKind::VALUES_8BIT]),
            Self::Codes => None,
        }
    }

    /// Bytes of the record of a row of `dim` elements in 8 bits.
    pub const fn record_size(dim: u32) -> u32 {
        dim + 4
    }

    /// Version of the files of such segments: builds that know full rows alone must not take the others for theirs.
    pub(super) const fn version(self) -> u16 {
        match self {
            Self::Full => VERSION_FULL,
            Self::EightBits | Self::Codes => VERSION_REDUCED,
        }
    }

    /// The form of a segment with these columns; `None` where it has some of a form and not others, or of several.
    pub(super) fn of(has: impl Fn(ColumnKind) -> bool) -> Option<Self> {
        let kinds = [ColumnKind::KEYS, ColumnKind::VALUES, ColumnKind::KEYS_8BIT, ColumnKind::VALUES_8BIT];
        match kinds.map(has) {
            [true, true, false, false] => Some(Self::Full),
            [false, false, true, true] => Some(Self::EightBits),
            [false, false, false, false] => Some(Self::Codes),
            _ => None,
        }
    }
}

impl fmt::Display for RowForm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Full => "full",
            Self::EightBits => "8bit",
            Self::Codes => "codes",
        })
    }
}

/// A name that is no form of rows.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown form of rows `{0}`: expected full, 8bit or codes")]
pub struct UnknownRowForm(pub String);

impl FromStr for RowForm {
    type Err = UnknownRowForm;

    fn from_str(name: &str) -> Result<Self, UnknownRowForm> {
        Self::ALL
            .into_iter()
            .find(|form| form.to_string() == name)
            .ok_or_else(|| UnknownRowForm(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_names_round_trip_and_nothing_else_is_accepted() {
        for form in RowForm::ALL {
            assert_eq!(RowForm::from_code(form.code()), Some(form));
            assert_eq!(form.to_string().parse(), Ok(form));
        }
        assert_eq!(RowForm::ALL.map(RowForm::code), [0, 1, 2]);
        assert_eq!(RowForm::from_code(3), None);
        assert_eq!("8".parse::<RowForm>(), Err(UnknownRowForm("8".to_owned())));
    }

    #[test]
    fn a_form_has_both_of_its_columns_and_none_of_another() {
        let of = |kinds: &[ColumnKind]| RowForm::of(|kind| kinds.contains(&kind));
        let [k, v, k8, v8] =
            [ColumnKind::KEYS, ColumnKind::VALUES, ColumnKind::KEYS_8BIT, ColumnKind::VALUES_8BIT];
        assert_eq!([of(&[v, k]), of(&[k8, v8]), of(&[])], RowForm::ALL.map(Some));
        for wrong in [&[k][..], &[v], &[k8], &[v8], &[k, v8], &[k8, v], &[k, v, k8], &[k, v, k8, v8]] {
            assert_eq!(of(wrong), None, "{wrong:?}");
        }
    }
}
