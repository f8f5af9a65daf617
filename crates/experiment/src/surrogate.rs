use patchdoor_data::{ImageSet, ImageShape, stratified_subset, stream};
use patchdoor_kernels::TrainingBackend;
use patchdoor_model::{ClassifierConfig, ExpertChoiceConfig, InputShape, NetworkConfig, PatchMoeConfig};
use patchdoor_train::{Selections, predict_with_routing};
use patchdoor_triggers::PlacementConfig;
use serde::{Deserialize, Serialize};

use crate::files::write_json;
use crate::images::SeedImages;
use crate::run::{Job, PREDICTION_BATCH, RunError, input_shape};
use crate::twin::{Role, TwinEnd, clean_twin};
use crate::{ExperimentConfig, Plan};

/// What the attacker knows of the routing: a clean model of its own, whose routers choose the cells of a placement.
///
/// With nothing set the surrogate is the victim's clean twin, the same network, images and seed: full knowledge. Every
/// field that is set is something the attacker gets wrong. The attack chooses nothing by test images.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct SurrogateConfig {
    /// Added to the run's seed for everything that the surrogate draws: which images, weights, order.
    pub seed_offset: u64,
    /// Its widths; the victim's if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub widen_factor: Option<usize>,
    /// How many experts it has; as many as the victim if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub experts: Option<usize>,
    /// How many patches each of them selects; as many as the victim's if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub patches_per_expert: Option<usize>,
    /// Side of its patches on the feature map; the victim's if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub patch_size: Option<usize>,
    /// Training images whose selections are counted, a stratified draw; all if there are fewer.
    pub counted_images: usize,
}

impl Default for SurrogateConfig {
    /// As many images as the authors average filter outputs over (Chan et al. 2025, arXiv:2505.01811).
    fn default() -> Self {
        Self {
            seed_offset: 0,
            widen_factor: None,
            experts: None,
            patches_per_expert: None,
            patch_size: None,
            counted_images: 10_000,
        }
    }
}

impl SurrogateConfig {
    /// The surrogate of an experiment whose placement needs one.
    pub(crate) fn of(config: &ExperimentConfig) -> Option<Self> {
        config.placement.as_ref()?.surrogate()?;
        Some(config.surrogate.clone().unwrap_or_default())
    }

    /// The surrogate's network, given the victim's. A victim without experts lends it widths and constants only.
    pub(crate) fn model(&self, victim: &ClassifierConfig) -> PatchMoeConfig {
        let mut model = victim.network().nearest_patch_moe();
        for (field, value) in [
            (&mut model.widen_factor, self.widen_factor),
            (&mut model.experts, self.experts),
            (&mut model.patches_per_expert, self.patches_per_expert),
            (&mut model.patch_size, self.patch_size),
        ] {
            *field = value.unwrap_or(*field);
        }
        model
    }

    /// The plan whose clean twin the surrogate is.
    pub(crate) fn plan(&self, plan: &Plan) -> Plan {
        plan.with_model(self.model(&plan.config().model).into())
    }
}

/// How the choice of cells ended.
pub(crate) enum PlacementEnd {
    /// The placement, its cells named; `None` if the experiment has none.
    Ready(Option<PlacementConfig>),
    /// The surrogate could not be trained.
    Failed(String),
    Interrupted,
}

/// What the surrogate said; `seed-N/surrogate.json`.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct SurrogateRecord<'a> {
    /// Where its weights are, below the output folder.
    folder: &'a str,
    /// Share of untouched test images that it predicts right.
    clean_accuracy: f64,
    /// Training images whose selections were counted.
    counted_images: usize,
    /// How often its routers selected each cell of the placement's grid, row by row, in images of each class.
    selections: &'a [Vec<f64>],
    /// The placement that came of it.
    placement: &'a PlacementConfig,
}

/// Names the cells of a placement, training a surrogate first if it needs one and none is there.
pub(crate) fn resolve_placement<B: TrainingBackend>(
    job: &Job<'_>,
    seed: u64,
    test: &ImageSet,
    folder: &std::path::Path,
    device: &B::Device,
) -> Result<PlacementEnd, RunError> {
    let config = job.plan.config();
    let (Some(surrogate), Some(placement)) = (SurrogateConfig::of(config), &config.placement) else {
        return Ok(PlacementEnd::Ready(config.placement.clone()));
    };
    let plan = surrogate.plan(job.plan);
    let job = Job { plan: &plan, ..*job };
    let seed = seed.wrapping_add(surrogate.seed_offset);
    let images = SeedImages::draw(plan.config(), &job.dataset.train, seed);
    let twin = match clean_twin::<B>(&job, Role::Surrogate, seed, &images, test, device)? {
        TwinEnd::Ready(twin) => twin,
        TwinEnd::Failed(reason) => return Ok(PlacementEnd::Failed(reason)),
        TwinEnd::Interrupted => return Ok(PlacementEnd::Interrupted),
    };
    let count = surrogate.counted_images.min(images.training.len());
    let drawn = stratified_subset(&images.training, count, &mut stream(seed, "surrogate/images"));
    let counted = images.training.subset(&drawn);
    let selections = predict_with_routing(&twin.classifier, &counted, PREDICTION_BATCH, device)
        .selections
        .expect("a surrogate is a mixture of experts");
    let expert = placement.surrogate().and_then(|selected| selected.expert);
    let counts = PatchCounts::of(&selections, &counted, expert);
    let patches = surrogate.model(&config.model).patch_grid(input_shape(&counted));
    let counts = counts.in_cells(patches, placement, counted.shape());
    let resolved = placement.resolve(&counts)?;
    let record = SurrogateRecord {
        folder: &twin.folder,
        clean_accuracy: twin.result.clean_accuracy,
        counted_images: counted.len(),
        selections: &counts,
        placement: &resolved,
    };
    write_json(&folder.join("surrogate.json"), &record)?;
    Ok(PlacementEnd::Ready(Some(resolved)))
}

/// The placement of an experiment, for those who have no model to ask.
///
/// # Errors
/// If a surrogate chooses its cells.
pub(crate) fn placement_without_surrogate(config: &ExperimentConfig) -> Result<Option<&PlacementConfig>, RunError> {
    match &config.placement {
        Some(placement) if placement.surrogate().is_some() => {
            Err(RunError::NeedsSurrogate { cells: crate::choice_name(&placement.cells) })
        }
        placement => Ok(placement.as_ref()),
    }
}

/// How often each patch was selected in images of each class, `[class][patch]`.
struct PatchCounts(Vec<Vec<f64>>);

impl PatchCounts {
    /// Counts the selections of one expert, or of all.
    fn of(selections: &Selections, images: &ImageSet, expert: Option<usize>) -> Self {
        let experts = expert.map_or(0..selections.experts(), |expert| expert..expert + 1);
        let mut counts = vec![Vec::new(); images.class_count()];
        for (image, &label) in images.labels().iter().enumerate() {
            let counts = &mut counts[usize::from(label)];
            for &patch in experts.clone().flat_map(|expert| selections.of(image, expert)) {
                let patch = usize::from(patch);
                if counts.len() <= patch {
                    counts.resize(patch + 1, 0.0);
                }
                counts[patch] += 1.0;
            }
        }
        Self(counts)
    }

    /// The same for the cells of a placement's grid, `[class][cell]`: a patch that several cells share counts in each by
    /// the share of its pixels there. With as many cells as patches and no offset, every cell has its patch's count.
    fn in_cells(
        &self,
        (rows, columns): (usize, usize),
        placement: &PlacementConfig,
        shape: ImageShape,
    ) -> Vec<Vec<f64>> {
        let [down, right] = placement.offset;
        let vertical = overlaps(shape.height, rows, placement.grid, down);
        let horizontal = overlaps(shape.width, columns, placement.grid, right);
        let cells = |counts: &Vec<f64>| {
            let mut cells = vec![0.0; placement.grid * placement.grid];
            for (patch, &count) in counts.iter().enumerate() {
                for (row, &height) in vertical[patch / columns].iter().enumerate() {
                    for (column, &width) in horizontal[patch % columns].iter().enumerate() {
                        cells[row * placement.grid + column] += count * height * width;
                    }
                }
            }
            cells
        };
        self.0.iter().map(cells).collect()
    }
}

/// The share of each of `patches` equal parts of a side that lies in each of `cells` parts shifted by `offset` pixels;
/// `[patch][cell]`.
fn overlaps(length: usize, patches: usize, cells: usize, offset: usize) -> Vec<Vec<f64>> {
    let part = length as f64 / patches as f64;
    let cell = (length / cells) as f64;
    let share = |patch: usize, number: usize| {
        let (start, end) = (patch as f64 * part, (patch + 1) as f64 * part);
        let from = offset as f64 + number as f64 * cell;
        let to = (from + cell).min(length as f64);
        (end.min(to) - start.max(from)).max(0.0) / part
    };
    (0..patches).map(|patch| (0..cells).map(|number| share(patch, number)).collect()).collect()
}

/// Problems of the surrogate's network that the victim does not have: field and found and allowed, of the `surrogate`
/// table.
pub(crate) fn check_surrogate(
    config: &ExperimentConfig,
    input: InputShape,
    classes: usize,
) -> Vec<(String, String, String)> {
    let Some(surrogate) = SurrogateConfig::of(config) else { return Vec::new() };
    let model = surrogate.model(&config.model);
    let is_own = |field: &str| match field {
        "widen-factor" => surrogate.widen_factor.is_some(),
        "experts" => surrogate.experts.is_some(),
        "patches-per-expert" => {
            surrogate.patches_per_expert.is_some()
                || surrogate.patch_size.is_some()
                || config.model.network().expert_choice().is_none()
        }
        "patch-size" => surrogate.patch_size.is_some(),
        _ => false,
    };
    let mut problems = Vec::new();
    for error in model.validate(input, classes) {
        if let patchdoor_model::ModelError::InvalidField { field, found, allowed } = error
            && is_own(field)
        {
            problems.push((format!("surrogate.{field}"), found, allowed));
        }
    }
    if surrogate.counted_images == 0 {
        problems.push(("surrogate.counted-images".into(), "0".into(), "1 or more".into()));
    }
    let placement = config.placement.as_ref().and_then(|placement| Some((placement, placement.surrogate()?)));
    if let Some((placement, selected)) = placement
        && let Some(expert) = selected.expert
        && expert >= model.experts
    {
        let field = format!("placement.cells.{}.expert", crate::choice_name(&placement.cells));
        let allowed = format!("0 to {}, the surrogate's experts", model.experts.saturating_sub(1));
        problems.push((field, expert.to_string(), allowed));
    }
    problems
}

#[cfg(test)]
mod tests {
    use patchdoor_triggers::{CellsConfig, SelectedCells};

    use super::*;

    const SHAPE: ImageShape = ImageShape { height: 8, width: 8, channels: 1 };

    fn placement(grid: usize, offset: [usize; 2]) -> PlacementConfig {
        let cells = CellsConfig::MostSelected(SelectedCells { count: 1, expert: None, per_class: false });
        PlacementConfig { grid, offset, cells, ..PlacementConfig::default() }
    }

    /// Two images of classes 0 and 1, two experts of two patches each.
    fn example() -> (Selections, ImageSet) {
        let selections = Selections::new(2, 2, vec![0, 1, 1, 3, 2, 3, 0, 3]);
        let classes = ["a".to_owned(), "b".to_owned()];
        (selections, ImageSet::new(SHAPE, vec![0; 128], vec![0, 1], classes).unwrap())
    }

    #[test]
    fn selections_are_counted_by_class_for_all_experts_or_one() {
        let (selections, images) = example();
        assert_eq!(PatchCounts::of(&selections, &images, None).0, [vec![1.0, 2.0, 0.0, 1.0], vec![1.0, 0.0, 1.0, 2.0]]);
        assert_eq!(
            PatchCounts::of(&selections, &images, Some(1)).0,
            [vec![0.0, 1.0, 0.0, 1.0], vec![1.0, 0.0, 0.0, 1.0]]
        );
    }

    #[test]
    fn a_cell_has_its_patchs_count_where_the_grids_agree() {
        let (selections, images) = example();
        let counts = PatchCounts::of(&selections, &images, None).in_cells((2, 2), &placement(2, [0, 0]), SHAPE);
        assert_eq!(counts, [[1.0, 2.0, 0.0, 1.0], [1.0, 0.0, 1.0, 2.0]]);
    }

    #[test]
    fn a_patch_counts_in_every_cell_by_the_share_of_its_pixels() {
        // Four cells of 2x2 pixels to a patch of 4x4: a quarter each.
        let counts = PatchCounts(vec![vec![4.0, 0.0, 0.0, 8.0]]).in_cells((2, 2), &placement(4, [0, 0]), SHAPE);
        assert_eq!(counts[0], [1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 2.0, 2.0, 0.0, 0.0, 2.0, 2.0]);
        // Cells of 4x4 moved down by one pixel: rows 1..5 and 5..8 of the columns 0..4 and 4..8. The upper row of patches
        // has three of its four rows in the first row of cells, the lower one has one there and three in the second.
        let counts = PatchCounts(vec![vec![4.0, 0.0, 8.0, 0.0]]).in_cells((2, 2), &placement(2, [1, 0]), SHAPE);
        assert_eq!(counts[0], [3.0 + 2.0, 0.0, 6.0, 0.0]);
    }

    #[test]
    fn a_surrogate_differs_from_the_victim_in_what_is_set_and_in_nothing_else() {
        let victim = ClassifierConfig::PatchMoe(PatchMoeConfig { widen_factor: 2, ..PatchMoeConfig::default() });
        assert_eq!(ClassifierConfig::PatchMoe(SurrogateConfig::default().model(&victim)), victim);
        let wrong = SurrogateConfig { experts: Some(8), patches_per_expert: Some(4), ..SurrogateConfig::default() };
        let expected =
            PatchMoeConfig { experts: 8, patches_per_expert: 4, widen_factor: 2, ..PatchMoeConfig::default() };
        assert_eq!(wrong.model(&victim), expected);
    }
}
