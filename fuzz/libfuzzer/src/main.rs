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

/// Everything happens in one thread of a pool: handing pieces of a few microseconds over to others would take most of the time.
fn pool() -> &'static rayon::ThreadPool {
    static POOL: OnceLock<rayon::ThreadPool> = OnceLock::new();
    POOL.get_or_init(|| {
        let built = rayon::ThreadPoolBuilder::new().num_threads(1).build();
        built.unwrap_or_else(|error| panic!("no thread to feed in: {error}"))
    })
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pool().install(|| (chosen().run)(bytes)));
