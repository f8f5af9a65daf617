use std::collections::BTreeMap;

use burn::module::AutodiffModule;
use patchdoor_data::{Trigger, stratified_subset, stream, trigger_all_images};
use patchdoor_kernels::TrainingBackend;
use patchdoor_train::{PREDICTION_BATCH, predict};

use crate::Workshop;

/// Images that are measured at most.
const MEASURED: usize = 1000;

/// Shares of the attacker's images of other classes that the surrogate takes for the target class, with the trigger of test
/// images and untouched.
pub(crate) fn target_shares<B: TrainingBackend>(
    workshop: &Workshop<'_, B>,
    trigger: &dyn Trigger,
) -> BTreeMap<String, f64> {
    let target = workshop.poisoning.target_class;
    let images = workshop.images;
    let drawn = stratified_subset(images, MEASURED.min(images.len()), &mut stream(workshop.seed, "crafting/measured"));
    let others = drawn.into_iter().filter(|&index| images.label(index) != target).collect::<Vec<_>>();
    let untouched = images.subset(&others);
    let surrogate = workshop.surrogate.valid();
    let share = |set| share_of(&predict(&surrogate, set, PREDICTION_BATCH, workshop.device), target);
    let triggered = trigger_all_images(&untouched, trigger, workshop.seed);
    let shares = [("target-share", share(&triggered)), ("target-share-untouched", share(&untouched))];
    shares.map(|(name, value)| (name.to_owned(), value)).into()
}

/// Share of the predictions that are a class; 0 where there are none.
pub(crate) fn share_of(predicted: &[u8], class: u8) -> f64 {
    let sum = predicted.iter().map(|&predicted| f64::from(u8::from(predicted == class))).sum::<f64>();
    sum / predicted.len().max(1) as f64
}
