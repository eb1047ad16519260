//! Sketches and rows in 4 bits, against float64 and against the CPU's kernels.

use crate::data::{Numbers, shapes, under_all_schedules};
use longwave_gpu::{Device, EMPTY, RowList, RowShape, SketchBlocks};
use longwave_gpu_emulation::install;
use longwave_kernels::codec::{
    SketchLayout, SketchQuery, decode_sketch, decode4, encode_sketch, encode4, record_len,
};
use longwave_kernels::oracle::UNIT;
use longwave_kernels::{Dtype, Kernels};

/// Shapes whose group differs in how it is compiled, one type: codes have none.
fn coded_shapes() -> impl Iterator<Item = RowShape> {
    shapes().filter(|shape| shape.dtype() == Dtype::F16 && [1, 3, 4, 7].contains(&shape.group()))
}

/// Bits of a dimension that fall as those of a basis do: some 4, some 2, many 1, and the rest 0.
fn layout(dim: usize) -> SketchLayout {
    let (fours, twos) = (dim / 16, dim / 8 + 2);
    let ones = (dim - fours - twos - dim / 8) / 4 * 4;
    let bits: Vec<u8> = (0..dim)
        .map(|i| match i {
            i if i < fours => 4,
            i if i < fours + twos => 2,
            i if i < fours + twos + ones => 1,
            _ => 0,
        })
        .collect();
    SketchLayout::new(&bits)
}

#[test]
fn sketches_score_as_on_the_cpu_and_within_their_bound() {
    let emulation = install();
    let device = Device::open(0).unwrap();
    for (number, shape) in coded_shapes().enumerate() {
        let (group, dim) = (shape.group(), shape.dim());
        let mut numbers = Numbers(40 + number as u64);
        let layout = layout(dim);
        let sigma: Vec<f32> = (0..dim).map(|i| 0.5 + 0.5 / (1.0 + i as f32)).collect();
        // Clusters of less than a block, of a block, and of more; one of a single row; one unit without clusters.
        let units = [vec![5usize, 32, 1], vec![], vec![71, 8]];
        let (mut sketches, mut places, mut decoded) = (vec![0u8; 16], Vec::new(), Vec::new());
        for clusters in &units {
            let mut mine = Vec::new();
            for &rows in clusters {
                let z = numbers.units(rows * dim, 1.0);
                let mut record = vec![0; layout.record_len(rows)];
                encode_sketch(&layout, &z, &sigma, &mut record);
                mine.push((sketches.len(), rows));
                sketches.extend_from_slice(&record);
                let (mut out, mut factors) = (vec![0.0; rows * dim], vec![0.0; rows]);
                decode_sketch(&layout, &record, rows, &vec![1.0; dim], &mut out, &mut factors);
                decoded.push((record, rows, out, factors));
            }
            places.push(mine);
        }
        let coordinates = numbers.units(3 * group * dim, 0.8);
        let result = under_all_schedules(&emulation, &device, &format!("{shape:?}"), |device| {
            let blocks = SketchBlocks::new(device, &layout, &places).unwrap();
            let tables =
                device.sketch_tables(&shape, &layout, &device.upload(&coordinates).unwrap(), 3).unwrap();
            let (scores, factors) =
                device.scan_sketches(&shape, &device.upload(&sketches).unwrap(), &blocks, &tables).unwrap();
            vec![device.download(&scores).unwrap(), device.download(&factors).unwrap()]
        });
        let (mut first, mut cluster) = (0, 0);
        for (unit, clusters) in units.iter().enumerate() {
            let mine = &coordinates[unit * group * dim..][..group * dim];
            let query = SketchQuery::new(&layout, mine, group);
            for _ in clusters {
                let (record, rows, z, factors) = &decoded[cluster];
                let found = &result[0][first * group..][..rows * group];
                assert_eq!(result[1][first..][..*rows], factors[..], "{shape:?}: factors");
                let (mut cpu, mut cpu_factors) = (vec![0.0f32; rows * group], vec![0.0; *rows]);
                Kernels::get().scores_sketch(&query, record, *rows, *rows, &mut cpu, &mut cpu_factors);
                for row in 0..*rows {
                    for g in 0..group {
                        let exact: f64 = (0..dim)
                            .map(|i| f64::from(mine[g * dim + i]) * f64::from(z[row * dim + i]))
                            .sum();
                        let bound =
                            f64::from(query.error_bound(g) * factors[row]) + 1e-5 * f64::from(factors[row]);
                        let found = found[row * group + g];
                        assert!(
                            (f64::from(found) - exact).abs() <= bound,
                            "{shape:?} row {row} head {g}: {found} for {exact}"
                        );
                        // The same tables, but for an entry or two that lie half way between steps, where a fused
                        // multiply-add rounds the other way.
                        let step = query.error_bound(g) / layout.nibbles() as f32;
                        let near = 4.0 * step * factors[row] + 1e-5 * (1.0 + cpu[g * rows + row].abs());
                        assert!(
                            (found - cpu[g * rows + row]).abs() <= near,
                            "{shape:?}: {found} and {}",
                            cpu[g * rows + row]
                        );
                    }
                }
                first += rows;
                cluster += 1;
            }
        }
    }
}

/// Records of `rows` coded rows, and what they decode to under scales of 1.
fn coded(numbers: &mut Numbers, rows: usize, dim: usize) -> (Vec<u8>, Vec<f32>) {
    let (mut records, mut decoded) = (vec![0; rows * record_len(dim)], vec![0.0; rows * dim]);
    for (record, out) in records.chunks_exact_mut(record_len(dim)).zip(decoded.chunks_exact_mut(dim)) {
        encode4(&numbers.units(dim, 2.0), &vec![1.0; dim], false, record);
        decode4(record, &vec![1.0; dim], out);
    }
    (records, decoded)
}

#[test]
fn coded_keys_score_within_rounding() {
    let emulation = install();
    let device = Device::open(0).unwrap();
    for (number, shape) in coded_shapes().enumerate() {
        let (group, dim) = (shape.group(), shape.dim());
        let mut numbers = Numbers(60 + number as u64);
        let (records, decoded) = coded(&mut numbers, 31, dim);
        let starts = [0u32, 44, 44, 51];
        let listed: Vec<u32> =
            (0..51).map(|at| if at % 8 == 3 { EMPTY } else { numbers.below(31) as u32 }).collect();
        let coordinates = numbers.units(3 * group * dim, 0.8);
        let result = under_all_schedules(&emulation, &device, &format!("{shape:?}"), |device| {
            let list = RowList::new(device, &listed, &starts).unwrap();
            let (coordinates, records) =
                (device.upload(&coordinates).unwrap(), device.upload(&records).unwrap());
            vec![
                device.download(&device.score_codes(&shape, &coordinates, &records, &list).unwrap()).unwrap(),
            ]
        });
        for unit in 0..3 {
            for at in starts[unit] as usize..starts[unit + 1] as usize {
                for g in 0..group {
                    let found = result[0][at * group + g];
                    if listed[at] == EMPTY {
                        assert_eq!(found, f32::NEG_INFINITY);
                        continue;
                    }
                    let products = (0..dim).map(|i| {
                        f64::from(coordinates[(unit * group + g) * dim + i])
                            * f64::from(decoded[listed[at] as usize * dim + i])
                    });
                    let magnitude: f64 = products.clone().map(f64::abs).sum();
                    let exact: f64 = products.sum();
                    // Eight multiply-adds, five additions, a factor, and the rounding of the decoded row.
                    assert!(
                        (f64::from(found) - exact).abs() <= 16.0 * UNIT * magnitude,
                        "{shape:?}: {found} for {exact}"
                    );
                }
            }
        }
    }
}

#[test]
fn coded_values_sum_within_rounding() {
    let emulation = install();
    let device = Device::open(0).unwrap();
    for (number, shape) in coded_shapes().enumerate() {
        let (group, dim, splits) = (shape.group(), shape.dim(), 1 + number % 3);
        let mut numbers = Numbers(80 + number as u64);
        let (records, decoded) = coded(&mut numbers, 31, dim);
        let starts = [0u32, 58, 58, 63];
        let listed: Vec<u32> =
            (0..63).map(|at| if at % 8 == 3 { EMPTY } else { numbers.below(31) as u32 }).collect();
        let weights: Vec<f32> = (0..63 * group).map(|_| numbers.unit().abs()).collect();
        let result = under_all_schedules(&emulation, &device, &format!("{shape:?}"), |device| {
            let list = RowList::new(device, &listed, &starts).unwrap();
            let (weights, records) = (device.upload(&weights).unwrap(), device.upload(&records).unwrap());
            vec![
                device
                    .download(&device.sum_codes(&shape, &weights, &records, &list, splits).unwrap())
                    .unwrap(),
            ]
        });
        for unit in 0..3 {
            for g in 0..group {
                for d in 0..dim {
                    let terms = (starts[unit] as usize..starts[unit + 1] as usize)
                        .filter(|&at| listed[at] != EMPTY)
                        .map(|at| {
                            f64::from(weights[at * group + g])
                                * f64::from(decoded[listed[at] as usize * dim + d])
                        });
                    let magnitude: f64 = terms.clone().map(f64::abs).sum();
                    let exact: f64 = terms.sum();
                    let found = result[0][(unit * group + g) * dim + d];
                    // A factor, as many additions as a team has rows, then teams and splits.
                    assert!(
                        (f64::from(found) - exact).abs() <= 40.0 * UNIT * magnitude,
                        "{shape:?}: {found} for {exact}"
                    );
                }
            }
        }
    }
}
