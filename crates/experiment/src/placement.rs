use std::path::Path;

use patchdoor_attacks::CellChoice;
use patchdoor_data::ImageSet;
use patchdoor_kernels::TrainingBackend;
use patchdoor_plan::{ExperimentConfig, Plan, choice_name};
use patchdoor_record::{ChosenCells, write_sealed_json};
use patchdoor_triggers::PlacementConfig;
use serde::Serialize;

use crate::clean_models::CleanModels;
use crate::error::RunError;
use crate::halt::Step;

/// What the surrogate said; `seed-N/surrogate.json`.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct SurrogateRecord<'a> {
    /// Where its weights are, below the output folder.
    folder: &'a str,
    /// Share of untouched test images that it predicts right.
    clean_accuracy: f64,
    #[serde(flatten)]
    choice: &'a CellChoice,
}

/// Names the cells of a plan's placement, training a surrogate first if it needs one and none is there; `None` if the
/// trigger stands where it says itself. Beside it what is on record of the surrogate's choice.
///
/// `sets` are the data set's images for training and for tests; the surrogate holds out images of its own.
pub(crate) fn choose_placement<B: TrainingBackend>(
    plan: &Plan,
    seed: u64,
    sets: (&ImageSet, &ImageSet),
    models: &CleanModels<'_>,
    folder: &Path,
    device: &B::Device,
) -> Step<(Option<PlacementConfig>, Option<ChosenCells>)> {
    let config = plan.config();
    let asks = config.placement.as_ref().filter(|placement| placement.surrogate().is_some());
    let (Some((surrogate, _)), Some(placement)) = (plan.surrogate(), asks) else {
        return Ok((config.placement.clone(), None));
    };
    let (model, images, seed) = models.surrogate::<B>(plan, seed, sets, device)?;
    let choice = surrogate.choose_cells(&model.classifier, &config.model, placement, &images, seed, device)?;
    let record = SurrogateRecord { folder: &model.folder, clean_accuracy: model.clean_accuracy, choice: &choice };
    write_sealed_json(&folder.join("surrogate.json"), &record)?;
    let cells = serde_json::to_value(&choice.placement.cells).expect("cells that came from TOML can be written");
    let chosen = ChosenCells { surrogate: model.folder, commit: model.commit, cells };
    Ok((Some(choice.placement), Some(chosen)))
}

/// The placement of an experiment, for those who have no model to ask.
///
/// # Errors
/// If a surrogate chooses its cells.
pub(crate) fn placement_without_surrogate(config: &ExperimentConfig) -> Result<Option<&PlacementConfig>, RunError> {
    match &config.placement {
        Some(placement) if placement.surrogate().is_some() => {
            Err(RunError::NeedsSurrogate { cells: choice_name(&placement.cells) })
        }
        placement => Ok(placement.as_ref()),
    }
}
