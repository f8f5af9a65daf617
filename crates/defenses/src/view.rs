use std::path::Path;

use patchdoor_data::ImageSet;
use patchdoor_train::TrainingObserver;

/// Everything a defender has besides the model: clean images of its own, and a split to choose on.
///
/// There is no trigger, no poisoning plan and no test image in it, and this crate depends on no crate
/// that could supply one.
#[derive(Clone, Copy, Debug)]
pub struct DefenderData<'a> {
    /// Images with true labels that the defender may train on.
    pub clean: &'a ImageSet,
    /// Images with true labels for choosing thresholds and stopping, if there are any.
    pub validation: Option<&'a ImageSet>,
}

/// What a repair works with, and who follows it.
pub struct RepairWork<'a> {
    /// What the defender has.
    pub data: DefenderData<'a>,
    /// Feeds every random choice.
    pub seed: u64,
    /// Where finished epochs of its training are kept, so that the same repair goes on after an interruption.
    pub checkpoints: Option<&'a Path>,
    /// Follows its training and may stop it.
    pub observer: &'a mut dyn TrainingObserver,
}
