use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Where a run says what it is doing: standard error, as bars or as plain lines.
#[derive(Clone, Copy, Debug)]
pub struct Console {
    pub(crate) bars: bool,
}

impl Console {
    /// Bars, for a terminal that can move its cursor.
    pub fn with_bars() -> Self {
        Self { bars: true }
    }

    /// Plain lines.
    pub fn plain() -> Self {
        Self { bars: false }
    }

    /// Says one line.
    pub fn say(self, line: impl AsRef<str>) {
        // Nobody is left to be told that nobody listens.
        let _ = writeln!(io::stderr(), "{}", line.as_ref());
    }

    /// A bar over bytes, for downloads; hidden without a terminal.
    pub fn bytes(self, label: &str) -> ProgressBar {
        let target = if self.bars { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(None, target).with_prefix(label.to_owned());
        bar.set_style(style("{prefix} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta} left"));
        bar
    }
}

pub(crate) fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("the templates are constants").progress_chars("=> ")
}

/// Who watches a run: where it says what it does, and how it is asked to stop.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Watch<'a> {
    pub(crate) console: Console,
    pub(crate) stop: &'a AtomicBool,
}

impl Watch<'_> {
    pub(crate) fn say(self, line: impl AsRef<str>) {
        self.console.say(line);
    }

    /// Whether the run shall end where it can go on later.
    pub(crate) fn is_stopped(self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// A duration in the two units that matter: `45 s`, `3 min 20 s`, `2 h 5 min`.
pub(crate) fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs_f64().round() as u64;
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_people_say_them() {
        let words = [0, 59, 200, 7500].map(|seconds| duration(Duration::from_secs(seconds)));
        assert_eq!(words, ["0 s", "59 s", "3 min 20 s", "2 h 5 min"]);
    }
}
