//! The first sixteen bytes of every file, the same in every version for ever, so that a reader of any age can say
//! what a file is, in which byte order and in which version it was written.

use std::mem::{offset_of, size_of};

use bytemuck::{Pod, Zeroable};

use crate::checksum::hash64;
use crate::error::{Error, Result};

/// Reads as 0x2b1a when written by a big-endian host. Both bytes differ, so no flip of one makes one mark the other.
const BYTE_ORDER_MARK: u16 = 0x1a2b;

/// Oldest version of every file kind that this build reads.
pub(crate) const VERSION_OLDEST: u16 = 1;
/// Version of every file kind but manifests that this build writes, and the newest that it reads.
pub(crate) const VERSION_NEWEST: u16 = 1;

/// The prologue as it lies on disk.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Prologue {
    magic: [u8; 8],
    byte_order: u16,
    version: u16,
    /// Low half of XXH3-64 over the twelve bytes before it: tells a newer version from a flipped bit.
    checksum: u32,
}

pub(crate) const PROLOGUE_SIZE: usize = size_of::<Prologue>();

const _: () = {
    assert!(PROLOGUE_SIZE == 16);
    assert!(offset_of!(Prologue, byte_order) == 8);
    assert!(offset_of!(Prologue, version) == 10);
    assert!(offset_of!(Prologue, checksum) == 12);
};

impl Prologue {
    pub(crate) fn new(magic: &[u8; 8]) -> Self {
        Self::with_version(magic, VERSION_NEWEST)
    }

    pub(crate) fn with_version(magic: &[u8; 8], version: u16) -> Self {
        let mut prologue = Self { magic: *magic, byte_order: BYTE_ORDER_MARK, version, checksum: 0 };
        prologue.checksum = prologue.computed_checksum();
        prologue
    }

    #[expect(clippy::cast_possible_truncation, reason = "the low half is what is stored")]
    fn computed_checksum(&self) -> u32 {
        let covered = bytemuck::bytes_of(self).split_last_chunk::<4>();
        hash64(covered.map_or(&[], |(covered, _)| covered)) as u32
    }

    /// Says whether the file is what its place makes of it and whether this build can read it.
    pub(crate) fn check(&self, file: &str, magic: &[u8; 8]) -> Result<()> {
        self.check_up_to(file, magic, VERSION_NEWEST).map(|_| ())
    }

    /// As [`Prologue::check`], for a kind of which versions up to `newest` are read; gives the version.
    pub(crate) fn check_up_to(&self, file: &str, magic: &[u8; 8], newest: u16) -> Result<u16> {
        if self.magic != *magic {
            return Err(Error::corrupt(
                file,
                0,
                format_args!("magic {}", magic.escape_ascii()),
                self.magic.escape_ascii(),
            ));
        }
        if self.byte_order == BYTE_ORDER_MARK.swap_bytes() {
            return Err(Error::ByteOrder { file: file.to_owned() });
        }
        let computed = self.computed_checksum();
        if self.byte_order != BYTE_ORDER_MARK || self.checksum != computed {
            return Err(Error::corrupt(
                file,
                8,
                format_args!("byte-order mark {BYTE_ORDER_MARK:#06x}, checksum {computed:#010x}"),
                format_args!("mark {:#06x}, checksum {:#010x}", self.byte_order, self.checksum),
            ));
        }
        if !(VERSION_OLDEST..=newest).contains(&self.version) {
            return Err(Error::Version {
                file: file.to_owned(),
                found: self.version,
                oldest: VERSION_OLDEST,
                newest,
            });
        }
        Ok(self.version)
    }
}

/// Reads a fixed-size header that starts at offset 0 of `file`.
pub(crate) fn read_header<T: Pod>(
    file: &str,
    reader: &dyn crate::backend::FileReader,
    what: &str,
) -> Result<T> {
    let len = reader.len()?;
    if len < size_of::<T>() as u64 {
        return Err(Error::corrupt(
            file,
            len,
            format_args!("{what} of {} bytes", size_of::<T>()),
            "the end of the file",
        ));
    }
    let mut header = T::zeroed();
    reader.read_exact_at(bytemuck::bytes_of_mut(&mut header), 0)?;
    Ok(header)
}

/// Compares a header's own checksum with that of the bytes before it.
pub(crate) fn check_sum(file: &str, offset: u64, what: &str, stored: u64, computed: u64) -> Result<()> {
    if stored == computed {
        return Ok(());
    }
    Err(Error::corrupt(
        file,
        offset,
        format_args!("{what} with checksum {stored:#018x}"),
        format_args!("checksum {computed:#018x}"),
    ))
}
