use std::io;

use patchdoor_data::DataError;
use patchdoor_model::ModelError;
use patchdoor_record::{RecordError, RunDirectoryError};
use patchdoor_train::TrainError;
use patchdoor_triggers::TriggerError;

use crate::images::ImagesError;
use crate::sources::OtherSources;
use crate::weights_error::WeightsError;

/// What keeps a run from its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// There are no images to run on.
    #[error(transparent)]
    Images(#[from] ImagesError),
    /// There is no place for results.
    #[error(transparent)]
    Directory(#[from] RunDirectoryError),
    /// A run of the same name was computed on other images, or with other files.
    #[error(transparent)]
    OtherSources(#[from] OtherSources),
    /// A result cannot be written, or one of an earlier run not be read back.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The images cannot be poisoned as asked.
    #[error("the training images cannot be poisoned")]
    Poisoning(#[from] DataError),
    /// Where nothing is trained, no surrogate can choose cells.
    #[error(
        "its cells are {cells}, chosen by a surrogate: run the experiment, then give the cells of its surrogate.json \
         with --set placement.cells.list=CELLS"
    )]
    NeedsSurrogate {
        /// The choice of cells.
        cells: String,
    },
    /// Where nothing is trained, there is no trigger that is made in a training.
    #[error("its trigger is only made in the training, so there is none before the experiment has run")]
    MadeInTraining,
    /// Where nothing is trained, no trigger can be made with a model.
    #[error("its trigger {name} is made with a trained model: run the experiment, whose seed-N/crafted.png shows it")]
    NeedsModel {
        /// The trigger.
        name: &'static str,
    },
    /// The trigger cannot be built.
    #[error("the trigger cannot be made")]
    Trigger(#[from] TriggerError),
    /// What an attacker does in the training cannot be done.
    #[error("the attack cannot be made")]
    Attack(#[from] patchdoor_attacks::AttackError),
    /// The classifier cannot be built, saved or loaded.
    #[error("the classifier cannot be made, saved or loaded")]
    Model(#[from] ModelError),
    /// Weights of one's own cannot be defended.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// Training failed for another reason than its loss.
    #[error("training failed")]
    Training(#[from] TrainError),
    /// A defense failed for another reason than its training's loss.
    #[error("a defense failed")]
    Defense(#[from] patchdoor_defenses::DefenseError),
    /// A file cannot be read or written.
    #[error("a result cannot be read or written")]
    Io(#[from] io::Error),
    /// The list of poisoned images cannot be written.
    #[error("the list of poisoned images cannot be written")]
    Csv(#[from] csv::Error),
}
