//! Threads that work behind the back of calls.

/// How far they stand back where cores are short: about a tenth of the share of a thread of the calls.
#[cfg(target_os = "linux")]
const NICENESS: i32 = 10;

/// Has the calling thread stand back for the threads that answer calls. Where the system has no priority of a thread of its
/// own, or refuses, it goes on as it is.
pub(crate) fn stand_back() {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::setpriority_process(None, NICENESS) {
        tracing::debug!(%error, "a background thread keeps its priority");
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn one_thread_stands_back_and_no_other() {
        let own = || rustix::process::getpriority_process(None).unwrap();
        let before = own();
        let there = std::thread::spawn(move || {
            stand_back();
            own()
        });
        assert_eq!(there.join().unwrap(), before.max(NICENESS));
        assert_eq!(own(), before);
    }
}
