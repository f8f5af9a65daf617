use std::collections::BTreeMap;

use burn::module::AutodiffModule;
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use patchdoor_data::{ImageSet, stream};
use patchdoor_kernels::{Kernels, TrainingBackend};
use patchdoor_metrics::share_down;
use patchdoor_model::{Classifier, NormInput, Tapped};
use patchdoor_train::{
    BatchAssembler, CosineConfig, OptimizerConfig, ScheduleConfig, SgdConfig, Trainable, TrainingConfig, classes_of,
    gradient_by,
};
use rand::RngExt;
use serde::{Deserialize, Serialize};

use crate::defense::has_training_table;
use crate::error::{check_count, invalid};
use crate::filter_scores::scored_images;
use crate::norm_channels::{NormChannels, Silencing, prune_channels};
use crate::tuning::{tune, validate_training};
use crate::{
    DefendedClassifier, Defense, DefenseError, ModelRepair, Need, PrunedFilters, RepairDetails, RepairWork, Repaired,
};

/// Images that are looked at together; sums over them are not kept, so that nothing depends on it.
const CHUNK: usize = 64;

/// Prunes the feature maps that a small step of the images moves at the highest cost, then trains all weights.
///
/// Adversarial feature map pruning (FMP; Huang and Bu 2024, ICLR, arXiv:2307.11565). For every channel of a layer, clean images
/// start from ± [`start`](Self::start) by chance and take one step of [`step`](Self::step), by signs, that moves this channel's map
/// away from that of the clean images (mean square). The channels after whose step the classifier errs most are pruned:
/// [`pruned_fraction`](Self::pruned_fraction) of each layer, rounded down, ties going to the lower channel. Kernels and biases that
/// make a channel and the scales of the normalizations that see it become zero; nothing holds them there afterwards.
///
/// Departures: layers are those whose maps a pass hands out, the outputs of the residual groups, the map that experts choose from and the
/// filters before the head, not the inner convolutions of blocks. The authors' code ranks on one batch of 32 images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct AdversarialFeatureMapPruning {
    /// Share of each layer's channels that is pruned, in [0, 1), rounded down.
    pub pruned_fraction: f64,
    /// How many of the defender's images channels are ranked on, at most; 1 or more.
    pub scored_images: usize,
    /// How far every pixel is moved by chance first, pixels in [0, 1]; in (0, 1].
    pub start: f64,
    /// How far the step moves every pixel, pixels in [0, 1]; in (0, 1].
    pub step: f64,
    /// How the clean images are fitted afterwards; 0 epochs prune alone.
    pub training: TrainingConfig,
}

impl Default for AdversarialFeatureMapPruning {
    /// Huang and Bu (2024, arXiv:2307.11565): 1/64 of each layer, 100 epochs of SGD at 0.01 with momentum in batches of 128, and a
    /// cosine, in their code to 1e-4. That reads the lengths of both moves from a file that is not public: those are ours.
    fn default() -> Self {
        Self {
            pruned_fraction: 1.0 / 64.0,
            scored_images: 256,
            start: 1.0 / 255.0,
            step: 8.0 / 255.0,
            training: TrainingConfig {
                epochs: 100,
                batch_size: 128,
                learning_rate: 0.01,
                optimizer: OptimizerConfig::Sgd(SgdConfig { momentum: 0.9, nesterov: false, weight_decay: 0.0 }),
                schedule: ScheduleConfig::Cosine(CosineConfig { floor: 0.01 }),
                ..TrainingConfig::default()
            },
        }
    }
}

impl Defense for AdversarialFeatureMapPruning {
    fn validate(&self, _classifier: &DefendedClassifier<'_>) -> Vec<DefenseError> {
        let mut problems = Vec::new();
        if !(0.0..1.0).contains(&self.pruned_fraction) {
            problems.push(invalid("pruned-fraction", self.pruned_fraction, "a fraction in [0, 1)"));
        }
        problems.extend(check_count("scored-images", self.scored_images));
        for (field, value) in [("start", self.start), ("step", self.step)] {
            if !(value > 0.0 && value <= 1.0) {
                problems.push(invalid(field, value, "a number in (0, 1]"));
            }
        }
        problems.extend(validate_training(&self.training, true));
        problems
    }

    fn needs(&self) -> &'static [Need] {
        &[Need::BatchNorm]
    }

    /// The 5 % of `BackdoorBench` (Wu et al. 2022, arXiv:2206.12654), as its siblings here; Huang and Bu have 10 %.
    fn default_clean_fraction(&self) -> f64 {
        0.05
    }

    has_training_table!();

    fn make_quick(&mut self) {
        self.scored_images = self.scored_images.min(8);
    }
}

impl<B: TrainingBackend> ModelRepair<B> for AdversarialFeatureMapPruning {
    fn repair(
        &self,
        classifier: Classifier<B>,
        work: &mut RepairWork<'_>,
        device: &B::Device,
    ) -> Result<Repaired<B>, DefenseError> {
        let images = scored_images(work.data.clean, self.scored_images, work.seed, "adversarial-feature-map-pruning")?;
        let frozen = classifier.clone().freeze_all_but(&[]);
        let (mut pruned, mut details) = (classifier, RepairDetails::default());
        for layer in MapLayer::of(&frozen) {
            let accuracies = self.accuracies(&frozen, layer.tap, &images, work, device)?;
            let lowest = lowest(&accuracies, self.pruned_fraction);
            details.pruned.push(PrunedFilters {
                convolution: layer.tap.to_owned(),
                filters: lowest.clone(),
                of: accuracies.len(),
            });
            pruned = layer.prune(pruned, &lowest);
        }
        let (classifier, history) = tune(pruned, &self.training, &Trainable::default(), work, device)?;
        Ok(Repaired { details, ..Repaired::tuned(classifier, history) })
    }
}

impl AdversarialFeatureMapPruning {
    /// The accuracy after the step of each channel of a layer.
    fn accuracies<B: TrainingBackend>(
        &self,
        frozen: &Classifier<B>,
        tap: &str,
        images: &ImageSet,
        work: &RepairWork<'_>,
        device: &B::Device,
    ) -> Result<Vec<f64>, DefenseError> {
        let (plain, assembler) = (frozen.valid(), BatchAssembler::<B>::new(images, device));
        let mut rng = stream(work.seed, "defense/feature-maps");
        let mut hits: Vec<usize> = Vec::new();
        for chunk in (0..images.len()).collect::<Vec<_>>().chunks(CHUNK) {
            let clean = assembler.batch(chunk, device).images.inner();
            let size = clean.dims();
            let signs = (0..size.iter().product()).map(|_| if rng.random_bool(0.5) { 1.0f32 } else { -1.0 });
            let signs = Tensor::from_data(TensorData::new(signs.collect::<Vec<_>>(), size), device);
            let moved = (clean.clone() + signs * self.start).clamp(0.0, 1.0);
            let before = map_of(&plain, clean, tap);
            let channels = before.dims()[3];
            hits.resize(channels, 0);
            for (channel, hits) in hits.iter_mut().enumerate() {
                if work.observer.is_stopped() {
                    return Err(DefenseError::Interrupted { epochs: 0 });
                }
                let before = Tensor::<B, 4>::from_inner(before.clone().narrow(3, channel, 1));
                let (uphill, ()) = gradient_by::<B, 4, _>(moved.clone(), |images| {
                    let change = map_of(frozen, images, tap).narrow(3, channel, 1) - before;
                    (change.powi_scalar(2).mean(), ())
                });
                let stepped = (moved.clone() + uphill.sign() * self.step).clamp(0.0, 1.0);
                let predicted = classes_of(plain.forward(stepped));
                *hits += predicted.iter().zip(chunk).filter(|&(&class, &image)| class == images.label(image)).count();
            }
        }
        Ok(hits.into_iter().map(|hits| hits as f64 / images.len() as f64).collect())
    }
}

/// A layer of feature maps that a pass hands out.
struct MapLayer {
    tap: &'static str,
    /// The convolutions that make it.
    made_by: NormInput,
    /// The normalizations that see it.
    seen_by: Vec<String>,
}

impl MapLayer {
    /// Those of a classifier, from the images to the head.
    fn of<B: Backend>(classifier: &Classifier<B>) -> Vec<Self> {
        let norms = classifier.norms();
        let mut layers: Vec<Self> = Vec::new();
        for norm in &norms {
            if let Some(layer) = layers.iter_mut().find(|layer| layer.made_by == norm.input) {
                layer.seen_by.push(norm.path.clone());
            } else if let Some(tap) = tap_of(&norm.input, classifier.taps()) {
                layers.push(Self { tap, made_by: norm.input.clone(), seen_by: vec![norm.path.clone()] });
            }
        }
        layers
    }

    /// The classifier without these channels.
    fn prune<B: Backend>(&self, classifier: Classifier<B>, channels: &[usize]) -> Classifier<B> {
        let mut tensors = classifier.tensors();
        let (paths, side_by_side) = match &self.made_by {
            NormInput::SideBySide(paths) => (paths, true),
            NormInput::Sum(paths) => (paths, false),
        };
        let (mut changed, mut first, mut width) = (BTreeMap::new(), 0, 0);
        for path in paths {
            let filters = tensors[&format!("{path}.bias")].num_elements();
            let own =
                channels.iter().filter_map(|channel| channel.checked_sub(first)).filter(|&channel| channel < filters);
            let own = own.collect::<Vec<_>>();
            for name in ["weight", "bias"].map(|name| format!("{path}.{name}")) {
                let data = tensors.remove(&name).expect("a convolution has both");
                let mut values = data.iter::<f32>().collect::<Vec<_>>();
                let each = values.len() / filters;
                for &channel in &own {
                    values[channel * each..][..each].fill(0.0);
                }
                changed.insert(name, TensorData::new(values, data.shape.clone()).convert_dtype(data.dtype));
            }
            width = first + filters;
            first = if side_by_side { width } else { 0 };
        }
        let marked = |path: &String| NormChannels {
            path: path.clone(),
            values: (0..width).map(|channel| channels.contains(&channel)).collect(),
        };
        let marked = self.seen_by.iter().map(marked).collect::<Vec<_>>();
        prune_channels(classifier.with_tensors(changed), &marked, Silencing::Scale)
    }
}

/// Under which name a pass hands out what these convolutions make, if it does.
fn tap_of(input: &NormInput, taps: &'static [&'static str]) -> Option<&'static str> {
    let name = match input {
        // The output of a block, such as `trunk.group2.conv2` and its shortcut.
        NormInput::Sum(paths) => paths[0].split('.').rev().nth(1)?,
        NormInput::SideBySide(paths) if paths[0] == "patch_conv" => "map",
        NormInput::SideBySide(paths) if paths[0].starts_with("experts.") => "filters",
        NormInput::SideBySide(_) => return None,
    };
    taps.iter().copied().find(|&tap| tap == name)
}

fn map_of<B: Kernels>(classifier: &Classifier<B>, images: Tensor<B, 4>, tap: &str) -> Tensor<B, 4> {
    let (_, mut found) = classifier.forward_with_taps(images, &[tap]);
    found.remove(tap).and_then(Tapped::map).expect("the tap of a map")
}

/// The channels of the lowest accuracies, a share of all, rounded down; ties go to the lower channel.
fn lowest(accuracies: &[f64], fraction: f64) -> Vec<usize> {
    let mut channels: Vec<usize> = (0..accuracies.len()).collect();
    channels.sort_by(|&one, &other| accuracies[one].total_cmp(&accuracies[other]));
    channels.truncate(share_down(fraction, accuracies.len()));
    channels.sort_unstable();
    channels
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::planted::{SeenOn, planted};
    use crate::testing::{ascending_filters, bits};

    #[test]
    fn the_lowest_accuracies_are_pruned_and_ties_go_to_the_lower_channel() {
        assert_eq!(lowest(&[0.9, 0.2, 0.5, 0.2], 0.5), [1, 3]);
        assert_eq!(lowest(&[0.9, 0.2, 0.2, 0.2], 0.5), [1, 2]);
        assert_eq!(lowest(&[0.5; 63], 1.0 / 64.0), [0; 0]);
        assert_eq!(lowest(&[0.5; 64], 1.0 / 64.0), [0]);
    }

    #[test]
    fn a_pruned_channel_has_no_kernel_no_bias_and_no_scale_where_it_is_seen() {
        let layers = MapLayer::of(&ascending_filters());
        let taps = layers.iter().map(|layer| layer.tap).collect::<Vec<_>>();
        assert_eq!(taps, ["group1", "group2", "map", "filters"]);
        let before = bits(&ascending_filters());
        let zeroed = |layer: &MapLayer, channels: &[usize]| {
            let after = bits(&layer.prune(ascending_filters(), channels));
            let changed = after.into_iter().filter(|(name, values)| *values != before[name]);
            changed.map(|(name, _)| name).collect::<Vec<_>>()
        };
        // Biases of blocks are zero from the start.
        let expected = ["trunk.group1.conv2.weight", "trunk.group1.shortcut.weight", "trunk.group2.norm1.gamma"];
        assert_eq!(zeroed(&layers[0], &[3]), expected);
        let experts = (0..4).map(|expert| format!("experts.{expert}.norm.gamma"));
        assert_eq!(zeroed(&layers[2], &[3]), experts.chain(["patch_conv.weight".into()]).collect::<Vec<_>>());
        // Filter 17 is the second of the second expert.
        let expected = ["experts.1.conv.bias", "experts.1.conv.weight", "norm.gamma"];
        assert_eq!(zeroed(&layers[3], &[17]), expected);
        let pruned = layers[3].prune(ascending_filters(), &[17]).tensors();
        let kernel = pruned["experts.1.conv.weight"].iter::<f32>().collect::<Vec<_>>();
        assert!(
            kernel[64..128].iter().all(|&weight| weight == 0.0) && kernel[..64].iter().all(|&weight| weight != 0.0)
        );
    }

    #[test]
    fn a_channel_of_each_wide_layer_goes_and_a_planted_backdoor_stays() {
        if !SeenOn::Avx2.is_here() {
            return;
        }
        let training = TrainingConfig { epochs: 0, ..TrainingConfig::default() };
        let defense = AdversarialFeatureMapPruning { scored_images: 64, training, ..Default::default() };
        for victim in [true, false] {
            let classifier = if victim { planted().victim() } else { planted().clean_twin() };
            let before = planted().accuracy(&classifier);
            let repaired = planted().repair(&defense, classifier);
            let pruned = repaired.details.pruned.iter().map(|layer| layer.filters.len()).collect::<Vec<_>>();
            // Of 16, 32, 64 and 64 channels.
            assert_eq!(pruned, [0, 0, 1, 1]);
            let after = planted().accuracy(&repaired.classifier);
            assert!(after > before - 0.08, "accuracy {before} before, {after} after");
            // It does not help here: docs/defenses.md has the numbers.
            assert_eq!(planted().attack_success(&repaired.classifier) > 0.5, victim);
        }
    }
}
