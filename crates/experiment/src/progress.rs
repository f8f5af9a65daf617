use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget};
use patchdoor_record::RecordError;
use patchdoor_train::{BatchProgress, EpochRecord, TrainingObserver};

use crate::console::{Watch, duration, style};
use crate::history::HistoryFile;

/// Shows one training, writes its epochs to a file as they end, and stops it after an epoch when asked to.
pub(crate) struct TrainingProgress<'a> {
    watch: Watch<'a>,
    label: String,
    bar: Option<ProgressBar>,
    history: Vec<EpochRecord>,
    /// Where the epochs go.
    log: &'a HistoryFile<'a>,
    /// Why the log could not be written.
    pub(crate) log_error: Option<RecordError>,
    /// How long the epochs took that were done before an interruption.
    pub(crate) seconds_before: f64,
    started: Instant,
    images: usize,
    /// Sum of losses times images, and images, of the epoch under way.
    epoch_loss: (f64, usize),
    epochs: usize,
}

impl<'a> TrainingProgress<'a> {
    pub(crate) fn new(watch: Watch<'a>, label: String, log: &'a HistoryFile<'a>, epochs: usize) -> Self {
        Self {
            watch,
            label,
            bar: None,
            history: Vec::new(),
            log,
            log_error: None,
            seconds_before: 0.0,
            started: Instant::now(),
            images: 0,
            epoch_loss: (0.0, 0),
            epochs,
        }
    }

    fn log(&mut self) {
        if let Err(error) = self.log.write(&self.history) {
            self.log_error.get_or_insert(error);
        }
    }
}

impl TrainingObserver for TrainingProgress<'_> {
    fn checkpoint_refused(&mut self, path: &Path, reason: &str) {
        self.watch.say(format!("warning: {}: checkpoint {} {reason}; it is not used", self.label, path.display()));
    }

    fn resumed(&mut self, history: &[EpochRecord]) {
        self.history = history.to_vec();
        self.seconds_before = history.iter().map(|epoch| epoch.seconds).sum();
        // The epochs that training repeats must not stand in the log meanwhile.
        self.log();
        if history.is_empty() {
            self.watch.say(format!("{}: begins again, as no checkpoint is left", self.label));
        } else {
            self.watch.say(format!("{}: goes on after epoch {} of {}", self.label, history.len(), self.epochs));
        }
    }

    fn batch_done(&mut self, progress: &BatchProgress) -> ControlFlow<()> {
        self.images += progress.images;
        if let Some(loss) = progress.loss {
            self.epoch_loss.0 += loss * progress.images as f64;
            self.epoch_loss.1 += progress.images;
        }
        if self.watch.console.bars {
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
            // A device that tells no loss within an epoch told that of the epoch before.
            let loss = match (self.epoch_loss, self.history.last()) {
                ((sum, images), _) if images > 0 => format!(", loss {:.3}", sum / images as f64),
                (_, Some(last)) => format!(", loss {:.3}", last.loss),
                (_, None) => String::new(),
            };
            let (epoch, epochs) = (progress.epoch + 1, progress.epochs);
            bar.set_message(format!("epoch {epoch}/{epochs}{loss}, {rate:.0} images/s"));
            bar.set_position(done as u64 + 1);
        }
        ControlFlow::Continue(())
    }

    fn epoch_done(&mut self, record: &EpochRecord) -> ControlFlow<()> {
        self.epoch_loss = (0.0, 0);
        self.history.push(record.clone());
        self.log();
        if !self.watch.console.bars {
            let validation = record
                .validation_accuracy
                .map_or_else(String::new, |share| format!(", validation accuracy {share:.3}"));
            let left = Duration::from_secs_f64(record.seconds * (self.epochs - record.epoch - 1) as f64);
            self.watch.say(format!(
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
        self.watch.is_stopped()
    }
}

impl Drop for TrainingProgress<'_> {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.abandon();
        }
    }
}
