//! Names and paths inside a store. Everything that comes from a caller or from disk passes through here, so that no
//! name leads outside the store's directory.

use crate::error::{Error, Result};
use crate::geometry::Identity;

/// Longest name of a context or a file, in bytes.
pub const NAME_LEN_MAX: usize = 128;
/// The store's header file.
pub const STORE_FILE: &str = "longwave.store";
/// Directory of the contexts, one directory each.
pub const CONTEXTS_DIR: &str = "contexts";
/// Directory of all segment files.
pub const SEGMENTS_DIR: &str = "segments";
/// Directory of all logs.
pub const LOGS_DIR: &str = "logs";
/// Directory of marks: an empty file for each context that made files which other contexts name.
pub const SHARES_DIR: &str = "shares";
/// Held by whoever lets a manifest name another context's files, and by whoever removes files.
pub const REFERENCES_LOCK: &str = "longwave.lock";
/// The index of prefixes: token ids of all contexts.
pub const PREFIXES_FILE: &str = "prefixes.log";
/// The index of prefixes while it is made anew.
pub const PREFIXES_NEW_FILE: &str = "prefixes.log.new";
/// Held by whoever writes to the index of prefixes.
pub const PREFIXES_LOCK: &str = "prefixes.lock";
/// Directory of the models' query profiles.
pub const PROFILES_DIR: &str = "profiles";
/// The directories of a store. Stores that were made by older versions lack some.
pub const STORE_DIRS: [&str; 5] = [CONTEXTS_DIR, SEGMENTS_DIR, LOGS_DIR, SHARES_DIR, PROFILES_DIR];
/// A context's manifest, inside the context's directory.
pub const MANIFEST_FILE: &str = "manifest";
/// The manifest that is being written; renamed over [`MANIFEST_FILE`] once it is complete.
pub const MANIFEST_NEW_FILE: &str = "manifest.new";
/// The manifest of a commit that is not known to be durable, beside the last durable one.
pub const MANIFEST_RECENT_FILE: &str = "manifest.recent";
/// The manifest of a context that was removed, until its files are.
pub const MANIFEST_REMOVED_FILE: &str = "manifest.removed";
/// An empty file that says that the context is not to be evicted.
pub const PINNED_FILE: &str = "pinned";
/// When the context was last used: seconds since 1970, a u64.
pub const USED_FILE: &str = "used";
/// The writer's lock, inside the context's directory.
pub const LOCK_FILE: &str = "lock";

/// Checks that `name` is 1 to 128 of the characters `A-Z a-z 0-9 . _ -` and does not start with a dot.
///
/// # Errors
/// [`Error::Name`] with the rule that is broken.
pub fn validate_name(name: &str) -> Result<()> {
    let refuse = |reason| Err(Error::Name { name: name.chars().take(NAME_LEN_MAX).collect(), reason });
    if name.is_empty() || name.len() > NAME_LEN_MAX {
        return refuse("it must have 1 to 128 characters");
    }
    if name.starts_with('.') {
        return refuse("it must not start with a dot");
    }
    if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-')) {
        return refuse("only letters, digits, '.', '_' and '-' are allowed");
    }
    Ok(())
}

/// Checks that `path` is a relative path whose parts are all valid names. The empty path is the store's directory.
///
/// # Errors
/// [`Error::Name`] for the first part that is not allowed.
pub fn validate_path(path: &str) -> Result<()> {
    if path.is_empty() { Ok(()) } else { path.split('/').try_for_each(validate_name) }
}

/// Directory of the context `name`.
pub fn context_dir(name: &str) -> String {
    format!("{CONTEXTS_DIR}/{name}")
}

/// Path of `file` in the directory of the context `name`.
pub fn context_file(name: &str, file: &str) -> String {
    format!("{CONTEXTS_DIR}/{name}/{file}")
}

/// Path of the segment file `file`.
pub fn segment_path(file: &str) -> String {
    format!("{SEGMENTS_DIR}/{file}")
}

/// Path of the log file `file`.
pub fn log_path(file: &str) -> String {
    format!("{LOGS_DIR}/{file}")
}

/// Path of the mark that other contexts name files of the context `context_id`.
pub fn share_path(context_id: &[u8; 16]) -> String {
    format!("{SHARES_DIR}/{}", hexadecimal(context_id))
}

/// File name of the segment that the context `context_id` wrote as its `sequence`-th.
pub fn segment_file_name(context_id: &[u8; 16], sequence: u64) -> String {
    format!("{}-{sequence}.segment", hexadecimal(context_id))
}

/// File name of the log of `kind`, "rows" or "meta", that the context `context_id` wrote as its `sequence`-th.
pub fn log_file_name(context_id: &[u8; 16], sequence: u64, kind: &str) -> String {
    format!("{}-{sequence}.{kind}.log", hexadecimal(context_id))
}

/// Which context made a segment or a log, finished or not, and as its how-manieth file; `None` for a file that no
/// context makes.
pub fn file_maker(file: &str) -> Option<([u8; 16], u64)> {
    let whole = file.strip_suffix(".new").unwrap_or(file);
    let whole = [".segment", ".rows.log", ".meta.log"].iter().find_map(|end| whole.strip_suffix(end))?;
    let (id, number) = whole.split_once('-')?;
    if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some((from_hexadecimal(id)?, number.parse().ok()?))
}

/// The context whose mark a file in the directory of marks is.
pub fn share_maker(file: &str) -> Option<[u8; 16]> {
    from_hexadecimal(file)
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hexadecimal(text: &str) -> Option<[u8; 16]> {
    let lower = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    if text.len() != 32 || !text.bytes().all(lower) {
        return None;
    }
    u128::from_str_radix(text, 16).ok().map(u128::to_be_bytes)
}

/// Path of the query profile of a model: its whole digest in hexadecimal.
pub fn profile_path(identity: &Identity) -> String {
    format!("{PROFILES_DIR}/{}", hexadecimal(&identity.0))
}

/// The directory part of `path`; empty for a path in the store's own directory.
pub(crate) fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(dir, _)| dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_escape_are_refused() {
        for name in
            ["", ".", "..", ".hidden", "a/b", "a\\b", "a b", "a\0", "é", "C:", "/etc", &"x".repeat(129)]
        {
            assert!(matches!(validate_name(name), Err(Error::Name { .. })), "{name:?}");
        }
        for name in ["a", "manual-v3", "A.b_c-9", "a..b", &"x".repeat(128)] {
            assert!(validate_name(name).is_ok(), "{name:?}");
        }
    }

    #[test]
    fn paths_are_relative_and_plain() {
        for path in ["/a", "a/", "a//b", "a/../b", "a/./b", "../a"] {
            assert!(validate_path(path).is_err(), "{path:?}");
        }
        for path in ["", "a", "contexts/x/manifest"] {
            assert!(validate_path(path).is_ok(), "{path:?}");
        }
        assert_eq!(parent("contexts/x/manifest"), "contexts/x");
        assert_eq!(parent("manifest"), "");
    }

    #[test]
    fn segment_names_are_valid_and_distinct() {
        let name = segment_file_name(&[0xab; 16], 17);
        assert_eq!(name, format!("{}-17.segment", "ab".repeat(16)));
        assert!(validate_name(&name).is_ok());
    }

    #[test]
    fn names_say_who_made_the_file() {
        let id = u128::to_be_bytes(0x0123_4567_89ab_cdef_0011_2233_4455_6677);
        let made = Some((id, 205));
        assert_eq!(file_maker(&segment_file_name(&id, 205)), made);
        assert_eq!(file_maker(&format!("{}.new", segment_file_name(&id, 205))), made);
        assert_eq!(file_maker(&log_file_name(&id, 205, "meta")), made);
        assert_eq!(file_maker(&log_file_name(&id, 205, "rows")), made);
        assert_eq!(share_path(&id).strip_prefix("shares/").and_then(share_maker), Some(id));
        let hex = hexadecimal(&id);
        for other in
            ["1.rows.log", "x.segment", &hex, &format!("{hex}-.segment"), &format!("{hex}-+5.segment")]
        {
            assert_eq!(file_maker(other), None, "{other}");
        }
        assert_eq!(file_maker(&format!("{}-1.segment", hex.to_uppercase())), None);
        assert_eq!(file_maker(&format!("{hex}-99999999999999999999.segment")), None);
    }
}
