use std::fmt::{self, Debug};

use patchdoor_kernels::TrainingBackend;
use patchdoor_train::TrainingConfig;

use crate::{DatasetFilter, DefenseError, InputDetector, ModelInspector, ModelRepair, Strengths, TrainingDefense};

/// What the configuration of a defense answers before anything runs; each defense implements it in its own file.
///
/// What it then does is one of the five traits of this crate, for every backend; [`DefenseConfig`](crate::DefenseConfig)
/// lists the defenses and says which.
pub trait Defense: Debug {
    /// Checks every field against the classifier that it shall defend and returns all problems at once; fields are those
    /// of the defense's own table. That the classifier has what the defense [`needs`](Self::needs) is checked elsewhere.
    fn validate(&self, classifier: &DefendedClassifier<'_>) -> Vec<DefenseError>;

    /// What it cannot do without; nothing, unless it says otherwise.
    fn needs(&self) -> &'static [Need] {
        &[]
    }

    /// The share of the training images that the defender has, if nothing else is said; all of them, as Chan et al.
    /// (2025, arXiv:2505.01811) have it, unless the defense says otherwise.
    fn default_clean_fraction(&self) -> f64 {
        1.0
    }

    /// How it trains; `None` if it never does.
    fn training(&self) -> Option<&TrainingConfig> {
        None
    }

    /// Like [`training`](Self::training), to change it.
    fn training_mut(&mut self) -> Option<&mut TrainingConfig> {
        None
    }

    /// The setting that makes it gentler or stronger, which `tune` chooses: the rate of its training, unless it says otherwise;
    /// `None` if it has no such setting, or chooses it itself.
    fn strengths(&self) -> Option<Strengths> {
        let training = self.training().filter(|training| training.epochs > 0)?;
        Some(Strengths::rates("training.learning-rate", training.learning_rate))
    }

    /// Gives that setting one of its values.
    fn set_strength(&mut self, value: f64) {
        if let Some(training) = self.training_mut() {
            training.learning_rate = value;
        }
    }

    /// Epochs of training it takes in all, beside an undefended training of that `recipe`; those of
    /// [`training`](Self::training), unless it says otherwise.
    fn epochs(&self, _recipe: &TrainingConfig) -> usize {
        self.training().map_or(0, |training| training.epochs)
    }

    /// Shortens what it does besides training to a second, keeping every code path; nothing, unless it says otherwise.
    fn make_quick(&mut self) {}
}

/// Writes [`Defense::training`] and [`Defense::training_mut`] of a defense whose field `training` is all of its training.
macro_rules! has_training_table {
    () => {
        fn training(&self) -> Option<&patchdoor_train::TrainingConfig> {
            Some(&self.training)
        }

        fn training_mut(&mut self) -> Option<&mut patchdoor_train::TrainingConfig> {
            Some(&mut self.training)
        }
    };
}

pub(crate) use has_training_table;

/// Something that a defense cannot do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Need {
    /// Experts and their routers, which a dense classifier does not have.
    Experts,
    /// More than one of them, where there are experts.
    SeveralExperts,
    /// Routers that ever learn, where there are routers: those frozen by the configuration never do.
    LearningRouters,
    /// Batch normalization.
    BatchNorm,
    /// Validation images to choose on.
    ValidationImages,
}

impl Need {
    /// Whether the classifier leaves nothing to be desired; what is no matter of the classifier, it never lacks.
    pub fn is_met_by(self, classifier: &DefendedClassifier<'_>) -> bool {
        match self {
            Self::Experts => classifier.experts.is_some(),
            Self::SeveralExperts => classifier.experts != Some(1),
            Self::LearningRouters => classifier.routers_learn || classifier.experts.is_none(),
            Self::BatchNorm => classifier.has_batch_norm,
            Self::ValidationImages => true,
        }
    }
}

impl fmt::Display for Need {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Experts => "experts",
            Self::SeveralExperts => "more than one expert",
            Self::LearningRouters => "routers that learn",
            Self::BatchNorm => "batch normalization",
            Self::ValidationImages => "validation images",
        })
    }
}

/// What is known before a run of the classifier to defend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DefendedClassifier<'a> {
    /// Its name, as a configuration writes it.
    pub name: &'a str,
    /// How many experts it has; `None` for one without, such as the dense baseline.
    pub experts: Option<usize>,
    /// Whether its routers ever learn; not if it has none.
    pub routers_learn: bool,
    /// Whether it has batch normalization.
    pub has_batch_norm: bool,
}

/// What a defense does, whatever the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActionKind {
    /// It changes a classifier.
    Repair,
    /// It scores inputs.
    Detect,
    /// It drops training examples.
    Filter,
    /// It looks at a classifier.
    Inspect,
    /// It trains a classifier from scratch.
    Train,
}

impl ActionKind {
    /// In words, of a defense.
    pub fn in_words(self) -> &'static str {
        match self {
            Self::Repair => "changes a classifier",
            Self::Detect => "scores inputs",
            Self::Filter => "drops training examples",
            Self::Inspect => "looks at a classifier",
            Self::Train => "trains a classifier from scratch",
        }
    }
}

/// A defense ready to act on classifiers of one backend, by what it acts on.
pub enum DefenseAction<'a, B: TrainingBackend> {
    /// Changes a classifier.
    Repair(&'a dyn ModelRepair<B>),
    /// Scores inputs.
    Detect(&'a dyn InputDetector<B>),
    /// Drops training examples.
    Filter(&'a dyn DatasetFilter<B>),
    /// Looks at a classifier.
    Inspect(&'a dyn ModelInspector<B>),
    /// Trains a classifier from scratch.
    Train(&'a dyn TrainingDefense<B>),
}
