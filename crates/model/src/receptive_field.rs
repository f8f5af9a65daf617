use std::ops::Range;

use crate::{Padding, PatchMoeConfig};

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
