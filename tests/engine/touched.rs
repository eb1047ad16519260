//! Bytes counted are bytes touched: what a call does not count may hold anything, and what it counts matters.

use crate::reference::{
    Case, Choice, MARGIN, Piece, Reference, Resolution, StoredHead, case_options, centred, columns_of,
    pieces, plain_pieces, replace, traffic,
};
use crate::sample::{bits, logits, model, queries, query_view};
use longwave::index::{columns as index, ladder::columns as ladder};
use longwave::storage::ColumnKind;
use longwave::{Answer, Budget, Dtype, ModelSpec, RowForm, Snapshot, Traffic};
use longwave_kernels::codec::record_len;
use longwave_query::{Attempt, Next, TauRule};
use std::collections::BTreeSet;

/// A call whose every decision is clear of its threshold, and what it touches.
struct Call {
    queries: Vec<f32>,
    tau: f64,
    touched: BTreeSet<Piece>,
    traffic: Traffic,
}

/// Segments of bulk ingestion keep their rows in a form; those of decoding, too, unless it is codes.
fn case(form: RowForm) -> Case {
    let mut model = model([2, 6, 40, 24], Dtype::F16, 1);
    model.softcap = Some(12.0);
    model.sink_logits = vec![logits(4, &model)];
    let kv = centred(61, 700, &model, [0.1, 1.0]);
    let observed = queries(62, 8, &model);
    Case::new(model, case_options().with_rows(form), kv, &observed)
}

/// What one position and KV head touches at one tau; `None` where a decision is too close.
fn choice(case: &Case, head: &StoredHead, queries: &[f32], unit: (usize, usize), tau: f64) -> Option<Choice> {
    let Reference { choice, margin, .. } = case.answer(head, queries, unit, tau);
    (margin > MARGIN).then_some(choice)
}

/// The first queries from `seed` on that leave no doubt. Where rows are not kept in full, the reference's answers differ a
/// little from the engine's, and some choices with them: those queries are passed over as well.
fn call(case: &Case, seed: u64, positions: usize, tau: f64) -> Call {
    let ladders = case.ladders(positions);
    let of = |seed: u64| -> Option<Call> {
        let queries = queries(seed, positions, &case.model);
        let (mut touched, mut sum) = (BTreeSet::new(), Traffic::default());
        for at in 0..positions {
            let position = (case.kv.tokens() - positions + at) as u64;
            for (kv_head, head) in ladders.iter().enumerate() {
                let choice = choice(case, head, &queries, (at, kv_head), tau)?;
                let mut mine = pieces(&case.model, &case.segments(), head, kv_head, &choice);
                mine.extend(plain_pieces(case, case.summarised(positions), kv_head, position));
                sum += traffic(&mine);
                touched.extend(mine);
            }
        }
        let call = Call { queries, tau, touched, traffic: sum };
        let full = case.segments().iter().all(|segment| segment.row_form() == RowForm::Full);
        (full || ask(case, &case.snapshot, &call).report.traffic == call.traffic).then_some(call)
    };
    (seed..seed + 90).find_map(of).expect("queries without a close decision")
}

/// Everything that an answer says.
fn said(answer: &Answer) -> (Vec<u32>, Vec<u32>, Traffic) {
    let predicted = answer.report.predicted_error.iter().map(|x| x.to_bits()).collect();
    (bits(answer), predicted, answer.report.traffic)
}

fn ask(case: &Case, snapshot: &Snapshot, call: &Call) -> Answer {
    snapshot.attend(0, &query_view(&call.queries, &case.model), &Budget::Tau(call.tau)).unwrap()
}

/// Bytes of what is read together in a record of a column that is read record by record: all of it, or the two halves of a
/// code. Not the bases and scales: their digest is checked once, when a segment is opened.
fn parts_of(model: &ModelSpec, kind: ColumnKind) -> Option<Vec<usize>> {
    let (d, v, size) = (model.key_dim, model.value_dim, model.dtype.size_of());
    let whole = match kind {
        ladder::KEY_CODE => return Some(vec![d / 4 + 2, d / 4]),
        ladder::VALUE_CODE => return Some(vec![v / 4 + 2, v / 4]),
        ColumnKind::KEYS => d * size,
        ColumnKind::VALUES => v * size,
        ColumnKind::KEYS_8BIT => d + 4,
        ColumnKind::VALUES_8BIT => v + 4,
        ColumnKind::POSITIONS => 4,
        ladder::CENTROID => record_len(d),
        ladder::VALUE_MEAN | ladder::VALUE_SLOPE => record_len(v),
        ladder::CLUSTER => ladder::CLUSTER_SIZE,
        // Of any length.
        ladder::SKETCH => 1,
        // The summaries at full resolution, which only other methods read.
        index::CENTROID => d * size,
        index::VALUE_MEAN => v * size,
        index::KEY_SPREAD | index::VALUE_SPREAD => 4,
        _ => return None,
    };
    Some(vec![whole])
}

/// Part `part` of a record that no reader refuses and that ruins every answer it enters.
fn poison(model: &ModelSpec, kind: ColumnKind, (at, part): (usize, usize), rows: usize, record: &mut [u8]) {
    match kind {
        ladder::KEY_CODE | ladder::VALUE_CODE => {
            record.fill(0xff);
            if part == 0 {
                record[..2].copy_from_slice(&[0xff, 0x7b]);
            }
        }
        ladder::CLUSTER => record.fill(0xff),
        ColumnKind::POSITIONS => record.copy_from_slice(&((at % rows) as u32).to_le_bytes()),
        index::KEY_SPREAD | index::VALUE_SPREAD => record.copy_from_slice(&1e9f32.to_le_bytes()),
        index::CENTROID | index::VALUE_MEAN => {
            assert_eq!(model.dtype, Dtype::F16);
            record.chunks_exact_mut(2).for_each(|x| x.copy_from_slice(&[0xff, 0x7b]));
        }
        ColumnKind::KEYS_8BIT | ColumnKind::VALUES_8BIT => {
            record.fill(0x7f);
            let factor = record.len() - 4;
            record[factor..].copy_from_slice(&1e30f32.to_le_bytes());
        }
        // Not a number in any type; the code of the largest factor.
        ColumnKind::KEYS | ColumnKind::VALUES | ladder::SKETCH => record.fill(0xff),
        _ => {
            record.fill(0xff);
            let factor = record.len() - 2;
            record[factor..].copy_from_slice(&[0xff, 0x7b]);
        }
    }
}

/// Poisons every record that is not in `touched`; returns how many bytes it changed.
fn poison_all(case: &Case, touched: &BTreeSet<Piece>) -> usize {
    let mut changed = 0;
    for (number, segment) in case.segments().iter().enumerate() {
        let mut columns = columns_of(segment);
        for (kind, bytes) in &mut columns {
            let Some(parts) = parts_of(&case.model, *kind) else { continue };
            let mut read = vec![false; bytes.len()];
            for piece in touched.iter().filter(|piece| (piece.segment, piece.kind) == (number, kind.0)) {
                read[piece.bytes.0..piece.bytes.1].fill(true);
            }
            let (mut start, mut place) = (0, 0);
            while start < bytes.len() {
                let (at, part) = (place / parts.len(), place % parts.len());
                let range = start..start + parts[part];
                (start, place) = (range.end, place + 1);
                let (record, read) = (&mut bytes[range.clone()], &read[range]);
                assert!(read.iter().all(|x| *x == read[0]), "what lies together is read whole");
                if !read[0] {
                    // Rows are decoded with a ladder, whose counts are checked against the postings.
                    let checked = *kind == ladder::CLUSTER && segment.row_form() == RowForm::Codes;
                    let record = if checked { &mut record[2..] } else { record };
                    poison(&case.model, *kind, (at, part), segment.rows(), record);
                    changed += record.len();
                }
            }
        }
        replace(&case.backend, segment, &columns);
    }
    changed
}

#[test]
fn what_is_not_counted_may_hold_anything() {
    RowForm::ALL.into_iter().for_each(check_not_counted);
}

fn check_not_counted(form: RowForm) {
    let case = case(form);
    let stored: usize =
        case.segments().iter().flat_map(|s| columns_of(s)).map(|(_, bytes)| bytes.len()).sum();
    for (seed, positions, tau) in
        [(1, 1, 0.001), (100, 1, 0.01), (200, 1, 0.08), (300, 1, 1.0), (400, 3, 0.02), (500, 6, 0.1)]
    {
        let call = call(&case, seed, positions, tau);
        let expected = said(&ask(&case, &case.snapshot, &call));
        assert_eq!(expected.2, call.traffic, "{form}: bytes of the pieces at tau {tau}");
        let changed = poison_all(&case, &call.touched);
        assert!(changed > stored / 4, "{changed} of {stored} bytes poisoned at tau {tau}");
        let snapshot = case.reopened();
        let found = said(&ask(&case, &snapshot, &call));
        assert!(found == expected, "{form}: tau {tau} at {positions} positions");
    }
}

/// Changes a piece that was read; `false` where no change of it needs to show.
fn change(case: &Case, piece: &Piece, all: &[(ColumnKind, Vec<u8>)], bytes: &mut [u8]) -> bool {
    match ColumnKind(piece.kind) {
        // The sign of an element.
        ColumnKind::KEYS | ColumnKind::VALUES => bytes[case.model.dtype.size_of() - 1] ^= 0x80,
        ColumnKind::KEYS_8BIT | ColumnKind::VALUES_8BIT => {
            let dim = bytes.len() - 4;
            bytes[..dim].iter_mut().for_each(|byte| *byte ^= 0x33);
        }
        // The spreads' codes: the count is that of the postings.
        ladder::CLUSTER => bytes[2..].iter_mut().for_each(|code| *code ^= 0x3f),
        ladder::KEY_CODE | ladder::VALUE_CODE => bytes[2..].iter_mut().for_each(|byte| *byte ^= 0x33),
        ladder::CENTROID | ladder::VALUE_MEAN | ladder::VALUE_SLOPE => {
            let codes = bytes.len() - 2;
            bytes[..codes].iter_mut().for_each(|byte| *byte ^= 0x33);
        }
        ladder::SKETCH => bytes.iter_mut().for_each(|byte| *byte ^= 0x15),
        // Mantissas of numbers that are not 0; scales that segments share are in the digest.
        ladder::SCALES => {
            let (d, v) = (case.model.key_dim, case.model.value_dim);
            let first = piece.bytes.0 / 2 % (6 * d + 3 * v + 6);
            if first != 4 * d && first != 6 * d + 2 * v {
                return false;
            }
            for number in bytes.chunks_exact_mut(2).filter(|number| **number != [0; 2]) {
                number[0] ^= 0x20;
            }
        }
        _ => return false,
    }
    assert!(all.iter().any(|(kind, _)| kind.0 == piece.kind));
    true
}

#[test]
fn what_is_counted_matters() {
    RowForm::ALL.into_iter().for_each(check_counted);
}

fn check_counted(form: RowForm) {
    let case = case(form);
    // A tau at which every column is read, and rows remain that rest on their sketches.
    let call = call(&case, 700, 1, 0.001);
    let expected = said(&ask(&case, &case.snapshot, &call));
    let mut kinds = BTreeSet::new();
    for kind in call.touched.iter().map(|piece| piece.kind).collect::<BTreeSet<_>>() {
        let mine: Vec<&Piece> = call.touched.iter().filter(|piece| piece.kind == kind).collect();
        // Nine of each, spread over segments and heads.
        for piece in mine.iter().step_by(mine.len().div_ceil(9)) {
            let segment = case.segments()[piece.segment];
            let mut columns = columns_of(segment);
            let all = columns.clone();
            let bytes = &mut columns.iter_mut().find(|column| column.0.0 == kind).unwrap().1;
            if change(&case, piece, &all, &mut bytes[piece.bytes.0..piece.bytes.1]) {
                kinds.insert(kind);
                replace(&case.backend, segment, &columns);
                let found = said(&ask(&case, &case.reopened(), &call));
                assert!(
                    (found.0, found.1) != (expected.0.clone(), expected.1.clone()),
                    "{piece:?} does not matter"
                );
                replace(&case.backend, segment, &all);
            }
        }
    }
    // With codes, segments of decoding still have rows in full; in 8 bits, none has.
    assert_eq!(kinds.len(), 9, "{form}: {kinds:x?}");
    assert!(said(&ask(&case, &case.reopened(), &call)) == expected);
}

/// Lowers tau once, and then accepts or reads everything.
struct Twice {
    taus: [f32; 2],
    last: Next,
}

impl TauRule for Twice {
    fn start(&self, _position: usize, _kv_head: usize) -> Option<f32> {
        Some(self.taus[0])
    }

    fn next(&self, attempt: &Attempt<'_>) -> Next {
        if attempt.tau == self.taus[0] { Next::Lower(self.taus[1]) } else { self.last }
    }
}

/// One position's queries by `rule`, with the segments as the case's backend holds them now.
fn attend_twice(case: &Case, queries: &[f32], rule: &Twice) -> Answer {
    let snapshot = case.reopened();
    case.attend_over(&snapshot.segments(0).unwrap(), queries, rule)
}

#[test]
fn what_several_attempts_read_counts_once() {
    RowForm::ALL.into_iter().for_each(check_several_attempts);
}

fn check_several_attempts(form: RowForm) {
    let case = case(form);
    let ladders = case.ladders(1);
    let taus = [0.004f32, 0.0005];
    let both = |queries: &[f32]| -> Option<Vec<[Choice; 2]>> {
        let of = |(kv_head, head)| {
            let one = |tau: f32| choice(&case, head, queries, (0, kv_head), f64::from(tau));
            Some([one(taus[0])?, one(taus[1])?])
        };
        ladders.iter().enumerate().map(of).collect()
    };
    let (queries, choices) = (900..990)
        .find_map(|seed| {
            let queries = queries(seed, 1, &case.model);
            both(&queries).map(|choices| (queries, choices))
        })
        .unwrap();
    for last in [Next::Accept, Next::Exact] {
        let rule = Twice { taus, last };
        let (mut touched, mut sum) = (BTreeSet::new(), Traffic::default());
        for (kv_head, choices) in choices.iter().enumerate() {
            let head = &ladders[kv_head];
            let mut mine: BTreeSet<Piece> = choices
                .iter()
                .flat_map(|choice| pieces(&case.model, &case.segments(), head, kv_head, choice))
                .collect();
            if last == Next::Exact {
                let kept =
                    [ColumnKind::KEYS, ColumnKind::VALUES, ColumnKind::KEYS_8BIT, ColumnKind::VALUES_8BIT];
                mine.retain(|piece| !kept.contains(&ColumnKind(piece.kind)));
                // Bases are counted with the query's.
                let mut plain = plain_pieces(&case, 0, kv_head, case.kv.tokens() as u64 - 1);
                let bases = [ladder::BASIS, ladder::BITS, ladder::SCALES];
                plain.retain(|piece| !bases.contains(&ColumnKind(piece.kind)));
                mine.extend(plain);
            }
            sum += traffic(&mine);
            touched.extend(mine);
        }
        for segment in case.segments() {
            replace(&case.backend, segment, &columns_of(segment));
        }
        let answer = attend_twice(&case, &queries, &rule);
        assert_eq!(answer.report.traffic, sum, "{last:?}");
        let resolutions = choices.iter().flatten().flat_map(|choice| choice.rows.iter().flatten().flatten());
        assert!(resolutions.filter(|resolution| **resolution == Resolution::Full).count() > 0);
        assert!(poison_all(&case, &touched) > 0);
        assert!(said(&attend_twice(&case, &queries, &rule)) == said(&answer), "{last:?}");
    }
}
