use burn::tensor::{Int, Tensor, TensorData};
use patchdoor_data::{ImageSet, ImageShape, StreamRng, stream};
use patchdoor_kernels::TrainingBackend;
use patchdoor_model::Classifier;
use patchdoor_train::{PREDICTION_BATCH, classes_of};
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

use crate::error::{check_count, check_rate, invalid};
use crate::patch_drop::changes;
use crate::{DefendedClassifier, Defense, DefenseError, DetectionThreshold, InputDetector, Need, Scorer};

/// `PatchShuffle` (Doan et al. 2023, arXiv:2206.12381): shuffles the cells of an input and looks at how often the predicted
/// class stays: what an image shows is torn apart, while a trigger that lies all over it, or within a cell, is still there.
///
/// The score is the share of the trials that keep the class. All inputs are shuffled in the same ways (stream
/// `defense/patch-shuffle`). Rows and columns that do not fill a cell stay where they are. Shuffling the map that experts choose
/// from instead would do nothing: experts of kernel 1 and the mean over positions do not ask for places.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct PatchShuffle {
    /// Cells along a side of the image, 2 or more.
    pub grid: usize,
    /// How often, 1 or more.
    pub trials: usize,
    /// Share of validation images that may be flagged, in (0, 1).
    pub false_positive_rate: f64,
}

impl Default for PatchShuffle {
    /// Our own numbers: 4x4 cells, twenty times; 5 % false positives, as for every detector here that has no threshold of its own.
    fn default() -> Self {
        Self { grid: 4, trials: 20, false_positive_rate: 0.05 }
    }
}

impl Defense for PatchShuffle {
    fn validate(&self, _classifier: &DefendedClassifier<'_>) -> Vec<DefenseError> {
        let mut problems = Vec::new();
        if !(2..=256).contains(&self.grid) {
            problems.push(invalid("grid", self.grid, "2 to 256"));
        }
        problems.extend(check_count("trials", self.trials));
        problems.extend(check_rate("false-positive-rate", self.false_positive_rate));
        problems
    }

    fn needs(&self) -> &'static [Need] {
        &[Need::ValidationImages]
    }

    fn make_quick(&mut self) {
        self.trials = self.trials.min(3);
    }
}

impl<B: TrainingBackend> InputDetector<B> for PatchShuffle {
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
        let (shape, trials) = (clean.shape(), self.trials);
        let rng = &mut stream(seed, "defense/patch-shuffle");
        let pixels = shape.height * shape.width;
        let orders: Vec<Tensor<B::InnerBackend, 1, Int>> = (0..trials)
            .map(|_| Tensor::from_data(TensorData::new(shuffled(shape, self.grid, rng), [pixels]), device))
            .collect();
        Ok(Box::new(move |images| {
            let of_batch = |batch: Tensor<B::InnerBackend, 4>| {
                let dims = batch.dims();
                let flat = batch.clone().reshape([dims[0], pixels, dims[3]]);
                let own = classes_of(classifier.forward(batch));
                let shuffled = orders.iter().map(|order| flat.clone().select(1, order.clone()).reshape(dims));
                let changed = changes(&own, shuffled.map(|images| classes_of(classifier.forward(images))));
                changed.into_iter().map(|changed| 1.0 - changed as f64 / trials as f64).collect::<Vec<_>>()
            };
            images.batches(PREDICTION_BATCH, device).flat_map(of_batch).collect()
        }))
    }
}

/// Where each pixel comes from when the cells of an image change places, row by row.
fn shuffled(shape: ImageShape, grid: usize, rng: &mut StreamRng) -> Vec<i32> {
    let ImageShape { height, width, .. } = shape;
    let (rows, columns) = (height / grid, width / grid);
    let mut cells = (0..grid * grid).collect::<Vec<_>>();
    cells.shuffle(rng);
    let from = |pixel: usize| {
        let (row, column) = (pixel / width, pixel % width);
        if row >= rows * grid || column >= columns * grid {
            return pixel as i32;
        }
        let cell = cells[row / rows * grid + column / columns];
        ((cell / grid * rows + row % rows) * width + cell % grid * columns + column % columns) as i32
    };
    (0..height * width).map(from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detectable::Planted;

    #[test]
    fn cells_change_places_as_wholes_and_what_fills_no_cell_stays() {
        // 5x5 pixels in 2x2 cells of 2x2: the last row and column stay.
        let shape = ImageShape { height: 5, width: 5, channels: 1 };
        let rng = &mut stream(0, "order");
        let mut seen = Vec::new();
        for _ in 0..20 {
            let from = shuffled(shape, 2, rng);
            let mut sorted = from.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..25).collect::<Vec<_>>(), "every pixel is somewhere");
            assert!((0..25).filter(|at| at / 5 == 4 || at % 5 == 4).all(|at| from[at] == at as i32));
            // The neighbours of the first pixel of a cell come along.
            for corner in [0, 2, 10, 12] {
                let first = from[corner];
                assert_eq!([from[corner + 1], from[corner + 5], from[corner + 6]], [first + 1, first + 5, first + 6]);
            }
            seen.push(from);
        }
        seen.sort_unstable();
        seen.dedup();
        assert!(seen.len() > 5, "{} of 24 orders", seen.len());
    }

    #[test]
    fn it_finds_the_triggered_images_of_a_backdoor_and_none_of_a_clean_twin() {
        let detector = PatchShuffle::default();
        let (found, of_twin) = (Planted::Backdoored.judged(&detector), Planted::CleanTwin.judged(&detector));
        assert!(found.area > 0.85 && found.false_alarms < 0.13, "{}, {}", found.area, found.false_alarms);
        assert!(of_twin.area < 0.5 && of_twin.false_alarms < 0.13, "{}, {}", of_twin.area, of_twin.false_alarms);
    }
}
