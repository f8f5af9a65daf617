use patchdoor_data::StreamRng;
use rand::RngExt;

/// How far each pixel is moved, (row, column), in units of the trigger's strength.
pub(crate) type Displacement = Vec<[f64; 2]>;

/// Which bicubic interpolation brings the coarse noise to the size of the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bicubic {
    /// TensorFlow's: half-pixel centres, a = -0.5, weights outside the noise dropped and the others scaled to sum to one.
    TensorFlow,
    /// `PyTorch`'s with corners aligned: a = -0.75, the noise continued beyond its border by its outermost values.
    PyTorch,
}

impl Bicubic {
    /// The weights with which each of `length` values is made of `points` values: `[length][points]`.
    fn weights(self, length: usize, points: usize) -> Vec<Vec<f64>> {
        let row = |index: usize| {
            let mut weights = vec![0.0; points];
            let centre = match self {
                Self::TensorFlow => (index as f64 + 0.5) * points as f64 / length as f64 - 0.5,
                Self::PyTorch => (index * (points - 1)) as f64 / (length.max(2) - 1) as f64,
            };
            for tap in -1..=2 {
                let tap = centre.floor() + f64::from(tap);
                let inside = tap.clamp(0.0, (points - 1) as f64);
                let weight = match self {
                    Self::TensorFlow if (tap - inside).abs() > 0.5 => 0.0,
                    Self::TensorFlow => cubic(centre - tap, -0.5),
                    Self::PyTorch => cubic(centre - tap, -0.75),
                };
                weights[inside as usize] += weight;
            }
            if self == Self::TensorFlow {
                let sum: f64 = weights.iter().sum();
                for weight in &mut weights {
                    *weight /= sum;
                }
            }
            weights
        };
        (0..length).map(row).collect()
    }
}

/// Keys' cubic convolution kernel.
fn cubic(distance: f64, a: f64) -> f64 {
    let x = distance.abs();
    if x <= 1.0 {
        ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        ((a * x - 5.0 * a) * x + 8.0 * a) * x - 4.0 * a
    } else {
        0.0
    }
}

/// Draws `points` x `points` displacements (row, column) uniformly from [-1, 1].
pub(crate) fn draw_coarse(points: usize, rng: &mut StreamRng) -> Displacement {
    (0..points * points).map(|_| [rng.random_range(-1.0..=1.0), rng.random_range(-1.0..=1.0)]).collect()
}

/// Divides coarse noise by its mean absolute value and brings it to `height` x `width`.
pub(crate) fn upsample(coarse: &[[f64; 2]], (height, width): (usize, usize), bicubic: Bicubic) -> Displacement {
    let points = coarse.len().isqrt();
    let mean = coarse.as_flattened().iter().map(|value| value.abs()).sum::<f64>() / (2 * coarse.len()) as f64;
    let (rows, columns) = (bicubic.weights(height, points), bicubic.weights(width, points));
    let value = |row: usize, column: usize, axis: usize| -> f64 {
        (0..points)
            .map(|i| {
                let across = (0..points).map(|j| columns[column][j] * coarse[i * points + j][axis]).sum::<f64>();
                rows[row][i] * across
            })
            .sum::<f64>()
            / mean
    };
    let pixels = (0..height * width).map(|index| (index / width, index % width));
    pixels.map(|(row, column)| [value(row, column, 0), value(row, column, 1)]).collect()
}

/// Where pixel `index` of `length` looks when the normalized grid on [-1, 1] is moved by `shift / length` and clamped:
/// in pixels, in [0, length - 1].
///
/// Written without the normalized coordinate, so that no shift means exactly the pixel itself.
pub(crate) fn position(start: f64, shift: f64, length: usize) -> f64 {
    let last = (length - 1) as f64;
    (start + shift * last / (2 * length) as f64).clamp(0.0, last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_sum_to_one() {
        for bicubic in [Bicubic::TensorFlow, Bicubic::PyTorch] {
            for (length, points) in [(32, 2), (32, 4), (4, 4), (28, 7), (1, 1), (3, 1)] {
                for weights in bicubic.weights(length, points) {
                    let sum = weights.iter().sum::<f64>();
                    assert!((sum - 1.0).abs() < 1e-12, "{bicubic:?} {length} {points}: {sum}");
                }
            }
        }
    }

    #[test]
    fn aligned_corners_keep_the_corners() {
        let coarse = [[1.0, 0.5], [-1.0, 0.5], [0.5, -1.5], [1.5, 1.0]];
        // The mean absolute value is (1 + .5 + 1 + .5 + .5 + 1.5 + 1.5 + 1) / 8 = 0.9375.
        let field = upsample(&coarse, (5, 7), Bicubic::PyTorch);
        for (index, corner) in [(0, 0), (6, 1), (28, 2), (34, 3)] {
            for axis in 0..2 {
                assert!((field[index][axis] - coarse[corner][axis] / 0.9375).abs() < 1e-12);
            }
        }
    }

    #[test]
    fn the_same_seed_draws_the_same_noise() {
        // A change of these numbers changes every published result.
        let coarse = draw_coarse(2, &mut patchdoor_data::stream(0, "trigger/warp"));
        let expected = [
            [-0.126_744_5, 0.660_346_8],
            [0.952_565_7, -0.643_384_4],
            [0.426_874_4, -0.547_506_4],
            [0.902_402_2, -0.460_155_4],
        ];
        for (found, expected) in coarse.as_flattened().iter().zip(expected.as_flattened()) {
            assert!((found - expected).abs() < 1e-6, "{coarse:?}");
        }
    }

    #[test]
    fn positions_stay_on_the_image_and_no_shift_is_none() {
        for index in 0..32 {
            assert_eq!(position(f64::from(index), 0.0, 32).to_bits(), f64::from(index).to_bits());
        }
        // s = 0.5, field 2: 1 / 32 of the range [-1, 1], which is 31 pixels wide, so 31 / 64 pixels.
        assert_eq!(position(3.0, 1.0, 32).to_bits(), (3.0_f64 + 31.0 / 64.0).to_bits());
        assert_eq!((position(0.0, -1.0, 32), position(31.0, 5.0, 32)), (0.0, 31.0));
    }
}
