use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use patchdoor_data::{DatasetConfig, Trigger, stratified_subset, stream, trigger_all_images};
use patchdoor_metrics::Stealth;
use patchdoor_plan::{Experiment, Plan};
use patchdoor_triggers::ContactSheet;

use crate::attack::build_trigger;
use crate::console::{Console, Watch};
use crate::error::RunError;
use crate::images::{Acquired, SeedImages, acquire};
use crate::placement::placement_without_surrogate;
use crate::stealth::stealth;

/// Pixels of a sheet for each pixel of an image.
const SCALE: usize = 3;

/// What to draw, and where from and to.
#[derive(Clone, Copy, Debug)]
pub struct SheetRequest<'a> {
    /// How many test images, one of each class first.
    pub images: usize,
    /// Where images are looked for, in order.
    pub roots: &'a [PathBuf],
    /// Whether missing images are not fetched.
    pub offline: bool,
    /// The folder that the sheet goes to; made if need be.
    pub into: &'a Path,
    /// Set from outside to end a download.
    pub stop: &'a AtomicBool,
    /// Where to say what is done.
    pub console: Console,
}

/// A contact sheet and what its rows show.
#[derive(Clone, Debug, PartialEq)]
pub struct Sheet {
    /// The PNG file.
    pub path: PathBuf,
    /// The rows from the top down.
    pub rows: Vec<SheetRow>,
}

/// One row of a sheet.
#[derive(Clone, Debug, PartialEq)]
pub struct SheetRow {
    /// The trigger, the point of a sweep, or the experiment where there are several.
    pub name: String,
    /// How much the images drawn differ from the originals, on average.
    pub stealth: Option<Stealth>,
}

impl fmt::Display for SheetRow {
    /// The name, and the numbers behind it.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, stealth: Some(stealth) } = self else { return self.name.fmt(formatter) };
        match stealth.psnr {
            Some(psnr) => write!(formatter, "{name}: PSNR {psnr:.1} dB")?,
            None => write!(formatter, "{name}: no difference")?,
        }
        if let Some(ssim) = stealth.ssim {
            write!(formatter, ", SSIM {ssim:.3}")?;
        }
        let Stealth { largest_change, distance, changed_pixels, frequency_distance, .. } = stealth;
        let percent = 100.0 * changed_pixels;
        write!(formatter, ", L-inf {largest_change:.0}, L2 {distance:.0}, {percent:.1} % of the pixels")?;
        write!(formatter, ", frequencies {frequency_distance:.3}")
    }
}

/// Draws the triggers of experiments, one row for each experiment, and in a sweep each point, whose trigger differs from those
/// above, on test images: original, triggered, and ten times the difference. Nothing is overwritten: a new sheet gets a new name.
///
/// Experiments on another data set go to a sheet of their own. A trigger that is made with a model or in the training, or whose cells a
/// surrogate chooses, is left out, and said to be.
///
/// # Errors
/// If there are no images, a trigger cannot be made, or the sheet cannot be written.
pub fn draw_triggers(experiments: &[Experiment], request: &SheetRequest<'_>) -> Result<Vec<Sheet>, RunError> {
    let SheetRequest { images, roots, offline, into, stop, console } = *request;
    let mut read: Vec<(&DatasetConfig, Acquired, Vec<&Plan>)> = Vec::new();
    for plan in experiments.iter().flat_map(Experiment::plans) {
        // The set that is asked for, not the shapes that may stand in for it.
        let dataset = &plan.config().dataset;
        match read.iter_mut().find(|(known, _, _)| *known == dataset) {
            Some((_, _, plans)) => plans.push(plan),
            None => read.push((dataset, acquire(plan, roots, offline, Watch { console, stop })?, vec![plan])),
        }
    }
    fs_err::create_dir_all(into)?;
    let mut sheets = Vec::new();
    for (_, acquired, plans) in read {
        let test = &acquired.dataset.test;
        let chosen = stratified_subset(test, images.min(test.len()), &mut stream(0, "contact-sheet"));
        let subset = test.subset(&chosen);
        let first = acquired.plan.name();
        let are_several = plans.iter().any(|plan| plan.name() != first);
        let sheet_seed = acquired.plan.config().seeds[0];
        let mut drawn = Vec::new();
        let mut triggers: Vec<(String, Box<dyn Trigger>)> = Vec::new();
        for plan in plans {
            let config = plan.config();
            let seed = config.seeds[0];
            // Points that differ in something else look the same.
            let what =
                (config.attack_name(), config.trigger().cloned(), config.crafted.clone(), config.placement.clone());
            if drawn.contains(&what) {
                continue;
            }
            let name = if are_several { plan.name() } else { config.attack_name().to_owned() };
            let name = plan.point().map_or(name, str::to_owned);
            let built = placement_without_surrogate(config).and_then(|placement| {
                if config.makes_trigger_in_training() {
                    return Err(RunError::MadeInTraining);
                }
                let training = SeedImages::draw(config, &acquired.dataset.train, seed).training;
                build_trigger(config, placement, &training, seed)
            });
            match built {
                Ok(trigger) => triggers.push((name, trigger)),
                Err(
                    reason @ (RunError::NeedsSurrogate { .. } | RunError::NeedsModel { .. } | RunError::MadeInTraining),
                ) => {
                    console.say(format!("{name} is not drawn: {reason}"));
                }
                Err(error) => return Err(error),
            }
            drawn.push(what);
        }
        if triggers.is_empty() {
            continue;
        }
        let named = triggers.iter().map(|(name, trigger)| (name.as_str(), trigger.as_ref())).collect::<Vec<_>>();
        let sheet = ContactSheet::draw(&subset, &named, SCALE, sheet_seed);
        let path = free_name(into, if are_several { "experiments" } else { &first });
        sheet.save(&path)?;
        let row = |(name, trigger): &(&str, &dyn Trigger)| SheetRow {
            name: (*name).to_owned(),
            stealth: stealth(&subset, &trigger_all_images(&subset, *trigger, sheet_seed)),
        };
        sheets.push(Sheet { path, rows: named.iter().map(row).collect() });
    }
    Ok(sheets)
}

/// `NAME-triggers.png`, or with the first free number.
fn free_name(folder: &Path, name: &str) -> PathBuf {
    let numbered = (2..).map(|number| folder.join(format!("{name}-triggers-{number}.png")));
    let mut names = std::iter::once(folder.join(format!("{name}-triggers.png"))).chain(numbered);
    names.find(|path| !path.exists()).expect("numbers do not end")
}
