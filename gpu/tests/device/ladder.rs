//! Sketches and rows in 2 or 4 bits, against float64 and against the CPU's kernels.

use crate::data::{Numbers, rows_of, shapes, stored, under_all_schedules};
use longwave_gpu::{CodeForm, Device, EMPTY, RowList, RowShape, SketchBlocks, Weighted};
use longwave_gpu_emulation::install;
use longwave_kernels::codec::{
    Depth, SketchLayout, SketchQuery, decode_planes, decode_sketch, decode4, encode_planes, encode_sketch,
    encode4, record_len,
};
use longwave_kernels::oracle::UNIT;
use longwave_kernels::{Dtype, Kernels};

/// Shapes whose group differs in how it is compiled, one type: codes have none.
fn coded_shapes() -> impl Iterator<Item = RowShape> {
    shapes().filter(|shape| shape.dtype() == Dtype::F16 && [1, 3, 4, 7].contains(&shape.group()))
}

/// Bits of a dimension that fall as those of a basis do: some 4, some 2, many 1, and the rest 0. Units have layouts of different
/// lengths.
fn layout(dim: usize, unit: usize) -> SketchLayout {
    let (fours, twos) = (dim / 16 + 3 * unit, dim / 8 + 2);
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
        let layouts = [layout(dim, 0), layout(dim, 2), layout(dim, 1)];
        let sigma: Vec<f32> = (0..dim).map(|i| 0.5 + 0.5 / (1.0 + i as f32)).collect();
        // Clusters of less than a block, of a block, and of more; one of a single row; one unit without clusters.
        let units = [vec![5usize, 32, 1], vec![], vec![71, 8]];
        let (mut sketches, mut places, mut decoded) = (vec![0u8; 16], Vec::new(), Vec::new());
        for (clusters, layout) in units.iter().zip(&layouts) {
            let mut mine = Vec::new();
            for &rows in clusters {
                let z = numbers.units(rows * dim, 1.0);
                let mut record = vec![0; layout.record_len(rows)];
                encode_sketch(layout, &z, &sigma, &mut record);
                mine.push((sketches.len(), rows));
                sketches.extend_from_slice(&record);
                let (mut out, mut factors) = (vec![0.0; rows * dim], vec![0.0; rows]);
                decode_sketch(layout, &record, rows, &vec![1.0; dim], &mut out, &mut factors);
                decoded.push((record, rows, out, factors));
            }
            places.push((*layout, mine));
        }
        let coordinates = numbers.units(3 * group * dim, 0.8);
        let result = under_all_schedules(&emulation, &device, &format!("{shape:?}"), |device| {
            let blocks = SketchBlocks::new(device, &places).unwrap();
            let tables =
                device.sketch_tables(&shape, &layouts, &device.upload(&coordinates).unwrap()).unwrap();
            let (scores, factors) =
                device.scan_sketches(&shape, &device.upload(&sketches).unwrap(), &blocks, &tables).unwrap();
            vec![device.download(&scores).unwrap(), device.download(&factors).unwrap()]
        });
        let (mut first, mut cluster) = (0, 0);
        for (unit, clusters) in units.iter().enumerate() {
            let mine = &coordinates[unit * group * dim..][..group * dim];
            let query = SketchQuery::new(&layouts[unit], mine, group);
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
                        // The same tables, so that only the last sums round.
                        let size = query.error_bound(g) * factors[row] * 500.0 + cpu[g * rows + row].abs();
                        let near = 4.0 * UNIT as f32 * size;
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

/// Records of `rows` coded rows, how they lie, and what they decode to under scales of 1.
struct Coded {
    form: CodeForm,
    records: Vec<u16>,
    decoded: Vec<f32>,
}

/// Every form that the kernels read.
fn coded(numbers: &mut Numbers, rows: usize, dim: usize) -> Vec<Coded> {
    let ones = vec![1.0; dim];
    let [mut pairs, mut planes] = [vec![0; rows * record_len(dim)], vec![0; rows * record_len(dim)]];
    for (pairs, planes) in
        pairs.chunks_exact_mut(record_len(dim)).zip(planes.chunks_exact_mut(record_len(dim)))
    {
        encode4(&numbers.units(dim, 2.0), &ones, false, pairs);
        encode_planes(&numbers.units(dim, 2.0), &ones, planes);
    }
    let decode = |records: &[u8], decode: &dyn Fn(&[u8], &mut [f32])| {
        let mut decoded = vec![0.0; rows * dim];
        let records = records.chunks_exact(record_len(dim)).zip(decoded.chunks_exact_mut(dim));
        records.for_each(|(record, out)| decode(record, out));
        decoded
    };
    let words = |records: &[u8]| records.as_chunks::<2>().0.iter().map(|b| u16::from_le_bytes(*b)).collect();
    let mut all = vec![Coded {
        form: CodeForm::summaries(dim),
        records: words(&pairs),
        decoded: decode(&pairs, &|record, out| decode4(record, &ones, out)),
    }];
    for depth in [Depth::Half, Depth::Whole] {
        let decoded = decode(&planes, &|record, out| decode_planes(record, &ones, depth, out));
        let packed: Vec<u8> = planes
            .chunks_exact(record_len(dim))
            .flat_map(|record| &record[..depth.len(dim)])
            .copied()
            .collect();
        all.push(Coded {
            form: CodeForm::rows(dim, depth),
            records: words(&planes),
            decoded: decoded.clone(),
        });
        all.push(Coded { form: CodeForm::packed(dim, depth), records: words(&packed), decoded });
    }
    all
}

#[test]
fn coded_keys_score_within_rounding() {
    let emulation = install();
    let device = Device::open(0).unwrap();
    for (number, shape) in coded_shapes().enumerate() {
        let (group, dim) = (shape.group(), shape.dim());
        let mut numbers = Numbers(60 + number as u64);
        let starts = [0u32, 44, 44, 51];
        let listed: Vec<u32> =
            (0..51).map(|at| if at % 8 == 3 { EMPTY } else { numbers.below(31) as u32 }).collect();
        let coordinates = numbers.units(3 * group * dim, 0.8);
        for Coded { form, records, decoded } in coded(&mut numbers, 31, dim) {
            let what = format!("{shape:?} {form:?}");
            let result = under_all_schedules(&emulation, &device, &what, |device| {
                let list = RowList::new(device, &listed, &starts).unwrap();
                let (coordinates, records) =
                    (device.upload(&coordinates).unwrap(), device.upload(&records).unwrap());
                let scores = device.score_codes(&shape, &coordinates, (&records, form), &list).unwrap();
                vec![device.download(&scores).unwrap()]
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
                            "{what}: {found} for {exact}"
                        );
                    }
                }
            }
        }
    }
}

/// Rows that are summed: as codes, or in full where there is no form.
struct Summed {
    form: Option<CodeForm>,
    stored: Vec<u16>,
    decoded: Vec<f32>,
}

#[test]
fn coded_and_full_values_sum_within_rounding() {
    let emulation = install();
    let device = Device::open(0).unwrap();
    for (number, shape) in shapes().enumerate() {
        let (group, dim, splits) = (shape.group(), shape.dim(), 1 + number % 3);
        let mut numbers = Numbers(80 + number as u64);
        let full = stored(shape.dtype(), &numbers.units(31 * dim, 1.0));
        let widened: Vec<f32> = (0..31 * dim).map(|i| rows_of(shape.dtype(), &full).get(i)).collect();
        let mut kinds = vec![Summed { form: None, stored: full, decoded: widened }];
        if shape.dtype() == Dtype::F16 && [1, 3, 4, 7].contains(&group) {
            let coded = coded(&mut numbers, 31, dim).into_iter();
            kinds.extend(coded.map(|Coded { form, records: stored, decoded }| Summed {
                form: Some(form),
                stored,
                decoded,
            }));
        }
        let starts = [0u32, 58, 58, 63];
        // Two sources, as slots and what was transferred are, the second shorter.
        let mut list = |len: usize, few: &[u32; 4]| {
            let rows = (0..len).map(|at| if at % 8 == 3 { EMPTY } else { numbers.below(31) as u32 });
            (rows.collect::<Vec<u32>>(), *few)
        };
        let lists = [list(63, &starts), list(9, &[0, 2, 9, 9])];
        let weights: Vec<f32> = (0..72 * group).map(|_| numbers.unit().abs()).collect();
        for Summed { form, stored, decoded } in kinds {
            let what = format!("{shape:?} {form:?}");
            let result = under_all_schedules(&emulation, &device, &what, |device| {
                let rows = [0, 1].map(|i| RowList::new(device, &lists[i].0, &lists[i].1).unwrap());
                let (weights, stored) = (device.upload(&weights).unwrap(), device.upload(&stored).unwrap());
                let spans = [0..63 * group, 63 * group..72 * group];
                let source = |i: usize| Weighted {
                    weights: weights.slice(spans[i].clone()),
                    stored: &stored,
                    rows: &rows[i],
                };
                let sources = [source(0), source(1)];
                let sums = match form {
                    Some(form) => device.sum_codes(&shape, 3, form, &sources, splits),
                    None => device.sum_rows(&shape, 3, &sources, splits),
                };
                vec![device.download(&sums.unwrap()).unwrap()]
            });
            for (unit, g, d) in
                (0..3).flat_map(|u| (0..group).flat_map(move |g| (0..dim).map(move |d| (u, g, d))))
            {
                let terms = [0, 1].into_iter().flat_map(|i| {
                    let (rows, starts) = &lists[i];
                    (starts[unit] as usize..starts[unit + 1] as usize)
                        .filter(|&at| rows[at] != EMPTY)
                        .map(move |at| (i * 63 + at, rows[at] as usize))
                });
                let terms = terms
                    .map(|(at, row)| f64::from(weights[at * group + g]) * f64::from(decoded[row * dim + d]));
                let magnitude: f64 = terms.clone().map(f64::abs).sum();
                let (exact, found) = (terms.sum::<f64>(), result[0][(unit * group + g) * dim + d]);
                // A factor, as many additions as a team has rows, then teams, splits and sources.
                assert!(
                    (f64::from(found) - exact).abs() <= 44.0 * UNIT * magnitude,
                    "{what}: {found} for {exact}"
                );
            }
        }
    }
}
