//! Resizing by bilinear interpolation, to the last bit as Pillow's `Image.resize(size, Image.BILINEAR)` does it.

/// Bits behind the point of a weight, as in Pillow's `Resample.c`: 32 less 8 of a pixel and 2 to spare.
const PRECISION_BITS: u32 = 32 - 8 - 2;

/// Resizes interleaved pixels of `channels` bytes; where an image shrinks, the triangle grows with it, so that every
/// pixel counts (antialiasing). Columns are resized first, then rows, with pixels rounded in between.
///
/// # Shapes
/// - pixels: `[height, width, channel]` of `from`, each `[height, width]`; the result has those of `to`
pub(crate) fn bilinear(pixels: &[u8], channels: usize, from: [usize; 2], to: [usize; 2]) -> Vec<u8> {
    let [height, width] = from;
    debug_assert_eq!(pixels.len(), height * width * channels);
    let narrow;
    let columns_done = if width == to[1] {
        pixels
    } else {
        let weights = weights(width, to[1]);
        let mut resized = Vec::with_capacity(height * to[1] * channels);
        for row in pixels.chunks_exact(width * channels) {
            for Weights { first, weights } in &weights {
                for channel in 0..channels {
                    let values = row[first * channels + channel..].iter().step_by(channels);
                    resized.push(weighted(values, weights));
                }
            }
        }
        narrow = resized;
        &narrow
    };
    if height == to[0] {
        return columns_done.to_vec();
    }
    let row_size = to[1] * channels;
    let mut resized = Vec::with_capacity(to[0] * row_size);
    for Weights { first, weights } in weights(height, to[0]) {
        for at in 0..row_size {
            let values = columns_done[first * row_size + at..].iter().step_by(row_size);
            resized.push(weighted(values, &weights));
        }
    }
    resized
}

/// What one new pixel is made of: so many old ones from `first` on.
struct Weights {
    first: usize,
    weights: Vec<i32>,
}

/// `precompute_coeffs` and `normalize_coeffs_8bpc` of Pillow's `Resample.c`, for the triangle filter.
fn weights(from: usize, to: usize) -> Vec<Weights> {
    let scale = from as f64 / to as f64;
    let support = scale.max(1.0);
    let weights_of = |index: usize| {
        let centre = (index as f64 + 0.5) * scale;
        let first = (centre - support + 0.5).max(0.0) as usize;
        let end = ((centre + support + 0.5) as usize).min(from);
        let triangle = |at: usize| (1.0 - (((at as f64) - centre + 0.5) * (1.0 / support)).abs()).max(0.0);
        let sum: f64 = (first..end).map(triangle).sum();
        let fixed = |at| (0.5 + triangle(at) / sum * f64::from(1 << PRECISION_BITS)) as i32;
        Weights { first, weights: (first..end).map(fixed).collect() }
    };
    (0..to).map(weights_of).collect()
}

fn weighted<'a>(values: impl Iterator<Item = &'a u8>, weights: &[i32]) -> u8 {
    let half = 1 << (PRECISION_BITS - 1);
    let sum = values.zip(weights).fold(half, |sum, (&value, weight)| sum + i32::from(value) * weight);
    (sum >> PRECISION_BITS).clamp(0, 255) as u8
}
