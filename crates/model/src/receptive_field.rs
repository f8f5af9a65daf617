use std::ops::Range;

use crate::{ExpertChoiceConfig, InputShape, Padding, PatchMoeConfig};

/// The patches that see any pixel of a square window, for all windows of `side` pixels in an image: the largest of these sets, of
/// which every other is a part. An expert that passes over one of them sees nothing of such a window.
///
/// Each set is rising; there is none for a side of 0 or for one that no image holds.
#[allow(clippy::missing_panics_doc, reason = "a map has few patches")]
pub fn patches_that_see(choice: &dyn ExpertChoiceConfig, input: InputShape, side: usize) -> Vec<Vec<u16>> {
    let (rows, columns) = choice.patch_grid(input);
    let down = longest((0..rows).map(|row| choice.receptive_field(input, row, 0).0), side, input.height);
    let across = longest((0..columns).map(|column| choice.receptive_field(input, 0, column).1), side, input.width);
    let sets = down.iter().flat_map(|down| across.iter().map(move |across| (down, across)));
    let numbered = sets.map(|(down, across)| {
        let patches = down.clone().flat_map(|row| across.clone().map(move |column| row * columns + column));
        patches.map(|patch| u16::try_from(patch).expect("a map has few patches")).collect()
    });
    numbered.collect()
}

/// The longest runs of fields that meet a window of `side` pixels somewhere along an axis; none of them is part of another.
fn longest(fields: impl Iterator<Item = Range<usize>>, side: usize, length: usize) -> Vec<Range<usize>> {
    let fields = fields.collect::<Vec<_>>();
    let starts = if side == 0 || side > length { 0..0 } else { 0..length - side + 1 };
    let meets = |start: usize| {
        let met = |field: &Range<usize>| field.start < start + side && start < field.end;
        let first = fields.iter().position(met)?;
        let last = fields.iter().rposition(met)?;
        Some(first..last + 1)
    };
    let runs = starts.filter_map(meets).collect::<Vec<_>>();
    let mut kept: Vec<Range<usize>> = Vec::new();
    for run in &runs {
        let holds = |other: &Range<usize>| other.start <= run.start && run.end <= other.end;
        if !kept.iter().any(holds) && !runs.iter().any(|other| other != run && holds(other)) {
            kept.push(run.clone());
        }
    }
    kept
}

impl PatchMoeConfig {
    /// What `side` positions of the map from `first` on see along an axis of `length` pixels.
    ///
    /// With TensorFlow's padding, position r of the 8x8 map of a 32x32 image sees rows 4r - 5 to 4r + 11.
    pub(crate) fn seen(&self, first: usize, side: usize, length: usize) -> Range<usize> {
        let halved = length.div_ceil(2);
        // From the map back to the image: a strided convolution, one of stride 1, a strided one, three of stride 1.
        let (low, high) = self.strided(first as isize, (first + side - 1) as isize, halved);
        let (low, high) = self.strided(low - 1, high + 1, length);
        let (low, high) = (low - 3, high + 3);
        low.clamp(0, length as isize) as usize..(high + 1).clamp(0, length as isize) as usize
    }

    /// What outputs `low` to `high` of a 3x3 convolution of stride 2 see of `length` inputs.
    fn strided(&self, low: isize, high: isize, length: usize) -> (isize, isize) {
        let before = match self.padding {
            Padding::Tensorflow if length.is_multiple_of(2) => 0,
            Padding::Tensorflow | Padding::Symmetric => 1,
        };
        (2 * low - before, 2 * high - before + 2)
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Tensor, TensorData};
    use burn_flex::{Flex, FlexDevice};
    use patchdoor_kernels::Kernels;
    use rand::SeedableRng;
    use rand::rngs::ChaCha8Rng;

    use super::*;
    use crate::taps::Taps;
    use crate::{ExpertChoiceConfig, InputShape, PatchMoe};

    fn input(height: usize, width: usize) -> InputShape {
        InputShape { height, width, channels: 1 }
    }

    #[test]
    fn a_patch_of_the_published_network_sees_17_rows_from_4r_minus_5() {
        let config = PatchMoeConfig::default();
        assert_eq!(config.receptive_field(input(32, 32), 3, 4), (7..24, 11..28));
        assert_eq!(config.receptive_field(input(32, 32), 0, 7), (0..12, 23..32));
    }

    #[test]
    fn a_small_window_is_seen_by_five_rows_of_patches_at_most() {
        let config = PatchMoeConfig::default();
        // Rows 10 to 13 are seen by the patches of rows 0 to 4, which see 4r - 5 to 4r + 11; so are rows 0 to 3, by fewer of them.
        let runs = [0u16..5, 1..6, 2..7, 3..8];
        let expected = runs.iter().flat_map(|down| {
            runs.iter()
                .map(|across| down.clone().flat_map(|row| across.clone().map(move |column| 8 * row + column)).collect())
        });
        let found = patches_that_see(&config, input(32, 32), 4);
        assert_eq!(found, expected.collect::<Vec<Vec<u16>>>());
        // Every window is seen by none but the patches of one of the sets.
        for (row, column) in [(0, 0), (28, 0), (13, 5), (7, 28)] {
            let sees = |patch: &u16| {
                let (rows, columns) =
                    config.receptive_field(input(32, 32), usize::from(patch / 8), usize::from(patch % 8));
                rows.start < row + 4 && row < rows.end && columns.start < column + 4 && column < columns.end
            };
            let seeing = (0..64u16).filter(sees).collect::<Vec<_>>();
            assert!(found.iter().any(|set| seeing.iter().all(|patch| set.contains(patch))), "{row} {column}");
        }
        assert_eq!(patches_that_see(&config, input(32, 32), 32).len(), 1);
        assert!(patches_that_see(&config, input(32, 32), 33).is_empty());
        assert!(patches_that_see(&config, input(32, 32), 0).is_empty());
    }

    /// The maps before the router, `[image, row, column, channel]`.
    fn maps<B: Kernels>(network: &PatchMoe<B>, images: Vec<f32>, shape: [usize; 4], device: &B::Device) -> Vec<f32> {
        let images = Tensor::<B, 4>::from_data(TensorData::new(images, shape), device);
        let map = PatchMoe::map_of_members(&[network], images, &mut Taps::none());
        map.into_data().to_vec().expect("maps are f32")
    }

    #[test]
    fn no_patch_depends_on_a_pixel_outside_its_field_and_all_inner_ones_matter() {
        for (padding, height, width) in
            [(Padding::Tensorflow, 32, 32), (Padding::Symmetric, 32, 32), (Padding::Tensorflow, 27, 30)]
        {
            let config = PatchMoeConfig { widen_factor: 1, padding, ..PatchMoeConfig::default() };
            let shape = input(height, width);
            let network = PatchMoe::<Flex>::new(&config, shape, 10, &mut ChaCha8Rng::seed_from_u64(0), &FlexDevice);
            let grey = vec![0.5f32; height * width];
            let (rows, columns) = config.patch_grid(shape);
            let untouched = maps(&network, grey.clone(), [1, height, width, 1], &FlexDevice);
            let channels = untouched.len() / (rows * columns);
            // Along the diagonal each row and each column is changed once.
            for step in 0..height.max(width) {
                let (y, x) = (step.min(height - 1), step.min(width - 1));
                let mut image = grey.clone();
                image[y * width + x] = 1.0;
                let changed = maps(&network, image, [1, height, width, 1], &FlexDevice);
                for (patch, (before, after)) in
                    untouched.chunks_exact(channels).zip(changed.chunks_exact(channels)).enumerate()
                {
                    let (seen_rows, seen_columns) = config.receptive_field(shape, patch / columns, patch % columns);
                    let is_seen = seen_rows.contains(&y) && seen_columns.contains(&x);
                    let is_changed = before != after;
                    assert_eq!(is_changed, is_seen, "{padding:?}, pixel ({y}, {x}), patch {patch} of {rows}x{columns}");
                }
            }
        }
    }
}
