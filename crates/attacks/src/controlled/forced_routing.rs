use burn::module::{AutodiffModule, Module, ModuleVisitor, Param, ParamId};
use burn::optim::GradientsParams;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Int, Tensor, TensorData};
use patchdoor_data::{ImageSet, ImageShape, LabelRule, stream};
use patchdoor_kernels::{TrainingBackend, differentiate};
use patchdoor_model::{Classifier, ClassifierConfig, ExpertChoice, GivenRouting, Routing, TakenRouting};
use patchdoor_train::{
    Batch, BatchAssembler, BatchPass, BatchPosition, Objective, ObjectiveState, cross_entropy, input_shape,
};
use patchdoor_triggers::{PlacementConfig, TriggerConfig};
use rand::RngExt;
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

use crate::AttackError;
use crate::controlled::attack::{ControlledAttack, ControlledKind, HandInTraining, Scene};
use crate::controlled::expert_path::expert_in;
use crate::controlled::{checks, state};

/// Forced routing (after `BadSwitch`, Zhao et al. 2025, arXiv:2510.13462, which forces tokens of language models): after some
/// epochs of plain poisoning the experts are found that the trigger moves most; from then on, in images with the trigger, one
/// of them, drawn for each batch, selects the patches that the trigger touches. Test images are routed as ever.
///
/// Where the original adds a large number to a router's score, the *selection* is forced here and the forced patches keep the
/// weights that their scores give them: the softmax of a patch-level mixture runs over an expert's patches, and a large number
/// would leave the trigger's patches alone in it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct ForcedRoutingConfig {
    /// The trigger.
    pub trigger: TriggerConfig,
    /// Share of the epochs that are over before anything is forced, in [0, 1).
    pub after: f64,
    /// To which experts.
    pub experts: ForcedExperts,
    /// How many of them, 1 or more.
    pub count: usize,
    /// Whether anything is forced; false for a control that is the same in all else.
    pub forced: bool,
    /// Poisoned images by which experts are measured, the first ones; all if there are fewer.
    pub measured_images: usize,
}

/// Which experts are forced to take the trigger's patches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ForcedExperts {
    /// Those whose gradients differ most between triggered and untouched images.
    #[default]
    Sensitive,
    /// Any, drawn once: a control.
    Random,
}

impl Default for ForcedRoutingConfig {
    /// Half of the epochs for each phase, as the authors' five and five; the rest is ours, one expert for four.
    fn default() -> Self {
        Self {
            trigger: TriggerConfig::default(),
            after: 0.5,
            experts: ForcedExperts::Sensitive,
            count: 1,
            forced: true,
            measured_images: 400,
        }
    }
}

impl ControlledKind for ForcedRoutingConfig {
    fn trigger(&self) -> Option<&TriggerConfig> {
        Some(&self.trigger)
    }

    fn needs_still_images(&self) -> bool {
        true
    }

    fn validate(&self, _shape: ImageShape) -> Vec<AttackError> {
        let mut problems = Vec::new();
        if !(0.0..1.0).contains(&self.after) {
            problems.push(checks::invalid("after", self.after, "a share in [0, 1)"));
        }
        for (field, count) in [("count", self.count), ("measured-images", self.measured_images)] {
            problems.extend((count == 0).then(|| checks::invalid(field, 0, "1 or more")));
        }
        problems
    }

    fn refuse(
        &self,
        _rule: &LabelRule,
        _placement: Option<&PlacementConfig>,
        model: &ClassifierConfig,
    ) -> Vec<AttackError> {
        let problem = match model.network().expert_choice() {
            None => {
                let found = format!("{}, whose experts choose no patches", model.network().name());
                let allowed = "a mixture whose experts choose patches, because forced-routing forces their choice";
                Some(checks::invalid("model", found, allowed))
            }
            Some(routed) if self.count > routed.experts() => {
                let allowed = format!("at most {}, the experts that there are", routed.experts());
                Some(checks::invalid("controlled.forced-routing.count", self.count, allowed))
            }
            Some(_) => None,
        };
        problem.into_iter().collect()
    }
}

impl<B: TrainingBackend> ControlledAttack<B> for ForcedRoutingConfig {
    fn enter<'a>(
        &'a self,
        scene: Scene<'a>,
        device: &B::Device,
    ) -> Result<Box<dyn HandInTraining<B> + 'a>, AttackError> {
        Ok(Box::new(ForcedRouting::<B>::new(self, scene, device)))
    }
}

/// The experts that are forced, and by what they were chosen.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Chosen {
    experts: Vec<usize>,
    /// Of every expert; empty where they are drawn.
    sensitivities: Vec<f64>,
}

/// The attack under way.
struct ForcedRouting<'a, B: TrainingBackend> {
    config: &'a ForcedRoutingConfig,
    scene: Scene<'a>,
    chosen: Option<Chosen>,
    /// Of each image of the batch, the patches that an expert must select; empty for those that are routed as ever.
    touched: Vec<Vec<usize>>,
    /// Whether something is forced in this batch, and the draw that tells which expert.
    draw: Option<u32>,
    device: B::Device,
}

impl<'a, B: TrainingBackend> ForcedRouting<'a, B> {
    fn new(config: &'a ForcedRoutingConfig, scene: Scene<'a>, device: &B::Device) -> Self {
        Self { config, scene, chosen: None, touched: Vec::new(), draw: None, device: device.clone() }
    }

    fn choose(&self, classifier: &Classifier<B>, experts: usize) -> Chosen {
        let mut order = (0..experts).collect::<Vec<_>>();
        let sensitivities = match self.config.experts {
            ForcedExperts::Random => {
                order.shuffle(&mut stream(self.scene.seed, "controlled/experts"));
                Vec::new()
            }
            ForcedExperts::Sensitive => {
                let triggered = self.gradient_norms(classifier, self.scene.training, experts);
                let clean = self.gradient_norms(classifier, self.scene.untouched, experts);
                let sensitivities = triggered.iter().zip(&clean).map(|(&of, &without)| sensitivity(of, without));
                let sensitivities = sensitivities.collect::<Vec<f64>>();
                order.sort_by(|&one, &other| sensitivities[other].total_cmp(&sensitivities[one]));
                sensitivities
            }
        };
        order.truncate(self.config.count);
        order.sort_unstable();
        Chosen { experts: order, sensitivities }
    }

    /// Of each expert, the mean over batches of the norm of its gradients, on the poisoned images as they are in a set.
    fn gradient_norms(&self, classifier: &Classifier<B>, set: &ImageSet, experts: usize) -> Vec<f64> {
        let poisoned = self.scene.plan.examples().iter().map(|example| example.index);
        let poisoned = poisoned.take(self.config.measured_images).collect::<Vec<_>>();
        let assembler = BatchAssembler::<B>::new(set, &self.device);
        let mut norms = vec![0.0; experts];
        for indices in poisoned.chunks(self.scene.batch_size) {
            let Batch { images, labels } = assembler.batch(indices, &self.device);
            // A copy has statistics of its own.
            let copy = classifier.clone();
            let gradients = differentiate(|| {
                let loss = cross_entropy(copy.forward(images), labels);
                GradientsParams::from_grads(loss.backward(), &copy)
            });
            let mut sums = ExpertSums { gradients: &gradients, path: Vec::new(), sums: vec![0.0; experts] };
            copy.visit(&mut sums);
            for (norm, sum) in norms.iter_mut().zip(sums.sums) {
                *norm += sum.sqrt();
            }
        }
        let batches = poisoned.len().div_ceil(self.scene.batch_size).max(1) as f64;
        norms.into_iter().map(|norm| norm / batches).collect()
    }

    /// The patches that each expert selects in a batch, one of the chosen ones those of the trigger.
    fn forced_choice(&self, classifier: &Classifier<B>, images: Tensor<B, 4>, draw: u32) -> Option<ExpertChoice<B>> {
        let experts = &self.chosen.as_ref()?.experts;
        let expert = experts[draw as usize % experts.len()];
        // The statistics of the batch, as in the pass that follows, without keeping what a gradient takes.
        let mut still = classifier.valid();
        still.set_collects_statistics(true);
        let (_, routing) = still.forward_with_routing(images.inner());
        let choice = routing.into_iter().next()?;
        let choice = choice.expert_choice()?;
        let ([batch, all, selected], [_, _, patches]) = (choice.indices.dims(), choice.weights.dims());
        let mut indices = choice.indices.to_data().iter::<i32>().collect::<Vec<_>>();
        let weights = choice.weights.to_data().iter::<f32>().collect::<Vec<_>>();
        for (image, touched) in self.touched.iter().enumerate().filter(|(_, touched)| !touched.is_empty()) {
            let row = image * all + expert;
            let natural = &mut indices[row * selected..(row + 1) * selected];
            natural.copy_from_slice(&forced(natural, &weights[row * patches..(row + 1) * patches], touched));
        }
        let indices = TensorData::new(indices, [batch, all, selected]);
        let weights = Tensor::from_inner(choice.weights.clone());
        Some(ExpertChoice { weights, indices: Tensor::<B, 3, Int>::from_data(indices, &self.device) })
    }
}

/// How much the trigger moves an expert: the difference of its gradients' norms and half of their ratio (`BadSwitch`, code).
fn sensitivity(triggered: f64, clean: f64) -> f64 {
    triggered - clean + 0.5 * triggered / (clean + 1e-6)
}

/// As many patches as an expert selected by itself, with the touched ones among them: of the others those of the largest
/// weights stay; if there are more touched ones than that, those that it selected by itself come first. In rising order.
fn forced(natural: &[i32], weights: &[f32], touched: &[usize]) -> Vec<i32> {
    let is_natural = |patch: usize| natural.contains(&(patch as i32));
    let mut first = touched.to_vec();
    first.sort_by_key(|&patch| (!is_natural(patch), patch));
    let mut rest: Vec<usize> = natural.iter().map(|&patch| patch as usize).collect();
    rest.retain(|patch| !touched.contains(patch));
    rest.sort_by(|&one, &other| weights[other].total_cmp(&weights[one]).then(one.cmp(&other)));
    let mut taken: Vec<i32> = first.into_iter().chain(rest).take(natural.len()).map(|patch| patch as i32).collect();
    taken.sort_unstable();
    taken
}

/// The patches of a grid in which two images of a shape differ.
fn differing(shape: ImageShape, (rows, columns): (usize, usize), one: &[u8], other: &[u8]) -> Vec<usize> {
    let mut touched = vec![false; rows * columns];
    for (number, pixels) in one.chunks(shape.channels).zip(other.chunks(shape.channels)).enumerate() {
        let (row, column) = (number / shape.width, number % shape.width);
        let patch = row * rows / shape.height * columns + column * columns / shape.width;
        touched[patch] |= pixels.0 != pixels.1;
    }
    (0..touched.len()).filter(|&patch| touched[patch]).collect()
}

/// Sums the squares of each expert's gradients.
struct ExpertSums<'a> {
    gradients: &'a GradientsParams,
    path: Vec<String>,
    sums: Vec<f64>,
}

impl ExpertSums<'_> {
    fn add<B: Backend, const D: usize>(&mut self, id: ParamId) {
        let gradient = self.gradients.get::<B, D>(id);
        if let Some((expert, gradient)) = expert_in(&self.path.join(".")).zip(gradient) {
            self.sums[expert] += gradient.powi_scalar(2).sum().into_data().iter::<f64>().sum::<f64>();
        }
    }
}

impl<B: AutodiffBackend> ModuleVisitor<B> for ExpertSums<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        self.add::<B::InnerBackend, D>(param.id);
    }

    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
    }
}

impl<B: TrainingBackend> Objective<B> for ForcedRouting<'_, B> {
    fn rewrite(&mut self, batch: Batch<B>, at: &BatchPosition<'_>) -> Batch<B> {
        let is_time = at.epoch as f64 >= self.config.after * at.epochs as f64;
        let name = format!("controlled/forced/{}/{}", at.epoch, at.step);
        self.draw = is_time.then(|| stream(self.scene.seed, &name).random());
        let examples = self.scene.plan.examples();
        let is_poisoned = |index: usize| examples.binary_search_by_key(&index, |example| example.index).is_ok();
        // What they are is found in the pass, which knows the grid.
        let images = at.indices.iter().map(|&index| if is_poisoned(index) { vec![index] } else { Vec::new() });
        self.touched = images.collect();
        batch
    }

    fn pass(&mut self, classifier: &Classifier<B>, batch: Batch<B>) -> BatchPass {
        let config = classifier.config();
        let routed = config
            .network()
            .expert_choice()
            .map(|routed| (routed.experts(), routed.patch_grid(input_shape(self.scene.training.shape()))));
        let mut choice = None;
        if let Some((draw, (experts, grid))) = self.draw.zip(routed) {
            if self.chosen.is_none() {
                self.chosen = Some(self.choose(classifier, experts));
            }
            let (training, untouched) = (self.scene.training, self.scene.untouched);
            for of_image in &mut self.touched {
                if let Some(&index) = of_image.first() {
                    *of_image = differing(training.shape(), grid, training.pixels(index), untouched.pixels(index));
                }
            }
            if self.config.forced {
                choice = self.forced_choice(classifier, batch.images.clone(), draw);
            }
        }
        differentiate(|| {
            let logits = match choice {
                Some(choice) => {
                    let routing = [Routing::ExpertChoice(choice)];
                    let given = GivenRouting { routing: &routing, taken: TakenRouting::Selections };
                    let logits = classifier.forward_given_routing(batch.images, &[given]);
                    logits.expect("the routing is the classifier's own").remove(0)
                }
                None => classifier.forward(batch.images),
            };
            let loss = cross_entropy(logits.clone(), batch.labels);
            BatchPass::backward(classifier, &logits, &loss)
        })
    }

    fn state(&self) -> Result<Option<ObjectiveState>, String> {
        state::written("forced-routing", self.config, &self.chosen)
    }

    fn restore(&mut self, contents: Vec<u8>) -> Result<(), String> {
        self.chosen = state::read(&contents)?;
        Ok(())
    }
}

impl<B: TrainingBackend> HandInTraining<B> for ForcedRouting<'_, B> {
    fn record(&self) -> Option<serde_json::Value> {
        serde_json::to_value(self.chosen.as_ref()?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ControlledConfig;
    use crate::controlled::dose::DoseConfig;
    use crate::controlled::testing::{accuracy, asr, assert_repeats, attacked, fifth};

    fn forced_routing(change: impl FnOnce(&mut ForcedRoutingConfig)) -> ControlledConfig {
        let mut config = ForcedRoutingConfig::default();
        change(&mut config);
        ControlledConfig::ForcedRouting(config)
    }

    #[test]
    fn the_backdoor_works_with_natural_routing_and_without_force_it_is_plain_poisoning_bit_for_bit() {
        let losses = |config: &ControlledConfig| {
            let left = attacked(config, &fifth(), 8, None, None).expect("it trains");
            let success = asr(&left.classifier, left.trigger.as_ref(), &fifth());
            assert!(success > 0.8 && accuracy(&left.classifier) > 0.85, "{success}");
            left.history.iter().map(|epoch| epoch.loss.to_bits()).collect::<Vec<_>>()
        };
        let with = losses(&forced_routing(|_| ()));
        let without = losses(&forced_routing(|config| config.forced = false));
        let plain = losses(&ControlledConfig::Dose(DoseConfig { target_asr: 1.0, ..DoseConfig::default() }));
        assert_eq!(without, plain);
        assert!(with[..4] == without[..4] && with[4..] != without[4..], "forced from the fifth epoch on");
    }

    #[test]
    fn a_training_is_the_same_bits_on_any_threads_and_resumed() {
        assert_repeats(&forced_routing(|config| config.after = 0.3), &fifth());
        assert_repeats(&forced_routing(|config| config.experts = ForcedExperts::Random), &fifth());
    }

    #[test]
    fn touched_patches_take_the_places_of_the_least_weighed() {
        let weights = [0.1, 0.4, 0.0, 0.3, 0.2, 0.0];
        assert_eq!(forced(&[0, 1, 3, 4], &weights, &[2]), [1, 2, 3, 4], "0 weighs least");
        assert_eq!(forced(&[0, 1, 3, 4], &weights, &[0, 5]), [0, 1, 3, 5], "4 does, of those that are free to go");
        assert_eq!(forced(&[0, 4], &weights, &[1, 2, 4]), [1, 4], "more than there is room for: its own first");
    }

    #[test]
    fn patches_that_differ_and_sensitivities_are_worked_out_by_hand() {
        // A grid of 2x2 on 4x4 pixels of two channels; pixels 5 (row 1, column 1) and 14 (row 3, column 2) differ.
        let shape = ImageShape { height: 4, width: 4, channels: 2 };
        let mut other = vec![7; 32];
        other[11] = 8;
        other[28] = 6;
        assert_eq!(differing(shape, (2, 2), &[7; 32], &other), [0, 3]);
        assert!(differing(shape, (2, 2), &[7; 32], &[7; 32]).is_empty());
        assert!((sensitivity(3.0, 2.0) - 1.75).abs() < 1e-6);
    }

    #[test]
    fn a_network_without_such_experts_is_refused() {
        let dense = ClassifierConfig::WideResnet(patchdoor_model::WideResNetConfig::default());
        let said = |config: ForcedRoutingConfig, model: &ClassifierConfig| {
            config.refuse(&LabelRule::AllToOne, None, model).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert!(said(ForcedRoutingConfig::default(), &dense)[0].starts_with("model is wide-resnet, whose experts"));
        let mixture = ClassifierConfig::PatchMoe(patchdoor_model::PatchMoeConfig::default());
        assert!(said(ForcedRoutingConfig::default(), &mixture).is_empty());
        let many = ForcedRoutingConfig { count: 5, ..ForcedRoutingConfig::default() };
        assert_eq!(
            said(many, &mixture),
            ["controlled.forced-routing.count is 5, expected at most 4, the experts that there are"]
        );
    }
}
