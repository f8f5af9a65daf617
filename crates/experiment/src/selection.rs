use std::path::Path;

use patchdoor_attacks::margins;
use patchdoor_data::ImageSet;
use patchdoor_kernels::TrainingBackend;
use patchdoor_plan::Plan;
use patchdoor_record::write_sealed_json;
use serde::Serialize;

use crate::clean_models::CleanModels;
use crate::halt::Step;
use crate::images::SeedImages;

/// Whose margins chose the poisoned images; `seed-N/selection.json`.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct SelectionRecord<'a> {
    /// Where the surrogate's weights are, below the output folder.
    surrogate: &'a str,
    /// The commit that trained it, if that is on record.
    #[serde(skip_serializing_if = "Option::is_none")]
    commit: Option<&'a str>,
    /// Share of untouched test images that it predicts right.
    clean_accuracy: f64,
    /// Margin of each training image, in their order.
    margins: &'a [f64],
}

/// How sure a surrogate is of each of the victim's training images, if the experiment poisons by that; it is trained first if
/// none is there. `sets` are the data set's training and test images.
pub(crate) fn choose_margins<B: TrainingBackend>(
    plan: &Plan,
    seed: u64,
    sets: (&ImageSet, &ImageSet),
    victims: &SeedImages,
    models: &CleanModels<'_>,
    folder: &Path,
    device: &B::Device,
) -> Step<Option<Vec<f64>>> {
    if !plan.config().poisoning.selection.asks_surrogate() {
        return Ok(None);
    }
    let (model, ..) = models.surrogate::<B>(plan, seed, sets, device)?;
    let margins = margins(&model.classifier, &victims.training, device);
    let record = SelectionRecord {
        surrogate: &model.folder,
        commit: model.commit.as_deref(),
        clean_accuracy: model.clean_accuracy,
        margins: &margins,
    };
    write_sealed_json(&folder.join("selection.json"), &record)?;
    Ok(Some(margins))
}
