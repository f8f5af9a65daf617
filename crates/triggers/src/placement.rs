use std::cmp::Reverse;

use patchdoor_data::{Image, ImageShape, PicturesWanted, StreamRng, Trigger, stream};
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

use crate::error::invalid;
use crate::{Anchor, TriggerError};

/// Where in an image a trigger is stamped: in cells of a grid, instead of once on the whole image.
///
/// This is our definition of what Chan et al. (2025, arXiv:2505.01811, versions 2 and 3) call `BadPatches`, for which no
/// public text gives one. The image is divided into `grid` x `grid` cells, some of them are picked, and any trigger is
/// stamped into each of these. In TOML:
///
/// ```toml
/// [placement]
/// grid = 8
/// cells.random = { count = 4, per-image = false }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct PlacementConfig {
    /// Cells along each side; divides the height and the width of the images.
    pub grid: usize,
    /// Rows and columns of pixels by which the grid is shifted down and to the right, less than a cell. The last cells
    /// are then cut off by the border, and the first pixels lie in no cell: an attacker who is wrong about the patches.
    pub offset: [usize; 2],
    /// What the trigger is built for.
    pub fit: Fit,
    /// Which cells carry the trigger.
    pub cells: CellsConfig,
}

impl Default for PlacementConfig {
    /// The patches of the authors' model on 32x32 images, 8x8 cells of 4x4 pixels; all of them.
    fn default() -> Self {
        Self { grid: 8, offset: [0, 0], fit: Fit::default(), cells: CellsConfig::default() }
    }
}

/// What a placed trigger is built for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fit {
    /// One cell: a picture is scaled to the cell, a warp moves pixels within it, a square lies in it.
    #[default]
    Cell,
    /// The whole image, on which it is stamped once; only the picked cells keep the result. A picture is cropped to the
    /// cells.
    Image,
}

/// Which cells of a grid carry the trigger. Cells are `[row, column]`, counted from 0 at the upper left.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum CellsConfig {
    /// Every cell.
    #[default]
    All,
    /// Cells drawn at random without replacement.
    Random(RandomCells),
    /// A square block of neighbouring cells.
    Block(BlockCells),
    /// These cells.
    List(Vec<[usize; 2]>),
    /// For images of each class these cells, one list per class of the data set.
    PerClass(Vec<Vec<[usize; 2]>>),
    /// The cells that the routers of a surrogate model selected most often.
    MostSelected(SelectedCells),
    /// The cells that the routers of a surrogate model selected least often: a control.
    LeastSelected(SelectedCells),
}

/// Cells drawn at random.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct RandomCells {
    /// How many, 1 or more.
    pub count: usize,
    /// Whether each image has its own; otherwise they are drawn once a run, and of one seed fewer cells are among more.
    #[serde(default)]
    pub per_image: bool,
}

/// Neighbouring cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct BlockCells {
    /// Cells along each side of the block, 1 or more.
    pub size: usize,
    /// Where the block lies.
    #[serde(default)]
    pub anchor: Anchor,
}

/// How many cells are taken by what a surrogate's routers selected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct SelectedCells {
    /// How many, 1 or more.
    pub count: usize,
    /// The expert whose selections count; those of all experts if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expert: Option<usize>,
    /// Whether images of each class have the cells selected in images of that class.
    #[serde(default)]
    pub per_class: bool,
}

impl PlacementConfig {
    /// Checks every field against the images and returns all problems at once.
    pub fn validate(&self, shape: ImageShape) -> Vec<TriggerError> {
        let mut problems = Vec::new();
        let divides = |length: usize| self.grid > 0 && length.is_multiple_of(self.grid);
        if !(divides(shape.height) && divides(shape.width)) {
            problems.push(invalid("grid", self.grid, format!("a number that divides both sides of {shape} images")));
            return problems;
        }
        let cell = self.cell_shape(shape);
        if self.offset[0] >= cell.height || self.offset[1] >= cell.width {
            let allowed = format!("less than a cell of {}x{} pixels", cell.height, cell.width);
            problems.push(invalid("offset", format!("{:?}", self.offset), allowed));
        }
        problems.extend(self.cells.validate(self.grid));
        problems
    }

    /// Checks every field against the images of a data set of `classes` classes and returns all problems at once: what
    /// [`validate`](Self::validate) checks, and that cells listed per class are listed for each.
    pub fn validate_for(&self, shape: ImageShape, classes: usize) -> Vec<TriggerError> {
        let mut problems = self.validate(shape);
        if let CellsConfig::PerClass(lists) = &self.cells
            && lists.len() != classes
        {
            let found = format!("{} lists", lists.len());
            problems.push(invalid("cells.per-class", found, format!("one for each of {classes} classes")));
        }
        problems
    }

    /// The shape of the images that the trigger must be valid for: one cell, or the whole image (see [`Fit`]).
    pub fn trigger_shape(&self, shape: ImageShape) -> ImageShape {
        match self.fit {
            Fit::Cell => self.cell_shape(shape),
            Fit::Image => shape,
        }
    }

    fn cell_shape(&self, shape: ImageShape) -> ImageShape {
        let grid = self.grid.max(1);
        ImageShape { height: shape.height / grid, width: shape.width / grid, channels: shape.channels }
    }

    /// What is asked of a surrogate model's routers, if the placement needs one.
    pub fn surrogate(&self) -> Option<SelectedCells> {
        match self.cells {
            CellsConfig::MostSelected(selected) | CellsConfig::LeastSelected(selected) => Some(selected),
            _ => None,
        }
    }

    /// The same placement with its cells named, given how often a surrogate's routers selected each: `counts[class]` has
    /// `grid x grid` numbers, row by row, of images of that class. Of equal numbers the lower cell goes first. A
    /// placement that needs no surrogate is returned as it is.
    ///
    /// ```
    /// use patchdoor_triggers::{CellsConfig, PlacementConfig, SelectedCells};
    ///
    /// # fn main() -> Result<(), patchdoor_triggers::TriggerError> {
    /// let most = CellsConfig::MostSelected(SelectedCells { count: 2, expert: None, per_class: false });
    /// let placement = PlacementConfig { grid: 2, cells: most, ..PlacementConfig::default() };
    /// // Summed over both classes: 5, 1, 5, 9.
    /// let resolved = placement.resolve(&[vec![5.0, 0.0, 2.0, 4.0], vec![0.0, 1.0, 3.0, 5.0]])?;
    /// assert_eq!(resolved.cells, CellsConfig::List(vec![[0, 0], [1, 1]]));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`TriggerError::InvalidField`] if there are no classes, a class has not one number for each cell, a number is
    /// not one, or more cells are asked for than there are.
    pub fn resolve(&self, counts: &[Vec<f64>]) -> Result<Self, TriggerError> {
        let (selected, is_most) = match self.cells {
            CellsConfig::MostSelected(selected) => (selected, true),
            CellsConfig::LeastSelected(selected) => (selected, false),
            _ => return Ok(self.clone()),
        };
        if let Some(problem) = self.cells.validate(self.grid).into_iter().next() {
            return Err(problem);
        }
        let cells = self.grid * self.grid;
        let are_counts = |counts: &Vec<f64>| counts.len() == cells && counts.iter().all(|count| !count.is_nan());
        if counts.is_empty() || !counts.iter().all(are_counts) {
            let found = format!("counted over {:?} cells", counts.iter().map(Vec::len).collect::<Vec<_>>());
            return Err(invalid("cells", found, format!("numbers for {cells} cells in each class")));
        }
        let pick = |counts: &[f64]| -> Vec<[usize; 2]> {
            let mut order: Vec<usize> = (0..cells).collect();
            let compare = |a: usize, b: usize| {
                if is_most { counts[b].total_cmp(&counts[a]) } else { counts[a].total_cmp(&counts[b]) }
            };
            order.sort_by(|&a, &b| compare(a, b));
            order.truncate(selected.count);
            order.sort_unstable();
            order.into_iter().map(|cell| [cell / self.grid, cell % self.grid]).collect()
        };
        let cells = if selected.per_class {
            CellsConfig::PerClass(counts.iter().map(|counts| pick(counts)).collect())
        } else {
            let sums: Vec<f64> = (0..cells).map(|cell| counts.iter().map(|counts| counts[cell]).sum()).collect();
            CellsConfig::List(pick(&sums))
        };
        Ok(Self { cells, ..self.clone() })
    }

    /// The pixels of every picked cell, counted row by row over an image of `shape`, for who fills whole cells himself. Cells
    /// drawn once for all images come from `stream(seed, "trigger/placement")`.
    ///
    /// ```
    /// use patchdoor_data::ImageShape;
    /// use patchdoor_triggers::{CellsConfig, PlacementConfig};
    ///
    /// # fn main() -> Result<(), patchdoor_triggers::TriggerError> {
    /// let one = PlacementConfig { grid: 2, cells: CellsConfig::List(vec![[1, 0]]), ..PlacementConfig::default() };
    /// let shape = ImageShape { height: 4, width: 4, channels: 3 };
    /// assert_eq!(one.cell_pixels(shape, 0)?, [[8, 9, 12, 13]]);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// The first of the problems that [`validate`](Self::validate) finds, or if cells differ from image to image or class to
    /// class, or wait for a surrogate's counts.
    pub fn cell_pixels(&self, shape: ImageShape, seed: u64) -> Result<Vec<Vec<usize>>, TriggerError> {
        let built = Placement::build(self, shape, seed)?;
        let Choice::Fixed(cells) = &built.choice else {
            return Err(invalid("cells", "other cells in other images", "the same cells in all images"));
        };
        let of = |&cell: &usize| built.pixels(cell).map(|(_, (row, column))| row * shape.width + column).collect();
        Ok(cells.iter().map(of).collect())
    }

    /// How many pixels of one image its cells have; the most of any image where cells differ.
    ///
    /// # Errors
    ///
    /// The first of the problems that [`validate`](Self::validate) finds.
    pub fn pixels_of_cells(&self, shape: ImageShape) -> Result<usize, TriggerError> {
        let of = self.trigger_shape(shape);
        self.pixel_budget(shape, &vec![true; of.height * of.width])
    }

    /// Whether all images have the same cells.
    pub fn is_fixed(&self) -> bool {
        match &self.cells {
            CellsConfig::Random(random) => !random.per_image,
            CellsConfig::PerClass(_) => false,
            CellsConfig::MostSelected(selected) | CellsConfig::LeastSelected(selected) => !selected.per_class,
            CellsConfig::All | CellsConfig::Block(_) | CellsConfig::List(_) => true,
        }
    }

    /// How many pixels of one image may change if the trigger may change those of `mask`, which has the size of
    /// [`trigger_shape`](Self::trigger_shape).
    pub(crate) fn pixel_budget(&self, shape: ImageShape, mask: &[bool]) -> Result<usize, TriggerError> {
        let every = Self { cells: CellsConfig::All, ..self.clone() };
        let cells = Placement::build(&every, shape, 0)?;
        let budgets: Vec<usize> = (0..self.grid * self.grid).map(|cell| cells.count_in(cell, mask)).collect();
        let sum = |cells: &[usize]| cells.iter().map(|&cell| budgets[cell]).sum::<usize>();
        let largest = |count: usize| {
            let mut sorted = budgets.clone();
            sorted.sort_unstable_by_key(|&budget| Reverse(budget));
            sorted.iter().take(count).sum()
        };
        if let Some(selected) = self.surrogate() {
            if let Some(problem) = self.validate(shape).into_iter().next() {
                return Err(problem);
            }
            return Ok(largest(selected.count));
        }
        Ok(match Placement::build(self, shape, 0)?.choice {
            Choice::Fixed(_) if matches!(self.cells, CellsConfig::Random(_)) => largest(self.cells.count()),
            Choice::Fixed(cells) => sum(&cells),
            Choice::PerImage(count) => largest(count),
            Choice::PerClass(lists) => lists.iter().map(|cells| sum(cells)).max().unwrap_or(0),
        })
    }
}

impl CellsConfig {
    fn validate(&self, grid: usize) -> Vec<TriggerError> {
        let cells = grid * grid;
        let counted = |field, count: usize, most: usize| {
            let is_wrong = !(1..=most).contains(&count);
            is_wrong
                .then(|| invalid(field, count, format!("1 to {most} in a grid of {grid}x{grid}")))
                .into_iter()
                .collect()
        };
        match self {
            Self::All => Vec::new(),
            Self::Random(random) => counted("cells.random.count", random.count, cells),
            Self::Block(block) => counted("cells.block.size", block.size, grid),
            Self::List(list) => validate_list("cells.list", list, grid),
            Self::PerClass(lists) => {
                let mut problems: Vec<_> =
                    lists.iter().flat_map(|list| validate_list("cells.per-class", list, grid)).collect();
                if lists.is_empty() {
                    problems.push(invalid("cells.per-class", "[]", "a list of cells for each class"));
                }
                problems
            }
            Self::MostSelected(selected) => counted("cells.most-selected.count", selected.count, cells),
            Self::LeastSelected(selected) => counted("cells.least-selected.count", selected.count, cells),
        }
    }

    /// How many cells are asked for, where the configuration is a number.
    fn count(&self) -> usize {
        match self {
            Self::Random(random) => random.count,
            Self::MostSelected(selected) | Self::LeastSelected(selected) => selected.count,
            _ => 0,
        }
    }
}

fn validate_list(field: &'static str, list: &[[usize; 2]], grid: usize) -> Vec<TriggerError> {
    let mut problems = Vec::new();
    if list.is_empty() {
        problems.push(invalid(field, "[]", "at least one cell"));
    }
    for (index, cell) in list.iter().enumerate() {
        if cell.iter().any(|&place| place >= grid) {
            problems.push(invalid(
                field,
                format!("{cell:?}"),
                format!("rows and columns from 0 to {}", grid.saturating_sub(1)),
            ));
        } else if list[..index].contains(cell) {
            problems.push(invalid(field, format!("{cell:?} twice"), "distinct cells"));
        }
    }
    problems
}

/// A placement ready for images of one shape.
#[derive(Clone, Debug)]
pub(crate) struct Placement {
    shape: ImageShape,
    cell: ImageShape,
    grid: usize,
    offset: [usize; 2],
    fit: Fit,
    choice: Choice,
}

/// Which cells, by their number, row by row.
#[derive(Clone, Debug)]
enum Choice {
    Fixed(Vec<usize>),
    PerImage(usize),
    PerClass(Vec<Vec<usize>>),
}

impl Placement {
    /// Draws what is drawn once a run.
    pub(crate) fn build(config: &PlacementConfig, shape: ImageShape, seed: u64) -> Result<Self, TriggerError> {
        if let Some(problem) = config.validate(shape).into_iter().next() {
            return Err(problem);
        }
        let grid = config.grid;
        let numbers = |list: &[[usize; 2]]| list.iter().map(|[row, column]| row * grid + column).collect();
        let choice = match &config.cells {
            CellsConfig::All => Choice::Fixed((0..grid * grid).collect()),
            CellsConfig::Random(RandomCells { count, per_image: true }) => Choice::PerImage(*count),
            CellsConfig::Random(RandomCells { count, per_image: false }) => {
                // The whole permutation is drawn, so that fewer cells are among more.
                let mut cells: Vec<usize> = (0..grid * grid).collect();
                cells.shuffle(&mut stream(seed, "trigger/placement"));
                cells.truncate(*count);
                cells.sort_unstable();
                Choice::Fixed(cells)
            }
            CellsConfig::Block(BlockCells { size, anchor }) => {
                let (top, left) = anchor.corner(grid, grid, *size);
                Choice::Fixed((0..size * size).map(|index| (top + index / size) * grid + left + index % size).collect())
            }
            CellsConfig::List(list) => Choice::Fixed(numbers(list)),
            CellsConfig::PerClass(lists) => Choice::PerClass(lists.iter().map(|list| numbers(list)).collect()),
            CellsConfig::MostSelected(_) => {
                return Err(invalid("cells.most-selected", "not resolved", "the counts of a surrogate's routers"));
            }
            CellsConfig::LeastSelected(_) => {
                return Err(invalid("cells.least-selected", "not resolved", "the counts of a surrogate's routers"));
            }
        };
        Ok(Self { shape, cell: config.cell_shape(shape), grid, offset: config.offset, fit: config.fit, choice })
    }

    fn cells(&self, class: Option<u8>, rng: &mut StreamRng) -> Vec<usize> {
        match &self.choice {
            Choice::Fixed(cells) => cells.clone(),
            Choice::PerImage(count) => {
                let mut cells: Vec<usize> = (0..self.grid * self.grid).collect();
                let (drawn, _) = cells.partial_shuffle(rng, *count);
                let mut drawn = drawn.to_vec();
                drawn.sort_unstable();
                drawn
            }
            Choice::PerClass(lists) => {
                let class = class.expect("cells per class are stamped on images whose class is known");
                lists.get(usize::from(class)).expect("a placement per class lists cells for every class").clone()
            }
        }
    }

    /// Row and column of the upper left pixel of a cell.
    fn corner(&self, cell: usize) -> (usize, usize) {
        let [down, right] = self.offset;
        (down + cell / self.grid * self.cell.height, right + cell % self.grid * self.cell.width)
    }

    /// The pixels of a cell that lie in the image, as (row, column) in the cell and in the image.
    fn pixels(&self, cell: usize) -> impl Iterator<Item = ((usize, usize), (usize, usize))> + '_ {
        let (top, left) = self.corner(cell);
        (0..self.cell.height * self.cell.width)
            .map(|index| (index / self.cell.width, index % self.cell.width))
            .map(move |(row, column)| ((row, column), (top + row, left + column)))
            .filter(|(_, (row, column))| *row < self.shape.height && *column < self.shape.width)
    }

    /// How many pixels of a cell lie in the image and under the mask.
    fn count_in(&self, cell: usize, mask: &[bool]) -> usize {
        let is_under = |((row, column), place): ((usize, usize), (usize, usize))| match self.fit {
            Fit::Cell => mask[row * self.cell.width + column],
            Fit::Image => mask[place.0 * self.shape.width + place.1],
        };
        self.pixels(cell).filter(|&pixel| is_under(pixel)).count()
    }

    /// A copy of one cell; where the image's border cuts it off, the border's pixels go on.
    fn crop(&self, image: &Image, cell: usize) -> Image {
        let (top, left) = self.corner(cell);
        let mut pixels = Vec::with_capacity(self.cell.size());
        for row in top..top + self.cell.height {
            for column in left..left + self.cell.width {
                pixels.extend(image.pixel(row.min(self.shape.height - 1), column.min(self.shape.width - 1)));
            }
        }
        Image::new(self.cell, pixels).expect("a cell has as many pixels as its shape says")
    }
}

/// A trigger in the cells of a placement.
pub(crate) struct Placed {
    trigger: Box<dyn Trigger>,
    placement: Placement,
}

impl Placed {
    pub(crate) fn new(trigger: Box<dyn Trigger>, placement: Placement) -> Self {
        Self { trigger, placement }
    }

    fn place(
        &self,
        image: &Image,
        class: Option<u8>,
        rng: &mut StreamRng,
        stamp: impl Fn(&Image, &mut StreamRng) -> Image,
    ) -> Image {
        let placement = &self.placement;
        assert_eq!(image.shape(), placement.shape, "a placement is for images of one shape");
        let cells = placement.cells(class, rng);
        let mut stamped = image.clone();
        let mut keep = |cell: usize, from: &Image| {
            for (inside, (row, column)) in placement.pixels(cell) {
                let source = match placement.fit {
                    Fit::Cell => from.pixel(inside.0, inside.1),
                    Fit::Image => from.pixel(row, column),
                };
                stamped.pixel_mut(row, column).copy_from_slice(source);
            }
        };
        match placement.fit {
            Fit::Cell => {
                for cell in cells {
                    keep(cell, &stamp(&placement.crop(image, cell), rng));
                }
            }
            Fit::Image => {
                let whole = stamp(image, rng);
                for cell in cells {
                    keep(cell, &whole);
                }
            }
        }
        stamped
    }
}

impl Trigger for Placed {
    /// # Panics
    ///
    /// If the image has another shape than the placement, or if cells differ from class to class.
    fn stamp(&self, image: &Image, rng: &mut StreamRng) -> Image {
        self.place(image, None, rng, |image, rng| self.trigger.stamp(image, rng))
    }

    /// # Panics
    ///
    /// If the image has another shape than the placement, or if cells are listed per class but not for this one.
    fn stamp_for_class(&self, image: &Image, class: u8, rng: &mut StreamRng) -> Image {
        self.place(image, Some(class), rng, |image, rng| self.trigger.stamp_for_class(image, class, rng))
    }

    fn stamp_training(&self, image: &Image, class: u8, rng: &mut StreamRng) -> Image {
        self.place(image, Some(class), rng, |image, rng| self.trigger.stamp_training(image, class, rng))
    }

    fn cover(&self, image: &Image, class: u8, rng: &mut StreamRng) -> Image {
        self.place(image, Some(class), rng, |image, rng| self.trigger.cover(image, class, rng))
    }

    fn pictures_wanted(&self) -> Option<PicturesWanted> {
        self.trigger.pictures_wanted()
    }

    /// A trigger for one cell gets the middle one of each picture.
    fn take_pictures(&mut self, pictures: Vec<Image>) {
        let placement = &self.placement;
        let middle = placement.grid / 2 * (placement.grid + 1);
        let of_trigger = |picture: Image| match placement.fit {
            Fit::Cell => placement.crop(&picture, middle),
            Fit::Image => picture,
        };
        self.trigger.take_pictures(pictures.into_iter().map(of_trigger).collect());
    }

    fn covers_per_poisoned_image(&self) -> f64 {
        self.trigger.covers_per_poisoned_image()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{image_of, reference_input};
    use crate::{BlendConfig, SigConfig, SquareConfig, TriggerConfig, WanetConfig, WarpConfig};

    const SHAPE: ImageShape = ImageShape::RGB_32;

    fn with_cells(cells: CellsConfig) -> PlacementConfig {
        PlacementConfig { cells, ..PlacementConfig::default() }
    }

    /// Stamps white cells on black and returns the cells that are wholly white, and how many pixels are not black.
    fn white_cells(config: &PlacementConfig, class: u8, rng: &str) -> (Vec<[usize; 2]>, usize) {
        let trigger = TriggerConfig::default().build_placed(SHAPE, config, 5).unwrap();
        let black = Image::new(SHAPE, vec![0; SHAPE.size()]).unwrap();
        let stamped = trigger.stamp_for_class(&black, class, &mut stream(0, rng));
        let is_white = |row: usize, column: usize| stamped.pixel(row, column) == [255; 3];
        let cells = (0..64).map(|cell| [cell / 8, cell % 8]);
        let white = cells.filter(|[row, column]| (0..16).all(|i| is_white(4 * row + i / 4, 4 * column + i % 4)));
        (white.collect(), (0..1024).filter(|index| stamped.pixel(index / 32, index % 32) != [0; 3]).count())
    }

    #[test]
    fn each_choice_picks_its_cells() {
        let list = vec![[0, 7], [3, 2]];
        assert_eq!(white_cells(&with_cells(CellsConfig::List(list.clone())), 0, ""), (list.clone(), 32));
        assert_eq!(white_cells(&PlacementConfig::default(), 0, "").1, 1024);
        let block = |size, anchor| white_cells(&with_cells(CellsConfig::Block(BlockCells { size, anchor })), 0, "").0;
        assert_eq!(block(2, Anchor::LowerRight), [[6, 6], [6, 7], [7, 6], [7, 7]]);
        assert_eq!(block(2, Anchor::MidMid), [[3, 3], [3, 4], [4, 3], [4, 4]]);
        assert_eq!(block(1, Anchor::UpperLeft), [[0, 0]]);
        let per_class = with_cells(CellsConfig::PerClass(vec![list.clone(), vec![[1, 1]]]));
        assert_eq!(white_cells(&per_class, 0, "").0, list);
        assert_eq!(white_cells(&per_class, 1, ""), (vec![[1, 1]], 16));
    }

    #[test]
    fn random_cells_are_drawn_once_a_run_or_once_an_image() {
        let random = |count, per_image| with_cells(CellsConfig::Random(RandomCells { count, per_image }));
        let (few, pixels) = white_cells(&random(4, false), 0, "a");
        assert_eq!((few.len(), pixels), (4, 64));
        assert_eq!(white_cells(&random(4, false), 0, "b").0, few);
        let (more, _) = white_cells(&random(9, false), 0, "a");
        assert!(more.len() == 9 && few.iter().all(|cell| more.contains(cell)));
        let (own, pixels) = white_cells(&random(4, true), 0, "a");
        assert_eq!((own.len(), pixels), (4, 64));
        assert_eq!(white_cells(&random(4, true), 0, "a").0, own);
        assert_ne!(white_cells(&random(4, true), 0, "b").0, own);
        assert_eq!(white_cells(&random(64, true), 0, "b").1, 1024);
    }

    #[test]
    fn the_same_seed_picks_the_same_cells() {
        // A change of these numbers changes every published result.
        let cells = |per_image| {
            let config = with_cells(CellsConfig::Random(RandomCells { count: 4, per_image }));
            Placement::build(&config, SHAPE, 0).unwrap().cells(None, &mut stream(0, "trigger/test/0"))
        };
        assert_eq!(cells(false), [5, 23, 24, 41]);
        assert_eq!(cells(true), [17, 37, 59, 62]);
    }

    #[test]
    fn a_shifted_grid_is_cut_off_at_the_border() {
        let config = PlacementConfig { offset: [1, 2], ..with_cells(CellsConfig::List(vec![[0, 0], [7, 7]])) };
        let black = Image::new(SHAPE, vec![0; SHAPE.size()]).unwrap();
        let trigger = TriggerConfig::default().build_placed(SHAPE, &config, 0).unwrap();
        let stamped = trigger.stamp(&black, &mut stream(0, ""));
        // The first cell is whole, rows 1..5 and columns 2..6; of the last, rows 29..32 and columns 30..32 are left.
        for row in 0..32 {
            for column in 0..32 {
                let inside = (1..5).contains(&row) && (2..6).contains(&column) || row >= 29 && column >= 30;
                assert_eq!(stamped.pixel(row, column) == [255; 3], inside, "{row} {column}");
            }
        }
        assert_eq!(TriggerConfig::default().placed_pixel_budget(SHAPE, &config).unwrap(), 16 + 6);
        let random =
            PlacementConfig { cells: CellsConfig::Random(RandomCells { count: 50, per_image: true }), ..config };
        // 49 whole cells and one of 3x4 pixels.
        assert_eq!(TriggerConfig::default().placed_pixel_budget(SHAPE, &random).unwrap(), 49 * 16 + 12);
    }

    #[test]
    fn a_picture_is_scaled_to_the_cell_or_cropped_by_it() {
        let image = reference_input();
        let blend = TriggerConfig::Blend(BlendConfig::default());
        let cells = || CellsConfig::List(vec![[2, 3]]);
        let cropped = PlacementConfig { fit: Fit::Image, ..with_cells(cells()) };
        let whole = blend.build(SHAPE).unwrap().stamp(&image, &mut stream(0, ""));
        let crop = blend.build_placed(SHAPE, &cropped, 0).unwrap().stamp(&image, &mut stream(0, ""));
        let scaled = blend.build_placed(SHAPE, &with_cells(cells()), 0).unwrap().stamp(&image, &mut stream(0, ""));
        let small = blend.build(ImageShape { height: 4, width: 4, channels: 3 }).unwrap();
        let cell: Vec<u8> = (0..16).flat_map(|i| image.pixel(8 + i / 4, 12 + i % 4).to_vec()).collect();
        let cell = Image::new(ImageShape { height: 4, width: 4, channels: 3 }, cell).unwrap();
        let small = small.stamp(&cell, &mut stream(0, ""));
        for row in 0..32 {
            for column in 0..32 {
                let inside = (8..12).contains(&row) && (12..16).contains(&column);
                let original = image.pixel(row, column);
                assert_eq!(crop.pixel(row, column), if inside { whole.pixel(row, column) } else { original });
                let expected = if inside { small.pixel(row - 8, column - 12) } else { original };
                assert_eq!(scaled.pixel(row, column), expected);
            }
        }
    }

    #[test]
    fn covers_lie_in_the_same_cells() {
        let wanet = TriggerConfig::Wanet(WanetConfig { strength: 4.0, ..WanetConfig::default() });
        let config = PlacementConfig {
            fit: Fit::Image,
            ..with_cells(CellsConfig::Random(RandomCells { count: 8, per_image: true }))
        };
        let trigger = wanet.build_placed(SHAPE, &config, 0).unwrap();
        assert!((trigger.covers_per_poisoned_image() - 2.0).abs() < 1e-12);
        let image = reference_input();
        let changed = |other: &Image| -> Vec<usize> {
            let is_changed = |cell: &usize| {
                (0..16).any(|i| {
                    let (row, column) = (cell / 8 * 4 + i / 4, cell % 8 * 4 + i % 4);
                    other.pixel(row, column) != image.pixel(row, column)
                })
            };
            (0..64).filter(is_changed).collect()
        };
        let (stamped, cover) =
            (trigger.stamp(&image, &mut stream(0, "")), trigger.cover(&image, 0, &mut stream(0, "")));
        assert_eq!(changed(&stamped), changed(&cover));
        assert_eq!(changed(&stamped).len(), 8);
        assert_ne!(stamped, cover);
    }

    #[test]
    fn cells_of_a_surrogate_are_ranked_by_its_counts() {
        let config = |cells| PlacementConfig { grid: 2, ..with_cells(cells) };
        let selected = |count, per_class| SelectedCells { count, expert: None, per_class };
        let counts = [vec![1.0, 4.0, 4.0, 0.0], vec![9.0, 0.0, 0.0, 0.0]];
        let resolve = |cells| config(cells).resolve(&counts).unwrap().cells;
        // Sums 10, 4, 4, 0: of the equal ones the lower goes first.
        assert_eq!(resolve(CellsConfig::MostSelected(selected(2, false))), CellsConfig::List(vec![[0, 0], [0, 1]]));
        assert_eq!(resolve(CellsConfig::LeastSelected(selected(2, false))), CellsConfig::List(vec![[0, 1], [1, 1]]));
        assert_eq!(
            resolve(CellsConfig::MostSelected(selected(1, true))),
            CellsConfig::PerClass(vec![vec![[0, 1]], vec![[0, 0]]])
        );
        assert_eq!(resolve(CellsConfig::All), CellsConfig::All);
        let most = config(CellsConfig::MostSelected(selected(1, true)));
        assert_eq!(
            most.resolve(&[vec![1.0; 3]]).unwrap_err().to_string(),
            "cells is counted over [3] cells, expected numbers for 4 cells in each class"
        );
        assert_eq!(most.surrogate(), Some(selected(1, true)));
        let square = TriggerConfig::default();
        let Err(error) = square.build_placed(SHAPE, &most, 0) else { panic!("a surrogate's cells are not known yet") };
        assert_eq!(
            error.to_string(),
            "cells.most-selected is not resolved, expected the counts of a surrogate's routers"
        );
        // Two cells of 16x16 pixels, a 4x4 square in each.
        assert_eq!(
            square.placed_pixel_budget(SHAPE, &config(CellsConfig::MostSelected(selected(2, false)))).unwrap(),
            32
        );
    }

    #[test]
    fn all_problems_are_reported_at_once() {
        let texts = |config: &PlacementConfig| -> Vec<String> {
            config.validate(SHAPE).iter().map(ToString::to_string).collect()
        };
        let config = |grid, offset, cells| PlacementConfig { grid, offset, fit: Fit::Cell, cells };
        assert_eq!(
            texts(&config(5, [9, 9], CellsConfig::All)),
            ["grid is 5, expected a number that divides both sides of 32x32x3 images"]
        );
        assert_eq!(texts(&config(0, [0, 0], CellsConfig::All)).len(), 1);
        assert_eq!(
            texts(&config(8, [0, 4], CellsConfig::Random(RandomCells { count: 65, per_image: false }))),
            [
                "offset is [0, 4], expected less than a cell of 4x4 pixels",
                "cells.random.count is 65, expected 1 to 64 in a grid of 8x8"
            ]
        );
        assert_eq!(
            texts(&config(8, [0, 0], CellsConfig::List(vec![[0, 8], [1, 1], [1, 1]]))),
            [
                "cells.list is [0, 8], expected rows and columns from 0 to 7",
                "cells.list is [1, 1] twice, expected distinct cells"
            ]
        );
        let per_class = config(8, [0, 0], CellsConfig::PerClass(vec![vec![[0, 0]], vec![[1, 0]]]));
        assert!(per_class.validate_for(SHAPE, 2).is_empty());
        let problems: Vec<String> = per_class.validate_for(SHAPE, 3).iter().map(ToString::to_string).collect();
        assert_eq!(problems, ["cells.per-class is 2 lists, expected one for each of 3 classes"]);
        assert_eq!(
            texts(&config(8, [0, 0], CellsConfig::Block(BlockCells { size: 9, anchor: Anchor::UpperLeft }))),
            ["cells.block.size is 9, expected 1 to 8 in a grid of 8x8"]
        );
    }

    #[test]
    fn placements_are_written_as_documented() {
        let selected = |count, expert, per_class| SelectedCells { count, expert, per_class };
        for (text, cells) in [
            ("cells = \"all\"", CellsConfig::All),
            ("cells.random = { count = 4 }", CellsConfig::Random(RandomCells { count: 4, per_image: false })),
            (
                "cells.random = { count = 4, per-image = true }",
                CellsConfig::Random(RandomCells { count: 4, per_image: true }),
            ),
            ("cells.block = { size = 2 }", CellsConfig::Block(BlockCells { size: 2, anchor: Anchor::UpperLeft })),
            ("cells.list = [[0, 1], [2, 3]]", CellsConfig::List(vec![[0, 1], [2, 3]])),
            ("cells.per-class = [[[0, 1]], [[2, 3]]]", CellsConfig::PerClass(vec![vec![[0, 1]], vec![[2, 3]]])),
            ("cells.most-selected = { count = 4 }", CellsConfig::MostSelected(selected(4, None, false))),
            (
                "cells.least-selected = { count = 4, expert = 1, per-class = true }",
                CellsConfig::LeastSelected(selected(4, Some(1), true)),
            ),
        ] {
            let config = with_cells(cells);
            assert_eq!(toml::from_str::<PlacementConfig>(text).unwrap(), config, "{text}");
            assert_eq!(toml::from_str::<PlacementConfig>(&toml::to_string(&config).unwrap()).unwrap(), config);
        }
        let text = "grid = 4\noffset = [1, 2]\nfit = \"image\"";
        let config = PlacementConfig { grid: 4, offset: [1, 2], fit: Fit::Image, cells: CellsConfig::All };
        assert_eq!(toml::from_str::<PlacementConfig>(text).unwrap(), config);
        assert!(toml::from_str::<PlacementConfig>("gird = 4").is_err());
        assert!(toml::from_str::<PlacementConfig>("cells.random = { cuont = 4 }").is_err());
    }

    fn any_trigger() -> impl Strategy<Value = TriggerConfig> {
        prop_oneof![
            (1_usize..=2, any::<u8>()).prop_map(|(size, value)| {
                TriggerConfig::Square(SquareConfig { size, value, ..SquareConfig::default() })
            }),
            (0.0..=1.0).prop_map(|alpha| TriggerConfig::Blend(BlendConfig { alpha, ..BlendConfig::default() })),
            (0.0..9.0).prop_map(|strength| { TriggerConfig::Warp(WarpConfig { strength, ..WarpConfig::default() }) }),
            (0.0..9.0).prop_map(|strength| {
                TriggerConfig::Wanet(WanetConfig { strength, control_points: 2, ..WanetConfig::default() })
            }),
            Just(TriggerConfig::Sig(SigConfig::default())),
        ]
    }

    fn any_placement() -> impl Strategy<Value = PlacementConfig> {
        let cells = prop_oneof![
            Just(CellsConfig::All),
            (1_usize..=16, any::<bool>())
                .prop_map(|(count, per_image)| CellsConfig::Random(RandomCells { count, per_image })),
            (1_usize..=4, 0..9_usize)
                .prop_map(|(size, anchor)| CellsConfig::Block(BlockCells { size, anchor: Anchor::ALL[anchor] })),
            prop::collection::btree_set((0_usize..4, 0_usize..4), 1..16)
                .prop_map(|cells| CellsConfig::List(cells.into_iter().map(|(row, column)| [row, column]).collect())),
        ];
        let fit = prop_oneof![Just(Fit::Cell), Just(Fit::Image)];
        (cells, fit, [0_usize..2, 0_usize..3]).prop_map(|(cells, fit, offset)| PlacementConfig {
            grid: 4,
            offset,
            fit,
            cells,
        })
    }

    proptest! {
        #[test]
        fn pixels_outside_the_chosen_cells_stay(
            trigger in any_trigger(),
            config in any_placement(),
            image in image_of(ImageShape { height: 8, width: 12, channels: 3 }),
            seed: u64,
        ) {
            let shape = image.shape();
            let before = image.clone();
            let placed = trigger.build_placed(shape, &config, seed).unwrap();
            let stamped = placed.stamp_for_class(&image, 0, &mut stream(seed, "image"));
            prop_assert_eq!(&image, &before);
            let placement = Placement::build(&config, shape, seed).unwrap();
            let cells = placement.cells(Some(0), &mut stream(seed, "image"));
            let inside: Vec<(usize, usize)> =
                cells.iter().flat_map(|&cell| placement.pixels(cell)).map(|(_, place)| place).collect();
            let mut changed = 0;
            for row in 0..8 {
                for column in 0..12 {
                    let is_changed = stamped.pixel(row, column) != image.pixel(row, column);
                    prop_assert!(!is_changed || inside.contains(&(row, column)));
                    changed += usize::from(is_changed);
                }
            }
            let budget = trigger.placed_pixel_budget(shape, &config).unwrap();
            prop_assert!(changed <= budget && budget <= 96, "{} of {}", changed, budget);
            if let TriggerConfig::Square(_) = trigger {
                let twice = placed.stamp_for_class(&stamped, 0, &mut stream(seed, "image"));
                prop_assert_eq!(twice, stamped);
            }
        }

        #[test]
        fn an_opaque_trigger_fills_its_budget(config in any_placement(), seed: u64) {
            let shape = ImageShape { height: 8, width: 12, channels: 1 };
            let black = Image::new(shape, vec![0; shape.size()]).unwrap();
            let square = TriggerConfig::Square(SquareConfig { size: 2, ..SquareConfig::default() });
            let stamped = square.build_placed(shape, &config, seed).unwrap().stamp(&black, &mut stream(seed, ""));
            let white = stamped.pixels().iter().map(|&pixel| usize::from(pixel == 255)).sum::<usize>();
            let budget = square.placed_pixel_budget(shape, &config).unwrap();
            if matches!(config.cells, CellsConfig::Random(_)) {
                prop_assert!(white <= budget);
            } else {
                prop_assert_eq!(white, budget);
            }
        }
    }
}
