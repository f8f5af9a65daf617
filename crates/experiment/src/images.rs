use std::path::PathBuf;
use std::sync::Arc;

use patchdoor_data::{DataError, Dataset, ImageSet, load, split, stratified_subset, stream};
use patchdoor_plan::{ConfigErrors, DatasetFacts, ExperimentConfig, Plan, WhenMissing, share_of};
use patchdoor_record::ImagesUsed;

use crate::console::Watch;
use crate::download::fetch_missing;

/// Images in memory, and the plan as it applies to them.
#[derive(Clone)]
pub(crate) struct Acquired {
    /// The plan; on the shapes, if those stand in for a missing set.
    pub(crate) plan: Plan,
    /// Shared by the runs of a sweep.
    pub(crate) dataset: Arc<Dataset>,
    pub(crate) used: ImagesUsed,
    /// SHA-256 over pixels and labels of both splits.
    pub(crate) fingerprint: String,
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
    let facts = DatasetFacts::of(&dataset.train, &dataset.test);
    let plan = plan.for_images(facts);
    plan.check_against(facts)?;
    let fingerprint = format!("{}-{}", dataset.train.fingerprint(), dataset.test.fingerprint());
    let used = ImagesUsed { dataset: plan.config().dataset.name().to_owned(), substitution };
    Ok(Acquired { plan, dataset: Arc::new(dataset), used, fingerprint })
}

/// The images of one seed, untouched.
pub(crate) struct SeedImages {
    pub(crate) training: ImageSet,
    pub(crate) validation: Option<ImageSet>,
}

impl SeedImages {
    /// Holds out validation images, then draws the training images from the rest, both stratified by class.
    pub(crate) fn draw(config: &ExperimentConfig, train: &ImageSet, seed: u64) -> Self {
        let fraction = config.data.validation_fraction;
        let (kept, held_out) = if fraction == 0.0 {
            ((0..train.len()).collect(), Vec::new())
        } else {
            split::stratified(train, fraction, &mut stream(seed, "validation"))
        };
        let mut training = train.subset(&kept);
        let mut validation = train.subset(&held_out);
        if let Some(count) = config.data.training_images {
            let drawn = stratified_subset(&training, count, &mut stream(seed, "training-images"));
            training = training.subset(&drawn);
            let count = share_of(count, fraction / (1.0 - fraction));
            let drawn = stratified_subset(&validation, count, &mut stream(seed, "validation-images"));
            validation = validation.subset(&drawn);
        }
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
