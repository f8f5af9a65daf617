use std::io::{self, IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use patchdoor_train::{BatchProgress, EpochRecord, TrainingObserver};

/// Where a run says what it is doing: standard error, as bars or as plain lines.
#[derive(Clone, Copy, Debug)]
pub struct Console {
    bars: bool,
}

impl Console {
    /// Bars if standard error is a terminal, else plain lines.
    pub fn new() -> Self {
        Self { bars: io::stderr().is_terminal() }
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

impl Default for Console {
    fn default() -> Self {
        Self::new()
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("the templates are constants").progress_chars("=> ")
}

/// Shows one training, writes its epochs to a file as they end, and stops it after an epoch when asked to.
pub(crate) struct TrainingProgress<'a> {
    console: Console,
    label: String,
    stop: &'a AtomicBool,
    bar: Option<ProgressBar>,
    history: Vec<EpochRecord>,
    /// Where the epochs go.
    log: PathBuf,
    write: &'a dyn Fn(&std::path::Path, &[EpochRecord]) -> io::Result<()>,
    /// Why the log could not be written.
    pub(crate) log_error: Option<io::Error>,
    started: Instant,
    images: usize,
    /// Sum of losses times images, and images, of the epoch under way.
    epoch_loss: (f64, usize),
    epochs: usize,
}

impl<'a> TrainingProgress<'a> {
    pub(crate) fn new(
        console: Console,
        label: String,
        stop: &'a AtomicBool,
        log: PathBuf,
        write: &'a dyn Fn(&std::path::Path, &[EpochRecord]) -> io::Result<()>,
        epochs: usize,
    ) -> Self {
        Self {
            console,
            label,
            stop,
            bar: None,
            history: Vec::new(),
            log,
            write,
            log_error: None,
            started: Instant::now(),
            images: 0,
            epoch_loss: (0.0, 0),
            epochs,
        }
    }

    fn log(&mut self) {
        if let Err(error) = (self.write)(&self.log, &self.history) {
            self.log_error.get_or_insert(error);
        }
    }
}

impl TrainingObserver for TrainingProgress<'_> {
    fn checkpoint_refused(&mut self, path: &Path, reason: &str) {
        self.console.say(format!("warning: {}: checkpoint {} {reason}; it is not used", self.label, path.display()));
    }

    fn resumed(&mut self, history: &[EpochRecord]) {
        self.history = history.to_vec();
        // The epochs that training repeats must not stand in the log meanwhile.
        self.log();
        if history.is_empty() {
            self.console.say(format!("{}: begins again, as no checkpoint is left", self.label));
        } else {
            self.console.say(format!("{}: goes on after epoch {} of {}", self.label, history.len(), self.epochs));
        }
    }

    fn batch_done(&mut self, progress: &BatchProgress) -> ControlFlow<()> {
        self.images += progress.images;
        self.epoch_loss.0 += progress.loss * progress.images as f64;
        self.epoch_loss.1 += progress.images;
        if self.console.bars {
            let done = progress.epoch * progress.steps + progress.step;
            let bar = self.bar.get_or_insert_with(|| {
                let total = progress.epochs * progress.steps;
                let bar = ProgressBar::with_draw_target(Some(total as u64), ProgressDrawTarget::stderr());
                bar.set_style(style("{prefix} {bar:24} {msg}, {eta} left"));
                bar.set_prefix(self.label.clone());
                // Steps before a resumed training say nothing about its speed.
                bar.set_position(done as u64);
                bar.reset_eta();
                bar
            });
            let rate = self.images as f64 / self.started.elapsed().as_secs_f64().max(1e-9);
            let loss = self.epoch_loss.0 / self.epoch_loss.1.max(1) as f64;
            bar.set_message(format!(
                "epoch {}/{}, loss {loss:.3}, {rate:.0} images/s",
                progress.epoch + 1,
                progress.epochs
            ));
            bar.set_position(done as u64 + 1);
        }
        ControlFlow::Continue(())
    }

    fn epoch_done(&mut self, record: &EpochRecord) -> ControlFlow<()> {
        self.epoch_loss = (0.0, 0);
        self.history.push(record.clone());
        self.log();
        if !self.console.bars {
            let validation = record
                .validation_accuracy
                .map_or_else(String::new, |share| format!(", validation accuracy {share:.3}"));
            let left = Duration::from_secs_f64(record.seconds * (self.epochs - record.epoch - 1) as f64);
            self.console.say(format!(
                "{}: epoch {}/{}, loss {:.3}, training accuracy {:.3}{validation}, {:.0} images/s, {} left",
                self.label,
                record.epoch + 1,
                self.epochs,
                record.loss,
                record.training_accuracy,
                record.images_per_second,
                duration(left),
            ));
        }
        if self.is_stopped() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

impl Drop for TrainingProgress<'_> {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.abandon();
        }
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
