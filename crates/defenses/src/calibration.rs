use burn::module::AutodiffModule;
use patchdoor_kernels::TrainingBackend;
use patchdoor_metrics::threshold_for;
use patchdoor_model::Classifier;

use crate::{DefenderData, DefenseError, DetectionThreshold, InputDetector, Inputs, Scorer};

/// A detector that has learned what it needs, with the scores of the validation images, from which its thresholds come.
///
/// ```
/// use burn::backend::Autodiff;
/// use burn_flex::{Flex, FlexDevice};
/// use patchdoor_data::{DatasetConfig, ShapesConfig, load, stream};
/// use patchdoor_defenses::{Calibrated, DefenderData, DetectionThreshold, Inputs, ScaleUp};
/// use patchdoor_model::{ClassifierConfig, InputShape, PatchMoeConfig};
///
/// let images = load(&DatasetConfig::Shapes(ShapesConfig { train: 40, test: 10, seed: 0 }), &[])?;
/// let input = InputShape { height: 32, width: 32, channels: 3 };
/// let config = ClassifierConfig::PatchMoe(PatchMoeConfig { widen_factor: 1, ..Default::default() });
/// let classifier = config.init::<Autodiff<Flex>>(input, 10, &mut stream(0, "weights"), &FlexDevice)?;
///
/// let data = DefenderData { clean: &images.train, validation: Some(&images.train) };
/// let detector = Calibrated::new(&ScaleUp::default(), "scale-up", &classifier, &data, 0, &FlexDevice)?;
/// let threshold = detector.threshold(DetectionThreshold::FalsePositiveRate(0.05));
/// let flagged = detector.scores(Inputs::of(&images.train)).into_iter().filter(|score| *score > threshold).count();
/// // 5 % of 40 images, and fewer where scores are the same.
/// assert!(flagged <= 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Calibrated<'a> {
    scorer: Scorer<'a>,
    validation: Vec<f64>,
}

impl<'a> Calibrated<'a> {
    /// Prepares the detector that is called `name`, and scores the validation images.
    ///
    /// # Errors
    /// If there are no validation images, or those of [`InputDetector::prepare`].
    pub fn new<B: TrainingBackend>(
        detector: &dyn InputDetector<B>,
        name: &'static str,
        classifier: &Classifier<B>,
        data: &DefenderData<'_>,
        seed: u64,
        device: &'a B::Device,
    ) -> Result<Self, DefenseError> {
        let validation = data.validation.ok_or(DefenseError::NoValidation { defense: name })?;
        if data.clean.is_empty() {
            return Err(DefenseError::NoImages { defense: name });
        }
        let scorer = detector.prepare(classifier.valid(), data.clean, seed, device)?;
        let validation = scorer(Inputs::of(validation));
        Ok(Self { scorer, validation })
    }

    /// One score for each image, higher where a trigger is more likely.
    pub fn scores(&self, images: Inputs<'_>) -> Vec<f64> {
        (self.scorer)(images)
    }

    /// The score above which images are flagged.
    pub fn threshold(&self, threshold: DetectionThreshold) -> f64 {
        match threshold {
            DetectionThreshold::FalsePositiveRate(rate) => threshold_for(&self.validation, rate),
            DetectionThreshold::Score(score) => score,
        }
    }
}
