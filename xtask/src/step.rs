//! A sequence of named steps, all of them run, with a table of how they went.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::Result;

/// One check. Its work returns a few words for the table, as how much was checked.
pub struct Step<'a> {
    pub name: &'static str,
    /// What to type to run this step alone.
    pub rerun: String,
    pub work: Box<dyn FnOnce() -> Result<String> + 'a>,
}

/// How a step went.
#[derive(Debug)]
pub struct StepReport {
    pub name: &'static str,
    pub rerun: String,
    pub duration: Duration,
    /// The words of the work, or its error.
    pub outcome: Result<String, String>,
}

/// Runs all steps in order. A failure does not stop those after it: one run shows all that is wrong.
pub fn run_all(steps: Vec<Step<'_>>) -> Vec<StepReport> {
    let step_count = steps.len();
    let run = |(index, step): (usize, Step<'_>)| {
        eprintln!("\n=== {} ({} of {step_count}): {}", step.name, index + 1, step.rerun);
        let start = Instant::now();
        let outcome = (step.work)().map_err(|error| format!("{error:#}"));
        let duration = start.elapsed();
        match &outcome {
            Ok(detail) => eprintln!("=== {} ok in {} {detail}", step.name, shown(duration)),
            Err(error) => eprintln!("=== {} FAILED in {}: {error}", step.name, shown(duration)),
        }
        StepReport { name: step.name, rerun: step.rerun, duration, outcome }
    };
    steps.into_iter().enumerate().map(run).collect()
}

/// The table, with the command to run again below each step that failed.
pub fn summary(reports: &[StepReport]) -> String {
    let mut table = String::new();
    let mut total = Duration::ZERO;
    for report in reports {
        total += report.duration;
        let (result, detail) = match &report.outcome {
            Ok(detail) => ("ok", detail.clone()),
            Err(error) => {
                // In full it stands above, where the step ended.
                let first = shortened(error.lines().next().unwrap_or_default());
                ("FAILED", format!("{first}\n{:>35}{}", "run again: ", report.rerun))
            }
        };
        let line = format!("{:<10}  {result:<6}  {:>10}  {detail}", report.name, shown(report.duration));
        let _ = writeln!(table, "{}", line.trim_end());
    }
    let failed = reports.iter().filter(|report| report.outcome.is_err()).count();
    let result = if failed == 0 { "ok" } else { "FAILED" };
    let _ = write!(
        table,
        "{:<10}  {result:<6}  {:>10}  {failed} of {} failed",
        "total",
        shown(total),
        reports.len()
    );
    table
}

/// At most `LENGTH_MAX` characters of `line`.
fn shortened(line: &str) -> String {
    const LENGTH_MAX: usize = 80;
    match line.char_indices().nth(LENGTH_MAX) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line.to_owned(),
    }
}

/// Minutes and seconds.
pub fn shown(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    // Compared after rounding, so that 59.96 s does not print as 60.0 s.
    if (seconds * 10.0).round() < 600.0 {
        format!("{seconds:.1} s")
    } else {
        let seconds = seconds.round() as u64;
        format!("{} min {:02} s", seconds / 60, seconds % 60)
    }
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn a_failure_stops_nothing_and_is_reported() {
        let step = |name, outcome: Result<String>| Step {
            name,
            rerun: format!("cargo {name}"),
            work: Box::new(move || outcome),
        };
        let cause = anyhow!("the cause\nmore of it").context("it broke");
        let reports = run_all(vec![
            step("one", Ok("12 files".into())),
            step("two", Err(cause)),
            step("three", Ok(String::new())),
        ]);
        assert_eq!(
            reports.iter().map(|report| report.outcome.is_ok()).collect::<Vec<_>>(),
            [true, false, true]
        );
        let table = summary(&reports);
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines.len(), 5, "{table}");
        assert!(lines[0].starts_with("one         ok") && lines[0].ends_with("12 files"), "{table}");
        assert!(
            lines[1].starts_with("two         FAILED") && lines[1].ends_with("it broke: the cause"),
            "{table}"
        );
        assert!(lines[2].ends_with("run again: cargo two"), "{table}");
        assert!(lines[4].starts_with("total       FAILED") && lines[4].ends_with("1 of 3 failed"), "{table}");
    }

    #[test]
    fn long_errors_are_cut_between_characters() {
        let cut = "é".repeat(80);
        assert_eq!(shortened(&cut), cut);
        assert_eq!(shortened(&format!("{cut}é")), format!("{cut}..."));
    }

    #[test]
    fn durations_are_shown_in_minutes_from_one_on() {
        let shown = |milliseconds| super::shown(Duration::from_millis(milliseconds));
        assert_eq!(shown(1_240), "1.2 s");
        assert_eq!(shown(59_949), "59.9 s");
        assert_eq!(shown(59_960), "1 min 00 s");
        assert_eq!(shown(725_400), "12 min 05 s");
    }
}
