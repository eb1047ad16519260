//! The committed PTX belongs to the sources beside it.

use longwave_gpu::PTX;
use sha2::{Digest, Sha256};
use std::path::Path;

/// Digest of a kernel's source and of all headers, as build_ptx.py takes it.
fn source_digest(name: &str) -> String {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../kernels/cuda");
    let mut headers: Vec<_> = std::fs::read_dir(&directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "cuh"))
        .collect();
    headers.sort();
    assert!(headers.len() >= 2, "{headers:?}");
    let mut digest = Sha256::new();
    for path in [directory.join(format!("{name}.cu"))].iter().chain(&headers) {
        digest.update(std::fs::read(path).unwrap());
    }
    digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn no_ptx_is_older_than_its_sources() {
    for (name, ptx) in PTX {
        let first = ptx.lines().next().unwrap();
        let expected = format!("// sources sha256 {}", source_digest(name));
        assert_eq!(first, expected, "{name}.ptx is stale: run cargo xtask ptx");
        assert!(ptx.contains(".target sm_80") && ptx.contains(".version 8.4"), "{name}");
    }
}

#[test]
fn every_source_has_its_ptx() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../kernels/cuda");
    let mut sources: Vec<String> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter_map(|name| name.strip_suffix(".cu").map(str::to_owned))
        .collect();
    sources.sort();
    assert_eq!(sources, PTX.map(|(name, _)| name.to_owned()));
}

/// Seen with `--show-output`. `cargo xtask ptx --check` compares it with what the assembler says.
#[test]
fn no_kernel_spills() {
    let report = include_str!("../../../kernels/cuda/ptx/report.txt");
    println!("{report}");
    let mut lines = report.lines();
    let digest = Sha256::digest(PTX.map(|(_, ptx)| ptx).concat());
    let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(lines.next(), Some(&*format!("ptx sha256 {digest}")), "of other PTX: run cargo xtask ptx");
    let mut reported = Vec::new();
    for line in lines.filter(|line| line.contains(" B sp")) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [base, lanes, group, _, _, spills, _, _, _, _, more_spills, _, _] = words[..] else {
            panic!("{line}")
        };
        assert_eq!((spills, more_spills), ("0", "0"), "{line}");
        let part =
            |mark: &str, number: &str| if number == "-" { String::new() } else { format!("_{mark}{number}") };
        reported.push(format!("{base}{}{}", part("l", lanes), part("g", group)));
    }
    let entries = PTX.iter().flat_map(|(_, ptx)| ptx.split(".entry ").skip(1));
    let mut kernels: Vec<_> =
        entries.filter_map(|rest| rest.split_once('(')).map(|(name, _)| name.to_owned()).collect();
    reported.sort();
    kernels.sort();
    assert_eq!(reported, kernels);
}
