use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use patchdoor_cli::{Stop, say};

use crate::tie;

/// The first Ctrl-C, hangup or request to end ends the epoch, the second the program.
///
/// A signal that is ignored when the program starts stays ignored: that is what `nohup` and `trap '' HUP` ask for.
pub(crate) fn stop_on_interrupt() -> Result<Arc<AtomicBool>, Stop> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    on_signal(move || {
        if flag.swap(true, Ordering::Relaxed) {
            say("\ninterrupted again: the unfinished epoch is lost, earlier ones are saved");
            std::process::exit(130);
        }
        say("\ninterrupted: ending this epoch and saving it (once more to stop at once)");
    })?;
    tie::stop_at_a_line(&stop);
    Ok(stop)
}

/// Calls `handler` in a thread of its own whenever one of the signals comes that are not ignored.
#[cfg(unix)]
fn on_signal(mut handler: impl FnMut() + Send + 'static) -> Result<(), Stop> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    use signal_hook::iterator::Signals;

    let ignored = ignored_signals();
    let signals = [SIGINT, SIGTERM, SIGHUP].into_iter().filter(|signal| ignored >> (signal - 1) & 1 == 0);
    let mut signals = Signals::new(signals).map_err(Stop::failed)?;
    std::thread::spawn(move || signals.forever().for_each(|_| handler()));
    Ok(())
}

/// The signals that are ignored now, a bit each, the lowest for signal 1. Where the system does not tell, none.
#[cfg(unix)]
fn ignored_signals() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    ignored.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok()).unwrap_or(0)
}

#[cfg(not(unix))]
fn on_signal(handler: impl FnMut() + Send + 'static) -> Result<(), Stop> {
    ctrlc::set_handler(handler).map_err(Stop::failed)
}
