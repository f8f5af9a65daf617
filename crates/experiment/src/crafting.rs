use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use burn::module::AutodiffModule;
use indicatif::{ProgressBar, ProgressDrawTarget};
use patchdoor_attacks::{AttackError, Crafted, CraftedTrigger, Workshop};
use patchdoor_data::{Image, ImageSet, PoisoningPlan, Trigger, stream};
use patchdoor_kernels::TrainingBackend;
use patchdoor_model::Classifier;
use patchdoor_plan::Plan;
use patchdoor_record::{
    CraftedMeasurements, is_sealed, read_sealed, read_sealed_json, write_sealed, write_sealed_json, write_whole,
};
use patchdoor_triggers::{ContactSheet, PlacementConfig};
use serde::{Deserialize, Serialize};

use crate::clean_models::CleanModels;
use crate::console::{Watch, duration, style};
use crate::error::RunError;
use crate::halt::{Halt, Step};

/// The trigger and what its making came to; `seed-N/crafted.json`.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct CraftedRecord {
    /// Its name.
    name: String,
    #[serde(flatten)]
    measurements: CraftedMeasurements,
    trigger: CraftedTrigger,
}

/// What poisoned training images are replaced by; `seed-N/crafted-images.bin`, original and replacement in turn.
const IMAGES: &str = "crafted-images.bin";

/// Makes the trigger of a plan that is made with a model, or takes up the one that was made before in this folder; `None` for
/// other plans. `placement` has its cells named.
pub(crate) fn craft_trigger<B: TrainingBackend>(
    (plan, placement): (&Plan, Option<&PlacementConfig>),
    seed: u64,
    sets: (&ImageSet, &ImageSet),
    training: &ImageSet,
    models: &CleanModels<'_>,
    folder: &Path,
    device: &B::Device,
) -> Step<Option<(Box<dyn Trigger>, CraftedMeasurements)>> {
    let config = plan.config();
    let Some(crafted) = &config.crafted else { return Ok(None) };
    let path = folder.join("crafted.json");
    if is_sealed(&path)? {
        let record: CraftedRecord = read_sealed_json(&path)?;
        let images = folder.join(IMAGES);
        let replacements = if images.exists() { read_sealed(&images)? } else { Vec::new() };
        let trigger = record.trigger.restored(&replacements, training.shape())?;
        return Ok(Some((Box::new(trigger), record.measurements)));
    }
    let default = crafted.kind().default_placement();
    let cells = placement.or(default.as_ref()).map(|placement| placement.cell_pixels(training.shape(), seed));
    let cells = cells.transpose()?;
    let (model, images, _) = models.surrogate::<B>(plan, seed, sets, device)?;
    let poisoning = PoisoningPlan::draw(&config.poisoning, training, seed)?;
    let poisoned: Vec<usize> = poisoning.examples().iter().map(|example| example.index).collect();
    let progress = CraftingProgress::new(models.watch, format!("{} seed {seed}: {}", plan.name(), crafted.name()));
    let made = crafted.on_backend::<B>().craft(&Workshop {
        surrogate: &Classifier::<B>::from_inner(model.classifier).freeze_all_but(&[]),
        images: &images,
        poisoned: &training.subset(&poisoned),
        poisoning: &config.poisoning,
        cells: cells.as_deref(),
        seed,
        device,
        is_stopped: &|| models.watch.is_stopped(),
        progress: &|done, total| progress.step(done, total),
    })?;
    let Crafted { trigger, reached } = made;
    progress.done(&reached);
    let replacements = trigger.replacement_bytes();
    if !replacements.is_empty() {
        write_sealed(&folder.join(IMAGES), &replacements)?;
    }
    write_whole(&folder.join("crafted.png"), &sheet_of(&trigger, &images).png().map_err(io::Error::other)?)?;
    let measurements = CraftedMeasurements { surrogate: model.folder, commit: model.commit, reached };
    let record = CraftedRecord { name: crafted.name().into(), measurements, trigger };
    write_sealed_json(&path, &record)?;
    Ok(Some((Box::new(record.trigger), record.measurements)))
}

/// The pattern on grey, and two images without it and with it, each with ten times the difference.
fn sheet_of(trigger: &CraftedTrigger, images: &ImageSet) -> ContactSheet {
    let picture = trigger.picture();
    let shape = picture.shape();
    let grey = Image::new(shape, vec![128; shape.size()]).expect("as many pixels as the shape has");
    let stamped = |index: usize| {
        let image = images.image(index);
        let stamped = trigger.stamp(&image, &mut stream(0, "crafted-sheet"));
        (index.to_string(), vec![[image, stamped]])
    };
    let rows = std::iter::once(("pattern".to_owned(), vec![[grey, picture]]));
    ContactSheet::of_pairs(shape, rows.chain((0..images.len().min(2)).map(stamped)).collect(), 3)
}

impl From<AttackError> for Halt {
    fn from(error: AttackError) -> Self {
        match error {
            AttackError::Interrupted => Self::Interrupted,
            error => Self::Error(RunError::Attack(error)),
        }
    }
}

/// Says how far the making of a trigger is: a bar, or a line now and then.
struct CraftingProgress<'a> {
    watch: Watch<'a>,
    label: String,
    started: Instant,
    shown: RefCell<Shown>,
}

struct Shown {
    bar: Option<ProgressBar>,
    next: Duration,
}

/// Time between two lines.
const BETWEEN: Duration = Duration::from_secs(15);

impl<'a> CraftingProgress<'a> {
    fn new(watch: Watch<'a>, label: String) -> Self {
        let bar = watch.console.bars.then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()).with_prefix(label.clone());
            bar.set_style(style("{prefix} {bar:24} step {pos}/{len}, {eta} left"));
            bar
        });
        Self { watch, label, started: Instant::now(), shown: RefCell::new(Shown { bar, next: BETWEEN }) }
    }

    fn step(&self, done: usize, total: usize) {
        let mut shown = self.shown.borrow_mut();
        if let Some(bar) = &shown.bar {
            bar.set_length(total as u64);
            bar.set_position(done as u64);
        } else if self.started.elapsed() >= shown.next {
            shown.next = self.started.elapsed() + BETWEEN;
            let left = self.started.elapsed().mul_f64(total.saturating_sub(done) as f64 / done.max(1) as f64);
            self.watch.say(format!("{}: step {done}/{total}, {} left", self.label, duration(left)));
        }
    }

    fn done(&self, reached: &BTreeMap<String, f64>) {
        if let Some(bar) = &self.shown.borrow().bar {
            bar.abandon();
        }
        let numbers = reached.iter().map(|(name, value)| format!("{name} {value:.3}")).collect::<Vec<_>>().join(", ");
        self.watch.say(format!("{}: made in {}; {numbers}", self.label, duration(self.started.elapsed())));
    }
}
