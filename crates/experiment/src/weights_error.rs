use std::path::PathBuf;

use patchdoor_model::ModelError;

/// Why weights cannot be defended.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// They cannot be read, or are those of another classifier.
    #[error("the weights cannot be used")]
    Unusable(#[from] ModelError),
    /// Nobody says what they are.
    #[error(
        "{} does not say what network it belongs to; give --model FILE, a TOML file with a [model] table, or write that \
         table in {}",
        weights.display(), defenses.display()
    )]
    NoStructure {
        /// The weights.
        weights: PathBuf,
        /// The file of defenses.
        defenses: PathBuf,
    },
    /// The file that shall say it does not.
    #[error("{} has no [model] table, expected one that describes {}", model.display(), weights.display())]
    NoModel {
        /// The file.
        model: PathBuf,
        /// The weights.
        weights: PathBuf,
    },
    /// They are for other images.
    #[error("{} takes {found}, and {dataset} has {expected}", weights.display())]
    OtherImages {
        /// The weights.
        weights: PathBuf,
        /// What they take.
        found: String,
        /// The data set.
        dataset: String,
        /// What it has.
        expected: String,
    },
    /// A weight is no number.
    #[error("{} holds a weight that is not finite; nothing can be predicted with it", weights.display())]
    NotFinite {
        /// The weights.
        weights: PathBuf,
    },
}
