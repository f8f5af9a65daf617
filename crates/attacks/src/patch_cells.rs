use patchdoor_data::ImageShape;
use patchdoor_model::{ClassifierConfig, NetworkConfig};
use patchdoor_train::input_shape;

/// Cells of the image, and which patches of a network see a pixel of each in their own share of the image.
///
/// A patch's receptive field is larger; its share is what is left if the image is divided among the patches.
pub(crate) struct PatchCells {
    cells: Vec<Vec<usize>>,
    pixels: usize,
    patches: Vec<Vec<usize>>,
    count: usize,
}

impl PatchCells {
    /// # Panics
    /// If the network has no experts that choose patches.
    pub(crate) fn of(cells: &[Vec<usize>], shape: ImageShape, network: &ClassifierConfig) -> Self {
        let network: &dyn NetworkConfig = network.network();
        let choice = network.expert_choice().expect("a surrogate with routers");
        let (rows, columns) = choice.patch_grid(input_shape(shape));
        let patch = |pixel: usize| {
            let (row, column) = (pixel / shape.width, pixel % shape.width);
            row * rows / shape.height * columns + column * columns / shape.width
        };
        let patches = cells.iter().map(|pixels| {
            let mut patches: Vec<usize> = pixels.iter().map(|&pixel| patch(pixel)).collect();
            patches.sort_unstable();
            patches.dedup();
            patches
        });
        let patches = patches.collect();
        Self { cells: cells.to_vec(), pixels: shape.height * shape.width, patches, count: rows * columns }
    }

    /// How many cells there are.
    pub(crate) fn count(&self) -> usize {
        self.cells.len()
    }

    /// How many patches the network has.
    pub(crate) fn patches(&self) -> usize {
        self.count
    }

    /// The pixels of some cells, row by row.
    pub(crate) fn mask(&self, cells: &[usize]) -> Vec<bool> {
        marked(cells.iter().flat_map(|&cell| &self.cells[cell]), self.pixels)
    }

    /// The patches that carry a pattern in some cells.
    pub(crate) fn carriers(&self, cells: &[usize]) -> Vec<bool> {
        marked(cells.iter().flat_map(|&cell| &self.patches[cell]), self.count)
    }
}

fn marked<'a>(indices: impl Iterator<Item = &'a usize>, length: usize) -> Vec<bool> {
    let mut marked = vec![false; length];
    indices.for_each(|&index| marked[index] = true);
    marked
}

#[cfg(test)]
mod tests {
    use patchdoor_model::PatchMoeConfig;

    use super::*;

    #[test]
    fn a_cell_is_carried_by_every_patch_that_it_touches() {
        // Images of 16x16 have 4x4 patches of 4x4 pixels.
        let shape = ImageShape { height: 16, width: 16, channels: 3 };
        let network = ClassifierConfig::PatchMoe(PatchMoeConfig::default());
        let cells = PatchCells::of(&[vec![0, 17], vec![3, 4], vec![255]], shape, &network);
        let numbers = |carriers: Vec<bool>| (0..16).filter(|&patch| carriers[patch]).collect::<Vec<_>>();
        assert_eq!(numbers(cells.carriers(&[0])), [0]);
        assert_eq!(numbers(cells.carriers(&[1])), [0, 1], "two pixels side by side across a border");
        assert_eq!(numbers(cells.carriers(&[1, 2])), [0, 1, 15]);
        assert_eq!(cells.mask(&[0, 2]).iter().filter(|&&is_set| is_set).count(), 3);
    }
}
