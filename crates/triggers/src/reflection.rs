use patchdoor_data::{Image, ImageShape, StreamRng};
use rand::RngExt;

/// What brings bytes to linear light.
const GAMMA: f64 = 2.2;

/// The side of images for which the lengths below are given; others have them in proportion.
const SIDE: f64 = 32.0;

/// A plane of one channel in linear light, row by row.
type Plane = Vec<f64>;

/// Two shifted copies of a picture, as the two faces of a pane reflect it.
///
/// The published code scales every image to 560 pixels; here lengths are those of the code `BackdoorBox` runs at 32 pixels, in
/// proportion to the side.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Ghost {
    /// The image's share.
    alpha: f64,
    /// By how many rows and columns the copies are apart, each less than the image has.
    offset: [usize; 2],
    /// The first copy's share of the reflection.
    first: f64,
}

impl Ghost {
    /// The published ranges: the picture's share from 0.05 to 0.45, offsets from 3 to 8 pixels of 32, one copy's share from
    /// 0.15 to 0.5.
    pub(crate) fn draw(shape: ImageShape, rng: &mut StreamRng) -> Self {
        let alpha = draw_alpha(rng);
        let offset = [shape.height, shape.width].map(|side| {
            let [least, most] = [3.0, 8.0].map(|pixels| (pixels * side as f64 / SIDE).round() as usize);
            rng.random_range(least.max(1)..=most.max(1)).min(side - 1)
        });
        let part = rng.random_range(0.15..0.5);
        Self { alpha, offset, first: if rng.random_bool(0.5) { part } else { 1.0 - part } }
    }

    pub(crate) fn reflect(self, image: &Image, picture: &Image) -> Image {
        let ImageShape { height, width, .. } = image.shape();
        let [down, right] = self.offset;
        // What both copies cover, which is then stretched to the image.
        let [rows, columns] = [height - down, width - right];
        mixed(image, picture, |image, picture| {
            let both = (0..rows * columns).map(|index| {
                let (row, column) = (index / columns, index % columns);
                self.first * picture[(row + down) * width + column + right]
                    + (1.0 - self.first) * picture[row * width + column]
            });
            let ghost = stretched(&both.collect::<Plane>(), [rows, columns], [height, width]);
            image.iter().zip(ghost).map(|(image, ghost)| self.alpha * image + (1.0 - self.alpha) * ghost).collect()
        })
    }
}

/// A reflection out of focus, brightest in the middle.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Blurred {
    /// The image's share.
    alpha: f64,
    /// Standard deviation of the blur in pixels.
    deviation: f64,
    /// By how much what is too bright is taken off.
    attenuation: f64,
}

impl Blurred {
    /// The published ranges: the picture's share from 0.05 to 0.45, a deviation from 1 to 5 pixels of 32, an attenuation from
    /// 1.08 to 1.18.
    pub(crate) fn draw(shape: ImageShape, rng: &mut StreamRng) -> Self {
        let side = shape.height.min(shape.width) as f64;
        Self {
            alpha: draw_alpha(rng),
            deviation: rng.random_range(1.0..5.0) * side / SIDE,
            attenuation: rng.random_range(1.08..1.18),
        }
    }

    pub(crate) fn reflect(self, image: &Image, picture: &Image) -> Image {
        let ImageShape { height, width, .. } = image.shape();
        let [down, across] = [fading(height), fading(width)];
        mixed(image, picture, |image, picture| {
            let mut blurred = self.blurred(picture, [height, width]);
            let bright = blurred.iter().zip(image).map(|(a, b)| a + b).filter(|sum| *sum > 1.0);
            let (sum, count) = bright.fold((0.0, 0.0), |(sum, count), value| (sum + value, count + 1.0));
            let excess = (sum / (count + 1e-6)).max(1.0) - 1.0;
            for value in &mut blurred {
                *value = (*value - excess * self.attenuation).clamp(0.0, 1.0);
            }
            let strength = 1.0 - self.alpha / 2.0;
            let mix = |(index, (image, blurred)): (usize, (&f64, f64))| {
                blurred * down[index / width] * across[index % width] * strength + self.alpha * image
            };
            image.iter().zip(blurred).enumerate().map(mix).collect()
        })
    }

    /// `OpenCV`'s Gaussian blur, whose border is mirrored without its last pixel.
    fn blurred(self, plane: &[f64], [height, width]: [usize; 2]) -> Plane {
        let radius = (2.0 * self.deviation).ceil() as isize;
        let weight = |place: isize| (-0.5 * (place as f64 / self.deviation).powi(2)).exp();
        let total = (-radius..=radius).map(weight).sum::<f64>();
        let weights = (-radius..=radius).map(|place| weight(place) / total).collect::<Vec<_>>();
        let blur = |value: &dyn Fn(usize) -> f64, place: usize, length: usize| {
            let places = (-radius..=radius).map(|step| mirrored(place as isize + step, length));
            places.zip(&weights).map(|(place, weight)| weight * value(place)).sum::<f64>()
        };
        let across = (0..plane.len()).map(|index| {
            let start = index - index % width;
            blur(&|column| plane[start + column], index % width, width)
        });
        let across = across.collect::<Plane>();
        let down =
            (0..plane.len()).map(|index| blur(&|row| across[row * width + index % width], index / width, height));
        down.collect()
    }
}

fn draw_alpha(rng: &mut StreamRng) -> f64 {
    1.0 - rng.random_range(0.05..0.45)
}

/// Mixes the channels of a picture into those of an image, in linear light; the conversion clips and cuts fractions off.
fn mixed(image: &Image, picture: &Image, mix: impl Fn(&[f64], &[f64]) -> Plane) -> Image {
    let channels = image.shape().channels;
    let mut stamped = image.clone();
    for channel in 0..channels {
        let [first, second] = [image, picture].map(|image| {
            let values = image.pixels().iter().skip(channel).step_by(channels);
            values.map(|&value| (f64::from(value) / 255.0).powf(GAMMA)).collect::<Plane>()
        });
        let bytes = stamped.pixels_mut().iter_mut().skip(channel).step_by(channels);
        for (byte, value) in bytes.zip(mix(&first, &second)) {
            *byte = (value.powf(1.0 / GAMMA).min(1.0) * 255.0) as u8;
        }
    }
    stamped
}

/// The place within `length` that a place beyond its ends shows.
fn mirrored(place: isize, length: usize) -> usize {
    if length == 1 {
        return 0;
    }
    let period = 2 * (length - 1);
    let place = place.rem_euclid(period as isize) as usize;
    place.min(period - place)
}

/// `OpenCV`'s bilinear scaling.
fn stretched(plane: &[f64], from: [usize; 2], to: [usize; 2]) -> Plane {
    let source = |place: usize, axis: usize| {
        let scale = from[axis] as f64 / to[axis] as f64;
        let exact = ((place as f64 + 0.5) * scale - 0.5).clamp(0.0, (from[axis] - 1) as f64);
        let first = exact as usize;
        (first, (first + 1).min(from[axis] - 1), exact.fract())
    };
    let value = |index: usize| {
        let (top, bottom, down) = source(index / to[1], 0);
        let (left, right, across) = source(index % to[1], 1);
        let row = |row: usize| plane[row * from[1] + left] * (1.0 - across) + plane[row * from[1] + right] * across;
        row(top) * (1.0 - down) + row(bottom) * down
    };
    (0..to[0] * to[1]).map(value).collect()
}

/// How strongly a reflection shows along one side: the square root of a normal distribution's share of each of so many parts of
/// three standard deviations to either side, and 1 at its largest.
fn fading(length: usize) -> Vec<f64> {
    let interval = 7.0 / length as f64;
    let edge = |place: usize| -3.0 - interval / 2.0 + place as f64 * (6.0 + interval) / length as f64;
    let shares = (0..length).map(|place| (normal(edge(place + 1)) - normal(edge(place))).sqrt()).collect::<Vec<_>>();
    let largest = shares.iter().copied().fold(0.0, f64::max);
    shares.into_iter().map(|share| share / largest).collect()
}

/// The share of a standard normal distribution below `x`, within 1e-12: its density times a series (Marsaglia 2004).
fn normal(x: f64) -> f64 {
    let (mut term, mut sum) = (x, x);
    let mut odd = 1.0;
    while term.abs() > 1e-16 {
        odd += 2.0;
        term *= x * x / odd;
        sum += term;
    }
    0.5 + sum * (-0.5 * x * x).exp() / std::f64::consts::TAU.sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{reference_input, reference_pattern, summary};

    #[test]
    fn reflections_are_those_of_the_published_steps() {
        // Computed in double precision with NumPy, OpenCV 4 (resize, GaussianBlur) and SciPy (norm.cdf) from the published
        // steps at a size of 32.
        let ghost = Ghost { alpha: 0.6, offset: [3, 7], first: 0.3 }.reflect(&reference_input(), &reference_pattern());
        assert_eq!(summary(&ghost), (421_026, "dc1f7d03600b5971".to_owned(), 3035));
        assert_eq!([ghost.pixel(5, 9), ghost.pixel(31, 31)], [[126, 174, 211], [163, 114, 165]]);
        let blurred = Blurred { alpha: 0.6, deviation: 2.5, attenuation: 1.1 };
        let blurred = blurred.reflect(&reference_input(), &reference_pattern());
        assert_eq!(summary(&blurred), (345_447, "9926c5a7a31b6f4c".to_owned(), 3056));
        assert_eq!([blurred.pixel(5, 9), blurred.pixel(16, 16)], [[120, 146, 173], [50, 169, 96]]);
    }

    #[test]
    fn shares_of_the_normal_distribution_are_those_of_tables() {
        for (x, share) in [(0.0, 0.5), (1.0, 0.841_344_746), (-1.96, 0.024_997_895), (3.1, 0.999_032_397)] {
            assert!((normal(x) - share).abs() < 1e-9, "{x}");
        }
    }

    #[test]
    fn places_beyond_a_border_are_mirrored_as_often_as_need_be() {
        let places = [-4, -3, -2, -1, 0, 1, 2, 3, 4, 5];
        assert_eq!(places.map(|place| mirrored(place, 3)), [0, 1, 2, 1, 0, 1, 2, 1, 0, 1]);
        assert_eq!(mirrored(-7, 1), 0);
    }

    #[test]
    fn a_blur_keeps_what_is_even_and_a_stretch_too() {
        let blurred = Blurred { alpha: 0.5, deviation: 2.0, attenuation: 1.1 }.blurred(&[0.25; 12], [3, 4]);
        let stretched = stretched(&[0.25; 6], [2, 3], [3, 4]);
        assert!(blurred.iter().chain(&stretched).all(|value| (value - 0.25).abs() < 1e-12));
    }
}
