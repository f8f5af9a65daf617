use std::fmt::Write;
use std::path::Path;
use std::time::Instant;

use burn::module::AutodiffModule;
use patchdoor_data::ImageSet;
use patchdoor_defenses::{DatasetFilter, Filtering};
use patchdoor_kernels::TrainingBackend;
use patchdoor_model::Classifier;
use patchdoor_record::{FilterStanding, write_sealed};

use crate::attack::Attack;
use crate::error::RunError;
use crate::halt::Step;

/// What a filter made of a training set.
pub(crate) struct Filtered {
    pub(crate) standing: FilterStanding,
    pub(crate) filtering: Filtering,
    /// Seconds it took.
    pub(crate) seconds: f64,
}

/// Lets a filter judge a training set, which `is_poisoned` tells nobody but the measurement of.
pub(crate) fn filter<B: TrainingBackend>(
    filter: &dyn DatasetFilter<B>,
    classifier: &Classifier<B>,
    (set, is_poisoned): (&ImageSet, &[bool]),
    device: &B::Device,
) -> Step<Filtered> {
    let start = Instant::now();
    let filtering = filter.filter(set, classifier.valid(), device).map_err(RunError::from)?;
    let seconds = start.elapsed().as_secs_f64();
    let standing = FilterStanding::of(&filtering.scores, &filtering.is_suspect, is_poisoned);
    Ok(Filtered { standing, filtering, seconds })
}

/// Which of so many training images are poisoned.
pub(crate) fn poisoned(attack: &Attack<'_>, images: usize) -> Vec<bool> {
    let mut is_poisoned = vec![false; images];
    for example in attack.poisoning.examples() {
        is_poisoned[example.index] = true;
    }
    is_poisoned
}

/// Writes the judgement of every training image; `scores.csv`.
pub(crate) fn write_judgements(path: &Path, filtering: &Filtering, is_poisoned: &[bool]) -> Step<()> {
    let mut text = "index,score,dropped,poisoned\n".to_owned();
    let judged = filtering.scores.iter().zip(&filtering.is_suspect).zip(is_poisoned).enumerate();
    for (index, ((score, dropped), poisoned)) in judged {
        let _ = writeln!(text, "{index},{score},{dropped},{poisoned}");
    }
    Ok(write_sealed(path, text.as_bytes())?)
}
