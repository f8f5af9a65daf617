use std::time::Instant;

use burn::module::AutodiffModule;
use patchdoor_data::ImageSet;
use patchdoor_defenses::{Calibrated, DefenderData, DetectionThreshold, InputDetector, Inputs};
use patchdoor_kernels::TrainingBackend;
use patchdoor_model::Classifier;
use patchdoor_record::DetectorStanding;
use patchdoor_train::{PREDICTION_BATCH, predict};

use crate::console::Watch;
use crate::error::RunError;
use crate::exam::{Exam, Judge};
use crate::halt::{Halt, Step};

/// Images judged before anybody asks whether to stop.
const CHUNK: usize = 1024;

/// A detector's scores of all test images, untouched and triggered.
pub(crate) struct Detection {
    pub(crate) standing: DetectorStanding,
    /// Of untouched test images, in their order.
    pub(crate) untouched: Vec<f64>,
    /// Of the same images triggered.
    pub(crate) triggered: Vec<f64>,
    /// Of other images, in their order.
    pub(crate) suspects: Vec<f64>,
    /// The score above which it flags images.
    pub(crate) threshold: f64,
    /// Seconds it took.
    pub(crate) seconds: f64,
}

/// Lets a detector judge all test images, and others if there are any; its thresholds come from the defender's validation images.
pub(crate) fn detect<B: TrainingBackend>(
    (detector, name): (&dyn InputDetector<B>, &'static str),
    classifier: &Classifier<B>,
    (data, seed): (&DefenderData<'_>, u64),
    (exam, suspects): (Judge<'_>, Option<&ImageSet>),
    watch: Watch<'_>,
    device: &B::Device,
) -> Step<Detection> {
    let start = Instant::now();
    let calibrated = Calibrated::new(detector, name, classifier, data, seed, device).map_err(RunError::from)?;
    let untouched = judge(&calibrated, exam.test(), watch)?;
    let exam = exam.exam();
    let triggered = exam.map_or(Ok(Vec::new()), |exam| judge(&calibrated, &exam.triggered, watch))?;
    let suspects = suspects.map_or(Ok(Vec::new()), |images| judge(&calibrated, images, watch))?;
    let seconds = start.elapsed().as_secs_f64();
    let (attacked, successful) = exam.map_or_else(Default::default, |exam| {
        let predicted = predict(&classifier.valid(), &exam.triggered, PREDICTION_BATCH, device);
        attacked_scores(exam, &predicted, &triggered)
    });
    let threshold = |rate| calibrated.threshold(DetectionThreshold::FalsePositiveRate(rate));
    let own = calibrated.threshold(detector.threshold());
    let standing = DetectorStanding::of([&attacked, &successful, &untouched], own, threshold);
    Ok(Detection { standing, untouched, triggered, suspects, threshold: own, seconds })
}

/// The scores of the images of a set, which an interruption may leave undone.
fn judge(calibrated: &Calibrated<'_>, images: &ImageSet, watch: Watch<'_>) -> Step<Vec<f64>> {
    let order = (0..images.len()).collect::<Vec<_>>();
    let mut scores = Vec::with_capacity(images.len());
    for chunk in order.chunks(CHUNK) {
        if watch.is_stopped() {
            return Err(Halt::Interrupted);
        }
        scores.extend(calibrated.scores(Inputs::of(&images.subset(chunk))));
    }
    Ok(scores)
}

/// Of scores of triggered images, those of images that are attacked, and of those whose attack succeeds.
fn attacked_scores(exam: &Exam<'_>, predicted: &[u8], scores: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let (mut attacked, mut successful) = (Vec::new(), Vec::new());
    for ((&score, &predicted), &label) in scores.iter().zip(predicted).zip(exam.test.labels()) {
        let Some(succeeds) = exam.attack.succeeds(predicted, label, exam.test.class_count()) else { continue };
        attacked.push(score);
        if succeeds {
            successful.push(score);
        }
    }
    (attacked, successful)
}
