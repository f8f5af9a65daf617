use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

/// How much a changed picture differs from the original, by pixels, structure and frequencies.
///
/// Values are those of bytes, 0 to 255. Pictures have rows of pixels, and each pixel its channels side by side.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Stealth {
    /// Peak signal-to-noise ratio in decibels, `10 log10(255^2 / mean squared difference)`; `None` without a difference.
    pub psnr: Option<f64>,
    /// Structural similarity, see [`structural_similarity`]; `None` for pictures smaller than its window.
    pub ssim: Option<f64>,
    /// The largest difference of a value (L-infinity).
    pub largest_change: f64,
    /// Euclidean length of all differences (L2).
    pub distance: f64,
    /// Share of the pixels of which some channel differs.
    pub changed_pixels: f64,
    /// Mean absolute difference of the logarithms of frequencies, see [`frequency_distance`].
    pub frequency_distance: f64,
}

impl Stealth {
    /// Compares two pictures of `[height, width, channels]`.
    ///
    /// # Panics
    /// If a picture has not as many values, or has none.
    pub fn between(before: &[u8], after: &[u8], shape: [usize; 3]) -> Self {
        let [height, width, channels] = shape;
        assert!(!before.is_empty(), "a picture has pixels");
        assert_eq!([before.len(), after.len()], [height * width * channels; 2], "both pictures have the shape");
        let differences = before.iter().zip(after).map(|(a, b)| f64::from(a.abs_diff(*b)));
        let squares = differences.clone().map(|difference| difference * difference).sum::<f64>();
        let pixels = before.chunks_exact(channels).zip(after.chunks_exact(channels));
        let changed = pixels.filter(|(a, b)| a != b).count();
        Self {
            psnr: (squares > 0.0).then(|| 10.0 * (255.0 * 255.0 * before.len() as f64 / squares).log10()),
            ssim: structural_similarity(before, after, shape),
            largest_change: differences.fold(0.0, f64::max),
            distance: squares.sqrt(),
            changed_pixels: changed as f64 / (height * width) as f64,
            frequency_distance: frequency_distance(before, after, shape),
        }
    }

    /// The mean of each number over pictures; that of a number that some have not is over the others. `None` without any.
    pub fn mean(pictures: &[Self]) -> Option<Self> {
        let mean = |values: Vec<f64>| (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64);
        let of = |number: fn(&Self) -> f64| mean(pictures.iter().map(number).collect());
        Some(Self {
            psnr: mean(pictures.iter().filter_map(|picture| picture.psnr).collect()),
            ssim: mean(pictures.iter().filter_map(|picture| picture.ssim).collect()),
            largest_change: of(|picture| picture.largest_change)?,
            distance: of(|picture| picture.distance)?,
            changed_pixels: of(|picture| picture.changed_pixels)?,
            frequency_distance: of(|picture| picture.frequency_distance)?,
        })
    }
}

/// Side of the window of structural similarity, and the standard deviation of its weights.
const WINDOW: (usize, f64) = (11, 1.5);

/// Mean structural similarity (SSIM) of two pictures of `[height, width, channels]`, in [-1, 1], 1 for equal ones (Wang et
/// al. 2004, IEEE Transactions on Image Processing 13): Gaussian window of 11x11 and standard deviation 1.5, constants 0.01
/// and 0.03, over all places where the window lies within the picture, and over channels.
///
/// `None` for a picture smaller than the window.
///
/// # Panics
/// If a picture has not as many values.
pub fn structural_similarity(before: &[u8], after: &[u8], [height, width, channels]: [usize; 3]) -> Option<f64> {
    assert_eq!([before.len(), after.len()], [height * width * channels; 2], "both pictures have the shape");
    if height < WINDOW.0 || width < WINDOW.0 || channels == 0 {
        return None;
    }
    let constants = [0.01, 0.03].map(|constant: f64| (constant * 255.0).powi(2));
    let of_channel = |channel: usize| {
        let [first, second] = [before, after].map(|picture| plane(picture, channel, channels));
        let averaged = |a: &[f64], b: &[f64]| {
            let products = a.iter().zip(b).map(|(a, b)| a * b).collect::<Vec<_>>();
            window_means(&products, [height, width])
        };
        let [mean_first, mean_second] = [&first, &second].map(|values| window_means(values, [height, width]));
        let squares = [averaged(&first, &first), averaged(&second, &second), averaged(&first, &second)];
        let places = mean_first.iter().zip(&mean_second).enumerate().map(|(place, (a, b))| {
            let [variance_first, variance_second, covariance] =
                [squares[0][place] - a * a, squares[1][place] - b * b, squares[2][place] - a * b];
            (2.0 * a * b + constants[0]) * (2.0 * covariance + constants[1])
                / ((a * a + b * b + constants[0]) * (variance_first + variance_second + constants[1]))
        });
        places.sum::<f64>() / mean_first.len() as f64
    };
    Some((0..channels).map(of_channel).sum::<f64>() / channels as f64)
}

/// One channel of a picture.
fn plane(picture: &[u8], channel: usize, channels: usize) -> Vec<f64> {
    picture.iter().skip(channel).step_by(channels).map(|&value| f64::from(value)).collect()
}

/// Weighted means at all places where the window lies within the plane, row by row.
fn window_means(values: &[f64], [height, width]: [usize; 2]) -> Vec<f64> {
    let (side, deviation) = WINDOW;
    let weight = |place: usize| (-0.5 * ((place as f64 - (side / 2) as f64) / deviation).powi(2)).exp();
    let total = (0..side).map(weight).sum::<f64>();
    let weights = (0..side).map(|place| weight(place) / total).collect::<Vec<_>>();
    let columns = width - side + 1;
    let across = (0..height * columns).map(|index| {
        let start = index / columns * width + index % columns;
        values[start..].iter().zip(&weights).map(|(value, weight)| value * weight).sum::<f64>()
    });
    let across = across.collect::<Vec<_>>();
    let down = |index: usize| {
        across[index..].iter().step_by(columns).zip(&weights).map(|(value, weight)| value * weight).sum()
    };
    (0..(height - side + 1) * columns).map(down).collect()
}

/// How far the frequencies of two pictures of `[height, width, channels]` are apart, 0 or more: the mean over coefficients
/// and channels of `|ln(1 + |A|) - ln(1 + |B|)|`, A and B those of the orthonormal cosine transform (DCT-II) of a whole channel.
///
/// This measure is ours. It needs no network, and sees what is spread thinly over an image but gathered in few frequencies.
///
/// # Panics
/// If a picture has not as many values, or has none.
pub fn frequency_distance(before: &[u8], after: &[u8], [height, width, channels]: [usize; 3]) -> f64 {
    assert_eq!([before.len(), after.len()], [height * width * channels; 2], "both pictures have the shape");
    let bases = [cosines(height), cosines(width)];
    let of_channel = |channel: usize| {
        let [first, second] = [before, after].map(|picture| {
            let coefficients = transformed(&plane(picture, channel, channels), &bases);
            coefficients.into_iter().map(|value| value.abs().ln_1p()).collect::<Vec<_>>()
        });
        first.iter().zip(&second).map(|(a, b)| (a - b).abs()).sum::<f64>()
    };
    (0..channels).map(of_channel).sum::<f64>() / before.len() as f64
}

/// Rows of the orthonormal cosine transform of so many values.
fn cosines(values: usize) -> Vec<Vec<f64>> {
    let of = |frequency: usize, place: usize| {
        let scale = if frequency == 0 { 1.0 } else { 2.0 };
        let angle = PI * (2 * place + 1) as f64 * frequency as f64 / (2 * values) as f64;
        (scale / values as f64).sqrt() * angle.cos()
    };
    (0..values).map(|frequency| (0..values).map(|place| of(frequency, place)).collect()).collect()
}

/// The transform of a plane, given the rows of both axes' transforms.
fn transformed(plane: &[f64], [down, across]: &[Vec<Vec<f64>>; 2]) -> Vec<f64> {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    // Transposed on the way, so that both passes read rows.
    let width = across.len();
    let rows = plane.chunks_exact(width).collect::<Vec<_>>();
    let half = across.iter().map(|wave| rows.iter().map(|row| dot(row, wave)).collect::<Vec<_>>());
    let half = half.collect::<Vec<_>>();
    down.iter().flat_map(|wave| half.iter().map(|column| dot(column, wave))).collect()
}

#[cfg(test)]
mod tests {
    use approx::assert_relative_eq;
    use proptest::prelude::*;

    use super::*;

    const SHAPE: [usize; 3] = [32, 24, 3];

    /// Two pictures: (7 i + 13 j + 29 c) mod 256, and the same plus (i j + 5 c) mod 17, clipped.
    fn pictures() -> [Vec<u8>; 2] {
        let [_, width, channels] = SHAPE;
        let values = (0..SHAPE.iter().product::<usize>()).map(|index| {
            let (i, j, c) = (index / (width * channels), index / channels % width, index % channels);
            let before = (7 * i + 13 * j + 29 * c) % 256;
            (before as u8, (before + (i * j + 5 * c) % 17).min(255) as u8)
        });
        values.unzip::<_, _, Vec<u8>, Vec<u8>>().into()
    }

    #[test]
    fn numbers_equal_those_of_scikit_image_and_scipy() {
        // scikit-image 0.26: peak_signal_noise_ratio and structural_similarity with gaussian_weights=True, sigma=1.5,
        // use_sample_covariance=False, data_range=255, channel_axis=-1; SciPy's dctn (type 2, orthonormal).
        let [before, after] = pictures();
        let stealth = Stealth::between(&before, &after, SHAPE);
        assert_relative_eq!(stealth.psnr.unwrap(), 29.023_253_715_955_818, epsilon = 1e-9);
        assert_relative_eq!(stealth.ssim.unwrap(), 0.983_862_616_615_021, epsilon = 1e-9);
        assert_relative_eq!(stealth.distance, 433.130_465_333_483_5, epsilon = 1e-9);
        assert_relative_eq!(stealth.changed_pixels, 1.0, epsilon = 1e-12);
        assert_relative_eq!(stealth.frequency_distance, 0.283_042_782_074_372_3, epsilon = 1e-9);
        assert_relative_eq!(stealth.largest_change, 16.0);
    }

    #[test]
    fn numbers_of_two_pixels_are_as_worked_out_by_hand() {
        // Grey pixels 10, 20 and 13, 20: squares sum to 9, their mean is 4.5, 10 log10(65025 / 4.5) = 41.5986.
        // Frequencies: 30 and 33 over sqrt 2 are 21.213 and 23.335, 10 and 7 over sqrt 2 are 7.071 and 4.950; the logarithms
        // of one more differ by 0.0912 and 0.3050, in the mean 0.1981.
        let stealth = Stealth::between(&[10, 20], &[13, 20], [1, 2, 1]);
        assert_relative_eq!(stealth.psnr.unwrap(), 41.5986, epsilon = 1e-4);
        assert_relative_eq!(stealth.frequency_distance, 0.1981, epsilon = 1e-4);
        let Stealth { ssim, largest_change, distance, changed_pixels, .. } = stealth;
        assert_eq!((ssim, changed_pixels), (None, 0.5));
        assert_relative_eq!(largest_change + distance, 6.0);
    }

    #[test]
    fn a_mean_leaves_out_what_a_picture_has_not() {
        let [same, other] = [[10, 20], [13, 20]].map(|after: [u8; 2]| Stealth::between(&[10, 20], &after, [1, 2, 1]));
        let mean = Stealth::mean(&[same, other]).unwrap();
        assert_eq!((same.psnr, mean.psnr, mean.ssim), (None, other.psnr, None));
        assert_relative_eq!(mean.largest_change, 1.5);
        assert_eq!(Stealth::mean(&[]), None);
    }

    proptest! {
        #[test]
        fn equal_pictures_do_not_differ_and_the_order_does_not_matter(
            before in prop::collection::vec(any::<u8>(), 12 * 13), after in prop::collection::vec(any::<u8>(), 12 * 13),
        ) {
            let shape = [12, 13, 1];
            let same = Stealth::between(&before, &before, shape);
            prop_assert_eq!(same.psnr, None);
            prop_assert!((same.ssim.unwrap() - 1.0).abs() < 1e-9);
            prop_assert!(same.largest_change + same.distance + same.changed_pixels + same.frequency_distance == 0.0);
            let [there, back] = [(&before, &after), (&after, &before)].map(|(a, b)| Stealth::between(a, b, shape));
            prop_assert!((there.ssim.unwrap() - back.ssim.unwrap()).abs() < 1e-9);
            prop_assert!((-1.0..=1.0).contains(&there.ssim.unwrap()));
            prop_assert_eq!(there.psnr, back.psnr);
            prop_assert!((there.frequency_distance - back.frequency_distance).abs() < 1e-9);
        }
    }
}
