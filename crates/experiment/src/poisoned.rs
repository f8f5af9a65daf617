use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use patchdoor_data::export::{Export, ExportFormat, export};
use patchdoor_data::{PoisoningPlan, trigger_test_images};
use patchdoor_plan::Plan;
use patchdoor_record::ImagesUsed;

use crate::attack::build_trigger;
use crate::console::{Console, Watch};
use crate::error::RunError;
use crate::images::{Acquired, SeedImages, acquire, test_images};
use crate::placement::placement_without_surrogate;

/// What an export came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exported {
    /// Images written for training.
    pub training_images: usize,
    /// Those of them that are poisoned.
    pub poisoned_images: usize,
    /// Untouched test images.
    pub test_images: usize,
    /// Test images with the trigger.
    pub triggered_images: usize,
    /// The data set they come from, and why it is not the one the experiment names, if it is not.
    pub images: ImagesUsed,
}

/// What to export, and where from and to.
#[derive(Clone, Copy, Debug)]
pub struct ExportRequest<'a> {
    /// The seed whose images are written.
    pub seed: u64,
    /// Where images are looked for, in order.
    pub roots: &'a [PathBuf],
    /// Whether missing images are not fetched.
    pub offline: bool,
    /// In which form images are written.
    pub format: ExportFormat,
    /// The folder to make.
    pub into: &'a Path,
    /// Set from outside to end a download.
    pub stop: &'a AtomicBool,
    /// Where to say what is done.
    pub console: Console,
}

/// Writes the images that one seed of a plan is trained and tested on to a new folder, for other tools.
///
/// # Errors
/// If there are no images, they cannot be poisoned as asked, or the folder exists or cannot be written.
pub fn export_poisoned(plan: &Plan, request: &ExportRequest<'_>) -> Result<Exported, RunError> {
    let ExportRequest { seed, roots, offline, format, into, stop, console } = *request;
    let Acquired { plan, dataset, used, .. } = acquire(plan, roots, offline, Watch { console, stop })?;
    let config = plan.config();
    if config.makes_trigger_in_training() {
        return Err(RunError::MadeInTraining);
    }
    let training = SeedImages::draw(config, &dataset.train, seed).training;
    let trigger = build_trigger(config, placement_without_surrogate(config)?, &training, seed)?;
    let poisoning = PoisoningPlan::draw_for(&config.poisoning, &training, trigger.as_ref(), seed)?;
    let train = poisoning.apply(&training, trigger.as_ref(), seed);
    let test = test_images(config, &dataset.test);
    let triggered_test = trigger_test_images(&test, &config.poisoning, trigger.as_ref(), seed);
    let images = Export { train: &train, plan: &poisoning, test: &test, triggered_test: &triggered_test };
    export(&images, format, into)?;
    Ok(Exported {
        training_images: train.len(),
        poisoned_images: poisoning.examples().len(),
        test_images: test.len(),
        triggered_images: triggered_test.len(),
        images: used,
    })
}
