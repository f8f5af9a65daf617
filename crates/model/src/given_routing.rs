use burn::tensor::{Tensor, backend::Backend};
use patchdoor_kernels::Kernels;

use crate::{Classifier, ModelError, Part, Routing};

/// The routing of another pass, for a pass that shall not route by itself: of the same network on another image, or of
/// another network on the same.
#[derive(Debug)]
pub struct GivenRouting<'a, B: Backend> {
    /// One for each routed layer, as [`Classifier::forward_with_routing`] returns them.
    pub routing: &'a [Routing<B>],
    /// What of them is taken over.
    pub taken: TakenRouting,
}

/// What a pass takes over of a given routing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TakenRouting {
    /// Which patches go to which expert, and their weights.
    All,
    /// Which patches go to which expert; the network's own routers weigh them, by what they score them in this pass.
    Selections,
}

impl<B: Kernels> Classifier<B> {
    /// Returns the logits of passes whose experts take the patches that another pass gave them, one for each of `given`.
    /// What lies before the routers is computed once for all.
    ///
    /// With its own routing, a network returns what it returns without being given any; on a CPU to the last bit.
    /// This runs on every backend: selections that only have to be weighed anew pass through the host.
    ///
    /// # Shapes
    /// - images: `[batch, height, width, channel]`, pixels in [0, 1]
    /// - output: `[batch, class]` each
    ///
    /// # Errors
    /// If the network has no routers, or a routing is not of as many images, experts and patches as it has.
    pub fn forward_given_routing(
        &self,
        images: Tensor<B, 4>,
        given: &[GivenRouting<'_, B>],
    ) -> Result<Vec<Tensor<B, 2>>, ModelError> {
        self.network().forward_given(images, given)
    }
}

impl<B: Backend> Classifier<B> {
    /// The same network with some parts of another one of the same structure, such as its routers: weights and running
    /// statistics.
    ///
    /// # Panics
    /// If a tensor of such a part has another shape in the other network.
    #[must_use]
    pub fn with_parts_of(self, other: &Self, parts: &[Part]) -> Self {
        let mut tensors = other.tensors();
        tensors.retain(|path, _| parts.contains(&Part::of(path)));
        self.with_tensors(tensors)
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::TensorData;
    use burn_flex::{Flex, FlexDevice};
    use proptest::prelude::*;
    use rand::{RngExt, SeedableRng, rngs::ChaCha8Rng};

    use super::*;
    use crate::{ClassifierConfig, ExpertForm, GateOrder, InputShape, PatchMoeConfig, WideResNetConfig};

    const INPUT: InputShape = InputShape { height: 16, width: 16, channels: 3 };

    fn build(config: impl Into<ClassifierConfig>, seed: u64) -> Classifier<Flex> {
        config.into().init(INPUT, 10, &mut ChaCha8Rng::seed_from_u64(seed), &FlexDevice).expect("valid")
    }

    /// Gates that differ from patch to patch, as after training.
    fn moe(change: impl FnOnce(&mut PatchMoeConfig)) -> PatchMoeConfig {
        let mut config =
            PatchMoeConfig { widen_factor: 1, gate_init_std: 2.0, patches_per_expert: 3, ..PatchMoeConfig::default() };
        change(&mut config);
        config
    }

    fn images(batch: usize, seed: u64) -> Tensor<Flex, 4> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let pixels: Vec<f32> = (0..batch * 16 * 16 * 3).map(|_| rng.random_range(0.0..1.0)).collect();
        Tensor::from_data(TensorData::new(pixels, [batch, 16, 16, 3]), &FlexDevice)
    }

    fn bits(tensor: Tensor<Flex, 2>) -> Vec<u32> {
        tensor.into_data().to_vec::<f32>().expect("f32").into_iter().map(f32::to_bits).collect()
    }

    fn given(routing: &[Routing<Flex>], taken: TakenRouting) -> GivenRouting<'_, Flex> {
        GivenRouting { routing, taken }
    }

    fn one(network: &Classifier<Flex>, images: Tensor<Flex, 4>, given: GivenRouting<'_, Flex>) -> Vec<u32> {
        let mut logits = network.forward_given_routing(images, &[given]).expect("it routes");
        bits(logits.pop().expect("one routing was given"))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn its_own_routing_gives_what_a_network_gives_without_to_the_bit(
            seed in 0u64..1000,
            batch in 1usize..5,
            gathered: bool,
            late: bool,
            patch_size in 1usize..3,
            selected in 1usize..5,
        ) {
            let network = build(moe(|config| {
                config.expert_form = if gathered { ExpertForm::Gathered } else { ExpertForm::Masked };
                config.gate_order = if late { GateOrder::SelectThenSoftmax } else { GateOrder::SoftmaxThenSelect };
                config.patch_size = patch_size;
                config.patches_per_expert = selected;
            }), seed);
            let images = images(batch, seed + 1);
            let (logits, routing) = network.forward_with_routing(images.clone());
            let logits = bits(logits);
            for taken in [TakenRouting::All, TakenRouting::Selections] {
                prop_assert_eq!(&one(&network, images.clone(), given(&routing, taken)), &logits);
            }
        }
    }

    #[test]
    fn the_routing_of_other_images_changes_the_answer_and_its_selections_alone_change_it_otherwise() {
        let network = build(moe(|_| ()), 0);
        let (mine, other) = (images(3, 1), images(3, 2));
        let (own, _) = network.forward_with_routing(mine.clone());
        let (_, routing) = network.forward_with_routing(other);
        let passes = [TakenRouting::All, TakenRouting::Selections].map(|taken| given(&routing, taken));
        let logits = network.forward_given_routing(mine.clone(), &passes).unwrap();
        let [all, selections]: [Vec<u32>; 2] = logits.into_iter().map(bits).collect::<Vec<_>>().try_into().unwrap();
        assert!(all != bits(own.clone()) && selections != bits(own) && all != selections);
        // Passes are independent of those they share the trunk with.
        for (together, pass) in [all, selections].into_iter().zip(passes) {
            assert_eq!(together, one(&network, mine.clone(), pass));
        }
    }

    #[test]
    fn the_routing_of_a_network_with_its_routers_is_its_own_where_all_else_is_equal() {
        let (network, donor) = (build(moe(|_| ()), 0), build(moe(|_| ()), 1));
        let transplanted = network.clone().with_parts_of(&donor, &[Part::Router]);
        let (before, after) = (network.tensors(), transplanted.tensors());
        for (path, data) in &after {
            let origin = if Part::of(path) == Part::Router { &donor.tensors()[path] } else { &before[path] };
            assert_eq!(data, origin, "{path}");
        }
        // Its own routers say the same about the same map, so that giving their routing is transplanting them.
        let images = images(4, 3);
        let (logits, routing) = transplanted.forward_with_routing(images.clone());
        assert_eq!(one(&network, images.clone(), given(&routing, TakenRouting::All)), bits(logits.clone()));
        assert_ne!(bits(network.forward(images)), bits(logits));
    }

    #[test]
    fn patches_without_any_weight_leave_no_trace_of_their_content() {
        // Experts that are given the weights of no patch see zeros, whatever the image.
        let network = build(moe(|_| ()), 0);
        let (_, mut routing) = network.forward_with_routing(images(1, 1));
        let Routing::ExpertChoice(choice) = &mut routing[0] else { unreachable!("experts choose") };
        choice.weights = choice.weights.zeros_like();
        let answer = |seed| one(&network, images(1, seed), given(&routing, TakenRouting::All));
        assert_eq!(answer(1), answer(2));
    }

    #[test]
    fn a_network_without_routers_and_a_routing_that_does_not_fit_are_refused() {
        let said = |network: &Classifier<Flex>, routing: &[Routing<Flex>]| {
            let refused = network.forward_given_routing(images(2, 0), &[given(routing, TakenRouting::All)]);
            refused.expect_err("it does not fit").to_string()
        };
        let network = build(moe(|_| ()), 0);
        let (_, routing) = network.forward_with_routing(images(2, 0));
        let dense = build(WideResNetConfig { widen_factor: 1, ..WideResNetConfig::default() }, 0);
        assert_eq!(said(&dense, &routing), "wide-resnet has no routing that could be given");
        assert_eq!(said(&network, &[]), "the given routing is of 0 routed layers, expected 1");
        let (_, of_three) = network.forward_with_routing(images(3, 0));
        let fits = "2 images, 4 experts and 16 patches";
        assert_eq!(
            said(&network, &of_three),
            format!("the given routing is of 3 images, 4 experts and 16 patches, expected {fits}")
        );
        let (_, of_two_experts) = build(moe(|config| config.experts = 2), 0).forward_with_routing(images(2, 0));
        assert!(said(&network, &of_two_experts).contains("of 2 images, 2 experts and 16 patches"));
        // How many patches an expert takes may differ.
        let (_, of_all) = build(moe(|config| config.patches_per_expert = 16), 0).forward_with_routing(images(2, 0));
        assert_ne!(
            one(&network, images(2, 0), given(&of_all, TakenRouting::All)),
            one(&network, images(2, 0), given(&routing, TakenRouting::All)),
        );
    }
}
