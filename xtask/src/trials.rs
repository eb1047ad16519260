//! The full figures of tests that `cargo xtask test` runs a sample of: crashes, damage, fuzzing, soaking, sanitizers.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::command::CommandLine;
use crate::workspace::Workspace;

/// What must be reached, at least.
const CRASH_POINTS_MIN: u64 = 10_000;
const KILLS_MIN: u64 = 200;
/// The one target that the sanitizers are built for here.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Crashes at every operation, kills, every flipped bit and every truncation; prints the sums.
///
/// # Errors
/// If a test fails, or fewer were tried than are asked for.
pub fn crash(root: &Path) -> Result<String> {
    let mut sums = Sums::default();
    let line = CommandLine::cargo(&["test", "--workspace", "--test", "engine", "--"])
        .args(&["faults::", "kill::a_killed", "damage::", "--nocapture"])
        .env("LONGWAVE_TESTS", "full");
    line.run_watched(root, |text| sums.add_line(text))?;
    let line = CommandLine::cargo(&["test", "--workspace", "--test", "storage", "--"])
        .args(&["crash::", "damage::", "--nocapture"])
        .env("LONGWAVE_TESTS", "full");
    line.run_watched(root, |text| sums.add_line(text))?;
    ensure!(sums.crash_points >= CRASH_POINTS_MIN, "{sums}: at least {CRASH_POINTS_MIN} crash points");
    ensure!(sums.kills >= KILLS_MIN, "{sums}: at least {KILLS_MIN} kills");
    ensure!(sums.damages > 0, "{sums}: no damage was tried");
    Ok(sums.to_string())
}

/// What the tests say they have tried, as `crash points: 41 (...)`.
#[derive(Debug, Default, PartialEq)]
struct Sums {
    crash_points: u64,
    kills: u64,
    damages: u64,
}

impl Sums {
    fn add_line(&mut self, line: &str) {
        let counted = |prefix: &str| -> u64 {
            let rest = line.strip_prefix(prefix).and_then(|rest| rest.split_whitespace().next());
            rest.and_then(|count| count.parse().ok()).unwrap_or_default()
        };
        self.crash_points += counted("crash points: ");
        self.kills += counted("process kills: ");
        self.damages += counted("damages: ");
    }
}

impl std::fmt::Display for Sums {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { crash_points, kills, damages } = self;
        write!(
            formatter,
            "{crash_points} crash points, {kills} process kills, {damages} damaged files, all met"
        )
    }
}

/// The nightly compiler's cargo. The sanitizers and libFuzzer's instrumentation are not in a stable one.
fn nightly(arguments: &[&str]) -> CommandLine {
    CommandLine::new("rustup").args(&["run", "nightly", "cargo"]).args(arguments)
}

/// Lets libFuzzer feed every target in turn for its part of `minutes`, from the kept corpus on.
///
/// # Errors
/// If a target does not return from an input as it should: libFuzzer leaves the input and says where.
pub fn fuzz(workspace: &Workspace, minutes: f64, only: Option<&str>) -> Result<String> {
    let root = workspace.root.as_path();
    let build = workspace.data_directory().join("fuzz");
    // Its manifest says which crates are instrumented.
    let line = nightly(&["build", "--release", "--manifest-path", "fuzz/libfuzzer/Cargo.toml"])
        .env("RUSTFLAGS", "--cfg fuzzing")
        .env("CARGO_TARGET_DIR", &build);
    line.run(root)?;
    let binary = build.join("release/longwave-libfuzzer");
    let kept = root.join("fuzz/corpus");
    let mut targets: Vec<String> = std::fs::read_dir(&kept)?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_>>()?;
    targets.retain(|name| only.is_none_or(|only| only == name));
    targets.sort();
    ensure!(!targets.is_empty(), "no such target: the targets are the directories of {}", kept.display());
    CommandLine::cargo(&["run", "--quiet", "--package", "longwave-fuzz", "--bin", "seeds", "--"])
        .arg(build.join("corpus"))
        .run(root)?;
    let each = Duration::from_secs_f64(minutes * 60.0 / targets.len() as f64);
    let mut total = 0;
    for target in &targets {
        let found = build.join("corpus").join(target);
        let executions = feed(&binary, root, target, [&found, &kept.join(target)], each)?;
        eprintln!("{target}: {executions} executions without a finding");
        total += executions;
    }
    Ok(format!("{total} executions over {} targets without a finding", targets.len()))
}

/// Runs one target; gives how often it was fed.
fn feed(binary: &Path, root: &Path, target: &str, corpora: [&PathBuf; 2], time: Duration) -> Result<u64> {
    let log = corpora[0].with_extension("log");
    let file = std::fs::File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    let status = std::process::Command::new(binary)
        .current_dir(corpora[0].parent().unwrap_or(root))
        .env("LONGWAVE_FUZZ_TARGET", target)
        .args(["-rss_limit_mb=4096", "-malloc_limit_mb=1024", "-timeout=20", "-print_final_stats=1"])
        .arg(format!("-max_total_time={}", time.as_secs().max(1)))
        .args(corpora)
        .stderr(file)
        .status()
        .with_context(|| format!("cannot start {}", binary.display()))?;
    let text = std::fs::read_to_string(&log)?;
    ensure!(status.success(), "{target}: {status}; {} says what was found", log.display());
    let counted = text.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
    counted.and_then(|count| count.trim().parse().ok()).with_context(|| format!("{target}: no count"))
}

/// Writers, readers and more at once, for so many minutes.
///
/// # Errors
/// If an answer was wrong, or memory, open files or the disk grew.
pub fn soak(root: &Path, minutes: f64) -> Result<String> {
    let mut said = String::new();
    let line = CommandLine::cargo(&["test", "--workspace", "--test", "engine", "--"])
        .args(&["soak::contexts", "--nocapture"])
        .env("LONGWAVE_SOAK_MINUTES", minutes.to_string());
    line.run_watched(root, |text| {
        if let Some(counts) = text.strip_prefix("soak: ") {
            said = counts.to_owned();
        }
    })?;
    ensure!(!said.is_empty(), "the soak did not say what it did");
    Ok(said)
}

/// The parts that have `unsafe`, and what runs on them, under the address sanitizer.
///
/// # Errors
/// If a test fails there.
pub fn sanitize(workspace: &Workspace) -> Result<String> {
    let build = workspace.data_directory().join("sanitized");
    let run = |arguments: &[&str]| {
        nightly(&["test", "--target", TARGET])
            .args(arguments)
            .env("RUSTFLAGS", "-Zsanitizer=address")
            .env("CARGO_TARGET_DIR", &build)
            .run(&workspace.root)
    };
    run(&["--package", "longwave-kernels", "--lib", "--tests"])?;
    run(&["--package", "longwave-storage", "--lib", "--tests", "--", "--skip", "damage::every_flipped"])?;
    run(&["--package", "longwave", "--lib", "--", "snapshot::"])?;
    let engine = ["exact::", "readers::", "fixtures::", "lifecycle::", "damage::damage_under"];
    run(&[&["--package", "longwave", "--test", "engine", "--"][..], &engine].concat())?;
    Ok("kernels, storage, snapshots and the engine on them: nothing found".to_owned())
}

/// What has `unsafe` under valgrind: kernels, mappings, published snapshots, and engine tests on top of them. It sees reads of
/// memory that was never written, which the sanitizer does not.
///
/// # Errors
/// If valgrind is not installed, or finds something, or a test fails.
pub fn valgrind(root: &Path) -> Result<String> {
    let asked = CommandLine::new("valgrind").arg("--version").output(root);
    let (_, version) =
        asked.context("valgrind is not installed: `apt-get install valgrind`, or the system's own way")?;
    let run = |arguments: &[&str]| {
        CommandLine::cargo(&["test"])
            .args(arguments)
            .env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER", "valgrind --quiet --error-exitcode=9")
            .run(root)
    };
    run(&["--package", "longwave-kernels", "--lib", "--tests"])?;
    run(&["--package", "longwave-storage", "--lib", "--tests", "--", "files::", "segment::", "mappings"])?;
    run(&["--package", "longwave", "--lib", "--", "snapshot::"])?;
    run(&["--package", "longwave", "--test", "engine", "--", "exact::", "readers::", "fixtures::"])?;
    Ok(format!("kernels, mappings, snapshots and the engine on them under {}: nothing found", version.trim()))
}

/// Every interleaving of a writer and a reader of the published snapshot, with loom.
///
/// # Errors
/// If one of them gives something else than whole snapshots in order.
pub fn loom(workspace: &Workspace) -> Result<String> {
    CommandLine::cargo(&["test", "--manifest-path", "interleavings/Cargo.toml"])
        .env("RUSTFLAGS", "--cfg crossbeam_loom")
        .env("CARGO_TARGET_DIR", workspace.data_directory().join("loom"))
        .run(&workspace.root)?;
    Ok("all interleavings of the published snapshot are sound".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_tests_say_adds_up() {
        let mut sums = Sums::default();
        for line in [
            "crash points: 41 (death at each of 9 operations)",
            "test faults::one ... ok",
            "crash points: 2 (more)",
            "process kills: 200 (3 inside a commit)",
            "damages: 7 (flipped bits)",
            "crash points: many",
        ] {
            sums.add_line(line);
        }
        assert_eq!(sums, Sums { crash_points: 43, kills: 200, damages: 7 });
    }
}
