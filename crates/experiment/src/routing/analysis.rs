use patchdoor_data::ImageSet;
use patchdoor_metrics::{
    Estimate, PerImage, RoutingDecisions, SelectionCounts, area_within_images, capture, capture_by_any, chance_overlap,
    correlation_within_images, expert_similarity, load_entropy, overlap, pooled_areas,
};
use patchdoor_model::ExpertChoiceConfig;
use patchdoor_record::{AssociationNumbers, RoutingMeasurements, RoutingNumbers, SetNumbers};
use patchdoor_train::{Selections, input_shape};
use rayon::prelude::*;
use serde::Serialize;

use super::cells::{Area, CellProperty, CellScores, cell_scores, cells, triggered_patches};

/// The two sets of images, in the order of everything that has both.
pub(crate) const SETS: [&str; 2] = ["clean", "triggered"];

/// The images that routers look at, with everything that does not depend on the router.
pub(crate) struct Scene {
    labels: Vec<u8>,
    pub(crate) classes: Vec<String>,
    /// Rows and columns of patches.
    pub(crate) grid: [usize; 2],
    pub(crate) experts: usize,
    patches_per_expert: usize,
    /// Whether the cell under each patch has a changed pixel, `[image, patch]`.
    pub(crate) is_triggered: Vec<bool>,
    /// Whether each patch sees a changed pixel, `[image, patch]`.
    pub(crate) sees_trigger: Vec<bool>,
    /// For each set: each property of each cell.
    scores: [[CellScores; 3]; 2],
}

impl Scene {
    /// Looks at the same images without and with the trigger.
    pub(crate) fn new(clean: &ImageSet, triggered: &ImageSet, model: &dyn ExpertChoiceConfig) -> Self {
        let input = input_shape(clean.shape());
        let (rows, columns) = model.patch_grid(input);
        let cells = cells(clean.shape(), [rows, columns]);
        let fields: Vec<Area> =
            (0..rows * columns).map(|patch| model.receptive_field(input, patch / columns, patch % columns)).collect();
        Self {
            labels: clean.labels().to_vec(),
            classes: clean.classes().to_vec(),
            grid: [rows, columns],
            experts: model.experts(),
            patches_per_expert: model.patches_per_expert(),
            is_triggered: triggered_patches(clean, triggered, &cells),
            sees_trigger: triggered_patches(clean, triggered, &fields),
            scores: [clean, triggered].map(|images| cell_scores(images, &cells)),
        }
    }

    pub(crate) fn patches(&self) -> usize {
        self.grid[0] * self.grid[1]
    }

    /// Share of the images in which each patch is marked, `[patch]`.
    pub(crate) fn share_marked(&self, is_marked: &[bool]) -> Vec<f64> {
        let mut counts = vec![0.0; self.patches()];
        for marks in is_marked.chunks_exact(self.patches()) {
            counts.iter_mut().zip(marks).for_each(|(count, &mark)| *count += f64::from(u8::from(mark)));
        }
        let images = self.labels.len().max(1) as f64;
        counts.into_iter().map(|count| count / images).collect()
    }

    fn decisions<'a>(&self, selections: &'a Selections) -> RoutingDecisions<'a> {
        let (experts, selected) = (selections.experts(), selections.patches_per_expert());
        RoutingDecisions::new(experts, selected, self.patches(), selections.indices())
    }

    /// Share of all patches that an expert selects.
    pub(crate) fn chance(&self) -> f64 {
        self.patches_per_expert as f64 / self.patches() as f64
    }

    /// What a seed's classifiers gave, together with what chance would give.
    pub(crate) fn measurements(
        &self,
        victim: RoutingNumbers,
        clean_twin: Option<RoutingNumbers>,
    ) -> RoutingMeasurements {
        let chance = self.chance();
        RoutingMeasurements {
            experts: self.experts,
            patches_per_expert: self.patches_per_expert,
            patches: self.patches(),
            triggered_patches: self.share_marked(&self.is_triggered).iter().sum(),
            chance_capture: chance,
            chance_capture_any: 1.0 - (1.0 - chance).powi(self.experts as i32),
            chance_overlap: chance_overlap(self.patches_per_expert, self.patches()),
            victim,
            clean_twin,
            swap: None,
            audit: None,
            blocking: None,
        }
    }
}

/// One line of `statistics.csv`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct StatisticRow {
    /// `victim` or `clean-twin`.
    pub(crate) model: &'static str,
    /// `clean`, `triggered`, or `both` for a comparison of the two.
    pub(crate) set: &'static str,
    /// A class's name, or `all`.
    pub(crate) class: String,
    /// An expert's number, `mean` over experts, `any` of them, or a pair `0-1`.
    pub(crate) expert: String,
    pub(crate) statistic: String,
    pub(crate) value: f64,
    /// Bounds of the 95 % interval over images.
    pub(crate) low: Option<f64>,
    pub(crate) high: Option<f64>,
    /// What it would be without any relation.
    pub(crate) chance: Option<f64>,
    pub(crate) images: usize,
}

/// What the routers of one classifier select.
pub(crate) struct Analysis {
    pub(crate) numbers: RoutingNumbers,
    pub(crate) statistics: Vec<StatisticRow>,
    /// Of each set.
    pub(crate) counts: [SelectionCounts; 2],
    /// Intersection over union of each pair of experts in each set, `[expert, expert]`.
    pub(crate) similarity: [Vec<f64>; 2],
}

/// Collects statistics of one classifier.
struct Collector<'a> {
    scene: &'a Scene,
    model: &'static str,
    statistics: Vec<StatisticRow>,
}

impl Collector<'_> {
    fn add(&mut self, set: &'static str, class: &str, expert: &str, statistic: &str, found: Estimate, chance: f64) {
        self.statistics.push(StatisticRow {
            model: self.model,
            set,
            class: class.into(),
            expert: expert.into(),
            statistic: statistic.into(),
            value: found.value,
            low: found.low,
            high: found.high,
            chance: Some(chance),
            images: found.images,
        });
    }

    /// Adds a statistic for each class and expert and their means; returns the mean over everything. `together` names
    /// the mean over experts.
    fn add_all(
        &mut self,
        set: &'static str,
        statistic: &str,
        values: &PerImage,
        chance: f64,
        together: &str,
    ) -> Option<Estimate> {
        let scene = self.scene;
        let classes = std::iter::once(None).chain((0..scene.classes.len()).map(Some));
        for class in classes {
            let name = class.map_or("all", |class| scene.classes[class].as_str());
            let is_wanted = |image: usize| class.is_none_or(|class| usize::from(scene.labels[image]) == class);
            let each = if together == "any" { 0 } else { scene.experts };
            for expert in std::iter::once(None).chain((0..each).map(Some)) {
                if let Some(found) = values.mean(expert, is_wanted) {
                    let expert = expert.map_or_else(|| together.to_owned(), |expert| expert.to_string());
                    self.add(set, name, &expert, statistic, found, chance);
                }
            }
        }
        values.mean(None, |_| true)
    }
}

/// Computes everything about one classifier, from what it selected in the clean and in the triggered images.
pub(crate) fn analyse(scene: &Scene, model: &'static str, selections: [&Selections; 2]) -> Analysis {
    let decisions = selections.map(|selections| scene.decisions(selections));
    let [clean, triggered] = &decisions;
    let mut collector = Collector { scene, model, statistics: Vec::new() };
    let chance = clean.chance();
    let chance_any = 1.0 - (1.0 - chance).powi(clean.experts() as i32);
    let (cell, field) = (&scene.is_triggered, &scene.sees_trigger);

    let trigger_capture = collector.add_all("triggered", "trigger-capture", &capture(triggered, cell), chance, "mean");
    let trigger_capture_untouched =
        collector.add_all("clean", "trigger-capture", &capture(clean, cell), chance, "mean");
    let of_field = "trigger-capture-receptive-field";
    let trigger_capture_receptive_field =
        collector.add_all("triggered", of_field, &capture(triggered, field), chance, "mean");
    collector.add_all("clean", of_field, &capture(clean, field), chance, "mean");
    let trigger_capture_any =
        collector.add_all("triggered", "trigger-capture", &capture_by_any(triggered, cell), chance_any, "any");
    collector.add_all("clean", "trigger-capture", &capture_by_any(clean, cell), chance_any, "any");
    let by_chance = chance_overlap(clean.patches_per_expert(), clean.patches());
    let overlap = collector.add_all("both", "overlap", &overlap(clean, triggered), by_chance, "mean");

    let counts = decisions.each_ref().map(|set| SelectionCounts::count(set, &scene.labels, scene.classes.len()));
    let [(clean_numbers, clean_similarity), (triggered_numbers, triggered_similarity)] = [0, 1].map(|set| {
        let [intensity, variance, gradient] =
            associations(&mut collector, SETS[set], &decisions[set], &scene.scores[set]);
        let load_entropy = entropies(&mut collector, SETS[set], &counts[set]);
        let (similarity, expert_similarity) = similarities(&mut collector, SETS[set], &decisions[set]);
        (SetNumbers { intensity, variance, gradient, load_entropy, expert_similarity }, similarity)
    });
    let numbers = RoutingNumbers {
        trigger_capture,
        trigger_capture_untouched,
        trigger_capture_receptive_field,
        trigger_capture_any,
        overlap,
        clean: clean_numbers,
        triggered: triggered_numbers,
    };
    let similarity = [clean_similarity, triggered_similarity];
    Analysis { numbers, statistics: collector.statistics, counts, similarity }
}

fn associations(
    collector: &mut Collector<'_>,
    set: &'static str,
    decisions: &RoutingDecisions<'_>,
    scores: &[CellScores; 3],
) -> [AssociationNumbers; 3] {
    let computed: Vec<_> = scores
        .par_iter()
        .map(|scores| {
            let within = [&scores.plain, &scores.adjusted].map(|scores| area_within_images(decisions, scores));
            (within, correlation_within_images(decisions, &scores.plain), pooled_areas(decisions, &scores.plain))
        })
        .collect();
    let mut each =
        CellProperty::ALL.iter().zip(computed).map(|(property, ([within, adjusted], correlation, pooled))| {
            let name = property.name();
            if let Some(pooled) = &pooled {
                collector.add(set, "all", "mean", &format!("pooled-auc-{name}"), pooled.average, 0.5);
                for (expert, &found) in pooled.experts.iter().enumerate() {
                    collector.add(set, "all", &expert.to_string(), &format!("pooled-auc-{name}"), found, 0.5);
                }
            }
            AssociationNumbers {
                auc_by_expert: within.by_expert(),
                auc_adjusted_by_expert: adjusted.by_expert(),
                auc: collector.add_all(set, &format!("auc-{name}"), &within, 0.5, "mean"),
                auc_adjusted: collector.add_all(set, &format!("auc-{name}-adjusted"), &adjusted, 0.5, "mean"),
                correlation: collector.add_all(set, &format!("correlation-{name}"), &correlation, 0.0, "mean"),
                pooled_auc: pooled.map(|pooled| pooled.average),
            }
        });
    std::array::from_fn(|_| each.next().expect("one for each property"))
}

/// Entropy of the load over positions, of each expert and of all together; returns the mean over experts.
fn entropies(collector: &mut Collector<'_>, set: &'static str, counts: &SelectionCounts) -> Option<f64> {
    let images = counts.images().iter().sum();
    let plain = |value| Estimate { value, low: None, high: None, images };
    let experts = 0..collector.scene.experts;
    let each: Vec<f64> = experts.filter_map(|expert| load_entropy(&counts.load(Some(expert)))).collect();
    for (expert, &entropy) in each.iter().enumerate() {
        collector.add(set, "all", &expert.to_string(), "load-entropy", plain(entropy), 1.0);
    }
    let together = load_entropy(&counts.load(None))?;
    collector.add(set, "all", "any", "load-entropy", plain(together), 1.0);
    let mean = each.iter().sum::<f64>() / each.len() as f64;
    collector.add(set, "all", "mean", "load-entropy", plain(mean), 1.0);
    Some(mean)
}

/// Similarity of each pair of experts, `[expert, expert]`, and over all pairs.
fn similarities(
    collector: &mut Collector<'_>,
    set: &'static str,
    decisions: &RoutingDecisions<'_>,
) -> (Vec<f64>, Option<Estimate>) {
    let experts = decisions.experts();
    let chance = chance_overlap(decisions.patches_per_expert(), decisions.patches());
    let mut matrix = vec![1.0; experts * experts];
    let mut sums = vec![0.0; decisions.images()];
    let mut pairs = 0;
    for first in 0..experts {
        for second in first + 1..experts {
            let values = expert_similarity(decisions, first, second);
            sums.iter_mut().zip(&values).for_each(|(sum, value)| *sum += value);
            pairs += 1;
            let Some(found) = Estimate::mean(values) else { continue };
            matrix[first * experts + second] = found.value;
            matrix[second * experts + first] = found.value;
            collector.add(set, "all", &format!("{first}-{second}"), "expert-similarity", found, chance);
        }
    }
    let mean = (pairs > 0).then(|| Estimate::mean(sums.into_iter().map(|sum| sum / f64::from(pairs)))).flatten();
    if let Some(mean) = mean {
        collector.add(set, "all", "mean", "expert-similarity", mean, chance);
    }
    (matrix, mean)
}

#[cfg(test)]
pub(crate) mod tests {
    use patchdoor_data::{ImageShape, stream};
    use patchdoor_model::PatchMoeConfig;
    use rand::seq::SliceRandom;
    use rand::seq::index::sample;
    use rand::{Rng, RngExt};

    use super::*;

    const EXPERTS: usize = 2;
    const KEPT: usize = 16;

    fn model() -> PatchMoeConfig {
        PatchMoeConfig { experts: EXPERTS, patches_per_expert: KEPT, ..PatchMoeConfig::default() }
    }

    /// Images of two classes whose cells all differ in brightness, in random order, and the same with a white square over the four cells of the lower right corner.
    pub(crate) fn images(count: usize, rng: &mut impl Rng) -> [ImageSet; 2] {
        let shape = ImageShape::RGB_32;
        let mut pixels = Vec::with_capacity(count * shape.size());
        for _ in 0..count {
            let mut levels: Vec<u8> = (0..64).collect();
            levels.shuffle(rng);
            // Cells are 3 apart and the noise is less.
            let level = |byte: usize| 3 * levels[byte / 3 / 32 / 4 * 8 + byte / 3 % 32 / 4];
            pixels.extend((0..shape.size()).map(|byte| level(byte) + rng.random_range(0..2)));
        }
        let mut triggered = pixels.clone();
        for image in triggered.chunks_exact_mut(shape.size()) {
            for row in 24..32 {
                image[(row * 32 + 24) * 3..(row * 32 + 32) * 3].fill(255);
            }
        }
        let labels: Vec<u8> = (0..count).map(|image| (image % 2) as u8).collect();
        let classes = vec!["even".to_owned(), "odd".to_owned()];
        [pixels, triggered]
            .map(|pixels| ImageSet::new(shape, pixels, labels.clone(), classes.clone()).expect("whole images"))
    }

    /// Every expert takes the brightest cells.
    fn brightest(images: &ImageSet) -> Selections {
        let cells = cells(images.shape(), [8, 8]);
        let mut indices = Vec::new();
        for image in 0..images.len() {
            let pixels = images.pixels(image);
            let sum = |(rows, columns): &Area| -> u64 {
                let bytes =
                    rows.clone().flat_map(|y| &pixels[(y * 32 + columns.start) * 3..(y * 32 + columns.end) * 3]);
                bytes.map(|&byte| u64::from(byte)).sum()
            };
            let sums: Vec<u64> = cells.iter().map(sum).collect();
            let mut order: Vec<u16> = (0..64).collect();
            order.sort_by_key(|&cell| std::cmp::Reverse(sums[usize::from(cell)]));
            let mut kept = order[..KEPT].to_vec();
            kept.sort_unstable();
            (0..EXPERTS).for_each(|_| indices.extend(&kept));
        }
        Selections::new(EXPERTS, KEPT, indices)
    }

    pub(crate) fn random(images: usize, rng: &mut impl Rng) -> Selections {
        let mut indices = Vec::new();
        for _ in 0..images * EXPERTS {
            let mut kept: Vec<u16> = sample(rng, 64, KEPT).into_iter().map(|patch| patch as u16).collect();
            kept.sort_unstable();
            indices.extend(kept);
        }
        Selections::new(EXPERTS, KEPT, indices)
    }

    fn contains(found: Option<Estimate>, wanted: f64) -> bool {
        found.is_some_and(|f| f.low.is_some_and(|low| low <= wanted) && f.high.is_some_and(|high| wanted <= high))
    }

    #[test]
    fn a_router_that_follows_brightness_has_area_one_and_captures_a_white_trigger() {
        let [clean, triggered] = images(40, &mut stream(0, "images"));
        let scene = Scene::new(&clean, &triggered, &model());
        let chosen = [&clean, &triggered].map(brightest);
        let analysis = analyse(&scene, "victim", chosen.each_ref());
        let numbers = &analysis.numbers;
        let value = |estimate: Option<Estimate>| estimate.expect("there are images").value;
        assert!((value(numbers.clean.intensity.auc) - 1.0).abs() < 1e-9);
        assert!((value(numbers.triggered.intensity.auc) - 1.0).abs() < 1e-9);
        assert!((value(numbers.trigger_capture) - 1.0).abs() < 1e-9);
        assert!(value(numbers.trigger_capture_untouched) < 0.5, "it is not brighter there");
        assert!((value(numbers.clean.expert_similarity) - 1.0).abs() < 1e-9, "the experts agree");
        // The white cells have no variance: a router that takes them all takes the four lowest of 64.
        assert!(value(numbers.triggered.variance.auc) < value(numbers.clean.variance.auc));
        // It covers four cells; rows 4r - 5 to 4r + 11 meet rows 24 to 31 for r from 4 to 7, so 16 patches see it.
        assert!((scene.share_marked(&scene.is_triggered).iter().sum::<f64>() - 4.0).abs() < 1e-9);
        assert!((scene.share_marked(&scene.sees_trigger).iter().sum::<f64>() - 16.0).abs() < 1e-9);
    }

    #[test]
    fn a_router_that_keeps_to_bright_places_has_area_one_half_once_their_mean_is_taken_off() {
        // Grey noise on a ramp over rows; both experts always take the two lowest rows, where the ramp is brightest.
        let mut rng = stream(2, "images");
        let shape = ImageShape { height: 32, width: 32, channels: 1 };
        let pixel = |byte: usize| 6 * (byte % 1024 / 32) as u8;
        let pixels = (0..100 * 1024).map(|byte| pixel(byte) + rng.random_range(0..60)).collect();
        let images = ImageSet::new(shape, pixels, vec![0; 100], vec!["only".to_owned()]).expect("whole images");
        let scene = Scene::new(&images, &images, &model());
        let lowest: Vec<u16> = (48..64).collect();
        let chosen = Selections::new(EXPERTS, KEPT, lowest.repeat(100 * EXPERTS));
        let intensity = analyse(&scene, "victim", [&chosen, &chosen]).numbers.clean.intensity;
        assert!(intensity.auc_by_expert.iter().all(|&area| area > 0.99), "{intensity:?}");
        assert!(intensity.auc_adjusted_by_expert.iter().all(|&area| area < 0.6), "{intensity:?}");
        assert_eq!(intensity.auc_adjusted_by_expert.len(), EXPERTS);
        assert!(intensity.auc.expect("there are images").value > 0.99, "{intensity:?}");
        assert!(contains(intensity.auc_adjusted, 0.5), "{intensity:?}");
    }

    #[test]
    fn a_random_router_has_no_relation_within_its_interval() {
        let mut rng = stream(1, "images");
        let [clean, triggered] = images(200, &mut rng);
        let scene = Scene::new(&clean, &triggered, &model());
        let chosen = [random(200, &mut rng), random(200, &mut rng)];
        let analysis = analyse(&scene, "victim", chosen.each_ref());
        let numbers = &analysis.numbers;
        for set in [&numbers.clean, &numbers.triggered] {
            for association in [&set.intensity, &set.variance, &set.gradient] {
                assert!(contains(association.auc, 0.5), "{association:?}");
                assert!(contains(association.pooled_auc, 0.5), "{association:?}");
                assert!(contains(association.correlation, 0.0), "{association:?}");
            }
            assert!(contains(set.expert_similarity, chance_overlap(16, 64)), "{:?}", set.expert_similarity);
            assert!(set.load_entropy.is_some_and(|entropy| entropy > 0.99), "{:?}", set.load_entropy);
        }
        assert!(contains(numbers.trigger_capture, 0.25), "{:?}", numbers.trigger_capture);
        assert!(contains(numbers.trigger_capture_any, 1.0 - 0.75f64.powi(2)), "{:?}", numbers.trigger_capture_any);
        assert!(contains(numbers.overlap, chance_overlap(16, 64)), "{:?}", numbers.overlap);
        let of_class = |class: &str| {
            let mut rows = analysis.statistics.iter();
            rows.find(|row| row.statistic == "auc-intensity" && row.class == class && row.expert == "1").cloned()
        };
        assert_eq!(of_class("all").expect("a row").images, 200);
        assert_eq!(of_class("odd").expect("a row").images, 100);
    }
}
