use burn::tensor::backend::Backend;
use patchdoor_data::{ImageSet, StreamRng, stream};
use patchdoor_kernels::{Kernels, TrainingBackend};
use patchdoor_model::Classifier;
use patchdoor_train::{PREDICTION_BATCH, image_batches, predict};
use rand::RngExt;
use serde::{Deserialize, Serialize};

use crate::error::{check_count, invalid};
use crate::{DatasetFilter, DefendedClassifier, Defense, DefenseError, Filtering, Need};

/// Looks for triggers where the gates look, and for the images that hold one: the idea of `PatchSearch` (Tejankar et al. 2023,
/// arXiv:2304.01482) for experts that choose patches.
///
/// An image's gate map is the sum of all experts' gates over its patches. The window of [`window`](Self::window) patches a side
/// with the largest sum is the image's candidate; its pixels are pasted, at places drawn anew each time, into
/// [`pasted`](Self::pasted) images of other labels that are predicted right, and the score is the share of them that is then
/// taken for the image's own label. A piece of an object moves few images, a trigger most. Examples that score above
/// [`threshold`](Self::threshold) are dropped.
///
/// Departures from the paper: its data has no labels, so that it clusters features, finds windows by Grad-CAM, drops clusters
/// in rounds, and lets small classifiers, trained with the best windows, flag the images; here the gates find the window, the
/// label is the cluster and every image is scored by itself. A trigger that is no patch, or lies in a patch that no expert
/// takes, is not found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct PatchSearch {
    /// Side of a candidate, in patches; cut to the map's.
    pub window: usize,
    /// Images that each candidate is pasted into.
    pub pasted: usize,
    /// The share of them taken for the candidate's label above which the example is dropped, in [0, 1).
    pub threshold: f64,
    /// Whether a classifier is trained anew on what is left.
    pub retrain: bool,
}

impl Default for PatchSearch {
    /// Ours: windows of 2x2 patches (8x8 pixels of a 32x32 image), 20 images, one half of them.
    fn default() -> Self {
        Self { window: 2, pasted: 20, threshold: 0.5, retrain: false }
    }
}

impl Defense for PatchSearch {
    fn validate(&self, _classifier: &DefendedClassifier<'_>) -> Vec<DefenseError> {
        let mut problems = Vec::new();
        for (field, number) in [("window", self.window), ("pasted", self.pasted)] {
            problems.extend(check_count(field, number));
        }
        if !(0.0..1.0).contains(&self.threshold) {
            problems.push(invalid("threshold", self.threshold, "a fraction in [0, 1)"));
        }
        problems
    }

    fn needs(&self) -> &'static [Need] {
        &[Need::Experts]
    }

    fn make_quick(&mut self) {
        self.pasted = self.pasted.min(2);
    }
}

impl<B: TrainingBackend> DatasetFilter<B> for PatchSearch {
    fn retrains(&self) -> bool {
        self.retrain
    }

    fn filter(
        &self,
        set: &ImageSet,
        classifier: Classifier<B::InnerBackend>,
        device: &B::Device,
    ) -> Result<Filtering, DefenseError> {
        let predicted = predict(&classifier, set, PREDICTION_BATCH, device);
        let right = (0..set.len()).filter(|&index| predicted[index] == set.label(index)).collect::<Vec<_>>();
        let candidates = self.candidates(&classifier, set, device)?;
        let mut filtering = Filtering::of_none(set.len());
        let mut rng = stream(0, "defense/patch-search");
        let order = (0..set.len()).collect::<Vec<_>>();
        // As many examples at once as fill some batches.
        for chunk in order.chunks((4 * PREDICTION_BATCH / self.pasted).max(1)) {
            let mut pixels = Vec::new();
            let mut owners = Vec::new();
            for &example in chunk {
                for _ in 0..self.pasted {
                    let Some(host) = other_image(set, &right, set.label(example), &mut rng) else { break };
                    pixels.extend(pasted(set, (example, &candidates[example]), host, &mut rng));
                    owners.push(example);
                }
            }
            if owners.is_empty() {
                continue;
            }
            let stamped = ImageSet::new(set.shape(), pixels, vec![0; owners.len()], set.classes().to_vec());
            let taken = predict(&classifier, &stamped.expect("as many pixels as images"), PREDICTION_BATCH, device);
            for (owner, class) in owners.into_iter().zip(taken) {
                filtering.scores[owner] += f64::from(u8::from(class == set.label(owner))) / self.pasted as f64;
            }
        }
        filtering.is_suspect = filtering.scores.iter().map(|&score| score > self.threshold).collect();
        Ok(filtering)
    }
}

/// A part of an image, in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Window {
    row: usize,
    column: usize,
    height: usize,
    width: usize,
}

impl PatchSearch {
    /// The window of each image that the gates look at most.
    fn candidates<B: Kernels>(
        &self,
        classifier: &Classifier<B>,
        set: &ImageSet,
        device: &B::Device,
    ) -> Result<Vec<Window>, DefenseError> {
        let shape = set.shape();
        let config = classifier.config();
        let none = || DefenseError::NoExperts { defense: "patch-search" };
        let routed = config.network().expert_choice().ok_or_else(none)?;
        let grid = routed.patch_grid(patchdoor_train::input_shape(shape));
        let mut windows = Vec::with_capacity(set.len());
        for batch in image_batches::<B>(set, PREDICTION_BATCH, device) {
            let (_, routing) = classifier.forward_with_routing(batch);
            let gates = routing.first().ok_or_else(none)?.weights().sum_dim(1);
            let gates: Vec<f64> = gates_of(gates);
            windows.extend(gates.chunks_exact(grid.0 * grid.1).map(|map| {
                let (row, column) = heaviest(map, grid, self.window);
                let (down, across) = (shape.height / grid.0, shape.width / grid.1);
                let (height, width) = (self.window.min(grid.0) * down, self.window.min(grid.1) * across);
                Window { row: row * down, column: column * across, height, width }
            }));
        }
        Ok(windows)
    }
}

fn gates_of<B: Backend>(gates: burn::tensor::Tensor<B, 3>) -> Vec<f64> {
    gates.into_data().iter::<f64>().collect()
}

/// First row and column of the square window of a map with the largest sum; ties go to the first row, then column.
fn heaviest(map: &[f64], (rows, columns): (usize, usize), side: usize) -> (usize, usize) {
    let (down, across) = (side.min(rows), side.min(columns));
    let sum = |row: usize, column: usize| -> f64 {
        (row..row + down).map(|row| map[row * columns + column..][..across].iter().sum::<f64>()).sum()
    };
    let places = (0..=rows - down).flat_map(|row| (0..=columns - across).map(move |column| (row, column)));
    let heavier = |best: (usize, usize), place: (usize, usize)| {
        if sum(place.0, place.1) > sum(best.0, best.1) { place } else { best }
    };
    places.reduce(heavier).expect("a map has a patch")
}

/// One of these images whose label is another; `None` if there is none.
fn other_image(set: &ImageSet, images: &[usize], label: u8, rng: &mut StreamRng) -> Option<usize> {
    if images.iter().all(|&index| set.label(index) == label) {
        return None;
    }
    loop {
        let index = images[rng.random_range(0..images.len())];
        if set.label(index) != label {
            return Some(index);
        }
    }
}

/// The pixels of an image with the window of another at a place that is drawn.
fn pasted(set: &ImageSet, (from, window): (usize, &Window), host: usize, rng: &mut StreamRng) -> Vec<u8> {
    let shape = set.shape();
    let mut pixels = set.pixels(host).to_vec();
    let row = rng.random_range(0..=shape.height - window.height);
    let column = rng.random_range(0..=shape.width - window.width);
    let line = window.width * shape.channels;
    for offset in 0..window.height {
        let at = |row: usize, column: usize| ((row + offset) * shape.width + column) * shape.channels;
        let source = &set.pixels(from)[at(window.row, window.column)..][..line];
        pixels[at(row, column)..][..line].copy_from_slice(source);
    }
    pixels
}

#[cfg(test)]
mod tests {
    use patchdoor_data::ImageShape;

    use super::*;
    use crate::detectable::Planted;

    #[test]
    fn the_heaviest_window_has_the_largest_sum() {
        let map = [0.0, 0.0, 1.0, 3.0, 0.0, 1.0, 0.0, 2.0, 0.5];
        // 2x2 windows of the 3x3 map: 0+0+3+0, 0+1+0+1, 3+0+0+2, 0+1+2+0.5.
        assert_eq!(heaviest(&map, (3, 3), 2), (1, 0));
        assert_eq!(heaviest(&map, (3, 3), 1), (1, 0));
        assert_eq!(heaviest(&map, (3, 3), 9), (0, 0), "no larger than the map");
    }

    #[test]
    fn a_pasted_window_is_the_others_and_the_rest_the_hosts() {
        let shape = ImageShape { height: 2, width: 2, channels: 1 };
        let pixels = vec![1, 2, 3, 4, 9, 9, 9, 9];
        let set = ImageSet::new(shape, pixels, vec![0, 1], vec!["a".to_owned(), "b".to_owned()]).expect("valid");
        let window = Window { row: 1, column: 0, height: 1, width: 1 };
        let mixed = pasted(&set, (0, &window), 1, &mut stream(0, "test"));
        let mut sorted = mixed;
        sorted.sort_unstable();
        assert_eq!(sorted, [3, 9, 9, 9]);
        assert_eq!(other_image(&set, &[0, 1], 0, &mut stream(0, "test")), Some(1));
        assert_eq!(other_image(&set, &[0], 0, &mut stream(0, "test")), None);
    }

    #[test]
    fn images_with_a_trigger_are_found_and_few_without_one_are_dropped() {
        let quick = PatchSearch { pasted: 8, ..PatchSearch::default() };
        let (area, filtering) = Planted::Backdoored.filtered(&quick);
        assert!(area > 0.8, "{area}");
        let dropped = |filtering: &Filtering| {
            filtering.is_suspect.iter().filter(|&&dropped| dropped).count() as f64 / filtering.scores.len() as f64
        };
        assert!(dropped(&filtering) < 0.1, "{}", dropped(&filtering));
        let (_, of_twin) = Planted::CleanTwin.filtered(&quick);
        assert!(dropped(&of_twin) < 0.05, "{}", dropped(&of_twin));
    }
}
