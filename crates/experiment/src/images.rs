use std::path::PathBuf;
use std::sync::Arc;

use patchdoor_data::{DataError, Dataset, ImageSet, load, split, stratified_subset, stream};
use patchdoor_plan::{ConfigErrors, DatasetFacts, ExperimentConfig, Plan, WhenMissing, split_sizes};
use patchdoor_record::ImagesUsed;

use crate::console::Watch;
use crate::download::fetch_missing;
use crate::sources::{Sources, digests_of};

/// Images in memory, and the plan as it applies to them.
#[derive(Clone)]
pub(crate) struct Acquired {
    /// The plan; on the shapes, if those stand in for a missing set.
    pub(crate) plan: Plan,
    /// Shared by the runs of a sweep.
    pub(crate) dataset: Arc<Dataset>,
    pub(crate) used: ImagesUsed,
    /// What is to be known about the images and about what they can show.
    pub(crate) notes: Vec<String>,
    /// What the results depend on besides the configuration.
    pub(crate) sources: Sources,
}

impl Acquired {
    /// A plan on images that were read.
    ///
    /// # Errors
    /// If the plan does not fit the images, or a file that it names cannot be read.
    fn of(plan: &Plan, dataset: Arc<Dataset>, used: ImagesUsed, fingerprint: String) -> Result<Self, ImagesError> {
        let facts = DatasetFacts::of(&dataset.train, &dataset.test);
        let plan = plan.for_images(&facts)?;
        check_seeds(&plan, &dataset.train)?;
        let notes = dataset.notes.iter().cloned().chain(plan.notes(&facts)).collect();
        let sources = Sources { fingerprint, inputs: digests_of(&plan)? };
        Ok(Self { plan, dataset, used, notes, sources })
    }

    /// The images as they were read, for another plan that uses them.
    ///
    /// # Errors
    /// As [`Self::of`].
    pub(crate) fn for_plan(&self, plan: &Plan) -> Result<Self, ImagesError> {
        Self::of(plan, Arc::clone(&self.dataset), self.used.clone(), self.sources.fingerprint.clone())
    }

    /// The images of a plan, if they are on disk: nothing is fetched and nothing stands in for them.
    ///
    /// # Errors
    /// If they are there but cannot be read, or the plan does not fit them.
    pub(crate) fn if_there(plan: &Plan, roots: &[PathBuf]) -> Result<Option<Self>, ImagesError> {
        match load(&plan.config().dataset, roots) {
            Ok(dataset) => Self::loaded(plan, dataset, None).map(Some),
            Err(DataError::Missing { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn loaded(plan: &Plan, dataset: Dataset, substitution: Option<String>) -> Result<Self, ImagesError> {
        let fingerprint = format!("{}-{}", dataset.train.fingerprint(), dataset.test.fingerprint());
        let used = ImagesUsed { dataset: plan.config().dataset.name().to_owned(), substitution };
        Self::of(plan, Arc::new(dataset), used, fingerprint)
    }
}

/// Makes sure that the images of each seed can be poisoned as the plan says, where only the images can tell: those that
/// belong together are held out together.
fn check_seeds(plan: &Plan, train: &ImageSet) -> Result<(), ImagesError> {
    let config = plan.config();
    let is_of_classes = config.poisoning.poisoned_class().is_some() || config.poisoning.counts_in_classes();
    if train.groups().is_none() || !is_of_classes {
        return Ok(());
    }
    for &seed in &config.seeds {
        let (training, _) = split::for_seed(train, config.data.validation_fraction, split_sizes(&config.data), seed);
        let mut counts = vec![0; train.class_count()];
        for &index in &training {
            counts[usize::from(train.label(index))] += 1;
        }
        if let Some(DataError::InvalidField { field, found, allowed }) = config.poisoning.validate_among(&counts) {
            return Err(plan
                .problem(&format!("poisoning.{field}"), &format!("{found} with seed {seed}"), &allowed)
                .into());
        }
    }
    Ok(())
}

/// Why there are no images to run on.
#[derive(Debug, thiserror::Error)]
pub enum ImagesError {
    /// The data set is not on disk, could not be fetched, and nothing may stand in for it.
    #[error(
        "{missing}; fetching it: {fetching}; with when-missing = \"shapes\" in its [data] table the experiment would \
         run on the built-in shapes instead"
    )]
    Missing {
        /// Where it was looked for.
        missing: DataError,
        /// What came of fetching it.
        fetching: String,
    },
    /// The user interrupted the download.
    #[error("the download was interrupted")]
    Interrupted,
    /// The data set is there but cannot be read.
    #[error("the images cannot be read")]
    Unreadable(#[from] DataError),
    /// A file that the experiment names cannot be read.
    #[error("a file that the experiment names cannot be read")]
    Input(#[from] std::io::Error),
    /// The experiment does not fit the images.
    #[error(transparent)]
    Unfit(#[from] ConfigErrors),
}

/// Reads the images of a plan, fetching them first if need be and allowed, or falls back to the shapes if the plan
/// allows that.
pub(crate) fn acquire(
    plan: &Plan,
    roots: &[PathBuf],
    offline: bool,
    watch: Watch<'_>,
) -> Result<Acquired, ImagesError> {
    let name = plan.config().dataset.name();
    let (plan, dataset, substitution) = match load(&plan.config().dataset, roots) {
        Ok(dataset) => (plan.clone(), dataset, None),
        Err(missing @ DataError::Missing { .. }) => {
            let fetched =
                if offline { Err("not tried (--offline)".to_owned()) } else { fetch_missing(name, roots, watch) };
            if watch.is_stopped() {
                return Err(ImagesError::Interrupted);
            }
            match (fetched, plan.config().data.when_missing) {
                (Ok(()), _) => (plan.clone(), load(&plan.config().dataset, roots)?, None),
                (Err(fetching), None) => return Err(ImagesError::Missing { missing, fetching }),
                (Err(fetching), Some(WhenMissing::Shapes)) => {
                    let plan = plan.on_shapes().expect("the experiment allows shapes");
                    let substitution =
                        format!("{name} was not found and could not be fetched; run on the built-in shapes instead");
                    watch.say(format!("warning: {missing}"));
                    watch.say(format!("warning: fetching it: {fetching}"));
                    watch.say(format!(
                        "warning: when-missing = \"shapes\": the results below are about shapes, NOT about {name}"
                    ));
                    let dataset = load(&plan.config().dataset, roots)?;
                    (plan, dataset, Some(substitution))
                }
            }
        }
        Err(error) => return Err(error.into()),
    };
    Acquired::loaded(&plan, dataset, substitution)
}

/// The images of one seed, untouched.
pub(crate) struct SeedImages {
    pub(crate) training: ImageSet,
    pub(crate) validation: Option<ImageSet>,
}

impl SeedImages {
    /// Holds out validation images, then draws the training images from the rest, both stratified by class. A surrogate that
    /// shares no image with its victim draws both from what the victim is not trained on.
    pub(crate) fn draw(config: &ExperimentConfig, train: &ImageSet, seed: u64) -> Self {
        let split = |set: &ImageSet, seed| {
            split::for_seed(set, config.data.validation_fraction, split_sizes(&config.data), seed)
        };
        let left: ImageSet;
        let train = match config.data.apart_from {
            None => train,
            Some(offset) => {
                let (taken, _) = split(train, seed.wrapping_sub(offset));
                let others = (0..train.len()).filter(|index| taken.binary_search(index).is_err());
                left = train.subset(&others.collect::<Vec<_>>());
                &left
            }
        };
        let (training, validation) = split(train, seed);
        let (training, validation) = (train.subset(&training), train.subset(&validation));
        Self { training, validation: (!validation.is_empty()).then_some(validation) }
    }
}

/// The test images of a run, the same for every seed.
pub(crate) fn test_images(config: &ExperimentConfig, test: &ImageSet) -> ImageSet {
    match config.data.test_images {
        Some(count) => test.subset(&stratified_subset(test, count, &mut stream(0, "test-images"))),
        None => test.clone(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use patchdoor_data::{DatasetConfig, ShapesConfig};
    use patchdoor_plan::PlanOptions;

    use super::*;

    #[test]
    fn a_surrogate_of_other_images_shares_none_with_its_victim_whatever_its_seed() {
        let config = DatasetConfig::Shapes(ShapesConfig { train: 200, test: 10, seed: 0 });
        let train = load(&config, &[]).expect("shapes need no file").train;
        let of_seed = |images: &str, offset: u64| {
            let text = format!(
                "dataset.shapes = {{ train = 200, test = 10, seed = 0 }}\ndata = {{ training-images = 90 }}\n[trigger.square]\n\
                 [model.patch-moe]\n[placement]\ncells.most-selected = {{ count = 1 }}\n\
                 [surrogate]\nseed-offset = {offset}\nimages = \"{images}\"\n"
            );
            let victim = Plan::from_text("a.toml", &text, &PlanOptions::default()).expect("valid");
            let (surrogate, plan) = victim.surrogate().expect("a surrogate chooses the cells");
            let victims = SeedImages::draw(victim.config(), &train, 3).training;
            let others = SeedImages::draw(plan.config(), &train, 3 + surrogate.seed_offset).training;
            let known = (0..90).map(|index| victims.pixels(index).to_vec()).collect::<BTreeSet<_>>();
            assert_eq!((known.len(), others.len()), (90, 90));
            let shared = (0..90).filter(|&index| known.contains(others.pixels(index))).count();
            (shared, victim.twin_hash("flex", "-") == plan.twin_hash("flex", "-"))
        };
        assert_eq!(of_seed("all", 0), (90, true), "the twin");
        assert!((30..70).contains(&of_seed("all", 100).0), "another draw shares about 90 * 90 / 180");
        assert_eq!(of_seed("others", 0), (0, false));
        assert_eq!(of_seed("others", 100), (0, false));
    }
}
