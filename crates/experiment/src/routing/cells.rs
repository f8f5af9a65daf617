use std::ops::Range;

use patchdoor_data::{ImageSet, ImageShape};
use patchdoor_metrics::PatchScores;
use rayon::prelude::*;

/// Rows and columns of an image's pixels.
pub(crate) type Area = (Range<usize>, Range<usize>);

/// The cells of an image that lie under the patches of a map: patch (r, c) of R x C lies over rows r H / R to
/// (r + 1) H / R and columns c W / C to (c + 1) W / C.
pub(crate) fn cells(shape: ImageShape, [rows, columns]: [usize; 2]) -> Vec<Area> {
    let part = |number: usize, of: usize, length: usize| number * length / of..(number + 1) * length / of;
    let each =
        |row| (0..columns).map(move |column| (part(row, rows, shape.height), part(column, columns, shape.width)));
    (0..rows).flat_map(each).collect()
}

/// A property of an image cell that selection may depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CellProperty {
    Intensity,
    Variance,
    Gradient,
}

impl CellProperty {
    pub(crate) const ALL: [Self; 3] = [Self::Intensity, Self::Variance, Self::Gradient];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Intensity => "intensity",
            Self::Variance => "variance",
            Self::Gradient => "gradient",
        }
    }

    /// Of a grey image with pixels in 0..=255.
    ///
    /// Intensity is the mean of the cell's pixels (the authors' sum, divided by their number), variance their population
    /// variance. The gradient is the mean over the cell's pixels of sqrt(dx^2 + dy^2), where dx and dy are central
    /// differences, (next - previous) / 2; beyond the edge the image goes on with its outermost pixel.
    fn of(self, grey: &[f32], width: usize, (rows, columns): &Area) -> f32 {
        let height = grey.len() / width;
        let pixels = || rows.clone().flat_map(|y| columns.clone().map(move |x| (y, x)));
        let count = (rows.len() * columns.len()) as f32;
        let at = |y: usize, x: usize| grey[y * width + x];
        let mean = || pixels().map(|(y, x)| at(y, x)).sum::<f32>() / count;
        match self {
            Self::Intensity => mean(),
            Self::Variance => {
                let mean = mean();
                pixels().map(|(y, x)| (at(y, x) - mean).powi(2)).sum::<f32>() / count
            }
            Self::Gradient => {
                let magnitude = |(y, x): (usize, usize)| {
                    let dx = at(y, (x + 1).min(width - 1)) - at(y, x.saturating_sub(1));
                    let dy = at((y + 1).min(height - 1), x) - at(y.saturating_sub(1), x);
                    dx.hypot(dy) / 2.0
                };
                pixels().map(magnitude).sum::<f32>() / count
            }
        }
    }
}

/// One property of every cell of every image.
#[derive(Debug)]
pub(crate) struct CellScores {
    pub(crate) plain: PatchScores,
    /// Less the mean over images of the same cell: what the content adds to the place.
    pub(crate) adjusted: PatchScores,
}

impl CellScores {
    /// Of `[image, cell]`.
    fn new(cells: usize, values: Vec<f32>) -> Self {
        let images = (values.len() / cells) as f64;
        let mut means = vec![0.0; cells];
        for row in values.chunks_exact(cells) {
            means.iter_mut().zip(row).for_each(|(mean, &value)| *mean += f64::from(value) / images);
        }
        let adjusted =
            values.iter().enumerate().map(|(place, &value)| (f64::from(value) - means[place % cells]) as f32);
        let adjusted = PatchScores::new(cells, adjusted.collect());
        Self { plain: PatchScores::new(cells, values), adjusted }
    }
}

/// Every property of every cell of every image, in the order of [`CellProperty::ALL`].
///
/// Pixels are turned to grey first, the plain mean of their channels. It is divided by the number of channels last, so that
/// equally bright cells are equal to the bit.
pub(crate) fn cell_scores(images: &ImageSet, cells: &[Area]) -> [CellScores; 3] {
    let ImageShape { width, channels, .. } = images.shape();
    let scale = 1.0 / channels as f32;
    let scores: Vec<f32> = (0..images.len())
        .into_par_iter()
        .flat_map_iter(|image| {
            let sum = |pixel: &[u8]| pixel.iter().map(|&byte| f32::from(byte)).sum::<f32>();
            let sums: Vec<f32> = images.pixels(image).chunks_exact(channels).map(sum).collect();
            let of = |property: CellProperty| {
                let scale = if property == CellProperty::Variance { scale * scale } else { scale };
                cells.iter().map(|cell| scale * property.of(&sums, width, cell)).collect()
            };
            CellProperty::ALL.map(of).into_iter().flat_map(|scores: Vec<f32>| scores)
        })
        .collect();
    let of = |property: usize| {
        let images = scores.chunks_exact(CellProperty::ALL.len() * cells.len());
        let values =
            images.flat_map(|image| image[property * cells.len()..(property + 1) * cells.len()].iter().copied());
        CellScores::new(cells.len(), values.collect())
    };
    let ((first, second), third) = rayon::join(|| rayon::join(|| of(0), || of(1)), || of(2));
    [first, second, third]
}

/// Which patches see a pixel that the trigger changed, `[image, patch]`; `areas` says what each patch sees.
pub(crate) fn triggered_patches(clean: &ImageSet, triggered: &ImageSet, areas: &[Area]) -> Vec<bool> {
    let ImageShape { width, channels, .. } = clean.shape();
    (0..clean.len())
        .into_par_iter()
        .flat_map_iter(|image| {
            let pairs = clean.pixels(image).chunks_exact(channels).zip(triggered.pixels(image).chunks_exact(channels));
            let is_changed: Vec<bool> = pairs.map(|(before, after)| before != after).collect();
            areas.iter().map(move |(rows, columns)| {
                rows.clone().any(|row| is_changed[row * width..][columns.clone()].contains(&true))
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: ImageShape = ImageShape { height: 4, width: 4, channels: 1 };

    fn set(pixels: &[u8]) -> ImageSet {
        let images = pixels.len() / 16;
        ImageSet::new(SHAPE, pixels.to_vec(), vec![0; images], vec!["only".to_owned()]).expect("whole images")
    }

    #[test]
    fn cells_lie_under_their_patches() {
        let shape = ImageShape { height: 32, width: 30, channels: 3 };
        let cells = cells(shape, [8, 8]);
        assert_eq!(cells[0], (0..4, 0..3));
        assert_eq!(cells[8 + 7], (4..8, 26..30));
        let covered: usize = cells.iter().map(|(rows, columns)| rows.len() * columns.len()).sum();
        assert_eq!(covered, 32 * 30, "every pixel lies in one cell");
    }

    #[test]
    fn properties_of_a_cell_are_those_worked_out_by_hand() {
        // Rows 0 10 20 30 each: a ramp to the right.
        let ramp: Vec<f32> = [0.0, 10.0, 20.0, 30.0].repeat(4);
        let left = (0..2, 0..2);
        let close = |found: f32, wanted: f32| assert!((found - wanted).abs() < 1e-5, "{found}, not {wanted}");
        close(CellProperty::Intensity.of(&ramp, 4, &left), 5.0);
        close(CellProperty::Variance.of(&ramp, 4, &left), 25.0);
        // (10 - 0) / 2 at the edge, (20 - 0) / 2 beside it.
        close(CellProperty::Gradient.of(&ramp, 4, &left), 7.5);
        // A pixel 8 to the right and 6 down: 3-4-5.
        let corner = [0.0, 0.0, 0.0, 0.0, 0.0, 8.0, 0.0, 6.0, 0.0];
        close(CellProperty::Gradient.of(&corner, 3, &(1..2, 1..2)), 5.0);
    }

    #[test]
    fn a_patch_is_triggered_if_one_pixel_it_sees_changed() {
        let clean = set(&[7; 32]);
        let mut pixels = [7; 32];
        pixels[16 + 4 + 3] = 8; // Image 1, pixel (1, 3).
        let triggered = set(&pixels);
        let marks = triggered_patches(&clean, &triggered, &cells(SHAPE, [2, 2]));
        assert_eq!(marks, [false, false, false, false, false, true, false, false]);
        let wide = vec![(0..4, 0..4); 4];
        assert_eq!(triggered_patches(&clean, &triggered, &wide)[4..], [true; 4]);
    }
}
