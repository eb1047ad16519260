//! libFuzzer's entry point. `LONGWAVE_FUZZ_TARGET` names the function that it feeds.

#![no_main]

use longwave_fuzz::Target;
use std::sync::OnceLock;

fn chosen() -> &'static Target {
    static CHOSEN: OnceLock<&'static Target> = OnceLock::new();
    CHOSEN.get_or_init(|| {
        let name = std::env::var("LONGWAVE_FUZZ_TARGET").unwrap_or_default();
        longwave_fuzz::target(&name).unwrap_or_else(|| panic!("there is no target {name:?}"))
    })
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| (chosen().run)(bytes));
