//! Tries the published pointer of the engine in every order in which the steps of its threads can come, those of
//! crossbeam's epochs included.

#![cfg(all(test, crossbeam_loom))]

#[path = "../../src/published.rs"]
mod published;

use loom::sync::Arc;
use loom::thread;
use published::Published;

/// A value that is whole if its parts are equal, and that loom sees being shared and dropped.
#[derive(Clone)]
struct Value(Arc<[u32; 2]>);

fn numbered(number: u32) -> Value {
    Value(Arc::new([number; 2]))
}

fn read(published: &Published<Value>) -> u32 {
    let Value(parts) = published.load();
    assert_eq!(parts[0], parts[1]);
    parts[0]
}

fn model() -> loom::model::Builder {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model
}

#[test]
fn a_reader_beside_a_writer_sees_whole_values_in_order() {
    model().check(|| {
        let published = Arc::new(Published::new(numbered(0)));
        let writer = {
            let published = Arc::clone(&published);
            thread::spawn(move || {
                published.store(numbered(1));
                published.store(numbered(2));
            })
        };
        let first = read(&published);
        assert!(read(&published) >= first);
        writer.join().unwrap();
        assert_eq!(read(&published), 2);
    });
}

#[test]
fn a_value_that_is_held_outlives_its_place() {
    model().check(|| {
        let published = Arc::new(Published::new(numbered(0)));
        let reader = {
            let published = Arc::clone(&published);
            thread::spawn(move || published.load())
        };
        published.store(numbered(1));
        drop(published);
        let Value(parts) = reader.join().unwrap();
        assert!(*parts == [0; 2] || *parts == [1; 2]);
    });
}
