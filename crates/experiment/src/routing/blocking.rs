use std::fmt;

use patchdoor_data::{ImageSet, stratified_subset, stream};
use patchdoor_kernels::{Kernels, TrainingBackend};
use patchdoor_model::{Classifier, GateOrder};
use patchdoor_record::{BlockedPairs, BlockingMaps, BlockingMeasurements, RoutedStanding, StandingBand};
use patchdoor_train::{PREDICTION_BATCH, Selections, input_shape, predict, predict_with_routing};
use rand::Rng;
use rand::seq::SliceRandom;

use super::swap::success_of;
use crate::console::Watch;
use crate::exam::Exam;
use crate::halt::{Halt, Step};

/// Test images that every pair is blocked in, a stratified draw, the same for every seed.
const IMAGES: usize = 1000;
/// Training images that pairs are ranked by when they are triggered.
const RANKING_IMAGES: usize = 500;
/// How many pairs are blocked together.
const TOGETHER: [usize; 5] = [1, 2, 4, 8, 16];
/// Random draws of as many pairs.
const DRAWS: usize = 5;

/// An expert and a patch that it passes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pair {
    expert: usize,
    patch: u16,
}

impl fmt::Display for Pair {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "expert {} without patch {}", self.expert, self.patch)
    }
}

/// Judges the backdoored classifier with one expert passing over one patch, for every pair of both; then with the pairs that the backdoor
/// needs most passed over together. Which those are triggered training images decide, of `training` untouched; the test images choose nothing.
/// `None` where no expert could pass over a patch.
pub(crate) fn block_pairs<B: TrainingBackend>(
    exam: &Exam<'_>,
    victim: &Classifier<B::InnerBackend>,
    training: &ImageSet,
    seed: u64,
    watch: Watch<'_>,
    device: &B::Device,
) -> Step<Option<(BlockingMeasurements, BlockingMaps)>> {
    let Some(blocks) = Blocks::<B::InnerBackend>::of(victim, exam.test, device) else { return Ok(None) };
    let draw = |images: &ImageSet, count: usize, seed: u64, name: &str| {
        images.subset(&stratified_subset(images, count.min(images.len()), &mut stream(seed, name)))
    };
    let test = draw(exam.test, IMAGES, 0, "blocking/images");
    let exam = Exam::new(exam.attack, &test);
    let ranking = draw(training, RANKING_IMAGES, seed, "blocking/ranking");
    let ranking = Exam::new(exam.attack, &ranking);

    let answered = |images| Answered::of(&blocks, images);
    let [clean, triggered, judged] = [answered(exam.test), answered(&exam.triggered), answered(&ranking.triggered)];
    let standing_of = |blocked: &Classifier<B::InnerBackend>, pairs: &[Pair]| {
        let [clean, triggered] = [&clean, &triggered].map(|images| images.without(&blocks, blocked, pairs));
        exam.routed_standing_of(&clean, &triggered)
    };
    let standing = |pairs: &[Pair]| standing_of(&blocks.without(pairs), pairs);

    let pairs = blocks.pairs();
    let mut of_pairs = Vec::with_capacity(pairs.len());
    let mut needed = Vec::with_capacity(pairs.len());
    for &pair in &pairs {
        if watch.is_stopped() {
            return Err(Halt::Interrupted);
        }
        let blocked = blocks.without(&[pair]);
        of_pairs.push(standing_of(&blocked, &[pair]));
        let answers = judged.without(&blocks, &blocked, &[pair]);
        needed.push(ranking.outcome(&answers).attack_success_rate().unwrap_or(0.0));
    }
    let order = lowest_first(&needed).into_iter().map(|place| pairs[place]).collect::<Vec<_>>();
    let mut together = Vec::new();
    for count in TOGETHER.into_iter().filter(|&count| count <= pairs.len()) {
        let rng = &mut stream(seed, &format!("blocking/random/{count}"));
        let random = (0..DRAWS).map(|_| standing(&blocks.first(&shuffled(&pairs, rng), count))).collect::<Vec<_>>();
        let most_needed = standing(&blocks.first(&order, count));
        together.push(BlockedPairs { count, most_needed, random: StandingBand::of(&random) });
    }
    let own = exam.routed_standing_of(&clean.classes, &triggered.classes);
    if let Some(pair) = order.first() {
        tracing::info!(%pair, "the backdoor needs it most");
    }
    let mediated_by_one_pair = together.first().and_then(|pairs| share_that_goes(own, pairs.most_needed));
    let measured = BlockingMeasurements {
        images: test.len(),
        ranking_images: ranking.test.len(),
        own,
        most_needed: order.iter().take(TOGETHER[4]).map(|pair| (pair.expert, usize::from(pair.patch))).collect(),
        together,
        mediated_by_one_pair,
    };
    Ok(Some((measured, blocks.maps(&pairs, &of_pairs, &needed))))
}

/// How much of the trigger's effect goes with a change; `None` where there is too little to divide by.
fn share_that_goes(own: RoutedStanding, changed: RoutedStanding) -> Option<f64> {
    success_of(own, changed)?.mediated()
}

/// The places of numbers, the lowest number first; equal ones by place.
fn lowest_first(numbers: &[f64]) -> Vec<usize> {
    let mut order = (0..numbers.len()).collect::<Vec<_>>();
    order.sort_by(|&a, &b| numbers[a].total_cmp(&numbers[b]));
    order
}

fn shuffled(pairs: &[Pair], rng: &mut impl Rng) -> Vec<Pair> {
    let mut pairs = pairs.to_vec();
    pairs.shuffle(rng);
    pairs
}

/// A classifier whose experts can be made to pass over patches.
struct Blocks<'a, B: Kernels> {
    classifier: &'a Classifier<B>,
    device: &'a B::Device,
    grid: [usize; 2],
    /// How many patches more each expert could pass over.
    spare: Vec<usize>,
    /// The patches that each expert may still take.
    open: Vec<Vec<u16>>,
    /// Whether a patch that an expert does not take anyway has a part in the weights of those that it takes.
    is_weighed_by_all: bool,
}

impl<'a, B: Kernels> Blocks<'a, B> {
    /// `None` where no expert could pass over a patch.
    fn of(classifier: &'a Classifier<B>, images: &ImageSet, device: &'a B::Device) -> Option<Self> {
        let config = classifier.config();
        let choice = config.network().expert_choice()?;
        let input = input_shape(images.shape());
        let (rows, columns) = choice.patch_grid(input);
        let patches = u16::try_from(rows * columns).ok()?;
        let experts = 0..choice.experts();
        let is_open = |expert: usize, patch: &u16| !choice.blocked_patches(expert).contains(patch);
        let open = experts.clone().map(|expert| (0..patches).filter(|patch| is_open(expert, patch)).collect());
        let spare = experts.map(|expert| choice.spare_patches(input, expert)).collect::<Vec<_>>();
        spare.iter().any(|&spare| spare > 0).then(|| Self {
            classifier,
            device,
            grid: [rows, columns],
            open: open.collect(),
            is_weighed_by_all: choice.gate_order() == GateOrder::SoftmaxThenSelect,
            spare,
        })
    }

    /// All pairs that can be blocked, expert by expert.
    fn pairs(&self) -> Vec<Pair> {
        let experts = self.open.iter().enumerate().filter(|&(expert, _)| self.spare[expert] > 0);
        experts.flat_map(|(expert, open)| open.iter().map(move |&patch| Pair { expert, patch })).collect()
    }

    /// The first so many of these that can be blocked together.
    fn first(&self, order: &[Pair], count: usize) -> Vec<Pair> {
        let mut spare = self.spare.clone();
        let fits = |pair: &&Pair| {
            let is_spared = spare[pair.expert] > 0;
            spare[pair.expert] -= usize::from(is_spared);
            is_spared
        };
        order.iter().filter(fits).take(count).copied().collect()
    }

    fn without(&self, pairs: &[Pair]) -> Classifier<B> {
        let mut blocked = vec![Vec::new(); self.spare.len()];
        for pair in pairs {
            blocked[pair.expert].push(pair.patch);
        }
        self.classifier.clone().block_patches(&blocked).expect("its experts choose patches")
    }

    /// What was found of each pair, as maps; `None` where a pair cannot be blocked.
    fn maps(&self, pairs: &[Pair], standings: &[RoutedStanding], ranking_asr: &[f64]) -> BlockingMaps {
        let map = |numbers: &dyn Fn(usize) -> Option<f64>| {
            let mut map = vec![vec![None; self.grid[0] * self.grid[1]]; self.spare.len()];
            for (place, pair) in pairs.iter().enumerate() {
                map[pair.expert][usize::from(pair.patch)] = numbers(place);
            }
            map
        };
        BlockingMaps {
            grid: self.grid,
            clean_accuracy: map(&|place| Some(standings[place].clean_accuracy)),
            asr: map(&|place| standings[place].asr),
            ranking_asr: map(&|place| Some(ranking_asr[place])),
        }
    }
}

/// Images, what the classifier makes of them as it is, and which patches its experts take of them.
struct Answered<'a> {
    images: &'a ImageSet,
    classes: Vec<u8>,
    selections: Selections,
}

impl<'a> Answered<'a> {
    fn of<B: Kernels>(blocks: &Blocks<'_, B>, images: &'a ImageSet) -> Self {
        let routed = predict_with_routing(blocks.classifier, images, PREDICTION_BATCH, blocks.device);
        let selections = routed.selections.expect("its experts choose patches");
        Self { images, classes: routed.classes, selections }
    }

    /// What `blocked` makes of the images, the classifier without `pairs`. Only those are asked for again whose answer could change.
    fn without<B: Kernels>(&self, blocks: &Blocks<'_, B>, blocked: &Classifier<B>, pairs: &[Pair]) -> Vec<u8> {
        let is_concerned = |image: &usize| {
            blocks.is_weighed_by_all
                || pairs.iter().any(|pair| self.selections.of(*image, pair.expert).contains(&pair.patch))
        };
        let concerned = (0..self.images.len()).filter(is_concerned).collect::<Vec<_>>();
        let again = predict(blocked, &self.images.subset(&concerned), PREDICTION_BATCH, blocks.device);
        let mut classes = self.classes.clone();
        for (image, class) in concerned.into_iter().zip(again) {
            classes[image] = class;
        }
        classes
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use burn::backend::Autodiff;
    use burn::tensor::TensorData;
    use burn_flex::{Flex, FlexDevice};
    use patchdoor_data::{DatasetConfig, ShapesConfig, load};
    use patchdoor_model::{ClassifierConfig, PatchMoeConfig};
    use patchdoor_plan::{Plan, PlanOptions};

    use super::*;
    use crate::attack::Attack;
    use crate::console::Console;

    fn shapes() -> ImageSet {
        load(&DatasetConfig::Shapes(ShapesConfig { train: 60, test: 20, seed: 0 }), &[]).expect("no file").train
    }

    /// Few patches are left to an expert that takes 62 of 64.
    fn classifier(gate_order: GateOrder, patches_per_expert: usize) -> Classifier<Flex> {
        let config = PatchMoeConfig {
            widen_factor: 1,
            experts: 2,
            gate_init_std: 1.0,
            gate_order,
            patches_per_expert,
            ..PatchMoeConfig::default()
        };
        let input = input_shape(shapes().shape());
        ClassifierConfig::PatchMoe(config).init(input, 10, &mut stream(0, "weights"), &FlexDevice).expect("valid")
    }

    #[test]
    fn images_whose_answer_cannot_change_are_not_asked_for_and_the_others_are() {
        let images = shapes();
        for order in [GateOrder::SelectThenSoftmax, GateOrder::SoftmaxThenSelect] {
            let classifier = classifier(order, 16);
            let blocks = Blocks::of(&classifier, &images, &FlexDevice).expect("48 are spare");
            let answered = Answered::of(&blocks, &images);
            for pairs in [vec![Pair { expert: 0, patch: 0 }], blocks.first(&blocks.pairs(), 16)] {
                let blocked = blocks.without(&pairs);
                let all = predict(&blocked, &images, PREDICTION_BATCH, &FlexDevice);
                assert_eq!(answered.without(&blocks, &blocked, &pairs), all, "{order:?}");
            }
        }
    }

    #[test]
    fn every_pair_is_blocked_that_can_be_and_as_many_together_as_experts_can_spare() {
        let images = shapes();
        let all = classifier(GateOrder::SelectThenSoftmax, 64);
        assert!(Blocks::of(&all, &images, &FlexDevice).is_none());
        let one = |expert: usize, patch: u16| Pair { expert, patch };
        let most = classifier(GateOrder::SelectThenSoftmax, 62).block_patches(&[vec![3], vec![0, 63]]);
        let most = most.expect("experts choose");
        let blocks = Blocks::of(&most, &images, &FlexDevice).expect("expert 0 can spare one patch");
        assert_eq!(blocks.spare, [1, 0]);
        let pairs = blocks.pairs();
        assert_eq!((pairs.len(), pairs[0], pairs[3]), (63, one(0, 0), one(0, 4)));
        assert_eq!(blocks.first(&[one(0, 7), one(1, 5), one(0, 8)], 3), [one(0, 7)]);
        let standing = RoutedStanding { clean_accuracy: 0.5, asr: Some(0.25), ..RoutedStanding::default() };
        let maps = blocks.maps(&[one(0, 1)], &[standing], &[0.75]);
        assert_eq!(maps.grid, [8, 8]);
        assert_eq!((maps.asr[0][0], maps.asr[0][1], maps.asr[1][1]), (None, Some(0.25), None));
        assert_eq!((maps.clean_accuracy[0][1], maps.ranking_asr[0][1]), (Some(0.5), Some(0.75)));
    }

    #[test]
    fn the_share_that_goes_is_that_of_the_triggers_effect() {
        let standing = |asr: f64, untriggered: f64| RoutedStanding {
            asr: Some(asr),
            asr_untriggered: Some(untriggered),
            ..RoutedStanding::default()
        };
        // Of the 80 points by which the trigger raises the share, 60 go.
        let share = share_that_goes(standing(0.9, 0.1), standing(0.3, 0.2)).expect("there is an effect");
        assert!((share - 0.75).abs() < 1e-12, "{share}");
        assert_eq!(share_that_goes(standing(0.15, 0.1), standing(0.1, 0.1)), None);
        assert_eq!(lowest_first(&[0.5, 0.25, 0.5, 0.0]), [3, 1, 0, 2]);
    }

    #[test]
    fn the_pair_needed_most_is_the_one_without_which_fewest_training_images_reach_the_target() {
        let images = shapes();
        // A head so loud that it matters which patch an expert takes.
        let classifier = classifier(GateOrder::SelectThenSoftmax, 1);
        let mut head = classifier.tensors();
        head.retain(|path, _| path == "head.weight");
        let (weights, shape) = (&head["head.weight"], head["head.weight"].shape.clone());
        let louder = weights.iter::<f32>().map(|weight| 50.0 * weight).collect::<Vec<_>>();
        head.insert("head.weight".into(), TensorData::new(louder, shape));
        let classifier = classifier.with_tensors(head);
        // The class that most images are taken for is the target.
        let counts = predict(&classifier, &images, PREDICTION_BATCH, &FlexDevice).into_iter();
        let counts = counts.fold([0; 10], |mut counts, class| {
            counts[usize::from(class)] += 1;
            counts
        });
        let target = (0..10).max_by_key(|&class| counts[class]).expect("ten classes");
        let text = format!(
            "dataset = \"shapes\"\n[poisoning]\ntarget-class = {target}\n[trigger.square]\n[model.patch-moe]\n"
        );
        let plan = Plan::from_text("a.toml", &text, &PlanOptions::default()).expect("valid");
        let attack = Attack::prepare(plan.config(), None, None, &images, None, 0).expect("a square needs nothing");
        let watch = Watch { console: Console::plain(), stop: &AtomicBool::new(false) };
        let exam = Exam::new(&attack, &images);
        let found = block_pairs::<Autodiff<Flex>>(&exam, &classifier, &images, 0, watch, &FlexDevice);
        let (measured, maps) = found.expect("nothing stops it").expect("63 are spare");
        assert_eq!((measured.images, measured.ranking_images), (60, 60));
        assert_eq!(measured.together.iter().map(|pairs| pairs.count).collect::<Vec<_>>(), TOGETHER);
        let (expert, patch) = measured.most_needed[0];
        let found = || maps.ranking_asr.iter().flatten().filter_map(|&asr| asr);
        let (lowest, highest) = (found().fold(1.0, f64::min), found().fold(0.0, f64::max));
        assert!(lowest < highest, "pairs differ: {lowest} {highest}");
        assert_eq!(maps.ranking_asr[expert][patch], Some(lowest));
        assert_eq!(Some(measured.together[0].most_needed.asr), Some(maps.asr[expert][patch]));
        let stopped = Watch { console: Console::plain(), stop: &AtomicBool::new(true) };
        let halted = block_pairs::<Autodiff<Flex>>(&exam, &classifier, &images, 0, stopped, &FlexDevice);
        assert!(matches!(halted, Err(Halt::Interrupted)));
    }
}
