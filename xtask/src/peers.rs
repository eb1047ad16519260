//! `cargo xtask bench peers`: what others need for the same attention calls, in turn with ours.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::bars::{self, Bar};
use crate::command::CommandLine;
use crate::workspace::Workspace;

/// What the figures were taken with.
const REQUIREMENTS: [&str; 3] = ["torch==2.15.0", "faiss-cpu==1.15.1", "numpy==2.4.6"];

#[derive(Args, Debug, PartialEq)]
pub struct PeersOptions {
    /// A Python that has PyTorch, faiss and NumPy already; otherwise they are installed in a virtual environment
    #[arg(long, value_name = "FILE")]
    pub python: Option<PathBuf>,
    /// Tokens of the context
    #[arg(long, default_value_t = 131_072, value_parser = clap::value_parser!(u32).range(1..))]
    pub tokens: u32,
    /// Threads of both sides
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    pub threads: u32,
    /// Thresholds of `longwave`, separated by commas. By default those whose errors on real text of 32K tokens are 0.05
    /// and those of `retroinfer`
    #[arg(long, default_value = "0.0045,0.038")]
    pub tau: String,
    /// Timed calls of each in a round
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..))]
    pub queries: u32,
    /// Rounds: one run of ours and one of theirs each
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,
    /// Also draw the times to this file
    #[arg(long, value_name = "FILE.svg")]
    pub plot: Option<PathBuf>,
}

/// A line of `longwave bench attend --json`.
#[derive(Clone, Debug, Deserialize)]
struct Ours {
    method: String,
    tau: Option<f64>,
    ms_p50: f64,
    read_gb_per_s: f64,
}

/// A line of `peers.py`.
#[derive(Clone, Debug, Deserialize)]
struct Theirs {
    peer: String,
    ms_p50: f64,
    error_mean: f64,
    read_gb_per_s: f64,
}

/// What one run of each side printed.
struct Round {
    ours: Vec<Ours>,
    theirs: Vec<Theirs>,
}

/// Sets up what is missing, runs both sides in turn, and prints the ratios.
///
/// # Errors
/// If any of this fails; the message names the command.
pub fn run(workspace: &Workspace, options: &PeersOptions) -> Result<()> {
    let data = workspace.data_directory();
    fs::create_dir_all(&data).with_context(|| format!("cannot make {}", data.display()))?;
    let python = match &options.python {
        Some(python) => python.clone(),
        None => set_up(workspace, &data.join("peers"))?,
    };
    let build = CommandLine::cargo(&["build", "--release", "--workspace", "--bin", "longwave"]);
    eprintln!("\n$ {build}");
    build.run(&workspace.root)?;
    let rows = data.join("peers.safetensors");
    let ours = ours(&workspace.release_binary("longwave"), &rows, options);
    let theirs = theirs(&python, &rows, options);
    let mut rounds = Vec::new();
    for _ in 0..options.rounds {
        rounds.push(Round { ours: lines(workspace, &ours)?, theirs: lines(workspace, &theirs)? });
    }
    fs::remove_file(&rows).with_context(|| format!("cannot remove {}", rows.display()))?;
    print!("{}", table(&rounds)?);
    if let Some(path) = &options.plot {
        let title = format!("One attention call over {} tokens, {} threads", options.tokens, options.threads);
        fs::write(path, bars::draw(&title, &times(&rounds)))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// The Python of a virtual environment with everything in it, made if it is not there.
fn set_up(workspace: &Workspace, directory: &Path) -> Result<PathBuf> {
    let python = directory.join("bin/python");
    // Written last, so that an installation that was cut short is gone on with.
    let complete = directory.join("complete");
    let wanted = REQUIREMENTS.join("\n");
    if fs::read_to_string(&complete).is_ok_and(|found| found == wanted) {
        return Ok(python);
    }
    eprintln!("installing {} into {} (PyTorch is large)", REQUIREMENTS.join(", "), directory.display());
    let steps = [
        CommandLine::new("python3").args(&["-m", "venv"]).arg(directory),
        CommandLine::new(&python).args(&["-m", "pip", "install", "--no-input"]).args(&REQUIREMENTS),
    ];
    for step in steps {
        eprintln!("\n$ {step}");
        step.run(&workspace.root).with_context(|| {
            "cannot set up PyTorch and faiss: check the network (pip reads HTTPS_PROXY, PIP_INDEX_URL and \
             PIP_EXTRA_INDEX_URL), or pass --python with one that has them"
        })?;
    }
    fs::write(&complete, wanted).with_context(|| format!("cannot write {}", complete.display()))?;
    Ok(python)
}

fn ours(binary: &Path, rows: &Path, options: &PeersOptions) -> CommandLine {
    CommandLine::new(binary)
        .args(&["bench", "attend", "--json", "--method", "exact", "--method", "longwave", "--tau"])
        .arg(&options.tau)
        .args(&["--tokens", &options.tokens.to_string(), "--threads", &options.threads.to_string()])
        // The planner would put reading every row in the ladder's place where that is sooner.
        .args(&["--planner", "false", "--queries", &options.queries.to_string(), "--export"])
        .arg(rows)
}

fn theirs(python: &Path, rows: &Path, options: &PeersOptions) -> CommandLine {
    CommandLine::new(python)
        .arg("xtask/peers.py")
        .arg(rows)
        .args(&["--threads", &options.threads.to_string()])
}

/// Runs a command, whose lines are JSON objects.
fn lines<T: DeserializeOwned>(workspace: &Workspace, line: &CommandLine) -> Result<Vec<T>> {
    eprintln!("\n$ {line}");
    let mut texts = Vec::new();
    line.run_watched(&workspace.root, |text| texts.push(text.to_owned()))?;
    let parsed = texts.iter().map(|text| serde_json::from_str(text));
    parsed.collect::<Result<_, _>>().with_context(|| format!("unexpected output of {line}"))
}

/// A number of each round, rising.
fn over(rounds: &[Round], figure: &dyn Fn(&Round) -> f64) -> Vec<f64> {
    let mut figures: Vec<f64> = rounds.iter().map(figure).collect();
    figures.sort_by(f64::total_cmp);
    figures
}

fn median(figures: &[f64]) -> f64 {
    figures[figures.len() / 2]
}

/// The times of both sides, medians over the rounds, which have the same methods.
fn times(rounds: &[Round]) -> Vec<Bar> {
    let Some(Round { ours, theirs }) = rounds.first() else { return Vec::new() };
    let ours = ours.iter().enumerate().map(|(at, row)| {
        let ms = median(&over(rounds, &|round| round.ours[at].ms_p50));
        Bar { name: name(row), ms, ours: true }
    });
    let theirs = theirs.iter().enumerate().map(|(at, row)| {
        let ms = median(&over(rounds, &|round| round.theirs[at].ms_p50));
        Bar { name: row.peer.clone(), ms, ours: false }
    });
    ours.chain(theirs).collect()
}

/// Medians over the rounds, and the ratio of times of each of theirs to each of ours in the same round.
fn table(rounds: &[Round]) -> Result<String> {
    let Some(Round { ours, theirs }) = rounds.first() else { return Ok(String::new()) };
    let same =
        rounds.iter().all(|round| round.ours.len() == ours.len() && round.theirs.len() == theirs.len());
    ensure!(same, "the rounds do not have the same methods");
    let over = |figure: &dyn Fn(&Round) -> f64| over(rounds, figure);
    let mut text = format!("{:<44} {:>10} {:>10} {:>10}\n", "", "ms p50", "error", "read GB/s");
    for (at, row) in ours.iter().enumerate() {
        let (ms, read) = (over(&|round| round.ours[at].ms_p50), over(&|round| round.ours[at].read_gb_per_s));
        text += &format!("{:<44} {:>10.3} {:>10} {:>10.1}\n", name(row), median(&ms), "", median(&read));
    }
    for (at, row) in theirs.iter().enumerate() {
        let (ms, read) =
            (over(&|round| round.theirs[at].ms_p50), over(&|round| round.theirs[at].read_gb_per_s));
        let error = format!("{:.1e}", row.error_mean);
        text += &format!("{:<44} {:>10.3} {:>10} {:>10.1}\n", row.peer, median(&ms), error, median(&read));
    }
    text += "\ntimes as long as ours: median over the rounds (least, most)\n";
    for (their, row) in theirs.iter().enumerate() {
        for (our, compared) in ours.iter().enumerate() {
            let ratios = over(&|round| round.theirs[their].ms_p50 / round.ours[our].ms_p50);
            text += &format!(
                "{:<44} {:<18} {:>7.2}x ({:.2}, {:.2})\n",
                row.peer,
                name(compared),
                median(&ratios),
                ratios[0],
                ratios[ratios.len() - 1]
            );
        }
    }
    Ok(text)
}

fn name(row: &Ours) -> String {
    row.tau.map_or_else(|| row.method.clone(), |tau| format!("{} {tau}", row.method))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> PeersOptions {
        let tau = "0.0032,0.0016".into();
        PeersOptions { python: None, tokens: 4096, threads: 3, tau, queries: 5, rounds: 1, plot: None }
    }

    #[test]
    fn both_sides_get_the_same_rows_and_threads() {
        let rows = Path::new("/d/peers.safetensors");
        assert_eq!(
            ours(Path::new("/bin/longwave"), rows, &options()).to_string(),
            "/bin/longwave bench attend --json --method exact --method longwave --tau 0.0032,0.0016 --tokens 4096 \
             --threads 3 --planner false --queries 5 --export /d/peers.safetensors"
        );
        assert_eq!(
            theirs(Path::new("/v/python"), rows, &options()).to_string(),
            "/v/python xtask/peers.py /d/peers.safetensors --threads 3"
        );
    }

    #[test]
    fn ratios_are_of_the_same_round() {
        let round = |ours_ms: f64, theirs_ms: f64| {
            let ours = r#"{"method":"longwave","tau":0.002,"ms_p50":MS,"read_gb_per_s":30,"bytes":7}"#;
            let theirs = r#"{"peer":"torch","ms_p50":MS,"ms_p95":9,"error_mean":0.001,"read_gb_per_s":29}"#;
            let with = |text: &str, ms: f64| text.replace("MS", &ms.to_string());
            Round {
                ours: vec![serde_json::from_str(&with(ours, ours_ms)).unwrap()],
                theirs: vec![serde_json::from_str(&with(theirs, theirs_ms)).unwrap()],
            }
        };
        // The machine ran at half its speed in the second round.
        let text = table(&[round(1.0, 10.0), round(2.0, 24.0), round(1.0, 11.0)]).unwrap();
        assert!(text.contains("longwave 0.002") && text.contains("11.00x (10.00, 12.00)"), "{text}");
        let drawn = times(&[round(1.0, 10.0), round(2.0, 24.0), round(1.5, 11.0)]);
        let bar = |name: &str, ms, ours| Bar { name: name.into(), ms, ours };
        assert_eq!(drawn, [bar("longwave 0.002", 1.5, true), bar("torch", 11.0, false)]);
    }
}
