use patchdoor_data::{ImageSet, ImageShape, stratified_subset, stream};
use patchdoor_kernels::Kernels;
use patchdoor_model::{
    Classifier, ClassifierConfig, ExpertChoiceConfig, InputShape, ModelError, NetworkConfig, PatchMoeConfig,
};
use patchdoor_train::{PREDICTION_BATCH, Selections, input_shape, predict_with_routing};
use patchdoor_triggers::{PlacementConfig, TriggerError};
use serde::{Deserialize, Serialize};

use crate::AttackError;

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
    /// Which images it is trained on.
    #[serde(skip_serializing_if = "SurrogateImages::is_all")]
    pub images: SurrogateImages,
    /// Training images whose selections are counted, a stratified draw; all if there are fewer.
    pub counted_images: usize,
}

/// Which of the data set's images an attacker has for the surrogate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SurrogateImages {
    /// A draw from all of them, as the victim's: nearly the same images, whatever the seed.
    #[default]
    All,
    /// As many as the victim is trained on, none of which it is trained on.
    Others,
}

impl SurrogateImages {
    /// Whether it is a draw from all images.
    pub fn is_all(&self) -> bool {
        *self == Self::All
    }
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
            images: SurrogateImages::All,
            counted_images: 10_000,
        }
    }
}

impl SurrogateConfig {
    /// The surrogate's network, given the victim's. A victim without experts lends it widths and constants only.
    pub fn model(&self, victim: &ClassifierConfig) -> PatchMoeConfig {
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

    /// The surrogate's network: the victim's own if nothing about it is set and no routers are needed, so that a dense victim
    /// has a dense one; else the mixture that [`Self::model`] says.
    pub fn classifier(&self, victim: &ClassifierConfig, needs_routers: bool) -> ClassifierConfig {
        let sets = [self.widen_factor, self.experts, self.patches_per_expert, self.patch_size];
        if needs_routers || sets.iter().any(Option::is_some) { self.model(victim).into() } else { victim.clone() }
    }

    /// Every field of its own that cannot be, for the victim's network, input and number of classes; what is the victim's
    /// is not checked again.
    pub fn validate(&self, victim: &ClassifierConfig, input: InputShape, classes: usize) -> Vec<AttackError> {
        let is_own = |field: &str| match field {
            "widen-factor" => self.widen_factor.is_some(),
            "experts" => self.experts.is_some(),
            "patches-per-expert" => {
                self.patches_per_expert.is_some()
                    || self.patch_size.is_some()
                    || victim.network().expert_choice().is_none()
            }
            "patch-size" => self.patch_size.is_some(),
            _ => false,
        };
        let mut problems = Vec::new();
        for error in self.model(victim).validate(input, classes) {
            if let ModelError::InvalidField { field, found, allowed } = error
                && is_own(field)
            {
                problems.push(AttackError::InvalidField { field: field.to_owned(), found, allowed });
            }
        }
        if self.counted_images == 0 {
            let (found, allowed) = ("0".to_owned(), "1 or more".to_owned());
            problems.push(AttackError::InvalidField { field: "counted-images".into(), found, allowed });
        }
        problems
    }

    /// Names the cells of a placement by what the routers of a trained surrogate select in its own training images.
    ///
    /// `seed` is the surrogate's; `victim` the network it was derived from.
    ///
    /// # Errors
    /// If the placement asks for more cells than were ever selected.
    ///
    /// # Panics
    /// If the surrogate has no routers; [`Self::model`] always has.
    pub fn choose_cells<B: Kernels>(
        &self,
        surrogate: &Classifier<B>,
        victim: &ClassifierConfig,
        placement: &PlacementConfig,
        training: &ImageSet,
        seed: u64,
        device: &B::Device,
    ) -> Result<CellChoice, TriggerError> {
        let count = self.counted_images.min(training.len());
        let drawn = stratified_subset(training, count, &mut stream(seed, "surrogate/images"));
        let counted = training.subset(&drawn);
        let selections = predict_with_routing(surrogate, &counted, PREDICTION_BATCH, device)
            .selections
            .expect("a surrogate is a mixture of experts");
        let expert = placement.surrogate().and_then(|selected| selected.expert);
        let counts = PatchCounts::of(&selections, &counted, expert);
        let shape = counted.shape();
        let selections = counts.in_cells(self.model(victim).patch_grid(input_shape(shape)), placement, shape);
        let placement = placement.resolve(&selections)?;
        Ok(CellChoice { counted_images: counted.len(), selections, placement })
    }
}

/// The cells that a surrogate's routers chose, and by what.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct CellChoice {
    /// Training images whose selections were counted.
    pub counted_images: usize,
    /// How often its routers selected each cell of the placement's grid, row by row, in images of each class.
    pub selections: Vec<Vec<f64>>,
    /// The placement that came of it, its cells named.
    pub placement: PlacementConfig,
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

    #[test]
    fn a_dense_victim_has_a_dense_surrogate_unless_routers_are_needed_or_something_is_set() {
        let dense = ClassifierConfig::WideResnet(patchdoor_model::WideResNetConfig::default());
        let twin = SurrogateConfig::default();
        assert_eq!(twin.classifier(&dense, false), dense);
        assert_eq!(twin.classifier(&dense, true), ClassifierConfig::PatchMoe(twin.model(&dense)));
        let other = SurrogateConfig { experts: Some(2), ..SurrogateConfig::default() };
        assert_eq!(other.classifier(&dense, false), ClassifierConfig::PatchMoe(other.model(&dense)));
    }
}
