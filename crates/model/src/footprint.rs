use crate::InputShape;

/// How many numbers a network holds, known before it is built.
///
/// What counts as kept is what our operations keep: a convolution its input, a normalization with its rectifier its input,
/// a sum and an average over positions nothing. A map that two operations keep is there once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Trainable parameters.
    pub parameters: usize,
    /// Running means and variances.
    pub statistics: usize,
    /// Numbers that training keeps of each image from the forward pass to the backward pass.
    pub kept: usize,
    /// Numbers of an image in the largest map; the backward pass holds a few gradients of that size.
    pub largest: usize,
}

/// Size of a feature map.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Map {
    pub(crate) height: usize,
    pub(crate) width: usize,
    pub(crate) channels: usize,
}

impl Map {
    pub(crate) fn numbers(self) -> usize {
        self.height * self.width * self.channels
    }
}

impl Footprint {
    /// Keeps something of every image.
    pub(crate) fn keep(&mut self, numbers: usize) {
        self.kept += numbers;
        self.largest = self.largest.max(numbers);
    }

    pub(crate) fn norm(&mut self, channels: usize) {
        self.parameters += 2 * channels;
        self.statistics += 2 * channels;
    }

    /// A convolution whose input is kept already.
    pub(crate) fn convolution(&mut self, x: Map, channels: usize, kernel: usize, stride: usize) -> Map {
        self.parameters += channels * (x.channels * kernel * kernel + 1);
        let output = Map { height: x.height.div_ceil(stride), width: x.width.div_ceil(stride), channels };
        self.largest = self.largest.max(output.numbers());
        output
    }

    /// A normalization, whose input and output are kept: the latter by the convolution that follows.
    pub(crate) fn norm_before_convolution(&mut self, x: Map) {
        self.norm(x.channels);
        self.keep(x.numbers());
        self.keep(x.numbers());
    }

    /// A residual block; its shortcut takes the map that its first normalization keeps.
    pub(crate) fn block(&mut self, x: Map, channels: usize, stride: usize) -> Map {
        self.norm_before_convolution(x);
        let inner = self.convolution(x, channels, 3, stride);
        self.norm_before_convolution(inner);
        self.convolution(x, channels, 1, stride);
        self.convolution(inner, channels, 3, 1)
    }

    /// The first layers of both networks.
    pub(crate) fn trunk(&mut self, input: InputShape, widen: usize) -> Map {
        let images = Map { height: input.height, width: input.width, channels: input.channels };
        self.keep(images.numbers());
        let stem = self.convolution(images, 16, 3, 1);
        let narrow = self.block(stem, 16 * widen, 1);
        self.block(narrow, 32 * widen, 2)
    }

    /// The last normalization, the average over positions and the dense layer.
    pub(crate) fn head(&mut self, x: Map, classes: usize) {
        self.norm(x.channels);
        self.keep(x.numbers());
        self.keep(x.channels);
        self.parameters += classes * (x.channels + 1);
    }
}

#[cfg(test)]
mod tests {
    use burn_flex::{Flex, FlexDevice};
    use rand::SeedableRng;
    use rand::rngs::ChaCha8Rng;

    use super::*;
    use crate::{ClassifierConfig, ExpertForm, PatchMoeConfig, WideResNetConfig};

    const CIFAR: InputShape = InputShape { height: 32, width: 32, channels: 3 };

    #[test]
    fn the_thinnest_mixture_is_as_large_as_counted_by_hand() {
        let config = ClassifierConfig::PatchMoe(PatchMoeConfig { widen_factor: 1, ..PatchMoeConfig::default() });
        let footprint = config.network().footprint(CIFAR, 10);
        // Stem 448; first block 32 + 2320 + 32 + 2320 + 272, second 32 + 4640 + 64 + 9248 + 544; before the experts
        // 64 + 18496; gates 4 * 64; experts 4 * (128 + 1040); the last normalization 128; dense layer 650.
        assert_eq!(footprint.parameters, 448 + 4976 + 14_528 + 18_560 + 256 + 4672 + 128 + 650);
        // Two for each channel normalized: 16 + 16, 16 + 32, 32, 4 * 64, 64.
        assert_eq!(footprint.statistics, 2 * (32 + 48 + 32 + 256 + 64));
        // Images 3 * 1024; the first block keeps four maps of 16 channels, the second two of these and two of 32 channels at
        // 16x16, as many the layers before the experts; map of the experts 64 * 64; weights of 64 patches for 4 experts in
        // three forms; what the experts see 4 * 64 * 64; their filters 64 * 64; features 64.
        let kept = 3072 + 4 * 16_384 + 2 * 16_384 + 2 * 8192 + 2 * 8192 + 4096 + 768 + 16_384 + 4096 + 64;
        assert_eq!(footprint.kept, kept);
        assert_eq!(footprint.largest, 16_384);
    }

    #[test]
    fn parameters_are_those_of_the_network_when_it_is_built() {
        let moe = |config: PatchMoeConfig| ClassifierConfig::PatchMoe(PatchMoeConfig { widen_factor: 2, ..config });
        let configs = [
            moe(PatchMoeConfig::default()),
            moe(PatchMoeConfig {
                patch_size: 2,
                patches_per_expert: 3,
                expert_kernel: 3,
                experts: 8,
                ..Default::default()
            }),
            moe(PatchMoeConfig { expert_form: ExpertForm::Gathered, patch_channels: Some(40), ..Default::default() }),
            ClassifierConfig::WideResnet(WideResNetConfig { widen_factor: 2, ..WideResNetConfig::default() }),
        ];
        for config in configs {
            let built = config.init::<Flex>(CIFAR, 43, &mut ChaCha8Rng::seed_from_u64(0), &FlexDevice).expect("valid");
            assert_eq!(config.network().footprint(CIFAR, 43).parameters, built.parameters(), "{config:?}");
        }
    }
}
