use burn::tensor::{Tensor, TensorData};
use patchdoor_data::stream;
use patchdoor_kernels::{Kernels, TrainingBackend};
use patchdoor_metrics::Gamma;
use patchdoor_model::Classifier;
use patchdoor_train::gradient_by;
use rand::RngExt;
use serde::{Deserialize, Serialize};

use crate::error::{check_count, check_positive, invalid};
use crate::{DefendedClassifier, Defense, DefenseError, Inspection, InspectionWork, ModelInspector};

/// MM-BD (Wang et al. 2024, arXiv:2205.06900): looks for the class whose logit can be driven farthest above all others, over all
/// images that can be. It needs no data.
///
/// For each class, images of uniform noise climb their own margin, the logit of the class minus the largest other, by gradient
/// ascent with their pixels kept in [0, 1]; the class's score is the largest margin reached. A Gamma distribution F is fitted to
/// all scores but the largest; p = 1 - F(largest)^classes is the chance that the largest of so many would be as large. The class
/// of the largest score is flagged if p is below [`significance`](Self::significance). Departures: the authors' images may leave
/// [0, 1] and are cut in the forward pass, and their Gamma distribution has a location too; where a margin below the largest is
/// not positive, nothing is flagged.
///
/// The rule is as published, and its p-value promises too much: the null is fitted without the largest score. Of ten scores that
/// all come from one Gamma distribution it flags the largest in a quarter of cases, not in 5 %.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct MmBd {
    /// Images of noise that each class starts from.
    pub starts: usize,
    /// Steps that each climbs.
    pub steps: usize,
    /// What the gradient is multiplied by in a step.
    pub learning_rate: f64,
    /// The p-value below which a class is flagged, in (0, 1).
    pub significance: f64,
}

impl Default for MmBd {
    /// The authors' code: 30 images, 300 steps, 0.01; a p-value of 0.05.
    fn default() -> Self {
        Self { starts: 30, steps: 300, learning_rate: 0.01, significance: 0.05 }
    }
}

impl Defense for MmBd {
    fn validate(&self, _classifier: &DefendedClassifier<'_>) -> Vec<DefenseError> {
        let mut problems = Vec::new();
        problems.extend(check_count("starts", self.starts));
        problems.extend(check_positive("learning-rate", self.learning_rate));
        if !(self.significance > 0.0 && self.significance < 1.0) {
            problems.push(invalid("significance", self.significance, "a fraction in (0, 1)"));
        }
        problems
    }

    fn make_quick(&mut self) {
        self.starts = self.starts.min(2);
        self.steps = self.steps.min(3);
    }
}

impl<B: TrainingBackend> ModelInspector<B> for MmBd {
    fn inspect(
        &self,
        classifier: Classifier<B>,
        work: &InspectionWork<'_>,
        device: &B::Device,
    ) -> Result<Inspection, DefenseError> {
        // Frozen, it normalizes as in inference, and no weight takes a gradient.
        let classifier = classifier.freeze_all_but(&[]);
        let mut scores = Vec::new();
        for class in 0..classifier.classes() {
            scores.push(self.largest_margin(&classifier, class, work, device)?);
        }
        let (p_value, largest) = p_value_of_largest(&scores);
        let is_flagged = (0..scores.len()).map(|class| class == largest && p_value < self.significance).collect();
        Ok(Inspection { scores, is_flagged })
    }
}

impl MmBd {
    /// The largest margin of a class that one of its starts climbs to.
    fn largest_margin<B: TrainingBackend>(
        &self,
        classifier: &Classifier<B>,
        class: usize,
        work: &InspectionWork<'_>,
        device: &B::Device,
    ) -> Result<f64, DefenseError> {
        let shape = work.data.clean.shape();
        let mut rng = stream(work.seed, &format!("defense/mm-bd/{class}"));
        let size = [self.starts, shape.height, shape.width, shape.channels];
        let noise: Vec<f32> = (0..size.iter().product()).map(|_| rng.random_range(0.0..1.0)).collect();
        let mut images = Tensor::<B::InnerBackend, 4>::from_data(TensorData::new(noise, size), device);
        let mut largest = f64::NEG_INFINITY;
        for step in 0..=self.steps {
            if (work.is_stopped)() {
                return Err(DefenseError::Interrupted { epochs: 0 });
            }
            let (gradient, margins) = gradient_by::<B, 4, _>(images.clone(), |images| {
                let logits = classifier.forward(images);
                let (margins, signs) = margins_of(logits.clone().inner(), class);
                ((logits * Tensor::from_inner(signs)).sum(), margins)
            });
            largest = margins.into_iter().fold(largest, f64::max);
            if step < self.steps {
                images = (images + gradient * self.learning_rate).clamp(0.0, 1.0);
            }
        }
        Ok(largest)
    }
}

/// How far each row's logit of a class lies above its largest other, and the signs with which the two enter.
pub(crate) fn margins_of<B: Kernels>(logits: Tensor<B, 2>, class: usize) -> (Vec<f64>, Tensor<B, 2>) {
    let ([count, classes], device) = (logits.dims(), logits.device());
    let values: Vec<f64> = logits.into_data().iter::<f64>().collect();
    let mut signs = vec![0.0f32; count * classes];
    let of_row = |(row, signs): (&[f64], &mut [f32])| {
        let others = (0..classes).filter(|&other| other != class);
        // Ties go to the lower class.
        let best = others.reduce(|best, other| if row[other] > row[best] { other } else { best });
        signs[class] = 1.0;
        best.map_or(row[class], |best| {
            signs[best] = -1.0;
            row[class] - row[best]
        })
    };
    let margins = values.chunks_exact(classes).zip(signs.chunks_exact_mut(classes)).map(of_row).collect();
    (margins, Tensor::from_data(TensorData::new(signs, [count, classes]), &device))
}

/// The chance that the largest of so many scores is as large as it is, if it comes from where the others come from, and which
/// that is; ties go to the lower class.
fn p_value_of_largest(scores: &[f64]) -> (f64, usize) {
    let largest = (1..scores.len()).fold(0, |best, class| if scores[class] > scores[best] { class } else { best });
    let others: Vec<f64> = (0..scores.len()).filter(|&class| class != largest).map(|class| scores[class]).collect();
    let p_value =
        Gamma::fitted(&others).map_or(1.0, |null| 1.0 - null.cumulative(scores[largest]).powf(scores.len() as f64));
    (p_value, largest)
}

#[cfg(test)]
mod tests {
    use burn_flex::{Flex, FlexDevice};

    use super::*;
    use crate::detectable::{Planted, TARGET};

    #[test]
    fn a_margin_is_over_the_largest_other() {
        let logits = Tensor::<Flex, 2>::from_data([[1.0, 5.0, 2.0], [0.0, -1.0, 3.0]], &FlexDevice);
        let (margins, signs) = margins_of(logits, 1);
        assert_eq!(margins, [3.0, -4.0]);
        assert_eq!(signs.into_data().iter::<f32>().collect::<Vec<_>>(), [0.0, 1.0, -1.0, 0.0, 1.0, -1.0]);
    }

    #[test]
    fn the_largest_of_scores_alike_is_none_and_one_far_out_is() {
        let alike = [10.0, 11.0, 12.0, 9.0, 10.5, 11.5, 9.5, 10.2, 11.8, 12.2];
        let (p_value, largest) = p_value_of_largest(&alike);
        assert!(largest == 9 && p_value > 0.1, "{p_value}");
        let mut out = alike;
        out[4] = 40.0;
        let (p_value, largest) = p_value_of_largest(&out);
        assert!(largest == 4 && p_value < 1e-3, "{p_value}");
        // Where the others are not positive there is no null.
        assert!((p_value_of_largest(&[-1.0, 2.0, 3.0]).0 - 1.0).abs() < 1e-12);
    }

    #[test]
    fn a_quarter_of_scores_that_come_from_one_distribution_are_flagged() {
        // Not the 5 % that the p-value promises: the null is fitted without the largest score, and so is too narrow. Gamma
        // variables of shape 5 are sums of five exponential ones.
        let mut rng = stream(0, "scores");
        let mut drawn = || (0..5).map(|_| -rng.random_range(1e-12..1.0_f64).ln()).sum::<f64>();
        let flagged = (0..1000).filter(|_| {
            let scores = (0..10).map(|_| drawn()).collect::<Vec<_>>();
            p_value_of_largest(&scores).0 < 0.05
        });
        let flagged = flagged.count();
        // 250 expected; four standard deviations are 55.
        assert!((195..305).contains(&flagged), "{flagged} of 1000");
    }

    #[test]
    fn the_target_of_a_backdoor_has_the_largest_margin() {
        let quick = MmBd { starts: 8, steps: 100, ..MmBd::default() };
        let found = Planted::Backdoored.inspected(&quick);
        assert_eq!(p_value_of_largest(&found.scores).1, usize::from(TARGET), "{:?}", found.scores);
        let of_twin = Planted::CleanTwin.inspected(&quick);
        let target = usize::from(TARGET);
        assert!(of_twin.scores[target] < found.scores[target], "{:?}", of_twin.scores);
    }
}
