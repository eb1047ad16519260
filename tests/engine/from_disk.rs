//! A cap on what comes from disk: which pages a call touches is found out by damaging them one by one, and not by what the
//! call says.

use crate::reference::{Case, case_options, centred};
use crate::sample::{bits, model, queries, query_view, store_on};
use longwave::index::ladder::columns as ladder;
use longwave::storage::{BLOCK_SIZE, Backend, ColumnKind, FileBackend};
use longwave::{Answer, AuditOptions, Budget, Dtype, Error, RowForm, Snapshot, Store, StoreOptions};
use longwave_query::{Attempt, FixedTau, Next, TauRule};
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

const PAGE: u64 = BLOCK_SIZE as u64;
const TAU: f64 = 0.002;
/// What the cap counts. Everything else of a segment is meant to be in memory.
const COUNTED: [ColumnKind; 7] = [
    ladder::KEY_CODE,
    ladder::VALUE_CODE,
    ColumnKind::KEYS,
    ColumnKind::VALUES,
    ColumnKind::KEYS_8BIT,
    ColumnKind::VALUES_8BIT,
    ColumnKind::POSITIONS,
];

/// A page of a segment's file: the number of the segment, and of the page.
type Page = (usize, usize);

fn case(form: RowForm) -> Case {
    let model = model([2, 6, 40, 24], Dtype::F16, 1);
    let kv = centred(71, 1500, &model, [0.1, 1.0]);
    let observed = queries(72, 8, &model);
    let options = case_options().with_rows(form).with_segment_rows(500, 180);
    Case::new(model, options, kv, &observed)
}

fn from_disk(bytes: u64) -> Budget {
    Budget::FromDisk { tau: TAU, bytes }
}

/// Calls pages cold, in the files as they are now.
fn set_cold(case: &Case, is_cold: impl Fn(Page) -> bool) {
    for (number, segment) in case.segments().iter().enumerate() {
        case.memory.set_cold(segment.segment().path(), |page| is_cold((number, page))).unwrap();
    }
}

fn ask(case: &Case, snapshot: &Snapshot, queries: &[f32], budget: &Budget) -> Result<Answer, Error> {
    snapshot.attend(0, &query_view(queries, &case.model), budget)
}

/// As [`ask`], without the segments that no summary stands for at so many positions: their rows come from memory.
fn ask_summarised(
    case: &Case,
    snapshot: &Snapshot,
    (queries, positions): (&[f32], usize),
    bytes: u64,
) -> Result<Answer, Error> {
    let segments = &snapshot.segments(0).unwrap()[..case.summarised(positions)];
    Ok(case.try_attend_over(segments, queries, &FixedTau::new(TAU).from_disk(bytes))?)
}

/// Bytes of a segment's file that the cap counts, by its columns.
fn counted(case: &Case, number: usize) -> Vec<Range<usize>> {
    let columns = case.segments()[number].segment().columns();
    let columns = columns.filter(|info| COUNTED.contains(&info.kind) && info.len > 0);
    columns.map(|info| info.offset as usize..(info.offset + info.len) as usize).collect()
}

/// Pages with a byte that the cap counts.
fn pages(case: &Case) -> BTreeSet<Page> {
    let of_segment = |number: usize| {
        let columns = counted(case, number).into_iter();
        columns
            .flat_map(|bytes| bytes.start / BLOCK_SIZE..bytes.end.div_ceil(BLOCK_SIZE))
            .map(move |page| (number, page))
    };
    (0..case.segments().len()).flat_map(of_segment).collect()
}

/// Whether a page holds keys, as rows or as codes.
fn holds_keys(case: &Case, (number, page): Page) -> bool {
    let bytes = (page * BLOCK_SIZE) as u64..((page + 1) * BLOCK_SIZE) as u64;
    let mut columns = case.segments()[number].segment().columns();
    columns.any(|info| {
        [ladder::KEY_CODE, ColumnKind::KEYS, ColumnKind::KEYS_8BIT].contains(&info.kind)
            && info.offset < bytes.end
            && info.offset + info.len > bytes.start
    })
}

/// Flips a bit in every counted byte's place of these pages, one byte a page and column.
fn damage(case: &Case, damaged: &BTreeSet<Page>, files: &[Vec<u8>]) {
    for (number, segment) in case.segments().iter().enumerate() {
        let mut bytes = files[number].clone();
        for &(_, page) in damaged.range((number, 0)..(number + 1, 0)) {
            for column in counted(case, number) {
                let inside = column.start.max(page * BLOCK_SIZE)..column.end.min((page + 1) * BLOCK_SIZE);
                if !inside.is_empty() {
                    bytes[inside.start + inside.len() / 2] ^= 4;
                }
            }
        }
        case.memory.replace(segment.segment().path(), &bytes).unwrap();
    }
}

fn files(case: &Case) -> Vec<Vec<u8>> {
    case.segments().iter().map(|segment| case.memory.contents(segment.segment().path()).unwrap()).collect()
}

/// The pages of `among` whose damage a new reader of the context notices when it is asked.
fn touched(
    case: &Case,
    among: &BTreeSet<Page>,
    is_cold: impl Fn(Page) -> bool,
    ask: impl Fn(&Snapshot) -> Result<Answer, Error>,
) -> BTreeSet<Page> {
    let files = files(case);
    let notices = |page: &&Page| {
        damage(case, &BTreeSet::from([**page]), &files);
        set_cold(case, &is_cold);
        match ask(&case.reopened()) {
            Ok(_) => false,
            Err(error) => {
                assert!(error.to_string().contains("checksum"), "{error}");
                true
            }
        }
    };
    let touched = among.iter().filter(notices).copied().collect();
    damage(case, &BTreeSet::new(), &files);
    touched
}

/// Relative errors of all heads.
fn errors(case: &Case, answer: &Answer, exact: &Answer) -> Vec<f64> {
    let heads = answer.output.chunks(case.model.value_dim).zip(exact.output.chunks(case.model.value_dim));
    let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    heads
        .map(|(found, exact)| {
            norm(&mut found.iter().zip(exact).map(|(a, b)| a - b)) / norm(&mut exact.iter().copied())
        })
        .collect()
}

fn mean(numbers: impl IntoIterator<Item = f64>) -> f64 {
    let (sum, count) = numbers.into_iter().fold((0.0, 0), |(sum, count), x| (sum + x, count + 1));
    sum / f64::from(count)
}

/// Everything that an answer says but for the disk.
fn said(answer: &Answer) -> (Vec<u32>, Vec<u32>, longwave::Traffic, Vec<f32>) {
    let predicted = answer.report.predicted_error.iter().map(|x| x.to_bits()).collect();
    (bits(answer), predicted, answer.report.traffic, answer.report.taus.clone())
}

#[test]
fn a_cap_that_is_not_needed_changes_no_bit() {
    for form in RowForm::ALL {
        let case = case(form);
        for (seed, positions) in [(1, 1), (2, 3)] {
            let queries = queries(seed, positions, &case.model);
            let plain = ask(&case, &case.snapshot, &queries, &Budget::Tau(TAU)).unwrap();
            assert_eq!(plain.report.disk, None, "nobody asked");
            // All is in memory: nothing need come from disk.
            let warm = ask(&case, &case.reopened(), &queries, &from_disk(0)).unwrap();
            assert!(said(&warm) == said(&plain), "{form}");
            assert_eq!(warm.report.disk.unwrap().bytes, 0);
            set_cold(&case, |_| true);
            let cold = ask(&case, &case.reopened(), &queries, &from_disk(u64::MAX)).unwrap();
            assert!(said(&cold) == said(&plain), "{form}");
            let disk = cold.report.disk.unwrap();
            assert!(disk.bytes > 0 && !disk.is_exceeded());
            for answer in [&warm, &cold] {
                assert!(answer.report.capped.iter().all(|capped| !capped), "{form}");
            }
            set_cold(&case, |_| false);
        }
    }
}

#[test]
fn calls_that_wait_for_the_disk_answer_what_others_do() {
    let case = case(RowForm::Full);
    // More to answer than may wait for the disk at a time, at most four a thread.
    let queries = queries(3, 9, &case.model);
    let plain = ask(&case, &case.snapshot, &queries, &Budget::Tau(TAU)).unwrap();
    set_cold(&case, |_| true);
    for threads in [1, 2, 5] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let cold = pool.install(|| ask(&case, &case.reopened(), &queries, &from_disk(u64::MAX))).unwrap();
        assert!(said(&cold) == said(&plain) && cold.report.disk.unwrap().bytes > 0, "{threads} threads");
    }
    // Each of them meets what is damaged, whoever waits meanwhile.
    let files = files(&case);
    damage(&case, &pages(&case), &files);
    set_cold(&case, |_| true);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
    let failed = pool.install(|| ask(&case, &case.reopened(), &queries, &from_disk(u64::MAX)));
    assert!(failed.unwrap_err().to_string().contains("checksum"));
}

#[test]
fn a_cap_of_nothing_reads_no_cold_page_and_says_what_it_may_be_off_by() {
    for form in RowForm::ALL {
        let case = case(form);
        let files = files(&case);
        for seed in 1..4 {
            let queries = queries(seed, 1, &case.model);
            let exact = ask(&case, &case.snapshot, &queries, &Budget::Exact).unwrap();
            let plain = ask(&case, &case.snapshot, &queries, &Budget::Tau(TAU)).unwrap();
            set_cold(&case, |_| true);
            let answer = ask(&case, &case.reopened(), &queries, &from_disk(0)).unwrap();
            let report = &answer.report;
            assert_eq!(report.disk.unwrap().bytes, 0, "{form}");
            let traffic = report.traffic;
            assert_eq!(traffic.keys + traffic.values + traffic.key_codes + traffic.value_codes, 0);
            assert!(report.capped.iter().all(|&capped| capped) && report.taus == plain.report.taus);
            assert!(report.bound.iter().all(Option::is_none), "nothing was audited that was read so");
            // Sketches and summaries are there. What is not read counts as not read.
            let found = mean(errors(&case, &answer, &exact));
            let predicted =
                |answer: &Answer| mean(answer.report.predicted_error.iter().map(|&error| f64::from(error)));
            assert!(found < 0.5 && found > mean(errors(&case, &plain, &exact)), "{form}: {found}");
            assert!(predicted(&answer) > 2.0 * predicted(&plain), "{form}");
            assert!(predicted(&answer) > found / 3.0, "{form}: {found}, predicted {}", predicted(&answer));

            // What was not read may hold anything.
            damage(&case, &pages(&case), &files);
            set_cold(&case, |_| true);
            let damaged = ask(&case, &case.reopened(), &queries, &from_disk(0)).unwrap();
            assert!(said(&damaged) == said(&answer), "{form}");
            assert!(ask(&case, &case.reopened(), &queries, &from_disk(u64::MAX)).is_err(), "{form}");
            damage(&case, &BTreeSet::new(), &files);
        }
    }
}

#[test]
fn a_cap_is_kept_page_by_page() {
    for form in RowForm::ALL {
        let case = case(form);
        let all = pages(&case);
        let is_cold = |_| true;
        for (seed, positions) in [(11, 1), (12, 2)] {
            let queries = queries(seed, positions, &case.model);
            set_cold(&case, is_cold);
            let ask = |snapshot: &Snapshot, bytes: u64| {
                ask_summarised(&case, snapshot, (&queries, positions), bytes)
            };
            let whole = ask(&case.reopened(), u64::MAX).unwrap().report.disk.unwrap().bytes;
            assert!(whole > 12 * PAGE, "{form}: {whole}");
            let mut last = 0;
            for cap in [PAGE - 1, whole / 4 + 17, whole] {
                set_cold(&case, is_cold);
                let report = ask(&case.reopened(), cap).unwrap().report;
                let disk = report.disk.unwrap();
                let touched = touched(&case, &all, is_cold, |snapshot| ask(snapshot, cap));
                assert_eq!(disk.bytes, touched.len() as u64 * PAGE, "{form} at {cap} of {whole}");
                assert!(disk.bytes <= cap && !disk.is_exceeded() && disk.bytes_max == cap, "{form}");
                assert!(disk.bytes >= last, "{form}: {} at {cap}", disk.bytes);
                last = disk.bytes;
            }
            // A page that several positions want counts with each.
            assert!(last * positions as u64 > whole / 2, "{form}: {last} of {whole}");
        }
    }
}

#[test]
fn keys_leave_their_part_of_the_pages_to_the_values_however_often_they_are_chosen() {
    let case = case(RowForm::Full);
    let (all, is_cold) = (pages(&case), |_| true);
    let of_keys: BTreeSet<Page> = all.iter().copied().filter(|&page| holds_keys(&case, page)).collect();
    let queries = queries(13, 1, &case.model);
    set_cold(&case, is_cold);
    // Low enough that keys which were read as codes are then wanted in full.
    let ask = |snapshot: &Snapshot, bytes: u64| {
        let segments = &snapshot.segments(0).unwrap()[..case.summarised(1)];
        Ok(case.try_attend_over(segments, &queries, &FixedTau::new(TAU / 8.0).from_disk(bytes))?)
    };
    let whole = ask(&case.reopened(), u64::MAX).unwrap();
    let traffic = whole.report.traffic;
    assert!(traffic.keys > 0 && traffic.key_codes > 0, "{traffic:?}");
    for share in [2, 3, 5] {
        let cap = whole.report.disk.unwrap().bytes / share;
        let pages_max = cap / PAGE;
        let touched = touched(&case, &of_keys, is_cold, |snapshot| ask(snapshot, cap));
        // 65 % of what each of the heads may fetch, rounded up.
        let heads = case.model.kv_heads as u64;
        let most: u64 = (0..heads)
            .map(|head| pages_max / heads + u64::from(head < pages_max % heads))
            .map(|pages| (pages * 65).div_ceil(100))
            .sum();
        let found = touched.len() as u64;
        assert!(found <= most && 2 * found > most, "{found} of {most} pages of {pages_max}");
    }
}

#[test]
fn rows_in_memory_are_read_whatever_the_cap() {
    for form in RowForm::ALL {
        let case = case(form);
        let all = pages(&case);
        // Every other page of the files.
        let is_cold = |(number, page): Page| (page + number).is_multiple_of(2);
        let queries = queries(21, 1, &case.model);
        set_cold(&case, |_| true);
        let nothing = ask(&case, &case.reopened(), &queries, &from_disk(0)).unwrap();
        set_cold(&case, is_cold);
        let half = ask(&case, &case.reopened(), &queries, &from_disk(0)).unwrap();
        assert_eq!(half.report.disk.unwrap().bytes, 0);
        let read = touched(&case, &all, is_cold, |snapshot| ask(&case, snapshot, &queries, &from_disk(0)));
        assert!(!read.is_empty() && read.iter().all(|&page| !is_cold(page)), "{form}: {read:?}");
        let predicted =
            |answer: &Answer| mean(answer.report.predicted_error.iter().map(|&error| f64::from(error)));
        assert!(predicted(&half) < predicted(&nothing), "{form}");
    }
}

#[test]
fn rows_that_no_summary_stands_for_are_read_and_count() {
    let case = case(RowForm::Full);
    let all = pages(&case);
    // Queries that far apart: the newest segments reach into the window of the oldest.
    let queries = queries(31, 60, &case.model);
    set_cold(&case, |_| true);
    let answer = ask(&case, &case.reopened(), &queries, &from_disk(PAGE)).unwrap();
    let disk = answer.report.disk.unwrap();
    let plain = case.summarised(60);
    assert!(plain < case.segments().len());
    let touched = touched(&case, &all, |_| true, |s| ask(&case, s, &queries, &from_disk(PAGE)));
    assert_eq!(disk.bytes, touched.len() as u64 * PAGE);
    assert!(disk.is_exceeded() && touched.iter().all(|(number, _)| *number >= plain), "{disk:?}");
    assert!(answer.report.capped.iter().all(|&capped| capped));
    let exact = ask(&case, &case.snapshot, &queries, &Budget::Exact).unwrap();
    assert!(mean(errors(&case, &answer, &exact)) < 0.5);
}

/// Reads every row after the first attempt.
struct InVain(FixedTau);

impl TauRule for InVain {
    fn start(&self, position: usize, kv_head: usize) -> Option<f32> {
        self.0.start(position, kv_head)
    }

    fn next(&self, _: &Attempt<'_>) -> Next {
        Next::Exact
    }

    fn disk_bytes_max(&self) -> Option<u64> {
        self.0.disk_bytes_max()
    }
}

#[test]
fn an_answer_that_reads_every_row_says_that_the_cap_was_exceeded() {
    for form in RowForm::ALL {
        let case = case(form);
        let queries = queries(41, 1, &case.model);
        let expected: BTreeSet<Page> = {
            let segments = case.segments();
            let codes = |number: usize| segments[number].row_form() == RowForm::Codes;
            let kinds = |number: usize| if codes(number) { &COUNTED[..2] } else { &COUNTED[2..6] };
            let columns = segments.iter().enumerate().flat_map(|(number, segment)| {
                let columns =
                    segment.segment().columns().filter(move |info| kinds(number).contains(&info.kind));
                columns.map(move |info| (number, info.offset, info.offset + info.len))
            });
            let pages = columns.flat_map(|(number, start, end)| {
                (start / PAGE..end.div_ceil(PAGE)).map(move |page| (number, page as usize))
            });
            pages.collect()
        };
        set_cold(&case, |_| true);
        for rule in [FixedTau::new(0.0), FixedTau::new(1e3)] {
            let snapshot = case.reopened();
            let answer =
                case.attend_over(&snapshot.segments(0).unwrap(), &queries, &InVain(rule.from_disk(5 * PAGE)));
            let disk = answer.report.disk.unwrap();
            assert_eq!((disk.bytes, disk.bytes_max), (expected.len() as u64 * PAGE, 5 * PAGE), "{form}");
            assert!(disk.is_exceeded() && answer.report.taus.iter().all(|&tau| tau == 0.0));
        }
    }
}

#[test]
fn a_plan_looks_at_pages_and_fetches_none() {
    let case = case(RowForm::Full);
    let queries = queries(51, 1, &case.model);
    let view = query_view(&queries, &case.model);
    set_cold(&case, |_| true);
    let snapshot = case.reopened();
    let whole = snapshot.explain(0, &view, &from_disk(u64::MAX)).unwrap();
    let plain = snapshot.explain(0, &view, &Budget::Tau(TAU)).unwrap();
    assert_eq!((&whole.heads, plain.disk), (&plain.heads, None));
    let most = whole.disk.unwrap().bytes;
    let half = snapshot.explain(0, &view, &from_disk(most / 2)).unwrap();
    let disk = half.disk.unwrap();
    assert!(disk.bytes <= most / 2 && disk.bytes > most / 4, "{disk:?} of {most}");
    assert!(half.traffic().bytes() < plain.traffic().bytes());
    assert!(half.to_string().contains(&format!("bytes from disk {} of {}", disk.bytes, most / 2)), "{half}");
    assert!(!plain.to_string().contains("from disk"));
}

#[test]
fn capped_calls_are_not_audited_and_have_no_bound() {
    let case = case(RowForm::Full);
    let mut options = StoreOptions::default();
    options.audits = AuditOptions::inline(1.0);
    let store = Store::on_backend(Arc::clone(&case.backend), options).unwrap();
    let mut context = store.context("case", &case.model).unwrap();
    for seed in 0..3 {
        let asked = queries(seed, 1, &case.model);
        context.attend(0, &query_view(&asked, &case.model), &from_disk(0)).unwrap();
    }
    assert!(context.calibration(0).unwrap().is_empty());
    for seed in 100..160 {
        let asked = queries(seed, 1, &case.model);
        context.audit(0, &query_view(&asked, &case.model)).unwrap();
    }
    let asked = queries(61, 1, &case.model);
    let view = query_view(&asked, &case.model);
    let plain = context.attend(0, &view, &Budget::Tau(TAU)).unwrap().report.bound;
    assert!(plain.iter().all(Option::is_some));
    assert_eq!(context.attend(0, &view, &from_disk(0)).unwrap().report.bound, plain, "all is in memory");
    set_cold(&case, |_| true);
    assert!(context.attend(0, &view, &from_disk(0)).unwrap().report.bound.iter().all(Option::is_none));
}

/// Which counted pages of a store's files are in memory, as the system says.
fn resident(case: &Case, snapshot: &Snapshot) -> BTreeSet<Page> {
    let segments = snapshot.segments(0).unwrap();
    let is_there = |&(number, page): &Page| segments[number].segment().residency(page..page + 1).unwrap()[0];
    pages(case).into_iter().filter(is_there).collect()
}

/// Asks the system to drop the pages of a context's segments, which nobody may have mapped.
fn drop_pages(directory: &std::path::Path, case: &Case) {
    for segment in case.segments() {
        let file = std::fs::File::open(directory.join(segment.segment().path())).unwrap();
        file.sync_all().unwrap();
        #[cfg(target_os = "linux")]
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    }
}

#[test]
fn files_on_disk_are_read_as_far_as_the_cap_goes() {
    let case = case(RowForm::Full);
    let directory = tempfile::tempdir().unwrap();
    let disk: Arc<dyn Backend> = Arc::new(FileBackend::new(directory.path()));
    for path in case.memory.files() {
        let at = directory.path().join(&path);
        std::fs::create_dir_all(at.parent().unwrap()).unwrap();
        std::fs::write(at, case.memory.contents(&path).unwrap()).unwrap();
    }
    let open = || store_on(&disk).snapshot("case").unwrap();
    let queries = queries(81, 2, &case.model);
    let plain = ask(&case, &open(), &queries, &Budget::Tau(TAU)).unwrap();
    // All has just been written, or read.
    let warm = ask(&case, &open(), &queries, &from_disk(u64::MAX)).unwrap();
    assert!(said(&warm) == said(&plain));
    drop_pages(directory.path(), &case);
    let snapshot = open();
    // Mapping a file brings no page of rows in.
    if !resident(&case, &snapshot).is_empty() {
        println!("pages cannot be dropped here: only what is in memory was tested");
        return;
    }
    // Without a cap, whoever finds that a page has to come leaves its thread to others.
    for threads in [1, 2] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let snapshot = open();
        let cold = pool.install(|| ask(&case, &snapshot, &queries, &Budget::Tau(TAU))).unwrap();
        assert!(said(&cold) == said(&plain) && !resident(&case, &snapshot).is_empty(), "{threads} threads");
        drop(snapshot);
        drop_pages(directory.path(), &case);
    }
    let snapshot = open();
    let nothing = ask(&case, &snapshot, &queries, &from_disk(0)).unwrap();
    assert_eq!(nothing.report.disk.unwrap().bytes, 0);
    assert!(nothing.report.capped.iter().all(|&capped| capped));
    assert_eq!(resident(&case, &snapshot), BTreeSet::new(), "nothing of the rows has come");
    let some = ask(&case, &snapshot, &queries, &from_disk(12 * PAGE)).unwrap();
    let fetched = some.report.disk.unwrap().bytes;
    assert!(fetched > 0 && fetched <= 12 * PAGE);
    assert_eq!(resident(&case, &snapshot).len() as u64 * PAGE, fetched, "what was counted, and no more");
    // What has come is there for the next call, which may fetch more.
    let more = ask(&case, &snapshot, &queries, &from_disk(12 * PAGE)).unwrap();
    assert_eq!(resident(&case, &snapshot).len() as u64 * PAGE, fetched + more.report.disk.unwrap().bytes);
    let predicted =
        |answer: &Answer| mean(answer.report.predicted_error.iter().map(|&error| f64::from(error)));
    assert!(predicted(&more) < predicted(&some) && predicted(&some) < predicted(&nothing));
    let all = ask(&case, &snapshot, &queries, &from_disk(u64::MAX)).unwrap();
    assert!(said(&all) == said(&plain));
}
