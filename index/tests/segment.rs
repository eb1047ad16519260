//! From rows to a segment and back: what is built, written, opened and viewed.

use std::sync::Arc;

use longwave_index::{
    BuiltSegment, ClusterOptions, HeadInput, IndexView, build_segment, columns, statistics, validate,
};
use longwave_kernels::{Dtype, Rows, bf16, f16};
use longwave_storage::{
    Backend, ColumnKind, ElementKind, Error, Expected, Geometry, Identity, MemoryBackend, NewColumn, Segment,
    SegmentHeader, write_segment,
};
use proptest::prelude::*;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

const HEADS: usize = 3;
const ROWS: usize = 230;
const KEY_DIM: usize = 24;
const VALUE_DIM: usize = 16;
const IDENTITY: Identity = Identity([7; 32]);
const OPTIONS: ClusterOptions =
    ClusterOptions { tokens_per_cluster: 9, iterations: 5, split_factor: Some(2.0), seed: 77 };

/// Rows of one layer in some element type, head by head.
struct Layer {
    dtype: Dtype,
    keys: Vec<Vec<u8>>,
    values: Vec<Vec<u8>>,
}

impl Layer {
    fn new(dtype: Dtype) -> Self {
        let head = |dim: usize, seed: usize| narrowed(dtype, &noise(ROWS * dim, seed as u64));
        let keys = (0..HEADS).map(|h| head(KEY_DIM, h)).collect();
        let values = (0..HEADS).map(|h| head(VALUE_DIM, h + 50)).collect();
        Self { dtype, keys, values }
    }

    fn build(&self, options: &ClusterOptions) -> BuiltSegment {
        let rows = |bytes| Rows::from_bytes(self.dtype, bytes).unwrap();
        let pairs = self.keys.iter().zip(&self.values);
        let heads: Vec<_> = pairs.map(|(k, v)| HeadInput { keys: rows(k), values: rows(v) }).collect();
        build_segment(&heads, KEY_DIM, VALUE_DIM, options, 1000, None)
    }

    /// Row `row` of some head's keys or values, as f64.
    fn row(&self, rows: &[u8], dim: usize, row: usize) -> Vec<f64> {
        let rows = Rows::from_bytes(self.dtype, rows).unwrap();
        (0..dim).map(|i| f64::from(rows.get(row * dim + i))).collect()
    }
}

/// Numbers around 3 with unequal deviations, some of them far out.
fn noise(count: usize, seed: u64) -> Vec<f32> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut uniform = || random.next_u32() as f32 / u32::MAX as f32 - 0.5;
    (0..count).map(|i| 3.0 + (uniform() + uniform()) * (1.0 + (i % 7) as f32 * (i % 11) as f32)).collect()
}

fn narrowed(dtype: Dtype, rows: &[f32]) -> Vec<u8> {
    match dtype {
        Dtype::F16 => rows.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
        Dtype::Bf16 => rows.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
        Dtype::F32 => rows.iter().flat_map(|x| x.to_le_bytes()).collect(),
    }
}

fn write_and_open(dtype: Dtype, columns: &[NewColumn<'_>]) -> Segment {
    let geometry = Geometry {
        kv_heads: HEADS as u32,
        key_dim: KEY_DIM as u32,
        value_dim: VALUE_DIM as u32,
        element: ElementKind::from_code(dtype.code()).unwrap(),
    };
    let header = SegmentHeader {
        id: [9; 16],
        identity: IDENTITY,
        layer: 5,
        geometry,
        first_position: 4100,
        rows: ROWS as u32,
        prefix_hash: [0; 32],
    };
    let backend: Arc<dyn Backend> = Arc::new(MemoryBackend::new());
    backend.create_dir_all("segments").unwrap();
    write_segment(backend.as_ref(), "segments/a", &header, columns).unwrap();
    Segment::open(backend, "segments/a", &Expected::of_model(IDENTITY)).unwrap()
}

/// The segment with one column's bytes changed before it is written, so that all checksums are right.
fn with_changed(kind: ColumnKind, change: impl FnOnce(&mut Vec<u8>)) -> Segment {
    let built = Layer::new(Dtype::F16).build(&OPTIONS);
    let mut written = built.columns();
    let column = written.iter_mut().find(|column| column.kind == kind).unwrap();
    let mut bytes = column.parts.concat();
    change(&mut bytes);
    column.parts = vec![&bytes];
    write_and_open(Dtype::F16, &written)
}

/// Replaces the 32-bit word `place`, counted from the end where negative, by what `value` makes of all words.
fn put(bytes: &mut [u8], place: isize, value: impl FnOnce(&[u32]) -> u32) {
    let words: Vec<u32> = (0..bytes.len() / 4).map(|word| get(bytes, word)).collect();
    let word = if place < 0 { words.len() - place.unsigned_abs() } else { place as usize };
    bytes[word * 4..][..4].copy_from_slice(&value(&words).to_le_bytes());
}

fn get(bytes: &[u8], element: usize) -> u32 {
    u32::from_le_bytes(bytes[element * 4..][..4].try_into().unwrap())
}

#[test]
fn rows_and_summaries_come_back_in_every_type() {
    for dtype in Dtype::ALL {
        let layer = Layer::new(dtype);
        let built = layer.build(&OPTIONS);
        let segment = write_and_open(dtype, &built.columns());
        validate(&segment).unwrap();
        let view = IndexView::open(&segment).unwrap().expect("an index was written");
        assert_eq!(view.options(), &OPTIONS);
        assert_eq!((view.kv_heads(), view.rows(), view.clusters()), (HEADS, ROWS, built.columns.clusters()));
        for head in 0..HEADS {
            check_rows(&layer, &segment, head);
            check_summaries(&layer, &segment, &view, head);
        }
        assert!(matches!(view.head(HEADS), Err(Error::Limit { .. })));
    }
}

/// Every stored row is the original row of its stored position.
fn check_rows(layer: &Layer, segment: &Segment, head: usize) {
    let positions = segment.column(ColumnKind::POSITIONS).unwrap().all().unwrap();
    for (kind, dim, source) in
        [(ColumnKind::KEYS, KEY_DIM, &layer.keys[head]), (ColumnKind::VALUES, VALUE_DIM, &layer.values[head])]
    {
        let bytes = dim * layer.dtype.size_of();
        let stored = segment.column(kind).unwrap().all().unwrap();
        for row in 0..ROWS {
            let original = get(positions, head * ROWS + row) as usize;
            assert_eq!(&stored[(head * ROWS + row) * bytes..][..bytes], &source[original * bytes..][..bytes]);
        }
    }
}

fn check_summaries(layer: &Layer, segment: &Segment, view: &IndexView<'_>, head: usize) {
    let index = view.head(head).unwrap();
    assert!(index.clusters() > 10, "{}", index.clusters());
    let positions = segment.column(ColumnKind::POSITIONS).unwrap().all().unwrap();
    for cluster in 0..index.clusters() {
        let rows = index.offsets[cluster] as usize..index.offsets[cluster + 1] as usize;
        assert_eq!(index.counts[cluster], rows.len() as f32);
        let members: Vec<usize> = rows.map(|row| get(positions, head * ROWS + row) as usize).collect();
        let kinds = [
            (KEY_DIM, &layer.keys[head], index.centroids, index.key_spread[cluster]),
            (VALUE_DIM, &layer.values[head], index.value_means, index.value_spread[cluster]),
        ];
        for (dim, source, means, spread) in kinds {
            let rows: Vec<Vec<f64>> = members.iter().map(|&row| layer.row(source, dim, row)).collect();
            let mut squares = 0.0;
            for i in 0..dim {
                let mean = rows.iter().map(|row| row[i]).sum::<f64>() / rows.len() as f64;
                let stored = f64::from(means.get(cluster * dim + i));
                // Half a unit in the last place of the type, and the f64 sums' own rounding.
                let unit = match layer.dtype {
                    Dtype::F16 => 2f64.powi(-11),
                    Dtype::Bf16 => 2f64.powi(-8),
                    Dtype::F32 => 2f64.powi(-24),
                };
                assert!((stored - mean).abs() <= unit * mean.abs() + 1e-7, "mean {mean}, stored {stored}");
                squares += rows.iter().map(|row| (row[i] - stored).powi(2)).sum::<f64>();
            }
            let expected = squares / rows.len() as f64;
            assert!(
                (f64::from(spread) - expected).abs() <= 1e-6 * expected,
                "spread {spread}, expected {expected}"
            );
        }
    }
}

#[test]
fn neither_threads_nor_repetition_change_a_byte() {
    let layer = Layer::new(Dtype::Bf16);
    let on = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| layer.build(&OPTIONS))
    };
    let one = on(1);
    assert_eq!(one, on(2));
    assert_eq!(one, on(1));
    // Heads differ in their rows and in their random streams: what they made must not be one head's.
    assert_ne!(one.positions[..ROWS], one.positions[ROWS..2 * ROWS]);
    let seeded = layer.build(&ClusterOptions { seed: 78, ..OPTIONS });
    assert_ne!(one.columns, seeded.columns, "the record names the seed");
}

#[test]
fn a_segment_without_an_index_is_exact_only() {
    let built = Layer::new(Dtype::F32).build(&OPTIONS);
    let segment = write_and_open(Dtype::F32, &built.columns()[..3]);
    validate(&segment).unwrap();
    assert!(IndexView::open(&segment).unwrap().is_none());
}

#[test]
fn a_missing_column_is_named() {
    let built = Layer::new(Dtype::F32).build(&OPTIONS);
    for kind in columns::COLUMN_KINDS {
        let rest: Vec<_> = built.columns().into_iter().filter(|column| column.kind != kind).collect();
        let segment = write_and_open(Dtype::F32, &rest);
        assert!(matches!(validate(&segment), Err(Error::MissingColumn { .. })), "{kind:?}");
    }
}

#[test]
fn statistics_agree_with_the_offsets() {
    let built = Layer::new(Dtype::F16).build(&OPTIONS);
    let segment = write_and_open(Dtype::F16, &built.columns());
    let view = IndexView::open(&segment).unwrap().unwrap();
    let statistics = statistics(&view);
    assert_eq!(statistics.len(), HEADS);
    assert_eq!(statistics.iter().map(|s| s.clusters).sum::<usize>(), view.clusters());
    for (head, found) in statistics.iter().enumerate() {
        let index = view.head(head).unwrap();
        let largest = index.counts.iter().copied().fold(0.0, f32::max);
        assert_eq!(found.size_max as f32, largest);
        assert_eq!(found.size_mean, ROWS as f64 / index.clusters() as f64);
        assert!(found.size_p50 <= found.size_p95 && found.size_p95 <= found.size_max);
        assert!(found.key_spread_mean > 0.0 && found.value_spread_mean > 0.0);
    }
}

/// A change to a column that must be reported as corruption of that column.
fn refuse(kind: ColumnKind, what: &str, change: impl FnOnce(&mut Vec<u8>)) {
    let segment = with_changed(kind, change);
    let info = segment.columns().find(|info| info.kind == kind).unwrap();
    match validate(&segment) {
        Err(Error::Corrupt { column: Some(column), offset, .. }) => {
            assert_eq!(column, info.name, "{what}");
            let range = info.offset..info.offset + info.len.max(1);
            assert!(range.contains(&offset), "{what}: offset {offset} outside {range:?}");
        }
        other => panic!("{what}: {other:?}"),
    }
}

#[test]
fn offsets_that_do_not_fit_are_refused() {
    let heads = columns::CLUSTER_HEADS;
    refuse(heads, "clusters before the first head", |b| put(b, 0, |_| 1));
    refuse(heads, "a head without clusters", |b| put(b, 1, |_| 0));
    refuse(heads, "more clusters than rows", |b| put(b, 1, |_| ROWS as u32 + 1));
    refuse(heads, "the largest number", |b| put(b, -1, |_| u32::MAX));
    refuse(heads, "a head too few", |b| b.truncate(HEADS * 4));

    let postings = columns::POSTINGS;
    refuse(postings, "a first offset above 0", |b| put(b, 0, |_| 1));
    refuse(postings, "offsets that repeat", |b| put(b, 2, |words| words[1]));
    refuse(postings, "offsets past the rows", |b| put(b, 3, |_| ROWS as u32 + 9));
    refuse(postings, "rows without a cluster", |b| put(b, -1, |_| ROWS as u32 - 1));
    refuse(postings, "a cluster past the rows", |b| put(b, -1, |_| ROWS as u32 + 1));
    refuse(postings, "an offset too few", |b| b.truncate(b.len() - 4));
}

#[test]
fn summaries_that_cannot_be_are_refused() {
    let more = |words: &[u32]| (f32::from_bits(words[4]) + 1.0).to_bits();
    refuse(columns::COUNT, "a count of other rows", |b| put(b, 4, more));
    refuse(columns::COUNT, "a count too many", |b| b.extend([0; 4]));
    for kind in [columns::KEY_SPREAD, columns::VALUE_SPREAD] {
        refuse(kind, "a negative spread", |b| put(b, 1, |_| (-1f32).to_bits()));
        refuse(kind, "a spread that is not a number", |b| put(b, -1, |_| f32::NAN.to_bits()));
    }
    for kind in [columns::CENTROID, columns::VALUE_MEAN] {
        // In the middle of the column, so of another head than the first.
        let infinite = |b: &mut Vec<u8>| {
            let middle = b.len() / 4 * 2;
            b[middle..middle + 2].copy_from_slice(&f16::INFINITY.to_le_bytes());
        };
        refuse(kind, "an infinite mean", infinite);
        refuse(kind, "a mean too few", |b| b.truncate(b.len() - 2));
    }
}

#[test]
fn positions_that_are_no_permutation_are_refused() {
    let positions = ColumnKind::POSITIONS;
    refuse(positions, "a position twice", |b| put(b, ROWS as isize + 3, |words| words[ROWS + 40]));
    refuse(positions, "a position of no row", |b| put(b, 2 * ROWS as isize + 3, |_| ROWS as u32));
    // The first two rows of a cluster, exchanged, are still a permutation.
    let segment = with_changed(positions, |_| ());
    let head = IndexView::open(&segment).unwrap().unwrap().head(0).unwrap();
    let pair = head.offsets.windows(2).find(|bounds| bounds[1] - bounds[0] > 1).unwrap();
    refuse(positions, "descending positions in a cluster", |b| {
        let (low, high) = (get(b, pair[0] as usize), get(b, pair[0] as usize + 1));
        put(b, pair[0] as isize, |_| high);
        put(b, pair[0] as isize + 1, |_| low);
    });
}

#[test]
fn parameters_of_another_version_are_refused() {
    refuse(columns::PARAMETERS, "no tokens per cluster", |b| put(b, 1, |_| 0));
    let segment = with_changed(columns::PARAMETERS, |b| b[0] = 2);
    assert!(matches!(validate(&segment), Err(Error::Version { found: 2, oldest: 1, newest: 1, .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn no_byte_of_an_index_column_makes_a_reader_panic(
        column in 0..columns::COLUMN_KINDS.len(),
        place: prop::sample::Index,
        byte: u8,
    ) {
        let segment = with_changed(columns::COLUMN_KINDS[column], |bytes| {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        });
        let sound = validate(&segment).is_ok();
        if let Ok(Some(view)) = IndexView::open(&segment) {
            for head in 0..HEADS {
                let index = view.head(head).unwrap();
                prop_assert_eq!(index.centroids.len(), index.clusters() * KEY_DIM);
                prop_assert_eq!(*index.offsets.last().unwrap() as usize, ROWS);
            }
            prop_assert_eq!(statistics(&view).len(), HEADS);
        } else {
            prop_assert!(!sound);
        }
    }
}
