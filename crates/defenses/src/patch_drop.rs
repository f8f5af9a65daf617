use burn::tensor::{Tensor, TensorData};
use patchdoor_data::{ImageSet, StreamRng, stream};
use patchdoor_kernels::{Kernels, TrainingBackend};
use patchdoor_model::{Classifier, GivenRouting, Routing, TakenRouting};
use patchdoor_train::{PREDICTION_BATCH, classes_of};
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

use crate::error::{check_count, check_rate, invalid};
use crate::{DefendedClassifier, Defense, DefenseError, DetectionThreshold, InputDetector, Inputs, Need, Scorer};

/// `PatchDrop` (Doan et al. 2023, arXiv:2206.12381): drops patches of an input at random and looks at how often the predicted
/// class changes: a trigger that lies in a few patches is lost with them, while what an image shows is in many.
///
/// The score is the share of the trials that change the class. The authors drop tokens of a vision transformer. Here they are
/// patches of the map that the experts choose from, which no expert hears: their gates become zero, and what lies before the
/// routers is computed once for all trials. Where there are no experts, cells of the image are painted over with the mean colour
/// of the clean images. All inputs lose the same patches (stream `defense/patch-drop`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct PatchDrop {
    /// Where patches are dropped.
    pub level: PatchLevel,
    /// Cells along a side of the image, where it is the image that loses some; 2 or more.
    pub grid: usize,
    /// Share of the patches that are dropped, rounded, in (0, 1).
    pub dropped_fraction: f64,
    /// How often, 1 or more.
    pub trials: usize,
    /// Share of validation images that may be flagged, in (0, 1).
    pub false_positive_rate: f64,
}

/// What patches are dropped of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PatchLevel {
    /// The map that the experts choose from.
    #[default]
    Map,
    /// The image.
    Image,
}

impl Default for PatchDrop {
    /// Our own numbers: half of the patches, twenty times; 5 % false positives, as for every detector here that has no threshold
    /// of its own.
    fn default() -> Self {
        Self { level: PatchLevel::Map, grid: 8, dropped_fraction: 0.5, trials: 20, false_positive_rate: 0.05 }
    }
}

impl Defense for PatchDrop {
    fn validate(&self, _classifier: &DefendedClassifier<'_>) -> Vec<DefenseError> {
        let mut problems = Vec::new();
        if !(2..=256).contains(&self.grid) {
            problems.push(invalid("grid", self.grid, "2 to 256"));
        }
        if !(self.dropped_fraction > 0.0 && self.dropped_fraction < 1.0) {
            problems.push(invalid("dropped-fraction", self.dropped_fraction, "a fraction in (0, 1)"));
        }
        problems.extend(check_count("trials", self.trials));
        problems.extend(check_rate("false-positive-rate", self.false_positive_rate));
        problems
    }

    fn needs(&self) -> &'static [Need] {
        match self.level {
            PatchLevel::Map => &[Need::Experts, Need::ValidationImages],
            PatchLevel::Image => &[Need::ValidationImages],
        }
    }

    /// The 5 % of `BackdoorBench` (Wu et al. 2022, arXiv:2206.12654).
    fn default_clean_fraction(&self) -> f64 {
        0.05
    }

    fn make_quick(&mut self) {
        self.trials = self.trials.min(3);
    }
}

impl<B: TrainingBackend> InputDetector<B> for PatchDrop {
    fn threshold(&self) -> DetectionThreshold {
        DetectionThreshold::FalsePositiveRate(self.false_positive_rate)
    }

    fn prepare<'a>(
        &self,
        classifier: Classifier<B::InnerBackend>,
        clean: &ImageSet,
        seed: u64,
        device: &'a B::Device,
    ) -> Result<Scorer<'a>, DefenseError> {
        let rng = &mut stream(seed, "defense/patch-drop");
        match self.level {
            PatchLevel::Map => {
                let mut batches = Inputs::of(clean).batches::<B::InnerBackend>(1, device);
                let (_, routings) = classifier.forward_with_routing(batches.next().expect("there are clean images"));
                let kept = routings.first().and_then(Routing::expert_choice).map(|choice| choice.weights.dims()[2]);
                let patches = kept.ok_or(DefenseError::NoExperts { defense: "patch-drop" })?;
                let kept: Vec<_> = self.draws(patches, rng).map(|kept| of_map(&kept, device)).collect();
                let changed = move |batch| changes_on_map(&classifier, batch, &kept);
                Ok(scorer::<B>(changed, self.trials, device))
            }
            PatchLevel::Image => {
                let shape = clean.shape();
                let cell = |pixel: usize| {
                    let (row, column) = (pixel / shape.width, pixel % shape.width);
                    row * self.grid / shape.height * self.grid + column * self.grid / shape.width
                };
                let cells = (0..shape.height * shape.width).map(cell).collect::<Vec<_>>();
                let of_image = |kept: Vec<f32>| {
                    let kept = cells.iter().map(|&cell| kept[cell]).collect::<Vec<_>>();
                    Tensor::from_data(TensorData::new(kept, [1, shape.height, shape.width, 1]), device)
                };
                let kept: Vec<_> = self.draws(self.grid * self.grid, rng).map(of_image).collect();
                let paint = mean_colour(clean);
                let paint = Tensor::from_data(TensorData::new(paint, [1, 1, 1, shape.channels]), device);
                let changed = move |batch| changes_on_image(&classifier, &batch, &kept, &paint);
                Ok(scorer::<B>(changed, self.trials, device))
            }
        }
    }
}

impl PatchDrop {
    /// Of each trial, one for every patch that stays and zero for others.
    fn draws<'a>(&'a self, patches: usize, rng: &'a mut StreamRng) -> impl Iterator<Item = Vec<f32>> + 'a {
        let dropped = (self.dropped_fraction * patches as f64).round() as usize;
        (0..self.trials).map(move |_| {
            let mut kept = (0..patches).map(|patch| f32::from(u8::from(patch >= dropped))).collect::<Vec<_>>();
            kept.shuffle(rng);
            kept
        })
    }
}

/// A scorer by how many of so many trials change the class.
fn scorer<'a, B: TrainingBackend>(
    changed: impl Fn(Tensor<B::InnerBackend, 4>) -> Vec<usize> + 'a,
    trials: usize,
    device: &'a B::Device,
) -> Scorer<'a> {
    Box::new(move |images| {
        let counts = images.batches(PREDICTION_BATCH, device).flat_map(&changed);
        counts.map(|changed| changed as f64 / trials as f64).collect()
    })
}

fn of_map<B: Kernels>(kept: &[f32], device: &B::Device) -> Tensor<B, 3> {
    Tensor::from_data(TensorData::new(kept.to_vec(), [1, 1, kept.len()]), device)
}

/// In how many trials each image of a batch changes its class when no expert hears the dropped patches.
fn changes_on_map<B: Kernels>(classifier: &Classifier<B>, batch: Tensor<B, 4>, kept: &[Tensor<B, 3>]) -> Vec<usize> {
    let (logits, routing) = classifier.forward_with_routing(batch.clone());
    let silenced = |kept: &Tensor<B, 3>| {
        let of_layer = |routing: &Routing<B>| match routing {
            Routing::ExpertChoice(choice) => {
                let mut choice = choice.clone();
                choice.weights = choice.weights * kept.clone();
                Routing::ExpertChoice(choice)
            }
            other => other.clone(),
        };
        routing.iter().map(of_layer).collect::<Vec<_>>()
    };
    let silenced = kept.iter().map(silenced).collect::<Vec<_>>();
    let given: Vec<_> = silenced.iter().map(|routing| GivenRouting { routing, taken: TakenRouting::All }).collect();
    let passes = classifier.forward_given_routing(batch, &given).expect("the routing is its own");
    changes(&classes_of(logits), passes.into_iter().map(classes_of))
}

/// The same where the dropped cells of the image are painted over.
fn changes_on_image<B: Kernels>(
    classifier: &Classifier<B>,
    batch: &Tensor<B, 4>,
    kept: &[Tensor<B, 4>],
    paint: &Tensor<B, 4>,
) -> Vec<usize> {
    let own = classes_of(classifier.forward(batch.clone()));
    let painted = kept.iter().map(|kept| batch.clone() * kept.clone() + (kept.clone().neg() + 1.0) * paint.clone());
    changes(&own, painted.map(|images| classes_of(classifier.forward(images))))
}

/// How many of the trials give each image another class than its own.
pub(crate) fn changes(own: &[u8], trials: impl Iterator<Item = Vec<u8>>) -> Vec<usize> {
    let mut counts = vec![0; own.len()];
    for classes in trials {
        for ((count, own), class) in counts.iter_mut().zip(own).zip(classes) {
            *count += usize::from(*own != class);
        }
    }
    counts
}

/// The mean pixel of a set, in [0, 1].
fn mean_colour(images: &ImageSet) -> Vec<f32> {
    let channels = images.shape().channels;
    let mut sums = vec![0.0f64; channels];
    for pixel in images.all_pixels().chunks_exact(channels) {
        sums.iter_mut().zip(pixel).for_each(|(sum, &value)| *sum += f64::from(value));
    }
    let count = 255.0 * (images.all_pixels().len() / channels) as f64;
    sums.into_iter().map(|sum| (sum / count) as f32).collect()
}

#[cfg(test)]
mod tests {
    use burn::module::AutodiffModule;
    use burn_flex::{Flex, FlexDevice};
    use patchdoor_data::ImageShape;
    use patchdoor_train::image_batches;

    use super::*;
    use crate::detectable::Planted;
    use crate::testing::{ascending_filters, shapes};

    #[test]
    fn every_trial_drops_as_many_patches_and_others() {
        let config = PatchDrop { dropped_fraction: 0.3, ..PatchDrop::default() };
        let drawn = config.draws(10, &mut stream(0, "draws")).collect::<Vec<_>>();
        assert!(drawn.iter().all(|kept| kept.iter().filter(|&&kept| kept > 0.5).count() == 7), "{drawn:?}");
        assert!(drawn.len() == 20 && drawn.windows(2).any(|pair| pair[0] != pair[1]));
    }

    #[test]
    fn changes_are_counted_over_the_trials() {
        assert_eq!(changes(&[1, 2, 3], [vec![1, 0, 0], vec![1, 2, 0]].into_iter()), [0, 1, 2]);
        let shape = ImageShape { height: 1, width: 2, channels: 2 };
        let set = ImageSet::new(shape, vec![0, 255, 255, 255], vec![0], vec!["any".to_owned()]).expect("valid");
        assert_eq!(mean_colour(&set), [0.5, 1.0]);
    }

    #[test]
    fn where_nothing_is_dropped_nothing_changes_and_where_all_is_all_images_look_alike() {
        let classifier = ascending_filters().valid();
        let batch = || image_batches::<Flex>(&shapes(10), 10, &FlexDevice).next().expect("ten images");
        let own = classes_of(classifier.forward(batch()));
        assert_eq!(changes_on_map(&classifier, batch(), &[of_map(&[1.0; 64], &FlexDevice)]), [0; 10]);
        // Experts that hear nothing answer the same to every image: what changes is all that is not that answer.
        let counts = changes_on_map(&classifier, batch(), &[of_map(&[0.0; 64], &FlexDevice)]);
        let answers = own.iter().zip(&counts).filter(|(_, changed)| **changed == 0).map(|(class, _)| class);
        let mut answers = answers.collect::<Vec<_>>();
        answers.dedup();
        assert!(answers.len() <= 1, "{own:?} {counts:?}");
        let whole = Tensor::<Flex, 4>::ones([1, 32, 32, 1], &FlexDevice);
        let paint = Tensor::<Flex, 4>::zeros([1, 1, 1, 3], &FlexDevice);
        assert_eq!(changes_on_image(&classifier, &batch(), &[whole], &paint), [0; 10]);
    }

    #[test]
    fn it_finds_the_triggered_images_of_a_backdoor_and_none_of_a_clean_twin() {
        // The square covers four patches of the map, of which two or three are heard in most trials when half are dropped; and
        // four cells of the image.
        for (level, dropped_fraction) in [(PatchLevel::Map, 0.7), (PatchLevel::Image, 0.3)] {
            let detector = PatchDrop { level, dropped_fraction, ..PatchDrop::default() };
            let (found, of_twin) = (Planted::Backdoored.judged(&detector), Planted::CleanTwin.judged(&detector));
            assert!(found.area > 0.9 && found.false_alarms < 0.13, "{level:?}: {}, {}", found.area, found.false_alarms);
            assert!(of_twin.area < 0.7 && of_twin.false_alarms < 0.13, "{level:?}: {}", of_twin.area);
        }
    }
}
