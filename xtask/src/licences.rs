//! Licences of all dependencies, on whatever platform they are used, against a list of those that may be used.

use std::path::Path;

use anyhow::{Result, bail};
use spdx::{Expression, Licensee, ParseMode};

use crate::workspace::{Metadata, Package};

/// What may be used, and why. Everything here can be linked into a program of any licence.
const ALLOWED: &[(&str, &str)] = &[
    ("Apache-2.0", "a licence of Longwave itself"),
    ("MIT", "a licence of Longwave itself"),
    ("BSD-2-Clause", "asks for its notice, as MIT does"),
    ("BSL-1.0", "asks for its notice in source only"),
    ("ISC", "asks for its notice, as MIT does"),
    ("Unicode-3.0", "tables of the Unicode character database; asks for its notice"),
    ("Zlib", "asks for no notice in binaries"),
];

/// Checks every package in the dependency graph of the workspace.
///
/// # Errors
/// One line for every package whose licence is missing, unreadable or not allowed.
pub fn run(root: &Path) -> Result<String> {
    let packages = Metadata::read(root, &[])?.packages;
    let faults: Vec<String> = packages.iter().filter_map(|package| fault(package, &allowed())).collect();
    if !faults.is_empty() {
        bail!("{} of {} packages:\n{}", faults.len(), packages.len(), faults.join("\n"));
    }
    Ok(format!("{} packages", packages.len()))
}

fn allowed() -> Vec<Licensee> {
    ALLOWED
        .iter()
        .map(|(name, _)| Licensee::parse(name).unwrap_or_else(|error| panic!("{name} in ALLOWED: {error}")))
        .collect()
}

/// What is wrong with the licence of `package`, if anything.
fn fault(package: &Package, allowed: &[Licensee]) -> Option<String> {
    let named = format!("{} {}", package.name, package.version);
    let Some(text) = &package.license else {
        return Some(format!("{named}: its manifest has no licence expression"));
    };
    // Lax, as crates.io is: older packages write `MIT/Apache-2.0`.
    let expression = match Expression::parse_mode(text, ParseMode::LAX) {
        Ok(expression) => expression,
        Err(error) => return Some(format!("{named}: `{text}` is no licence expression: {}", error.reason)),
    };
    let is_allowed =
        |required: &spdx::LicenseReq| allowed.iter().any(|licensee| licensee.satisfies(required));
    if expression.evaluate(is_allowed) {
        return None;
    }
    Some(format!("{named}: `{text}` is not satisfied by the licences allowed in xtask/src/licences.rs"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault_of(license: Option<&str>) -> Option<String> {
        let license = license.map(str::to_owned);
        fault(&Package { name: "some-crate".into(), version: "1.2.3".into(), license }, &allowed())
    }

    #[test]
    fn what_the_list_satisfies_passes() {
        for license in [
            "MIT",
            "MIT OR Apache-2.0",
            "MIT/Apache-2.0",
            "(MIT OR Apache-2.0) AND Unicode-3.0",
            "GPL-3.0-only OR Zlib",
            "Apache-2.0 WITH LLVM-exception OR MIT",
        ] {
            assert_eq!(fault_of(Some(license)), None, "{license}");
        }
    }

    #[test]
    fn what_it_does_not_satisfy_fails_with_the_package() {
        for license in [
            "GPL-3.0-only",
            "MIT AND GPL-3.0-only",
            "MPL-2.0",
            "(MIT OR Apache-2.0) AND OpenSSL",
            "LGPL-2.1+",
        ] {
            let fault = fault_of(Some(license)).unwrap_or_else(|| panic!("{license} passed"));
            assert!(fault.contains("some-crate 1.2.3") && fault.contains(license), "{fault}");
        }
    }

    #[test]
    fn a_licence_that_is_missing_or_unreadable_fails() {
        assert!(fault_of(None).unwrap().contains("no licence expression"));
        assert!(fault_of(Some("free as in beer")).unwrap().contains("is no licence expression"));
        assert!(fault_of(Some("")).is_some());
    }
}
