//! `cargo xtask gpu`: on a machine with a GPU, the tests of the device tier on the installed driver and timings, in one table.

use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::command::CommandLine;
use crate::step::{self, Step};
use crate::workspace::Workspace;

/// Exit code where there is no driver or device to run on, of `longwave-gpu-check` and of this task.
const NO_DEVICE: i32 = 3;

/// Opens the device, runs everything on it and prints the tables.
///
/// # Errors
/// If the program that opens the device does not build or fails. Steps that fail make a failing exit code; a machine without a
/// device makes one of its own.
pub fn run(workspace: &Workspace) -> Result<ExitCode> {
    let root = workspace.root.as_path();
    check("open").build().run(root)?;
    let (status, text) = check("open").line().output(root)?;
    match status.code() {
        Some(0) => eprintln!("{}", text.trim_end()),
        Some(NO_DEVICE) => {
            eprintln!("nothing was run: there is no device to run it on");
            return Ok(ExitCode::from(NO_DEVICE as u8));
        }
        _ => bail!("{status} from: {}", check("open").line()),
    }
    let mut timings = String::new();
    let mut steps: Vec<Step<'_>> = PARTS
        .iter()
        .map(|&(name, filters)| {
            let line = tests(filters);
            let rerun = line.to_string();
            Step { name, rerun, work: Box::new(move || line.run(root).map(|()| String::new())) }
        })
        .collect();
    let line = check("timings").line();
    let times = &mut timings;
    let work = move || {
        let (status, text) = line.output(root)?;
        if !status.success() {
            bail!("{status} from: {line}");
        }
        *times = text;
        Ok(String::new())
    };
    let rerun = check("timings").line().to_string();
    steps.push(Step { name: "timings", rerun, work: Box::new(work) });
    let reports = step::run_all(steps);
    println!("\n{}\n{}", timings.trim_end(), step::summary(&reports));
    let has_failed = reports.iter().any(|report| report.outcome.is_err());
    Ok(if has_failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Steps, and the modules of tests that each runs.
const PARTS: [(&str, &[&str]); 3] = [
    ("kernels", &["attend::", "probe::", "ladder::", "zone::", "ptx::"]),
    ("calls", &["split::", "longwave::"]),
    ("constants", &["check::"]),
];

/// Tests on the installed driver. Those of modules named `emulated` need a device that does as it is told.
fn tests(filters: &[&str]) -> CommandLine {
    let line = CommandLine::cargo(&["test", "--package", "longwave-gpu", "--test", "device", "--"]);
    line.args(filters).args(&["--skip", "emulated::"]).env("LONGWAVE_INSTALLED_DRIVER", "1")
}

/// The program that opens the device and times the kernels.
struct Check(&'static str);

fn check(what: &'static str) -> Check {
    Check(what)
}

const PROGRAM: [&str; 5] = ["--release", "--package", "longwave-gpu", "--bin", "longwave-gpu-check"];

impl Check {
    fn build(&self) -> CommandLine {
        CommandLine::cargo(&["build"]).args(&PROGRAM)
    }

    fn line(&self) -> CommandLine {
        CommandLine::cargo(&["run", "--quiet"]).args(&PROGRAM).args(&["--", self.0])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_run_on_the_installed_driver_without_those_that_need_another() {
        let line = super::tests(&["split::"]).to_string();
        let expected = "LONGWAVE_INSTALLED_DRIVER=1 cargo test --package longwave-gpu --test device -- split:: --skip emulated::";
        assert_eq!(line, expected);
    }

    #[test]
    fn every_module_of_the_tests_is_in_a_part() {
        let main = Workspace::locate().unwrap().root.join("gpu/tests/device/main.rs");
        let text = std::fs::read_to_string(main).unwrap();
        let modules = text.lines().filter_map(|line| line.strip_prefix("mod ")?.strip_suffix(';'));
        let is_in_a_part = |module: &str| {
            PARTS
                .iter()
                .any(|(_, filters)| filters.iter().any(|filter| filter.trim_end_matches("::") == module))
        };
        let left: Vec<&str> = modules.filter(|module| !is_in_a_part(module)).collect();
        assert_eq!(left, ["data", "emulated", "layers"]);
    }
}
