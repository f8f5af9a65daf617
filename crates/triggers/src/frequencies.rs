use std::f64::consts::PI;

use patchdoor_data::ImageShape;

use crate::TriggerError;
use crate::error::invalid;

/// Which coefficients of the cosine transforms of an image an attacker adds to, as configurations write them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frequencies<'a> {
    /// Side of the square windows that are transformed, a divisor of both sides of the image; the whole image if not
    /// given.
    pub(crate) window: Option<usize>,
    /// Rows and columns of the coefficients, each below the window's side; the middle one and the last one if not given,
    /// in a window of 32 the published (15, 15) and (31, 31).
    pub(crate) positions: Option<&'a [[usize; 2]]>,
}

impl Frequencies<'_> {
    /// Rows and columns of a window.
    fn window(self, shape: ImageShape) -> [usize; 2] {
        self.window.map_or([shape.height, shape.width], |side| [side, side])
    }

    /// Checks windows and positions against the images and returns all problems at once.
    pub(crate) fn validate(self, shape: ImageShape) -> Vec<TriggerError> {
        let mut problems = Vec::new();
        let divides = |side: usize| side > 0 && shape.height.is_multiple_of(side) && shape.width.is_multiple_of(side);
        if let Some(side) = self.window.filter(|&side| !divides(side)) {
            let allowed = format!("a divisor of both sides of {}x{} images", shape.height, shape.width);
            problems.push(invalid("window", side, allowed));
        } else {
            let [rows, columns] = self.window(shape);
            for [row, column] in self.positions.iter().copied().flatten() {
                if *row >= rows || *column >= columns {
                    let allowed = format!("rows below {rows} and columns below {columns}");
                    problems.push(invalid("positions", format!("[{row}, {column}]"), allowed));
                }
            }
        }
        if self.positions.is_some_and(<[_]>::is_empty) {
            problems.push(invalid("positions", "empty", "at least one position"));
        }
        problems
    }

    /// What `magnitude` in every such coefficient adds to the values of a channel, `[row, column]`: the transform is
    /// linear, so this is one pattern for all images.
    pub(crate) fn pattern(self, magnitude: f64, shape: ImageShape) -> Vec<f64> {
        let window = self.window(shape);
        let standard = [window.map(|side| (side / 2).max(1) - 1), window.map(|side| side - 1)];
        let positions = self.positions.unwrap_or(&standard);
        let value = |index: usize| {
            let place = [index / shape.width, index % shape.width];
            let waves = positions.iter().map(|position| {
                let [down, across] = [0, 1].map(|axis| wave(place[axis] % window[axis], position[axis], window[axis]));
                down * across
            });
            magnitude * waves.sum::<f64>()
        };
        (0..shape.height * shape.width).map(value).collect()
    }
}

/// A place of a row of the orthonormal cosine transform (DCT-II) of so many values.
fn wave(place: usize, frequency: usize, values: usize) -> f64 {
    let scale = if frequency == 0 { 1.0 } else { 2.0 };
    let angle = PI * (2 * place + 1) as f64 * frequency as f64 / (2 * values) as f64;
    (scale / values as f64).sqrt() * angle.cos()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_window_gets_the_same_pattern() {
        let shape = ImageShape { height: 8, width: 4, channels: 3 };
        let pattern = Frequencies { window: Some(4), positions: None }.pattern(30.0, shape);
        assert_eq!(pattern[..16], pattern[16..]);
        assert!(pattern.iter().any(|value| value.abs() > 5.0));
    }

    #[test]
    fn a_pattern_has_the_energy_of_its_coefficients() {
        // The transform keeps lengths: two coefficients of 50 are 2 x 2500.
        let pattern = Frequencies { window: None, positions: None }.pattern(50.0, ImageShape::RGB_32);
        assert!((pattern.iter().map(|value| value * value).sum::<f64>() - 5000.0).abs() < 1e-6);
    }
}
