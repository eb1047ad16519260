//! The store's own header: says that this directory is a store, and in which version.

use std::mem::{offset_of, size_of};

use bytemuck::{Pod, Zeroable};

use crate::backend::Backend;
use crate::checksum::header_checksum;
use crate::envelope::write_aside;
use crate::error::{Error, Result};
use crate::names::{STORE_DIRS, STORE_FILE};
use crate::prologue::{Prologue, check_sum, read_header};

const MAGIC: &[u8; 8] = b"LWSTORE\0";

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct RawHeader {
    prologue: Prologue,
    store_id: [u8; 16],
    reserved: [u8; 24],
    checksum: u64,
}

const _: () = {
    assert!(size_of::<RawHeader>() == 64);
    assert!(offset_of!(RawHeader, store_id) == 16);
    assert!(offset_of!(RawHeader, reserved) == 32);
    assert!(offset_of!(RawHeader, checksum) == 56);
};

/// What the store's header says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StoreHeader {
    /// Random identifier of the store.
    pub store_id: [u8; 16],
}

/// Makes an empty store: its directories, then its header, written aside and renamed, so that a store that has a
/// header is complete. Directories that are there already are kept.
///
/// # Errors
/// [`Error::AlreadyExists`] if there is a header; otherwise what the backend reports.
pub fn create_store(backend: &dyn Backend, header: &StoreHeader) -> Result<()> {
    if backend.exists(STORE_FILE)? {
        return Err(Error::AlreadyExists { path: STORE_FILE.to_owned() });
    }
    STORE_DIRS.iter().try_for_each(|dir| backend.create_dir_all(dir))?;
    let mut raw = RawHeader {
        prologue: Prologue::new(MAGIC),
        store_id: header.store_id,
        reserved: [0; 24],
        checksum: 0,
    };
    raw.checksum = header_checksum(&raw);
    let fresh = format!("{STORE_FILE}.new");
    write_aside(backend, &fresh, bytemuck::bytes_of(&raw), true)?;
    backend.rename(&fresh, STORE_FILE)?;
    backend.sync_dir("")
}

/// Reads the store's header.
///
/// # Errors
/// [`Error::Missing`] where there is no store, [`Error::Version`], [`Error::ByteOrder`], [`Error::Corrupt`].
pub fn read_store(backend: &dyn Backend) -> Result<StoreHeader> {
    let reader = backend.open_read(STORE_FILE)?;
    let raw: RawHeader = read_header(STORE_FILE, reader.as_ref(), "a store header")?;
    raw.prologue.check(STORE_FILE, MAGIC)?;
    check_sum(STORE_FILE, 56, "store header", raw.checksum, header_checksum(&raw))?;
    if raw.reserved != [0; 24] {
        return Err(Error::corrupt(STORE_FILE, 32, "reserved bytes of zero", "others"));
    }
    let len = reader.len()?;
    if len != size_of::<RawHeader>() as u64 {
        return Err(Error::corrupt(STORE_FILE, 64, "the end of the file", format_args!("{len} bytes")));
    }
    Ok(StoreHeader { store_id: raw.store_id })
}
