//! A study's children end with it, even if it is killed and can say nothing.

use std::io::BufRead;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

/// Whether this process watches its standard input, and what a line there sets.
static ASKED: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// With `tied`, ends this process as soon as standard input does.
pub(crate) fn set(tied: bool) {
    if !tied {
        return;
    }
    let asked = Arc::clone(ASKED.get_or_init(Arc::default));
    std::thread::spawn(move || {
        let mut line = String::new();
        while std::io::stdin().lock().read_line(&mut line).is_ok_and(|bytes| bytes > 0) {
            asked.store(true, Ordering::Relaxed);
        }
        std::process::exit(130);
    });
}

/// From now on a line on standard input sets `stop`, if this process is tied.
pub(crate) fn stop_at_a_line(stop: &Arc<AtomicBool>) {
    let Some(asked) = ASKED.get() else { return };
    let (asked, stop) = (Arc::clone(asked), Arc::clone(stop));
    std::thread::spawn(move || {
        while !asked.load(Ordering::Relaxed) {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        stop.store(true, Ordering::Relaxed);
    });
}
