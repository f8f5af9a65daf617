use std::path::Path;

use patchdoor_attacks::{HandInTraining, Scene};
use patchdoor_data::ImageSet;
use patchdoor_kernels::TrainingBackend;
use patchdoor_plan::ExperimentConfig;
use patchdoor_record::{check_sealed, is_sealed, write_sealed, write_sealed_json};

use crate::attack::Attack;
use crate::console::Watch;
use crate::halt::Step;
use crate::images::SeedImages;

/// Name of the file with the networks that an attacker has trained beside the classifier.
const GENERATOR: &str = "generator.safetensors";

/// Name of the file with what is to be known of how an attack went.
const RECORD: &str = "controlled.json";

/// An attacker's hand in the training of a victim.
pub(crate) type Hand<'a, B> = Box<dyn HandInTraining<B> + 'a>;

/// What an attacker asks and says in long steps of his own.
pub(crate) struct Bystander<'a> {
    is_stopped: Box<dyn Fn() -> bool + 'a>,
    say: Box<dyn Fn(String) + 'a>,
}

impl<'a> Bystander<'a> {
    pub(crate) fn new(watch: Watch<'a>, label: &'a str) -> Self {
        let say = move |line: String| watch.say(format!("{label}: {line}"));
        Self { is_stopped: Box::new(move || watch.is_stopped()), say: Box::new(say) }
    }
}

/// Prepares the attacker's hand in the training on `poisoned` images; `None` if he only poisons.
pub(crate) fn enter<'a, B: TrainingBackend>(
    config: &'a ExperimentConfig,
    attack: &'a Attack<'_>,
    (images, poisoned): (&'a SeedImages, &'a ImageSet),
    seed: u64,
    bystander: &'a Bystander<'_>,
    device: &B::Device,
) -> Step<Option<Hand<'a, B>>> {
    let Some(controlled) = &config.controlled else { return Ok(None) };
    let scene = Scene {
        training: poisoned,
        untouched: &images.training,
        plan: &attack.poisoning,
        poisoning: &config.poisoning,
        trigger: attack.trigger.as_ref(),
        validation: images.validation.as_ref(),
        seed,
        batch_size: config.training.batch_size,
        is_stopped: &*bystander.is_stopped,
        say: &*bystander.say,
    };
    Ok(Some(controlled.on_backend::<B>().enter(scene, device)?))
}

/// Saves what the attacker has trained, sealed, if he trains anything.
pub(crate) fn save<B: TrainingBackend>(hand: &dyn HandInTraining<B>, folder: &Path) -> Step<()> {
    if let Some(bytes) = hand.to_safetensors()? {
        write_sealed(&folder.join(GENERATOR), &bytes)?;
    }
    if let Some(record) = hand.record() {
        write_sealed_json(&folder.join(RECORD), &record)?;
    }
    Ok(())
}

/// Whether what [`save`] left in a folder is there, if it leaves anything.
pub(crate) fn is_saved<B: TrainingBackend>(hand: &dyn HandInTraining<B>, folder: &Path) -> Step<bool> {
    Ok(hand.to_safetensors()?.is_none() || is_sealed(&folder.join(GENERATOR))?)
}

/// Takes back what [`save`] left in a folder.
pub(crate) fn load<B: TrainingBackend>(hand: &mut dyn HandInTraining<B>, folder: &Path) -> Step<()> {
    if hand.to_safetensors()?.is_some() {
        let path = folder.join(GENERATOR);
        check_sealed(&path)?;
        hand.take_safetensors(&fs_err::read(path)?)?;
    }
    Ok(())
}
