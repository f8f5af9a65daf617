use std::collections::BTreeMap;

use burn::module::AutodiffModule;
use burn::tensor::{Tensor, TensorData};
use patchdoor_data::{ImageSet, ImageShape, LabelRule, stream, trigger_all_images};
use patchdoor_kernels::TrainingBackend;
use patchdoor_model::PatchMoeConfig;
use patchdoor_train::{Adam, BatchAssembler, PREDICTION_BATCH, Selections, gradient_by, predict_with_routing};
use patchdoor_triggers::{Anchor, BlockCells, CellsConfig, PlacementConfig};
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

use crate::crafting::{only_fixed_cells, only_one_target};
use crate::error::{above_zero, invalid, one_or_more};
use crate::expert_contribution::least_contributing;
use crate::patch_cells::PatchCells;
use crate::pattern::{Pattern, batches, mask_tensor, overlaid, split_images};
use crate::routing_loss::Objective;
use crate::{AttackError, Craft, Crafted, CraftedTrigger, Crafting, Workshop};

/// A pattern in cells of the image, made so that the routers of a mixture of experts select the patches that carry it, or do
/// not (ours).
///
/// The pattern starts at random and descends, by Adam over batches of the attacker's images, on what its [`Aim`] says. With
/// `aim = "none"` it stays as it starts: a control of equal budget. A second control is `"target-logit"`, the same search
/// without a look at the routers. A patch carries the pattern if a pixel of its share of the image lies in one of the
/// cells.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct RoutingPatternConfig {
    /// What the pattern is made for.
    pub aim: Aim,
    /// The most that a value changes, of 255; any colours, written over the image, if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bound: Option<u8>,
    /// How many of the placement's cells, or of all, are chosen together with the pattern; all of the placement's carry it
    /// if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub choose_cells: Option<usize>,
    /// With `aim = "target-logit"`, the weight of the divergence of the routers' distributions over patches from those for
    /// the untouched image, beside the cross-entropy; 0 or more.
    pub routing_penalty: f64,
    /// The attacker's images that it is made on.
    pub images: usize,
    /// Steps of descent.
    pub steps: usize,
    /// Images in a step.
    pub batch_size: usize,
    /// Adam's rate, where pixels are in [0, 1].
    pub learning_rate: f64,
}

/// What a pattern is made for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Aim {
    /// That every expert selects the patches that carry it.
    #[default]
    Select,
    /// That no expert selects them.
    Avoid,
    /// That this expert selects them and no other does.
    Expert(usize),
    /// That so many experts select them which contribute least to the true class (after `BadMoE`, arXiv:2504.18598).
    LowContribution(usize),
    /// That images that carry it are taken for the target class.
    TargetLogit,
    /// Nothing: it stays random.
    #[serde(rename = "none")]
    Nothing,
}

impl Default for RoutingPatternConfig {
    /// 256 steps and 800 images as in `BadMoE` (arXiv:2504.18598); rate and batch are ours.
    fn default() -> Self {
        Self {
            aim: Aim::default(),
            bound: None,
            choose_cells: None,
            routing_penalty: 0.0,
            images: 800,
            steps: 256,
            batch_size: 64,
            learning_rate: 0.05,
        }
    }
}

impl Crafting for RoutingPatternConfig {
    fn validate(&self, _shape: ImageShape) -> Vec<AttackError> {
        let mut problems = Vec::new();
        problems.extend(self.bound.and_then(|bound| one_or_more("bound", usize::from(bound))));
        problems.extend(self.choose_cells.and_then(|count| one_or_more("choose-cells", count)));
        problems.extend(one_or_more("images", self.images));
        problems.extend(one_or_more("steps", self.steps));
        problems.extend(one_or_more("batch-size", self.batch_size));
        problems.extend(above_zero("learning-rate", self.learning_rate));
        if !(self.routing_penalty >= 0.0 && self.routing_penalty.is_finite()) {
            problems.push(invalid("routing-penalty", self.routing_penalty, "a number that is 0 or more"));
        } else if self.routing_penalty > 0.0 && self.aim != Aim::TargetLogit {
            let allowed = "0, or aim = \"target-logit\": the others are made to change the routing, or for nothing";
            problems.push(invalid("routing-penalty", self.routing_penalty, allowed));
        }
        problems
    }

    fn refuse(&self, rule: &LabelRule, placement: Option<&PlacementConfig>) -> Vec<AttackError> {
        let mut problems: Vec<_> = only_fixed_cells(placement).into_iter().collect();
        problems.extend(only_one_target(rule).filter(|_| self.aim == Aim::TargetLogit));
        let placed = placement.cloned().or_else(|| self.default_placement());
        let cells = placed.and_then(|placement| {
            let shape = ImageShape { height: placement.grid, width: placement.grid, channels: 1 };
            let there = placement.pixels_of_cells(shape).ok().filter(|_| placement.offset == [0, 0])?;
            Some((there, placement.grid * placement.grid))
        });
        if let Some((there, all)) = cells {
            let carrying = self.choose_cells.unwrap_or(there);
            if carrying > there {
                let allowed = format!("1 to {there}, the cells of the placement");
                problems.push(invalid("crafted.routing-pattern.choose-cells", carrying, allowed));
            } else if carrying == all && !matches!(self.aim, Aim::TargetLogit | Aim::Nothing) {
                let allowed = "fewer, in placement.cells or by choose-cells: routers cannot prefer all patches";
                problems.push(invalid("placement.cells", format!("all {all} cells"), allowed));
            }
        }
        problems
    }

    fn needs_routers(&self) -> bool {
        true
    }

    fn chosen_cells(&self) -> Option<usize> {
        self.choose_cells
    }

    fn refuse_mixture(&self, surrogate: &PatchMoeConfig) -> Vec<AttackError> {
        let experts = surrogate.experts;
        match self.aim {
            Aim::Expert(expert) if expert >= experts => {
                vec![invalid(
                    "aim.expert",
                    expert,
                    format!("0 to {}, the surrogate's experts", experts.saturating_sub(1)),
                )]
            }
            Aim::LowContribution(count) if count == 0 || count >= experts => {
                let allowed = format!("1 to {}, fewer than the surrogate's experts", experts.saturating_sub(1));
                vec![invalid("aim.low-contribution", count, allowed)]
            }
            _ => Vec::new(),
        }
    }

    /// A block of 2x2 of 8x8 cells in the middle, or all cells to choose from.
    fn default_placement(&self) -> Option<PlacementConfig> {
        let block = CellsConfig::Block(BlockCells { size: 2, anchor: Anchor::MidMid });
        let cells = if self.choose_cells.is_some() { CellsConfig::All } else { block };
        Some(PlacementConfig { cells, ..PlacementConfig::default() })
    }

    fn pixel_budget(&self, shape: ImageShape, placed: Option<usize>) -> usize {
        placed.unwrap_or(shape.height * shape.width)
    }

    fn make_quick(&mut self) {
        self.images = self.images.min(16);
        self.steps = self.steps.min(4);
        self.batch_size = self.batch_size.min(8);
    }
}

impl<B: TrainingBackend> Craft<B> for RoutingPatternConfig {
    fn craft(&self, workshop: &Workshop<'_, B>) -> Result<Crafted, AttackError> {
        let shape = workshop.images.shape();
        let cells = PatchCells::of(workshop.cells.unwrap_or_default(), shape, &workshop.surrogate.config());
        let is_attacked = |label| self.aim != Aim::TargetLogit || workshop.poisoning.attacks(label);
        let [searched, measured] = split_images(workshop.images, self.images, is_attacked, workshop.seed);
        let start = Pattern::random(shape, self.bound.map(|bound| f64::from(bound) / 255.0), workshop.seed);
        let every: Vec<usize> = (0..cells.count()).collect();
        let (pattern, chosen) = match self.objective(workshop, &searched) {
            Some(objective) => {
                let mut search = Search::new(self, workshop, &cells, &searched, objective);
                match self.choose_cells {
                    None => (search.descend(start.clone(), self.steps, &Carriers::All(every))?, None),
                    Some(count) => {
                        // All cells learn side by side, each in the images that drew it; then the best go on together.
                        let half = self.steps / 2;
                        let pattern = search.descend(start.clone(), half, &Carriers::Drawn(count))?;
                        let best = search.best_cells(&pattern, count)?;
                        let pattern = search.descend(pattern, self.steps - half, &Carriers::All(best.clone()))?;
                        (pattern, Some(best))
                    }
                }
            }
            None => {
                (start.clone(), self.choose_cells.map(|count| drawn_cells(cells.count(), count, workshop.seed, "none")))
            }
        };
        let chosen = chosen.unwrap_or_else(|| (0..cells.count()).collect());
        let mask = cells.mask(&chosen);
        let [trigger, start] = [pattern, start].map(|pattern| CraftedTrigger::new(shape, pattern.change(&mask, 1.0)));
        let reached = reached(workshop, &measured, &cells.carriers(&chosen), [&trigger, &start]);
        Ok(Crafted { trigger, reached })
    }
}

impl RoutingPatternConfig {
    fn objective<B: TrainingBackend>(&self, workshop: &Workshop<'_, B>, images: &ImageSet) -> Option<Objective> {
        let experts = workshop.surrogate.config().network().experts().unwrap_or(0);
        let one = |index: usize, yes: f64, no: f64| (0..experts).map(|e| if e == index { yes } else { no }).collect();
        Some(match self.aim {
            Aim::Select => Objective::Routing(vec![1.0; experts]),
            Aim::Avoid => Objective::Routing(vec![-1.0; experts]),
            Aim::Expert(expert) => Objective::Routing(one(expert, 1.0, -1.0)),
            Aim::LowContribution(count) => {
                let least = least_contributing(workshop.surrogate, images, count, workshop.device);
                Objective::Routing((0..experts).map(|expert| f64::from(u8::from(least.contains(&expert)))).collect())
            }
            Aim::TargetLogit => {
                Objective::Target { class: workshop.poisoning.target_class, routing_penalty: self.routing_penalty }
            }
            Aim::Nothing => return None,
        })
    }
}

/// What it came to on images that it was not made on.
fn reached<B: TrainingBackend>(
    workshop: &Workshop<'_, B>,
    images: &ImageSet,
    carriers: &[bool],
    [trigger, start]: [&CraftedTrigger; 2],
) -> BTreeMap<String, f64> {
    let surrogate = workshop.surrogate.valid();
    let predicted = |set: &ImageSet| predict_with_routing(&surrogate, set, PREDICTION_BATCH, workshop.device);
    let untouched = predicted(images);
    let triggered = predicted(&trigger_all_images(images, trigger, workshop.seed));
    let random = predicted(&trigger_all_images(images, start, workshop.seed));
    let target = workshop.poisoning.target_class;
    let others: Vec<usize> = (0..images.len()).filter(|&index| images.label(index) != target).collect();
    let taken = |classes: &[u8]| {
        others.iter().filter(|&&index| classes[index] == target).count() as f64 / others.len().max(1) as f64
    };
    let mut reached = BTreeMap::from([
        ("target-share".to_owned(), taken(&triggered.classes)),
        ("target-share-untouched".to_owned(), taken(&untouched.classes)),
    ]);
    let selected = [("", &triggered), ("-untouched", &untouched), ("-random", &random)];
    for (name, prediction) in selected {
        let Some(selections) = &prediction.selections else { continue };
        let shares = carriers_selected(selections, carriers);
        let mean = shares.iter().sum::<f64>() / shares.len().max(1) as f64;
        reached.insert(format!("carriers-selected{name}"), mean);
        if name.is_empty() {
            let each = shares.into_iter().enumerate();
            reached.extend(each.map(|(expert, share)| (format!("carriers-selected-expert-{expert}"), share)));
        }
    }
    if let (Some(before), Some(after)) = (&untouched.selections, &triggered.selections) {
        reached.insert("selections-kept".into(), selections_kept(before, after));
    }
    reached
}

/// Of the patches that carry the pattern, the share that each expert selects, mean over images; of those that it can select if
/// there are more.
fn carriers_selected(selections: &Selections, carriers: &[bool]) -> Vec<f64> {
    let most = carriers.iter().filter(|&&carries| carries).count().min(selections.patches_per_expert()).max(1);
    let of = |expert: usize| {
        let counts = (0..selections.images())
            .map(|image| selections.of(image, expert).iter().filter(|&&patch| carriers[usize::from(patch)]).count());
        counts.sum::<usize>() as f64 / (most * selections.images().max(1)) as f64
    };
    (0..selections.experts()).map(of).collect()
}

/// Share of the selections before that are among those after, over experts and images.
fn selections_kept(before: &Selections, after: &Selections) -> f64 {
    let pairs = (0..before.images()).flat_map(|image| (0..before.experts()).map(move |expert| (image, expert)));
    let kept = pairs.map(|(image, expert)| {
        let after = after.of(image, expert);
        before.of(image, expert).iter().filter(|patch| after.contains(patch)).count()
    });
    kept.sum::<usize>() as f64 / before.indices().len().max(1) as f64
}

/// So many of the cells, drawn at random.
fn drawn_cells(cells: usize, count: usize, seed: u64, name: &str) -> Vec<usize> {
    let mut order: Vec<usize> = (0..cells).collect();
    order.shuffle(&mut stream(seed, &format!("crafting/cells/{name}")));
    order.truncate(count);
    order.sort_unstable();
    order
}

/// Which cells carry the pattern in a step.
enum Carriers {
    /// The same in all images.
    All(Vec<usize>),
    /// So many, drawn anew for each image.
    Drawn(usize),
}

/// A descent of patterns on an objective.
struct Search<'a, B: TrainingBackend> {
    config: &'a RoutingPatternConfig,
    workshop: &'a Workshop<'a, B>,
    cells: &'a PatchCells,
    objective: Objective,
    assembler: BatchAssembler<'a, B::InnerBackend>,
    batches: Box<dyn Iterator<Item = Vec<usize>>>,
    adam: Adam<B, 4>,
    done: usize,
}

impl<'a, B: TrainingBackend> Search<'a, B> {
    fn new(
        config: &'a RoutingPatternConfig,
        workshop: &'a Workshop<'a, B>,
        cells: &'a PatchCells,
        images: &'a ImageSet,
        objective: Objective,
    ) -> Self {
        let batches = Box::new(batches(images.len(), config.batch_size, workshop.seed));
        let assembler = BatchAssembler::new(images, workshop.device);
        let adam = Adam::new(config.learning_rate, Adam::<B, 4>::BETAS);
        Self { config, workshop, cells, objective, assembler, batches, adam, done: 0 }
    }

    /// The pattern after so many steps.
    fn descend(&mut self, mut pattern: Pattern, steps: usize, carriers: &Carriers) -> Result<Pattern, AttackError> {
        for _ in 0..steps {
            self.workshop.step(self.done, self.config.steps)?;
            self.done += 1;
            let indices = self.batches.next().expect("batches do not end");
            let sets = match carriers {
                Carriers::All(cells) => vec![cells.clone()],
                Carriers::Drawn(count) => (0..indices.len())
                    .map(|number| {
                        let name = format!("{}/{number}", self.done);
                        drawn_cells(self.cells.count(), *count, self.workshop.seed, &name)
                    })
                    .collect(),
            };
            let (gradient, _) = self.gradient(&pattern, &indices, &sets);
            pattern.take(self.adam.step(pattern.tensor(self.workshop.device), gradient));
        }
        Ok(pattern)
    }

    /// The cells in which the pattern serves its objective best, each carrying it alone; of equal ones the lower goes first.
    fn best_cells(&mut self, pattern: &Pattern, count: usize) -> Result<Vec<usize>, AttackError> {
        let indices = self.batches.next().expect("batches do not end");
        let mut losses = Vec::new();
        for cell in 0..self.cells.count() {
            self.workshop.step(self.done, self.config.steps)?;
            losses.push(self.gradient(pattern, &indices, &[vec![cell]]).1);
        }
        let mut order: Vec<usize> = (0..losses.len()).collect();
        order.sort_by(|&a, &b| losses[a].total_cmp(&losses[b]));
        order.truncate(count);
        order.sort_unstable();
        Ok(order)
    }

    /// The gradient of the loss by the pattern, and the loss, where each image, or all, carry it in these cells.
    fn gradient(&self, pattern: &Pattern, indices: &[usize], sets: &[Vec<usize>]) -> (Tensor<B::InnerBackend, 4>, f64) {
        let (shape, device) = (pattern.shape, self.workshop.device);
        let images = self.assembler.batch(indices, device).images;
        let masks = sets.iter().map(|cells| self.cells.mask(cells)).collect::<Vec<_>>();
        let mask = mask_tensor::<B::InnerBackend>(&masks, shape, device);
        let carries = sets.iter().flat_map(|cells| self.cells.carriers(cells));
        let carries = carries.map(|carries| f32::from(u8::from(carries))).collect::<Vec<_>>();
        let carries = TensorData::new(carries, [sets.len(), 1, self.cells.patches()]);
        let untouched = self.objective.needs_untouched().then(|| {
            let inner = self.workshop.surrogate.valid();
            inner.forward_with_scores(images.clone()).expect("a surrogate with routers").1
        });
        gradient_by::<B, 4, _>(pattern.tensor(device), |pattern| {
            let stamped =
                overlaid(Tensor::from_inner(images), pattern, Tensor::from_inner(mask), self.config.bound.is_some());
            let (logits, scores) =
                self.workshop.surrogate.forward_with_scores(stamped).expect("a surrogate with routers");
            let carries = Tensor::from_data(carries, device);
            let loss = self.objective.loss(logits, scores, carries, untouched.map(Tensor::from_inner));
            (loss.clone(), loss.into_data().iter::<f64>().sum())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CraftedConfig;
    use crate::testing::{crafted, patches};

    /// Cells of 4x4 pixels, each the share of one of 4x4 patches.
    fn cells(numbers: &[usize]) -> Vec<Vec<usize>> {
        let of = |&cell: &usize| {
            let (top, left) = (cell / 4 * 4, cell % 4 * 4);
            (top..top + 4).flat_map(|row| (left..left + 4).map(move |column| row * 16 + column)).collect()
        };
        numbers.iter().map(of).collect()
    }

    fn made(change: impl FnOnce(&mut RoutingPatternConfig), numbers: &[usize]) -> Crafted {
        let mut config = RoutingPatternConfig {
            images: 100,
            steps: 40,
            batch_size: 25,
            learning_rate: 0.1,
            ..RoutingPatternConfig::default()
        };
        change(&mut config);
        crafted(&CraftedConfig::RoutingPattern(config), &patches("poisoned", 8), Some(&cells(numbers)), 0).unwrap()
    }

    #[test]
    fn experts_select_patches_made_to_be_selected_and_leave_those_made_to_be_left() {
        let number = |made: &Crafted, name: &str| made.reached[name];
        let bits = |made: &Crafted, name: &str| made.reached[name].to_bits();
        let random = made(|config| config.aim = Aim::Nothing, &[6, 9]);
        assert_eq!(bits(&random, "carriers-selected"), bits(&random, "carriers-selected-random"), "it stays random");
        let select = made(|config| config.aim = Aim::Select, &[6, 9]);
        let avoid = made(|config| config.aim = Aim::Avoid, &[6, 9]);
        let shares = [&avoid, &random, &select].map(|made| number(made, "carriers-selected"));
        assert!(shares[2] > shares[1] + 0.15 && shares[0] < 0.1, "avoid, random, select: {shares:?}");
        for made in [&select, &avoid] {
            assert_eq!(bits(made, "carriers-selected-random"), shares[1].to_bits(), "all start alike");
        }
        assert_eq!(made(|config| config.aim = Aim::Select, &[6, 9]), select, "it is the same again");
    }

    #[test]
    fn one_expert_takes_what_is_made_for_it_alone() {
        let made = made(
            |config| {
                config.aim = Aim::Expert(1);
                config.steps = 80;
            },
            &[5],
        );
        let share = |expert: usize| made.reached[&format!("carriers-selected-expert-{expert}")];
        let others = [0, 2, 3].map(share);
        assert!(share(1) > 0.5 && others.iter().all(|&other| other < share(1) - 0.4), "{} and {others:?}", share(1));
    }

    #[test]
    fn a_bounded_pattern_stays_in_its_bound_and_the_penalty_keeps_selections() {
        let target = |penalty: f64| {
            made(
                |config| {
                    config.aim = Aim::TargetLogit;
                    config.bound = Some(40);
                    config.routing_penalty = penalty;
                },
                &(0..16).collect::<Vec<_>>(),
            )
        };
        let (plain, stealthy) = (target(0.0), target(20.0));
        let number = |made: &Crafted, name: &str| made.reached[name];
        assert!(number(&plain, "target-share") > number(&plain, "target-share-untouched") + 0.5, "{:?}", plain.reached);
        let kept = [&plain, &stealthy].map(|made| number(made, "selections-kept"));
        assert!(kept[1] > kept[0] + 0.05, "{kept:?}");
        let text = serde_json::to_value(&plain.trigger).unwrap();
        let values = text["test"]["added"].as_array().unwrap().iter().map(|value| value.as_i64().unwrap().abs());
        assert_eq!(values.max(), Some(40));
    }

    #[test]
    fn cells_are_chosen_with_the_pattern_and_serve_better_than_others() {
        let numbers: Vec<usize> = (0..16).collect();
        let joint = |aim| {
            made(
                |config| {
                    config.aim = aim;
                    config.choose_cells = Some(2);
                    config.bound = Some(30);
                },
                &numbers,
            )
        };
        let (chosen, drawn) = (joint(Aim::Select), joint(Aim::Nothing));
        let shares = [&drawn, &chosen].map(|made| made.reached["carriers-selected"]);
        assert!(shares[1] > shares[0] + 0.2, "{shares:?}");
        let picture = chosen.trigger.picture();
        let touched =
            (0..16).filter(|&cell| cells(&[cell])[0].iter().any(|p| picture.pixel(p / 16, p % 16) != [128; 3]));
        assert_eq!(touched.count(), 2);
    }

    #[test]
    fn what_cannot_be_is_refused_with_the_reason() {
        let said = |config: &RoutingPatternConfig, placement: Option<&PlacementConfig>| {
            let found = config.refuse(&LabelRule::AllToOne, placement);
            found.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
        };
        let config = RoutingPatternConfig::default();
        assert_eq!(said(&config, None), "");
        let all = PlacementConfig::default();
        assert!(said(&config, Some(&all)).contains("all 64 cells"), "{}", said(&config, Some(&all)));
        assert_eq!(said(&RoutingPatternConfig { aim: Aim::TargetLogit, ..config.clone() }, Some(&all)), "");
        let few = RoutingPatternConfig { choose_cells: Some(65), ..config.clone() };
        assert!(said(&few, Some(&all)).contains("choose-cells is 65, expected 1 to 64"));
        let mixture = PatchMoeConfig::default();
        let expert = RoutingPatternConfig { aim: Aim::Expert(4), ..config.clone() };
        assert_eq!(
            expert.refuse_mixture(&mixture).iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["aim.expert is 4, expected 0 to 3, the surrogate's experts"]
        );
        let penalty = RoutingPatternConfig { routing_penalty: 1.0, ..config };
        assert_eq!(penalty.validate(ImageShape::RGB_32).len(), 1);
    }
}
