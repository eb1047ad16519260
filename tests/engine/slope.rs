//! Values that follow keys: what is added for them to the means that stand for them.

use crate::reference::{Case, case_options, centred, columns_of, replace};
use crate::sample::{Kv, Sample, model, queries, query_view, round};
use longwave::index::ladder::columns::VALUE_SLOPE;
use longwave::{Budget, Dtype, ModelSpec, Snapshot};
use longwave_kernels::codec::record_len;
use longwave_query::FixedTau;

const TOKENS: usize = 900;

fn spec() -> ModelSpec {
    model([2, 4, 32, 16], Dtype::F16, 1)
}

/// Values that are a linear function of their keys, and some noise.
fn following(seed: u64, model: &ModelSpec) -> Kv {
    let mut kv = centred(seed, TOKENS, model, [0.2, 0.2]);
    let mut noise = Sample::new(seed + 1);
    let rows = kv.keys.chunks_exact(model.key_dim).zip(kv.values.chunks_exact_mut(model.value_dim));
    for (key, value) in rows {
        for (j, x) in value.iter_mut().enumerate() {
            let followed = 0.9 * key[j] - 0.4 * key[(3 * j + 5) % key.len()];
            *x = round(model.dtype, followed + 0.2 * noise.number());
        }
    }
    kv
}

/// Errors of `longwave`, per query head, and bytes of bases and slopes.
fn errors(case: &Case, snapshot: &Snapshot, tau: f64) -> (Vec<f64>, u64) {
    let (mut errors, mut bytes) = (Vec::new(), 0);
    for seed in 0..6 {
        let asked: Vec<f32> = queries(seed, 1, &case.model).iter().map(|x| 0.4 * x).collect();
        let view = query_view(&asked, &case.model);
        let answer = snapshot.attend(0, &view, &Budget::Tau(tau)).unwrap();
        let exact = snapshot.attend(0, &view, &Budget::Exact).unwrap();
        bytes += answer.report.traffic.bases;
        let dim = case.model.value_dim;
        for (answer, exact) in answer.output.chunks_exact(dim).zip(exact.output.chunks_exact(dim)) {
            let off: f64 = answer.iter().zip(exact).map(|(a, e)| f64::from(a - e).powi(2)).sum();
            let all: f64 = exact.iter().map(|e| f64::from(*e).powi(2)).sum();
            errors.push((off / all).sqrt());
        }
    }
    (errors, bytes)
}

fn mean(errors: &[f64]) -> f64 {
    errors.iter().sum::<f64>() / errors.len() as f64
}

/// The same context, whose segments do not say how values follow keys: of all records the factors are 0.
fn without_slopes(case: &Case) -> Snapshot {
    for segment in case.segments() {
        let mut columns = columns_of(segment);
        for (kind, bytes) in &mut columns {
            if *kind == VALUE_SLOPE {
                let record = record_len(case.model.value_dim);
                bytes.chunks_exact_mut(record).for_each(|bytes| bytes[record - 2..].fill(0));
            }
        }
        replace(&case.backend, segment, &columns);
    }
    case.reopened()
}

#[test]
fn slopes_take_off_what_means_leave_out() {
    let model = spec();
    let kv = following(31, &model);
    let observed = queries(700, 64, &model);
    let case = Case::new(model, case_options(), kv, &observed);
    let has = |column| case.segments().iter().map(|segment| segment.segment().has_column(column)).collect();
    let with_slopes: Vec<bool> = has(VALUE_SLOPE);
    assert_eq!(with_slopes.iter().filter(|has| **has).count(), 2, "segments of 300 rows: {with_slopes:?}");
    assert!(with_slopes.contains(&false), "those of 90 follow them");
    let copy = without_slopes(&case);
    let (with, more) = errors(&case, &case.snapshot, 0.004);
    let (without, _) = errors(&case, &copy, 0.004);
    assert!(mean(&with) < 0.7 * mean(&without), "{} with, {} without", mean(&with), mean(&without));
    // Where tau allows for more than slopes could take off, they are not read.
    let (_, fewer) = errors(&case, &case.snapshot, 0.02);
    let slope = case.model.key_dim * record_len(case.model.value_dim);
    assert!(more > fewer && (more - fewer).is_multiple_of(slope as u64), "{more} and {fewer} bytes");
    // A head that asks for nothing keeps no other of its group from its slope.
    let mut asked: Vec<f32> = queries(0, 1, &case.model).iter().map(|x| 0.4 * x).collect();
    // One of each group, so that no slope is read for want of another.
    let group = case.group() * case.model.key_dim;
    asked.chunks_exact_mut(group).for_each(|heads| heads[..case.model.key_dim].fill(0.0));
    let bases = |tau| {
        let view = query_view(&asked, &case.model);
        case.snapshot.attend(0, &view, &Budget::Tau(tau)).unwrap().report.traffic.bases
    };
    assert!(bases(0.002) > bases(0.02));
}

#[test]
fn a_cap_on_bytes_holds_for_slopes_as_well() {
    let model = spec();
    let case = Case::new(model.clone(), case_options(), following(32, &model), &queries(700, 64, &model));
    let (segments, asked) = (case.segments(), queries(5, 1, &model));
    let rows: usize = segments.iter().map(|segment| segment.rows()).sum();
    let whole = (rows * 2 * (model.key_dim + model.value_dim) * model.kv_heads) as f64;
    let ask = |rule: FixedTau| case.attend_over(&segments, &asked, &rule).report.traffic;
    let mut bases = Vec::new();
    for share in (16..30).map(|share| f64::from(share) / 200.0) {
        let capped = ask(FixedTau::new(0.002).capped(share));
        assert!(capped.bytes() as f64 <= share * whole, "{share}: {} of {whole} bytes", capped.bytes());
        bases.push(capped.bases);
    }
    assert!(bases.iter().min() < bases.iter().max(), "slopes give way where there is no room: {bases:?}");
}
