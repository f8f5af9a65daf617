use std::io;
use std::path::Path;

use patchdoor_metrics::SelectionMaps;
use patchdoor_record::{RecordError, read_sealed};
use safetensors::SafeTensors;

/// Classifiers whose maps a seed's arrays may hold, as the arrays and as pages over seeds call them.
const CLASSIFIERS: [(&str, &str); 2] = [("victim", "victim"), ("clean-twin", "twin")];

/// The two sets of test images, untouched and triggered, by their place in the arrays.
pub(crate) const SETS: [usize; 2] = [0, 1];

/// Where the experts of a seed's classifiers look; from `routing/selections.safetensors`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SeedMaps {
    pub(crate) seed: u64,
    /// Rows and columns of patches.
    pub(crate) grid: [usize; 2],
    pub(crate) experts: usize,
    /// Share of the test images in which the trigger changes a patch.
    pub(crate) triggered: Vec<f64>,
    /// Test images of each class.
    images: Vec<f64>,
    pub(crate) classifiers: Vec<ClassifierMaps>,
}

/// Where the experts of one classifier look.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ClassifierMaps {
    /// `victim` or `clean-twin`.
    pub(crate) name: &'static str,
    /// The same where there is little room.
    pub(crate) title: &'static str,
    /// Share of a class's images in which an expert selects a patch, `[set, class, expert, patch]`; NaN without images.
    frequencies: Vec<f64>,
    /// Mean intersection over union of what two experts select in an image, `[set, expert, expert]`.
    similarity: Vec<f64>,
}

impl SeedMaps {
    /// Reads the arrays in a seed's folder.
    ///
    /// # Errors
    /// If they are not as they were written.
    pub(crate) fn read(folder: &Path, seed: u64) -> Result<Self, RecordError> {
        let bytes = read_sealed(&folder.join("routing/selections.safetensors"))?;
        let file = SafeTensors::deserialize(&bytes).map_err(io::Error::other)?;
        let images = words(&file, "images")?.1.into_iter().map(|word| f64::from(u32::from_le_bytes(word)));
        let (shape, marks) = words(&file, "triggered-patches")?;
        let grid = [shape[1], shape[2]];
        let floats = |words: &[[u8; 4]]| words.iter().map(|&word| f64::from(f32::from_le_bytes(word))).collect();
        let mut maps = Self {
            seed,
            grid,
            experts: 0,
            triggered: floats(&marks[..grid[0] * grid[1]]),
            images: images.collect(),
            classifiers: Vec::new(),
        };
        for (name, title) in CLASSIFIERS {
            let array = format!("{name}.frequency");
            if file.names().contains(&array.as_str()) {
                let (shape, shares) = words(&file, &array)?;
                maps.experts = shape[2];
                let similarity = floats(&words(&file, &format!("{name}.expert-similarity"))?.1);
                maps.classifiers.push(ClassifierMaps { name, title, frequencies: floats(&shares), similarity });
            }
        }
        Ok(maps)
    }

    fn patches(&self) -> usize {
        self.grid[0] * self.grid[1]
    }

    /// How many classes the test images have.
    pub(crate) fn classes(&self) -> usize {
        self.images.len()
    }

    /// All maps of one classifier in one set of images.
    pub(crate) fn of_classifier(&self, classifier: usize, set: usize) -> SelectionMaps<'_> {
        let ClassifierMaps { frequencies, similarity, .. } = &self.classifiers[classifier];
        let (maps, pairs) = (self.images.len() * self.experts * self.patches(), self.experts * self.experts);
        SelectionMaps {
            grid: self.grid,
            experts: self.experts,
            frequencies: &frequencies[set * maps..][..maps],
            similarity: &similarity[set * pairs..][..pairs],
        }
    }

    /// The map of one expert for the images of one class.
    pub(crate) fn of_class(&self, classifier: usize, set: usize, class: usize, expert: usize) -> &[f64] {
        let start = ((set * self.images.len() + class) * self.experts + expert) * self.patches();
        &self.classifiers[classifier].frequencies[start..start + self.patches()]
    }

    /// The map of one expert for the images of all classes.
    pub(crate) fn of_expert(&self, classifier: usize, set: usize, expert: usize) -> Vec<f64> {
        let all = self.images.iter().sum::<f64>();
        let mut map = vec![0.0; self.patches()];
        for (class, &count) in self.images.iter().enumerate().filter(|(_, count)| **count > 0.0) {
            let of_class = self.of_class(classifier, set, class, expert);
            map.iter_mut().zip(of_class).for_each(|(sum, frequency)| *sum += frequency * count / all);
        }
        map
    }

    /// The map of all images, averaged over experts.
    pub(crate) fn of_all(&self, classifier: usize, set: usize) -> Vec<f64> {
        let mut map = vec![0.0; self.patches()];
        for expert in 0..self.experts {
            let of_expert = self.of_expert(classifier, set, expert);
            map.iter_mut().zip(of_expert).for_each(|(sum, share)| *sum += share / self.experts as f64);
        }
        map
    }
}

/// The shape and the words of four bytes of an array.
fn words(file: &SafeTensors<'_>, name: &str) -> io::Result<(Vec<usize>, Vec<[u8; 4]>)> {
    let view = file.tensor(name).map_err(io::Error::other)?;
    let words = view.data().chunks_exact(4).map(|word| [word[0], word[1], word[2], word[3]]);
    Ok((view.shape().to_vec(), words.collect()))
}

/// A victim's maps of two patches, of which the trigger changes the first: two experts, two classes of 3 and 1 images, and
/// everywhere the same shares, `share` and `1 - share` untouched, `share` twice triggered.
#[cfg(test)]
pub(crate) fn example(seed: u64, share: f64) -> SeedMaps {
    let clean = [share, 1.0 - share].repeat(4);
    let triggered = [share; 2].repeat(4);
    let frequencies = [clean, triggered].concat();
    let classifiers = vec![ClassifierMaps { name: "victim", title: "victim", frequencies, similarity: Vec::new() }];
    SeedMaps { seed, grid: [1, 2], experts: 2, triggered: vec![1.0, 0.0], images: vec![3.0, 1.0], classifiers }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mean_map_weighs_classes_by_their_images_and_experts_alike() {
        // Two classes of 3 and 1 images, a third without any; two experts; two patches.
        let nan = f64::NAN;
        let frequencies = vec![1.0, 0.0, 0.0, 1.0, 0.5, 0.5, 1.0, 0.0, nan, nan, nan, nan];
        let classifiers = vec![ClassifierMaps { name: "victim", title: "victim", frequencies, similarity: Vec::new() }];
        let maps = SeedMaps { images: vec![3.0, 1.0, 0.0], classifiers, ..example(0, 0.0) };
        // Expert 0: (3 * 1 + 0.5) / 4 and (3 * 0 + 0.5) / 4; expert 1: (3 * 0 + 1) / 4 and 3 / 4.
        assert_eq!(maps.of_expert(0, 0, 0), [3.5 / 4.0, 0.5 / 4.0]);
        assert_eq!(maps.of_expert(0, 0, 1), [1.0 / 4.0, 3.0 / 4.0]);
        assert_eq!(maps.of_all(0, 0), [4.5 / 8.0, 3.5 / 8.0]);
        assert_eq!(maps.of_class(0, 0, 1, 0), [0.5, 0.5]);
    }
}
