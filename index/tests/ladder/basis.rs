//! The basis: fixed once, the same on any number of threads, of use for the queries it was made for.

use longwave_index::ladder::{Moment, MomentSource};
use longwave_index::validate;
use longwave_kernels::f16;

use super::{HEADS, KEY_DIM, Layer, ROWS, VALUE_DIM, open, write_and_open};

#[test]
fn a_later_segment_keeps_the_first_ones_basis_bit_for_bit() {
    let first = write_and_open(&Layer::new(11).build().columns(), ROWS);
    let first = open(&first);
    let bases: Vec<_> = (0..HEADS).map(|head| first.basis(head).unwrap()).collect();
    assert_ne!(bases[0], bases[1], "each head has its own");
    assert_ne!(bases[0].digest(), bases[1].digest());

    // Other rows and another moment.
    let later = Layer { bases: Some(bases.clone()), ..Layer::new(12) };
    let segment = write_and_open(&later.build().columns(), ROWS);
    validate(&segment).unwrap();
    let second = open(&segment);
    for (head, basis) in bases.iter().enumerate() {
        assert_eq!(&second.basis(head).unwrap(), basis);
        let (a, b) = (first.head(head).unwrap(), second.head(head).unwrap());
        assert_ne!(a.middle, b.middle, "the middle is the segment's own");
        assert_ne!(a.shape, b.shape, "the shape is the segment's own");
        assert_ne!(a.global_value, b.global_value);
    }
    assert_eq!(first.digest(), second.digest());
    let own = write_and_open(&Layer::new(12).build().columns(), ROWS);
    assert_ne!(open(&own).digest(), second.digest());
}

#[test]
fn neither_threads_nor_repetition_change_a_byte() {
    let layer = Layer::new(13);
    let on = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| layer.build())
    };
    let one = on(1);
    assert!(one.ladder.is_some());
    assert_eq!(one, on(2));
    assert_eq!(one, on(3));
}

#[test]
fn the_moment_is_recorded_and_makes_a_difference() {
    let known = Layer::new(14);
    let unknown = Layer { moments: vec![Moment::identity(KEY_DIM); HEADS], ..Layer::new(14) };
    let [known, unknown] = [known, unknown].map(|layer| write_and_open(&layer.build().columns(), ROWS));
    let (a, b) = (open(&known), open(&unknown));
    assert_eq!((a.moment_positions(), b.moment_positions()), (150, 0));
    assert_eq!(a.moment_source(), MomentSource::Context);
    assert_ne!(a.basis(0).unwrap().inverse, b.basis(0).unwrap().inverse);
    // Rows lie in another order: they were clustered in another metric.
    assert_ne!(a.postings().offsets(0).unwrap(), b.postings().offsets(0).unwrap());
}

#[test]
fn moments_are_means_of_products() {
    let moment = Moment::from_queries(&[1.0, 2.0, -3.0, 0.5, 4.0, 1.0], 2);
    assert_eq!(moment.positions, 3);
    let expected = [(1.0 + 9.0 + 16.0) / 3.0, (2.0 - 1.5 + 4.0) / 3.0, (2.0 - 1.5 + 4.0) / 3.0, 5.25 / 3.0];
    assert_eq!(moment.matrix, expected.map(|x: f64| x as f32));
    assert_eq!(Moment::from_queries(&[], 2), Moment::identity(2));
    assert_eq!(Moment::identity(2).matrix, [1.0, 0.0, 0.0, 1.0]);
}

/// Rows and moments that leave nothing to measure, or cannot be measured with.
#[test]
fn degenerate_rows_and_moments_are_built_and_valid() {
    let ordinary = || Layer::new(15);
    let constant = |x: f32, dim: usize| vec![vec![f16::from_f32(x); ROWS * dim]; HEADS];
    let moments =
        |x: f32| vec![Moment { dim: KEY_DIM, positions: 1, matrix: vec![x; KEY_DIM * KEY_DIM] }; HEADS];
    let cases = [
        ("equal keys", Layer { keys: constant(2.5, KEY_DIM), ..ordinary() }),
        ("keys of zero", Layer { keys: constant(0.0, KEY_DIM), ..ordinary() }),
        ("equal values", Layer { values: constant(-1.5, VALUE_DIM), ..ordinary() }),
        ("values of zero", Layer { values: constant(0.0, VALUE_DIM), ..ordinary() }),
        ("the largest keys", Layer { keys: constant(65504.0, KEY_DIM), ..ordinary() }),
        ("a moment of zero", Layer { moments: moments(0.0), ..ordinary() }),
        ("a moment of one direction", Layer { moments: moments(7.0), ..ordinary() }),
        ("a moment that is not a number", Layer { moments: moments(f32::NAN), ..ordinary() }),
        ("an infinite moment", Layer { moments: moments(f32::INFINITY), ..ordinary() }),
        ("an enormous moment", Layer { moments: moments(1e38), ..ordinary() }),
    ];
    for (what, layer) in cases {
        let segment = write_and_open(&layer.build().columns(), ROWS);
        validate(&segment).unwrap_or_else(|error| panic!("{what}: {error}"));
        // Rows that do vary can be built with what came of rows that did not.
        let view = open(&segment);
        let bases = (0..HEADS).map(|head| view.basis(head).unwrap()).collect();
        let later = Layer { bases: Some(bases), ..Layer::new(16) };
        let segment = write_and_open(&later.build().columns(), ROWS);
        validate(&segment).unwrap_or_else(|error| panic!("after {what}: {error}"));
    }
}
