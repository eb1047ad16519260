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
/// Directory of the models' query profiles.
pub const PROFILES_DIR: &str = "profiles";
/// A context's manifest, inside the context's directory.
pub const MANIFEST_FILE: &str = "manifest";
/// The manifest that is being written; renamed over [`MANIFEST_FILE`] once it is complete.
pub const MANIFEST_NEW_FILE: &str = "manifest.new";
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

/// File name of the segment that the context `context_id` wrote as its `sequence`-th.
pub fn segment_file_name(context_id: &[u8; 16], sequence: u64) -> String {
    let id: String = context_id.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{id}-{sequence}.segment")
}

/// Path of the query profile of a model: its whole digest in hexadecimal.
pub fn profile_path(identity: &Identity) -> String {
    let digest: String = identity.0.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{PROFILES_DIR}/{digest}")
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
}
