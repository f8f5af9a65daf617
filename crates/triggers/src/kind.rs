use std::fmt::Debug;
use std::path::Path;

use patchdoor_data::{ImageShape, LabelRule, Trigger};

use crate::error::invalid;
use crate::{PlacementConfig, TriggerError};

/// What the configuration of a trigger answers; each kind of trigger implements it in its own file.
///
/// [`TriggerConfig`](crate::TriggerConfig) lists the kinds and calls them. What a trigger does to single images is up to
/// the [`Trigger`] that it builds: one that depends on the image or on its class, or that wants cover images, says so
/// there.
pub trait TriggerKind: Debug {
    /// Checks every field against the images and returns all problems at once; fields are those of the trigger's own
    /// table.
    fn validate(&self, shape: ImageShape) -> Vec<TriggerError>;

    /// Builds the trigger for images of `shape`, in which [`validate`](Self::validate) finds no problem. What it draws
    /// once for all images comes from streams of `seed`.
    ///
    /// # Errors
    ///
    /// What only shows in building, such as a file that has gone since.
    ///
    /// # Panics
    ///
    /// Where [`validate`](Self::validate) finds problems, it may; [`TriggerConfig`](crate::TriggerConfig) asks first.
    fn build(&self, shape: ImageShape, seed: u64) -> Result<Box<dyn Trigger>, TriggerError>;

    /// Which pixels of an image of `shape` the trigger may change, row by row; all of them unless it says otherwise. As
    /// in [`build`](Self::build), the shape is a valid one.
    fn mask(&self, shape: ImageShape) -> Vec<bool> {
        vec![true; shape.height * shape.width]
    }

    /// Cover images for each poisoned one, as the trigger that is built asks for them; none unless it says otherwise.
    fn covers_per_poisoned_image(&self) -> f64 {
        0.0
    }

    /// Files that the trigger is made of, beside its configuration; none unless it says otherwise.
    fn files(&self) -> Vec<&Path> {
        Vec::new()
    }

    /// Says which label rules and placements make no sense with this trigger, and why; any does, unless it says
    /// otherwise. Fields are paths from the root of the experiment, such as `poisoning.label-rule` or `placement.fit`;
    /// what is allowed ends with the reason.
    fn refuse(&self, _rule: &LabelRule, _placement: Option<&PlacementConfig>) -> Vec<TriggerError> {
        Vec::new()
    }
}

/// Refuses cover images that carry the very trigger of the poisoned ones where these keep their label too: all that would tell
/// them apart is that covers are of other classes.
pub(crate) fn refuse_covers(rule: &LabelRule, cover_ratio: f64) -> Vec<TriggerError> {
    if cover_ratio > 0.0 && matches!(rule, LabelRule::CleanLabel(_)) {
        let allowed = "another rule, or cover-ratio = 0: covers of other classes teach that the trigger means nothing";
        return vec![invalid("poisoning.label-rule", "clean-label with cover images", allowed)];
    }
    Vec::new()
}
