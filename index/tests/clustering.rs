//! The clustering of one head: quality against a slow f64 k-means, splitting, odd inputs, reproducibility.

use longwave_index::{ClusterOptions, Clustering, cluster};
use proptest::prelude::*;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

const WHOLE: ClusterOptions =
    ClusterOptions { tokens_per_cluster: 16, iterations: 10, split_factor: None, seed: 5 };

/// Roughly normal numbers (sums of four uniform ones), mean 0, variance 1/3.
fn noise(count: usize, seed: u64) -> Vec<f32> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut uniform = || random.next_u32() as f32 / u32::MAX as f32 - 0.5;
    (0..count).map(|_| uniform() + uniform() + uniform() + uniform()).collect()
}

/// Rows around `groups` well separated centres; row `i` belongs to group `i * 7 % groups`, and all are far from 0.
fn planted(rows: usize, dim: usize, groups: usize) -> Vec<f32> {
    let mut keys = noise(rows * dim, 11);
    let centres = noise(groups * dim, 12);
    for (row, key) in keys.chunks_exact_mut(dim).enumerate() {
        let centre = &centres[row * 7 % groups * dim..][..dim];
        key.iter_mut().zip(centre).for_each(|(x, c)| *x = 0.05 * *x + 10.0 * c + 100.0);
    }
    keys
}

/// The clusters as lists of rows.
fn members(clustering: &Clustering) -> Vec<&[u32]> {
    clustering.offsets.windows(2).map(|w| &clustering.order[w[0] as usize..w[1] as usize]).collect()
}

fn sizes(clustering: &Clustering) -> Vec<u32> {
    clustering.offsets.windows(2).map(|w| w[1] - w[0]).collect()
}

fn assert_sound(clustering: &Clustering, rows: usize) {
    assert_eq!(clustering.offsets[0], 0);
    assert_eq!(*clustering.offsets.last().unwrap() as usize, rows);
    assert!(clustering.offsets.is_sorted_by(|a, b| a < b), "{:?}", clustering.offsets);
    assert!(members(clustering).iter().all(|rows| rows.is_sorted()));
    let mut order = clustering.order.clone();
    order.sort_unstable();
    assert_eq!(order, (0..rows as u32).collect::<Vec<_>>());
}

/// Sum over all rows of the squared distance to their cluster's mean.
fn inertia(keys: &[f32], dim: usize, clusters: &[&[u32]]) -> f64 {
    let mut sum = 0.0;
    for rows in clusters {
        for i in 0..dim {
            let column = || rows.iter().map(|&row| f64::from(keys[row as usize * dim + i]));
            let mean = column().sum::<f64>() / rows.len() as f64;
            sum += column().map(|x| (x - mean).powi(2)).sum::<f64>();
        }
    }
    sum
}

/// The same algorithm without any of the arithmetic that makes it fast: f64, distances row by row.
fn slow_kmeans(keys: &[f32], dim: usize, options: &ClusterOptions, stream: u64) -> Vec<Vec<u32>> {
    let rows = keys.len() / dim;
    let clusters = (rows / options.tokens_per_cluster as usize).max(1);
    let mean: Vec<f64> = (0..dim)
        .map(|i| keys.iter().skip(i).step_by(dim).map(|&x| f64::from(x)).sum::<f64>() / rows as f64)
        .collect();
    let points: Vec<Vec<f64>> =
        keys.chunks(dim).map(|key| key.iter().zip(&mean).map(|(&x, m)| f64::from(x) - m).collect()).collect();
    let step = if clusters > 1 { (rows - 1) as f64 / (clusters - 1) as f64 } else { 0.0 };
    let mut centroids: Vec<Vec<f64>> =
        (0..clusters).map(|c| points[(c as f64 * step) as usize].clone()).collect();
    let mut random = ChaCha8Rng::seed_from_u64(options.seed);
    random.set_stream(stream);
    let mut groups = Vec::new();
    for round in 0..=options.iterations {
        groups = vec![Vec::new(); clusters];
        for (row, point) in points.iter().enumerate() {
            let distance = |c: &[f64]| c.iter().zip(point).map(|(c, x)| (c - x).powi(2)).sum::<f64>();
            let distances: Vec<f64> = centroids.iter().map(|c| distance(c)).collect();
            let nearest =
                (1..clusters).fold(0, |best, c| if distances[c] < distances[best] { c } else { best });
            groups[nearest].push(row as u32);
        }
        if round == options.iterations {
            break;
        }
        for (centroid, group) in centroids.iter_mut().zip(&groups) {
            if group.is_empty() {
                let row = (u64::from(random.next_u32()) * rows as u64) >> 32;
                centroid.clone_from(&points[row as usize]);
                continue;
            }
            for (i, x) in centroid.iter_mut().enumerate() {
                *x = group.iter().map(|&row| points[row as usize][i]).sum::<f64>() / group.len() as f64;
            }
        }
    }
    groups.retain(|group| !group.is_empty());
    groups
}

#[test]
fn as_good_as_a_slow_kmeans_in_f64() {
    for (rows, dim) in [(700, 8), (900, 64), (640, 72), (330, 576)] {
        let mut keys = noise(rows * dim, dim as u64);
        // Keys lie far from 0, in directions of unequal size, as those of models do.
        keys.chunks_exact_mut(dim).for_each(|key| {
            key.iter_mut().enumerate().for_each(|(i, x)| {
                *x = *x * (1.0 + (i % 5) as f32) + 30.0 * (i % 3) as f32;
            })
        });
        let fast = cluster(&keys, dim, &WHOLE, 9);
        assert_sound(&fast, rows);
        let slow = slow_kmeans(&keys, dim, &WHOLE, 9);
        let slow: Vec<&[u32]> = slow.iter().map(Vec::as_slice).collect();
        let (fast, slow) = (inertia(&keys, dim, &members(&fast)), inertia(&keys, dim, &slow));
        // f32 may send a row that lies between two centroids the other way, and the rounds then part a little.
        assert!((fast / slow - 1.0).abs() < 0.01, "{rows} x {dim}: inertia {fast}, in f64 {slow}");
    }
}

#[test]
fn empty_clusters_move_to_the_rows_that_the_generator_draws() {
    // Half of the strided starts coincide, so their clusters empty at once. Small whole numbers leave so little rounding
    // that every round agrees with the slow one, drawn rows included.
    let keys: Vec<f32> =
        (0..64u32).flat_map(|row| [if row < 32 { 0.0 } else { (row % 16) as f32 }, 1.0]).collect();
    let options = ClusterOptions { tokens_per_cluster: 8, iterations: 4, ..WHOLE };
    for stream in 0..20 {
        let fast = cluster(&keys, 2, &options, stream);
        assert_sound(&fast, 64);
        let slow = slow_kmeans(&keys, 2, &options, stream);
        let slow: Vec<&[u32]> = slow.iter().map(Vec::as_slice).collect();
        let (fast, slow) = (inertia(&keys, 2, &members(&fast)), inertia(&keys, 2, &slow));
        assert!((fast - slow).abs() <= 1e-9 * slow.max(1.0), "stream {stream}: {fast} and {slow}");
    }
}

#[test]
fn the_seed_and_the_stream_choose_where_empty_clusters_go() {
    let keys: Vec<f32> =
        (0..400u32).flat_map(|row| [if row % 3 == 0 { (row * row % 97) as f32 } else { 0.0 }, 2.0]).collect();
    let options = |seed| ClusterOptions { tokens_per_cluster: 8, iterations: 2, seed, ..WHOLE };
    let first = cluster(&keys, 2, &options(1), 1);
    assert_eq!(first, cluster(&keys, 2, &options(1), 1));
    assert_ne!(first, cluster(&keys, 2, &options(2), 1));
    assert_ne!(first, cluster(&keys, 2, &options(1), 2));
}

#[test]
fn planted_clusters_are_recovered() {
    // 40 groups of 16 rows. Rows 16 apart belong to different groups, so that the strided start meets each group once.
    let (rows, dim, groups) = (640, 24, 40);
    let keys: Vec<f32> = {
        let planted = planted(rows, dim, groups);
        // Group of a row: its sixteenth of the order.
        (0..rows)
            .flat_map(|row| {
                let (group, member) = (row / 16, row % 16);
                let source = (0..rows).filter(|r| r * 7 % groups == group).nth(member).unwrap();
                planted[source * dim..][..dim].to_vec()
            })
            .collect()
    };
    for options in [WHOLE, ClusterOptions { split_factor: Some(4.0), ..WHOLE }] {
        let clustering = cluster(&keys, dim, &options, 0);
        let expected: Vec<u32> = (0..rows as u32).collect();
        let mut found = members(&clustering);
        found.sort();
        assert_eq!(found, expected.chunks(16).collect::<Vec<_>>());
    }
}

#[test]
fn clusters_over_the_limit_are_split_and_the_others_left_alone() {
    // A dense mass that holds none of the strided starts, so that few clusters take it, and scattered rows.
    let (rows, dim) = (1500, 16);
    let starts: Vec<usize> = (0..93).map(|c| (f64::from(c) * 1499.0 / 92.0) as usize).collect();
    let mut keys = noise(rows * dim, 3);
    for (row, key) in keys.chunks_exact_mut(dim).enumerate() {
        let dense = row % 3 != 0 && !starts.contains(&row);
        key.iter_mut().for_each(|x| *x *= if dense { 0.1 } else { 100.0 });
    }
    let whole = cluster(&keys, dim, &WHOLE, 1);
    let limit = 3.0 * rows as f64 / whole.clusters() as f64;
    assert!(
        sizes(&whole).iter().any(|&size| f64::from(size) > 2.0 * limit),
        "nothing to split: {:?}",
        sizes(&whole)
    );

    let split = cluster(&keys, dim, &ClusterOptions { split_factor: Some(3.0), ..WHOLE }, 1);
    assert_sound(&split, rows);
    assert!(sizes(&split).iter().all(|&size| f64::from(size) <= limit), "{:?} over {limit}", sizes(&split));
    let parts = members(&split);
    for cluster in members(&whole).into_iter().filter(|rows| rows.len() as f64 <= limit) {
        assert!(parts.contains(&cluster), "a cluster of {} rows was changed", cluster.len());
    }
    assert!(inertia(&keys, dim, &parts) < inertia(&keys, dim, &members(&whole)));
}

#[test]
fn rows_far_from_their_cluster_become_clusters_of_their_own() {
    let (rows, dim, groups) = (320, 24, 20);
    // Sixteen rows of each group together, so that the strided starts are one of each.
    let planted = planted(rows, dim, groups);
    let of_group = |group: usize| (0..rows).filter(move |row| row * 7 % groups == group);
    let mut keys: Vec<f32> =
        (0..groups).flat_map(of_group).flat_map(|row| planted[row * dim..][..dim].to_vec()).collect();
    // Two rows of one group in different directions, and one of another: far for their groups, near against others.
    for (row, place, distance) in [(40, 3, 1.5), (44, 11, -0.9), (81, 0, 1.1)] {
        keys[row * dim + place] += distance;
    }
    let whole = cluster(&keys, dim, &WHOLE, 2);
    assert_eq!(sizes(&whole), [16; 20]);
    let apart = cluster(&keys, dim, &ClusterOptions { split_factor: Some(4.0), ..WHOLE }, 2);
    assert_sound(&apart, rows);
    let mut expected: Vec<Vec<u32>> = members(&whole).iter().map(|rows| rows.to_vec()).collect();
    expected.iter_mut().for_each(|rows| rows.retain(|row| ![40, 44, 81].contains(row)));
    expected.extend([vec![40], vec![44], vec![81]]);
    expected.sort();
    let mut found: Vec<Vec<u32>> = members(&apart).iter().map(|rows| rows.to_vec()).collect();
    found.sort();
    assert_eq!(found, expected);
}

#[test]
fn a_row_out_in_a_direction_that_no_other_row_takes_is_set_apart_sooner() {
    let (rows, dim, groups) = (320, 8, 10);
    let jitter = noise(rows * 6, 7);
    let mut keys = vec![0.0; rows * dim];
    for (row, key) in keys.chunks_exact_mut(dim).enumerate() {
        key[7] = 100.0 * (row / 32) as f32;
        key[..6].copy_from_slice(&jitter[6 * row..][..6]);
    }
    let spread = jitter.iter().map(|x| x * x).sum::<f32>() / rows as f32;
    // As far out, one where all rows scatter and one where none does.
    for (row, place) in [(45, 0), (140, 6)] {
        keys[row * dim..][..7].fill(0.0);
        keys[row * dim + place] = (2.0 * spread).sqrt();
    }
    let options = ClusterOptions { tokens_per_cluster: 32, ..WHOLE };
    let whole = cluster(&keys, dim, &options, 2);
    assert_eq!(sizes(&whole), [32; 10]);
    let apart = cluster(&keys, dim, &ClusterOptions { split_factor: Some(4.0), ..options }, 2);
    let alone: Vec<&[u32]> = members(&apart).into_iter().filter(|rows| rows.len() == 1).collect();
    assert_eq!((apart.clusters(), alone), (groups + 1, vec![&[140u32][..]]));
}

#[test]
fn a_row_far_from_its_mean_for_any_cluster_is_set_apart_sooner() {
    let (rows, dim, groups) = (320, 8, 10);
    let jitter = noise(rows * 6, 7);
    let spread = jitter.iter().map(|x| x * x).sum::<f32>() / rows as f32;
    let mut keys = vec![0.0; rows * dim];
    for (row, key) in keys.chunks_exact_mut(dim).enumerate() {
        // The fifth cluster is twice as wide as the others.
        let scale = if row / 32 == 4 { 2.0 } else { 1.0 };
        key[7] = 100.0 * (row / 32) as f32;
        key[..6].iter_mut().zip(&jitter[6 * row..]).for_each(|(x, jitter)| *x = scale * jitter);
        // Three rows are as far out for their clusters, where few other rows scatter: some ten deviations.
        if [45, 140, 230].contains(&row) {
            key[..7].fill(0.0);
            key[6] = scale * (2.0 * spread).sqrt();
        }
    }
    let options = ClusterOptions { tokens_per_cluster: 32, ..WHOLE };
    assert_eq!(sizes(&cluster(&keys, dim, &options, 2)), [32; 10]);
    let apart = cluster(&keys, dim, &ClusterOptions { split_factor: Some(4.0), ..options }, 2);
    let alone: Vec<&[u32]> = members(&apart).into_iter().filter(|rows| rows.len() == 1).collect();
    assert_eq!((apart.clusters(), alone), (groups + 1, vec![&[140u32][..]]));
}

#[test]
fn rows_that_scatter_in_many_dimensions_stay_in_their_clusters() {
    let (rows, dim, groups) = (2048, 128, 64);
    let mut keys = noise(rows * dim, 11);
    for (row, key) in keys.chunks_exact_mut(dim).enumerate() {
        // Groups of 32 neighbours, far from each other; those of one half are wider than the others.
        let (group, scale) = (row / 32, if row / 32 % 2 == 0 { 0.5 } else { 1.0 });
        key.iter_mut().for_each(|x| *x *= scale);
        key[group] += 400.0;
    }
    // Each row lies some eleven deviations from its mean in its own direction, as these rows do. This one lies sixteen out.
    keys[700 * dim..][..dim].iter_mut().for_each(|x| *x *= 1.5);
    let options = ClusterOptions { tokens_per_cluster: 32, ..ClusterOptions::ladder() };
    let whole = cluster(&keys, dim, &ClusterOptions { split_factor: None, ..options }, 2);
    assert_eq!(sizes(&whole), [32; 64]);
    let apart = cluster(&keys, dim, &options, 2);
    let alone: Vec<&[u32]> = members(&apart).into_iter().filter(|rows| rows.len() == 1).collect();
    assert_eq!((apart.clusters(), alone), (groups + 1, vec![&[700u32][..]]));
}

/// Ten groups of 32 rows, of each of which `wide` scatter six times as far as the others.
fn two_kinds(wide: usize) -> Vec<f32> {
    let dim = 6;
    let mut keys = noise(320 * dim, 19);
    for (row, key) in keys.chunks_exact_mut(dim).enumerate() {
        let (group, place) = (row / 32, row % 32);
        let is_wide = (8..8 + wide).contains(&place);
        key.iter_mut().for_each(|x| *x *= if is_wide { 6.0 } else { 1.0 });
        key[group % dim] += if group < dim { 60.0 } else { -60.0 };
    }
    keys
}

#[test]
fn many_rows_far_out_make_clusters_of_their_own_kind() {
    let options = ClusterOptions { tokens_per_cluster: 32, ..ClusterOptions::ladder() };
    let whole = cluster(&two_kinds(3), 6, &ClusterOptions { split_factor: None, ..options }, 5);
    assert_eq!(sizes(&whole), [32; 10]);

    let apart = cluster(&two_kinds(3), 6, &options, 5);
    assert_sound(&apart, 320);
    let is_wide = |row: &u32| (8..11).contains(&(row % 32));
    let (wide, near): (Vec<&[u32]>, Vec<&[u32]>) =
        members(&apart).into_iter().partition(|rows| rows.iter().any(is_wide));
    assert_eq!(near.iter().map(|rows| rows.len()).collect::<Vec<_>>(), [29; 10]);
    assert_eq!(wide.iter().map(|rows| rows.len()).sum::<usize>(), 30, "{wide:?}");
    // Thirty rows where eight make a cluster, and where two groups of them share one that lies far from both, no row is far out.
    assert!(wide.len() < 8, "{} clusters of rows that lie far out", wide.len());

    // A row that lies far out even among those is alone.
    let mut keys = two_kinds(3);
    keys[(32 * 4 + 9) * 6 + 2] += 200.0;
    let apart = cluster(&keys, 6, &options, 5);
    assert_sound(&apart, 320);
    assert!(members(&apart).contains(&&[137u32][..]), "{:?}", members(&apart));

    // As few as make two clusters stay alone.
    let alone = cluster(&two_kinds(1), 6, &options, 5);
    assert_sound(&alone, 320);
    let of_one = members(&alone).into_iter().filter(|rows| rows.len() == 1).map(|rows| rows[0]);
    let expected: Vec<u32> = (0..10).map(|group| 32 * group + 8).collect();
    assert_eq!(of_one.collect::<Vec<_>>(), expected);
}

#[test]
fn equal_keys_make_one_cluster_that_is_not_split() {
    let keys = [1.5f32, -3.0, 0.1].repeat(500);
    let clustering = cluster(&keys, 3, &ClusterOptions::ladder(), 4);
    assert_eq!(clustering.order, (0..500).collect::<Vec<_>>());
    assert_eq!(clustering.offsets, [0, 500]);
}

#[test]
fn few_rows_make_one_cluster() {
    for rows in [1, 2, 15, 31] {
        let keys = noise(rows * 8, 1);
        let clustering = cluster(&keys, 8, &WHOLE, 0);
        assert_eq!(clustering.clusters(), 1, "{rows}");
        assert_sound(&clustering, rows);
    }
    assert_eq!(cluster(&[], 8, &WHOLE, 0), Clustering { order: vec![], offsets: vec![0] });
}

#[test]
fn the_start_alone_is_a_clustering() {
    // Rows on a line, starts at 0 and 4: without iterations row 2 goes to the first of two centroids as near.
    let options = ClusterOptions { tokens_per_cluster: 2, iterations: 0, ..WHOLE };
    let clustering = cluster(&[0.0, 1.0, 2.0, 3.0, 4.0], 1, &options, 0);
    assert_eq!(clustering, Clustering { order: vec![0, 1, 2, 3, 4], offsets: vec![0, 3, 5] });
}

#[test]
fn the_magnitude_of_the_keys_does_not_matter() {
    let keys = planted(320, 16, 20);
    let expected = cluster(&keys, 16, &WHOLE, 2);
    for exponent in [-100, -60, 60, 110] {
        let scaled: Vec<f32> =
            keys.iter().map(|x| (f64::from(*x) * f64::from(exponent).exp2()) as f32).collect();
        assert_eq!(cluster(&scaled, 16, &WHOLE, 2), expected, "2^{exponent}");
    }
}

#[test]
fn rows_that_are_not_finite_do_not_panic() {
    let mut keys = noise(200 * 8, 8);
    keys[17] = f32::NAN;
    keys[803] = f32::INFINITY;
    keys[804] = f32::NEG_INFINITY;
    assert_sound(
        &cluster(&keys, 8, &ClusterOptions { tokens_per_cluster: 4, ..ClusterOptions::ladder() }, 0),
        200,
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_row_is_in_exactly_one_cluster(
        rows in 1usize..260,
        dim in 1usize..20,
        levels in 1u32..50,
        tokens_per_cluster in 1u32..40,
        iterations in 0u32..4,
        split_factor in proptest::option::of(1.0f32..5.0),
        seed: u64,
    ) {
        // Few levels make many equal rows and ties.
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let keys: Vec<f32> = (0..rows * dim).map(|_| (random.next_u32() % levels) as f32).collect();
        let options = ClusterOptions { tokens_per_cluster, iterations, split_factor, seed };
        let clustering = cluster(&keys, dim, &options, seed ^ 1);
        assert_sound(&clustering, rows);
        if split_factor.is_none() {
            prop_assert!(clustering.clusters() <= (rows / tokens_per_cluster as usize).max(1));
        }
    }
}
