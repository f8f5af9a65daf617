use patchdoor_model::ModelError;
use patchdoor_record::{RecordError, RunDirectoryError};
use patchdoor_train::TrainError;
use patchdoor_triggers::TriggerError;

use crate::error::RunError;

/// Why a step of a run did not come to its end.
#[derive(Debug)]
pub(crate) enum Halt {
    /// The user interrupted it; the same call goes on.
    Interrupted,
    /// It cannot be done for this seed, and why; other seeds may fare better.
    Failed(String),
    /// Something is wrong with the machine, the images or an earlier result.
    Error(RunError),
}

/// What a step made, or why it did not.
pub(crate) type Step<T> = Result<T, Halt>;

impl Halt {
    /// The same, with what failed in front of the reason.
    pub(crate) fn of(self, what: &str) -> Self {
        match self {
            Self::Failed(reason) => Self::Failed(format!("{what}: {reason}")),
            other => other,
        }
    }
}

impl From<RunError> for Halt {
    fn from(error: RunError) -> Self {
        Self::Error(error)
    }
}

macro_rules! halt_from {
    ($($error:ty),*) => {
        $(impl From<$error> for Halt {
            fn from(error: $error) -> Self {
                Self::Error(error.into())
            }
        })*
    };
}

halt_from!(
    std::io::Error,
    csv::Error,
    ModelError,
    RecordError,
    RunDirectoryError,
    TriggerError,
    patchdoor_data::DataError
);

impl From<TrainError> for Halt {
    fn from(error: TrainError) -> Self {
        match error {
            // A loss that is no longer a number is a property of this training, not of the machine.
            TrainError::Diverged { .. } => Self::Failed(error.to_string()),
            error => Self::Error(error.into()),
        }
    }
}
