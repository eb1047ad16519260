//! The count of mappings is the process's, so this test has a process of its own.

use longwave_storage::{Backend, Error, FileBackend, mapped_count};

#[test]
fn mappings_are_counted_and_capped() {
    let root = tempfile::tempdir().unwrap();
    let backend = FileBackend::new(root.path()).with_mapping_limit(2);
    let other = FileBackend::new(root.path()).with_mapping_limit(3);
    for name in ["a", "b"] {
        backend.create_new(name).unwrap().write_all(name.as_bytes()).unwrap();
    }
    let first = backend.map("a").unwrap();
    let second = backend.map("b").unwrap();
    assert_eq!(mapped_count(), 2);
    assert!(matches!(backend.map("a"), Err(Error::TooManyMappings { limit: 2, .. })));
    let third = other.map("a").unwrap();
    assert_eq!(mapped_count(), 3);
    drop((first.clone(), third));
    assert_eq!(mapped_count(), 2, "a clone shares its mapping");
    drop(first);
    let again = backend.map("a").unwrap();
    assert!(matches!(backend.map("missing"), Err(Error::Missing { .. })));
    assert_eq!((&*again, &*second), (&b"a"[..], &b"b"[..]));
    drop((again, second));
    assert_eq!(mapped_count(), 0);
}
