use burn::tensor::{Tensor, TensorData};
use patchdoor_data::{ImageSet, ImageShape, LabelRule};
use patchdoor_kernels::{Kernels, TrainingBackend};
use patchdoor_train::{BatchAssembler, PREDICTION_BATCH, cross_entropy, gradient_by, predict};
use patchdoor_triggers::PlacementConfig;
use serde::{Deserialize, Serialize};

use crate::crafting::{no_placement, only_clean_label};
use crate::error::{above_zero, invalid, one_or_more};
use crate::{AttackError, Change, Craft, Crafted, CraftedTrigger, Crafting, Workshop};

/// Images that are perturbed side by side.
const BATCH: usize = 128;

/// Rows and columns of the checkers.
const SIDE: usize = 3;

/// The label-consistent attack (Turner et al. 2019, arXiv:1912.02771): images of the target class are made hard to recognise
/// and keep their label, so that the classifier learns the pattern in their corners instead.
///
/// A poisoned image climbs the surrogate's cross-entropy by signs of gradients (PGD), within `bound` of the original; then
/// checkers of 3x3 pixels go into all four corners, as the authors' code writes them. Test images get the checkers alone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct LabelConsistentConfig {
    /// The most that a value changes, of 255.
    pub bound: u8,
    /// What a value changes in one step, of 255.
    pub step: f64,
    /// Steps of gradient ascent.
    pub steps: usize,
}

impl Default for LabelConsistentConfig {
    /// As in the paper and `BackdoorBench` (Wu et al. 2022, arXiv:2206.12654): 8 of 255, steps of 1.5, 100 of them.
    fn default() -> Self {
        Self { bound: 8, step: 1.5, steps: 100 }
    }
}

impl Crafting for LabelConsistentConfig {
    fn validate(&self, shape: ImageShape) -> Vec<AttackError> {
        let mut problems = Vec::new();
        if shape.height < 2 * SIDE || shape.width < 2 * SIDE {
            problems.push(invalid("", format!("for {shape} images"), "images of at least 6x6 pixels"));
        }
        problems.extend(one_or_more("bound", usize::from(self.bound)));
        problems.extend(above_zero("step", self.step));
        problems.extend(one_or_more("steps", self.steps));
        problems
    }

    fn refuse(&self, rule: &LabelRule, placement: Option<&PlacementConfig>) -> Vec<AttackError> {
        let placed = no_placement(placement, "its checkers lie in the four corners");
        only_clean_label(rule).into_iter().chain(placed).collect()
    }

    fn pixel_budget(&self, _shape: ImageShape, _placed: Option<usize>) -> usize {
        4 * SIDE * SIDE
    }

    fn make_quick(&mut self) {
        self.steps = self.steps.min(3);
    }
}

impl<B: TrainingBackend> Craft<B> for LabelConsistentConfig {
    fn craft(&self, workshop: &Workshop<'_, B>) -> Result<Crafted, AttackError> {
        let originals = workshop.poisoned;
        let perturbed = self.perturbed(originals, workshop)?;
        let surrogate = burn::module::AutodiffModule::valid(workshop.surrogate);
        let recognised = |set: &ImageSet| {
            let predicted = predict(&surrogate, set, PREDICTION_BATCH, workshop.device);
            let right = predicted.iter().zip(set.labels()).filter(|(predicted, label)| predicted == label).count();
            right as f64 / set.len().max(1) as f64
        };
        let reached =
            [("recognised-untouched", recognised(originals)), ("recognised-perturbed", recognised(&perturbed))];
        let pairs =
            (0..originals.len()).map(|index| (originals.pixels(index).to_vec(), perturbed.pixels(index).to_vec()));
        let trigger = CraftedTrigger::new(originals.shape(), corners(originals.shape())).with_replacements(pairs);
        Ok(Crafted { trigger, reached: reached.map(|(name, value)| (name.to_owned(), value)).into() })
    }
}

impl LabelConsistentConfig {
    /// The images after their steps, within the bound of what they were.
    fn perturbed<B: TrainingBackend>(
        &self,
        originals: &ImageSet,
        workshop: &Workshop<'_, B>,
    ) -> Result<ImageSet, AttackError> {
        let assembler = BatchAssembler::<B::InnerBackend>::new(originals, workshop.device);
        let indices: Vec<usize> = (0..originals.len()).collect();
        let (bound, step) = (f64::from(self.bound) / 255.0, self.step / 255.0);
        let total = indices.chunks(BATCH).len() * self.steps;
        let mut pixels = Vec::with_capacity(originals.all_pixels().len());
        for (number, chunk) in indices.chunks(BATCH).enumerate() {
            let batch = assembler.batch(chunk, workshop.device);
            let mut images = batch.images.clone();
            for done in 0..self.steps {
                workshop.step(number * self.steps + done, total)?;
                let (gradient, ()) = gradient_by::<B, 4, _>(images.clone(), |images| {
                    let labels = Tensor::from_inner(batch.labels.clone());
                    (cross_entropy(workshop.surrogate.forward(images), labels), ())
                });
                images = within(images + gradient.sign().mul_scalar(step), &batch.images, bound);
            }
            pixels.extend(bytes(images));
        }
        let set = ImageSet::new(originals.shape(), pixels, originals.labels().to_vec(), originals.classes().to_vec());
        Ok(set.expect("as many pixels and labels as before"))
    }
}

/// Cuts images to what lies within `bound` of the originals and in [0, 1].
fn within<B: Kernels>(images: Tensor<B, 4>, originals: &Tensor<B, 4>, bound: f64) -> Tensor<B, 4> {
    let difference = (images - originals.clone()).clamp(-bound, bound);
    (originals.clone() + difference).clamp(0.0, 1.0)
}

/// Pixels in [0, 1] as the nearest bytes.
pub(crate) fn bytes<B: Kernels>(images: Tensor<B, 4>) -> Vec<u8> {
    let data: TensorData = images.into_data();
    data.iter::<f32>().map(|value| (value * 255.0).round().clamp(0.0, 255.0) as u8).collect()
}

/// Checkers in the four corners: those of the authors' code, black in the upper two's inner upper pixel and in the lower
/// two's innermost.
fn corners(shape: ImageShape) -> Change {
    const UPPER: [[u8; SIDE]; SIDE] = [[255, 0, 0], [0, 255, 0], [255, 0, 255]];
    const LOWER: [[u8; SIDE]; SIDE] = [[255, 0, 255], [0, 255, 0], [255, 0, 0]];
    let mut written = vec![None; shape.size()];
    let mut write = |row: usize, column: usize, value: u8| {
        let at = (row * shape.width + column) * shape.channels;
        written[at..at + shape.channels].fill(Some(value));
    };
    for (row, column) in (0..SIDE).flat_map(|row| (0..SIDE).map(move |column| (row, column))) {
        for place in [column, shape.width - 1 - column] {
            write(row, place, UPPER[row][column]);
            write(shape.height - 1 - row, place, LOWER[row][column]);
        }
    }
    Change::Written(written)
}

#[cfg(test)]
mod tests {
    use burn_flex::{Flex, FlexDevice};
    use patchdoor_data::{Trigger, stream};

    use super::*;
    use crate::CraftedConfig;
    use crate::testing::{TARGET, crafted, of_class, patches, taken_for};

    #[test]
    fn steps_stay_within_the_bound_and_the_range() {
        let tensor = |values: [f32; 3]| Tensor::<Flex, 4>::from_data([[[values]]], &FlexDevice);
        let cut = within(tensor([0.9, 0.3, -0.2]), &tensor([0.5, 0.35, 0.1]), 0.2);
        let found: Vec<f32> = cut.into_data().iter::<f32>().collect();
        for (found, expected) in found.into_iter().zip([0.7, 0.3, 0.0]) {
            assert!((found - expected).abs() < 1e-6, "{found} is not {expected}");
        }
    }

    #[test]
    fn corners_are_those_of_the_published_code() {
        let shape = ImageShape { height: 7, width: 8, channels: 1 };
        let Change::Written(written) = corners(shape) else { unreachable!("checkers are written") };
        let row = |row: usize| {
            written[row * 8..][..8].iter().map(|v| match v {
                Some(255) => '#',
                Some(0) => '.',
                _ => ' ',
            })
        };
        let rows: Vec<String> = (0..7).map(|number| row(number).collect()).collect();
        assert_eq!(rows, ["#..  ..#", ".#.  .#.", "#.#  #.#", "        ", "#..  ..#", ".#.  .#.", "#.#  #.#"]);
    }

    #[test]
    fn perturbed_images_are_recognised_no_more_and_the_checkers_alone_change_little() {
        let images = of_class(&patches("poisoned", 80), TARGET);
        // The colours are farther apart than those of photographs, so the bound is wider.
        let config = LabelConsistentConfig { bound: 60, step: 8.0, steps: 20 };
        let made = crafted(&CraftedConfig::LabelConsistent(config), &images, None, 0).unwrap();
        let (before, after) = (made.reached["recognised-untouched"], made.reached["recognised-perturbed"]);
        assert!(before > 0.9 && after < 0.3, "{before} before, {after} after");
        let rng = &mut stream(0, "");
        for index in 0..images.len() {
            let image = images.image(index);
            let poisoned = made.trigger.stamp_training(&image, TARGET, rng);
            assert_eq!((poisoned.pixel(0, 0), poisoned.pixel(0, 1)), (&[255; 3][..], &[0; 3][..]));
            let inner = (3..13).flat_map(|row| (0..16).map(move |column| (row, column)));
            let differs = |(row, column): (usize, usize)| {
                let pairs = poisoned.pixel(row, column).iter().zip(image.pixel(row, column));
                pairs.map(|(a, b)| a.abs_diff(*b)).max().unwrap_or(0)
            };
            let largest = inner.map(differs).max().unwrap_or(0);
            assert!((50..=60).contains(&largest), "{largest}");
        }
        // Test images are not perturbed: without a backdoor the checkers are no reason to answer otherwise.
        let others = of_class(&patches("test", 80), 0);
        assert!(taken_for(0, &others, Some(&made.trigger)) > 0.6);
    }

    #[test]
    fn an_attack_that_is_stopped_says_so() {
        use crate::testing::surrogate;
        let images = of_class(&patches("poisoned", 8), TARGET);
        let poisoning = patchdoor_data::PoisoningConfig::default();
        let surrogate = surrogate();
        let stopped = LabelConsistentConfig::default().craft(&Workshop {
            surrogate: &surrogate,
            images: &images,
            poisoned: &images,
            poisoning: &poisoning,
            cells: None,
            seed: 0,
            device: &FlexDevice,
            is_stopped: &|| true,
            progress: &|_, _| (),
        });
        assert_eq!(stopped, Err(AttackError::Interrupted));
    }
}
