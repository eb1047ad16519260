//! Writes what each target reads in ordinary life below a directory, for a fuzzer to start from: `seeds DIRECTORY`.

use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    let Some(directory) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("seeds: name a directory");
        return ExitCode::FAILURE;
    };
    for target in longwave_fuzz::TARGETS {
        let place = directory.join(target.name);
        let seeds = (target.seeds)();
        let written = std::fs::create_dir_all(&place).and_then(|()| {
            seeds
                .iter()
                .enumerate()
                .try_for_each(|(at, seed)| std::fs::write(place.join(format!("seed-{at}")), seed))
        });
        if let Err(error) = written {
            eprintln!("seeds: {}: {error}", place.display());
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
