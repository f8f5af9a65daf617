use rand::Rng;
use rayon::prelude::*;

use serde::{Deserialize, Serialize};

use crate::{DataError, ImageSet, ImageShape, StreamRng, labels, stream};

/// How many images of the built-in set are drawn, and from which seed.
///
/// Ten classes: disk, ring, square, frame, triangle, plus, star, crescent, stripes, dots. Place, size, turn, colours and
/// contrast are random; a stroke hides a part of every shape, specks and strokes lie around it, and noise of random
/// strength over all. A linear classifier of the pixels stays near 12 % (chance is 10 %) from 20,000 of them; the
/// smallest network of this workspace reaches about 92 % from the default number of images, and less from fewer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct ShapesConfig {
    /// Training images; classes take turns. A smaller set is the beginning of a larger one.
    pub train: usize,
    /// Test images.
    pub test: usize,
    /// What the images are drawn from. It belongs to the data, not to a run: all runs of a comparison share it.
    pub seed: u64,
}

impl Default for ShapesConfig {
    fn default() -> Self {
        Self { train: 20_000, test: 1000, seed: 0 }
    }
}

/// The ten classes in the order of their labels.
pub(crate) const CLASSES: [&str; 10] =
    ["disk", "ring", "square", "frame", "triangle", "plus", "star", "crescent", "stripes", "dots"];

/// Side of an image in pixels.
const SIDE: usize = 32;

/// Draws both splits of `shapes`.
pub(crate) fn draw(config: &ShapesConfig) -> Result<(ImageSet, ImageSet), DataError> {
    Ok((draw_split(config.seed, "training", config.train)?, draw_split(config.seed, "test", config.test)?))
}

/// Draws `count` images, label `index % 10`, each from a stream of its own: a smaller set is the beginning of a larger.
///
/// Only sums, products, quotients and square roots are taken, which IEEE 754 fixes to the last bit, so the bytes are the
/// same on every machine.
fn draw_split(seed: u64, split: &str, count: usize) -> Result<ImageSet, DataError> {
    let size = ImageShape::RGB_32.size();
    let mut pixels = vec![0; count * size];
    pixels.par_chunks_mut(size).enumerate().for_each(|(index, image)| {
        draw_image(index % CLASSES.len(), &mut stream(seed, &format!("shapes/{split}/{index}")), image);
    });
    let labels = (0..count).map(|index| (index % CLASSES.len()) as u8).collect();
    ImageSet::new(ImageShape::RGB_32, pixels, labels, labels::owned(&CLASSES))
}

/// Draws one image: clutter, the shape, a stroke across it, noise over all.
///
/// Every thing has a colour of its own, lighter or darker than the background in each channel, so that no pixel and no
/// colour tells a class. The numbers are set so that the smallest network of this workspace reaches about nine tenths
/// from 20,000 images while a person can still name nearly every shape.
fn draw_image(class: usize, rng: &mut StreamRng, image: &mut [u8]) {
    let mut canvas = Canvas::shaded(rng);
    for _ in 0..4 {
        canvas.paint(&Speck::draw(rng));
    }
    for _ in 0..2 {
        canvas.paint(&Stroke::somewhere(rng));
    }
    let shape = Shape::draw(class, canvas.background, rng);
    canvas.paint(&shape);
    canvas.paint(&Stroke::across(&shape, rng));
    let deviation = uniform(rng, 4.0, 18.0);
    canvas.finish(deviation, rng, image);
}

/// An image while it is drawn, in numbers that are not yet rounded.
struct Canvas {
    pixels: Vec<[f64; 3]>,
    /// The colour in the middle.
    background: [f64; 3],
}

/// Something with an outline and one colour.
trait Thing {
    fn color(&self) -> [f64; 3];

    /// A point, and the distance from it, in pixels, beyond which nothing of the thing lies.
    fn extent(&self) -> ([f64; 2], f64);

    /// How far a point lies outside it, in pixels; negative inside.
    fn distance(&self, x: f64, y: f64) -> f64;
}

impl Canvas {
    /// A background that grows lighter in some direction, on one side of a line in another tone.
    fn shaded(rng: &mut StreamRng) -> Self {
        let background = [(); 3].map(|()| uniform(rng, 70.0, 185.0));
        let slope = [uniform(rng, -1.5, 1.5), uniform(rng, -1.5, 1.5)];
        let tone = [(); 3].map(|()| uniform(rng, -22.0, 22.0));
        let line = [uniform(rng, -1.0, 1.0), uniform(rng, -1.0, 1.0), uniform(rng, -8.0, 8.0)];
        let norm = length(line[0], line[1]).max(0.1);
        let mut pixels = vec![[0.0; 3]; SIDE * SIDE];
        for (index, pixel) in pixels.iter_mut().enumerate() {
            let (x, y) = ((index % SIDE) as f64 - 15.5, (index / SIDE) as f64 - 15.5);
            let shade = slope[0] * x + slope[1] * y;
            let beyond = (0.5 + (line[0] * x + line[1] * y) / norm - line[2]).clamp(0.0, 1.0);
            *pixel = [0, 1, 2].map(|channel| background[channel] + shade + beyond * tone[channel]);
        }
        Self { pixels, background }
    }

    /// Paints a thing, with smooth edges, over what is there.
    fn paint(&mut self, thing: &impl Thing) {
        let ([x, y], reach) = thing.extent();
        let bounds = |center: f64| {
            let low = (center - reach - 1.0).clamp(0.0, SIDE as f64) as usize;
            low..((center + reach + 2.0).clamp(0.0, SIDE as f64) as usize).max(low)
        };
        let color = thing.color();
        for row in bounds(y) {
            for column in bounds(x) {
                let cover = (0.5 - thing.distance(column as f64, row as f64)).clamp(0.0, 1.0);
                let pixel = &mut self.pixels[row * SIDE + column];
                for channel in 0..3 {
                    pixel[channel] += cover * (color[channel] - pixel[channel]);
                }
            }
        }
    }

    /// Adds noise of a standard deviation and rounds.
    fn finish(&self, deviation: f64, rng: &mut StreamRng, image: &mut [u8]) {
        for (pixel, rounded) in self.pixels.iter().zip(image.chunks_exact_mut(3)) {
            let noise = noise(rng);
            for (channel, rounded) in rounded.iter_mut().enumerate() {
                *rounded = (pixel[channel] + deviation * noise[channel]).clamp(0.0, 255.0) as u8;
            }
        }
    }
}

/// No shape of radius 1 reaches as far.
const REACH: f64 = 1.3;

/// What the label is about.
struct Shape {
    class: usize,
    center: [f64; 2],
    radius: f64,
    /// Cosine and sine of its turn.
    turn: [f64; 2],
    color: [f64; 3],
}

impl Shape {
    /// A shape of any size, anywhere, turned by any angle, more or less unlike the background.
    fn draw(class: usize, background: [f64; 3], rng: &mut StreamRng) -> Self {
        let radius = uniform(rng, 6.0, 11.5);
        // The image's border may cut off the tip of a corner.
        let center = [(); 2].map(|()| uniform(rng, 0.95 * radius, 31.0 - 0.95 * radius));
        let half_tangent = uniform(rng, -1.0, 1.0);
        let norm = sign(rng) * (1.0 + half_tangent * half_tangent);
        let turn = [(1.0 - half_tangent * half_tangent) / norm, 2.0 * half_tangent / norm];
        let color = background.map(|value| value + sign(rng) * uniform(rng, 30.0, 85.0));
        Self { class, center, radius, turn, color }
    }
}

impl Thing for Shape {
    fn color(&self) -> [f64; 3] {
        self.color
    }

    fn extent(&self) -> ([f64; 2], f64) {
        (self.center, REACH * self.radius)
    }

    fn distance(&self, x: f64, y: f64) -> f64 {
        let (dx, dy) = ((x - self.center[0]) / self.radius, (y - self.center[1]) / self.radius);
        let [cosine, sine] = self.turn;
        distance(self.class, cosine * dx + sine * dy, cosine * dy - sine * dx) * self.radius
    }
}

/// A small disk of any colour, somewhere.
struct Speck {
    center: [f64; 2],
    radius: f64,
    color: [f64; 3],
}

impl Speck {
    fn draw(rng: &mut StreamRng) -> Self {
        Self {
            center: [(); 2].map(|()| uniform(rng, 0.0, 31.0)),
            radius: uniform(rng, 0.8, 2.6),
            color: any_color(rng),
        }
    }
}

impl Thing for Speck {
    fn color(&self) -> [f64; 3] {
        self.color
    }

    fn extent(&self) -> ([f64; 2], f64) {
        (self.center, self.radius)
    }

    fn distance(&self, x: f64, y: f64) -> f64 {
        length(x - self.center[0], y - self.center[1]) - self.radius
    }
}

/// A straight stroke of any colour.
struct Stroke {
    center: [f64; 2],
    /// Cosine and sine of its direction.
    direction: [f64; 2],
    half_length: f64,
    half_width: f64,
    color: [f64; 3],
}

impl Stroke {
    /// A short stroke.
    fn somewhere(rng: &mut StreamRng) -> Self {
        let center = [(); 2].map(|()| uniform(rng, 0.0, 31.0));
        Self::at(center, [3.0, 9.0], [0.5, 1.3], rng)
    }

    /// A longer stroke that hides a part of a shape.
    fn across(shape: &Shape, rng: &mut StreamRng) -> Self {
        let center = shape.center.map(|center| center + shape.radius * uniform(rng, -0.7, 0.7));
        Self::at(center, [6.0, 14.0], [0.6, 1.7], rng)
    }

    fn at(center: [f64; 2], half_lengths: [f64; 2], half_widths: [f64; 2], rng: &mut StreamRng) -> Self {
        let half_tangent = uniform(rng, -1.0, 1.0);
        let norm = 1.0 + half_tangent * half_tangent;
        Self {
            center,
            direction: [(1.0 - half_tangent * half_tangent) / norm, 2.0 * half_tangent / norm],
            half_length: uniform(rng, half_lengths[0], half_lengths[1]),
            half_width: uniform(rng, half_widths[0], half_widths[1]),
            color: any_color(rng),
        }
    }
}

impl Thing for Stroke {
    fn color(&self) -> [f64; 3] {
        self.color
    }

    fn extent(&self) -> ([f64; 2], f64) {
        (self.center, self.half_length + self.half_width)
    }

    fn distance(&self, x: f64, y: f64) -> f64 {
        let (dx, dy) = (x - self.center[0], y - self.center[1]);
        let [cosine, sine] = self.direction;
        let (along, across) = (cosine * dx + sine * dy, cosine * dy - sine * dx);
        (along.abs() - self.half_length).max(across.abs() - self.half_width)
    }
}

fn any_color(rng: &mut StreamRng) -> [f64; 3] {
    [(); 3].map(|()| uniform(rng, 25.0, 230.0))
}

/// 1 or -1.
fn sign(rng: &mut StreamRng) -> f64 {
    if rng.next_u32().is_multiple_of(2) { 1.0 } else { -1.0 }
}

/// How far the point (u, v) lies outside a shape of radius about 1, negative inside; v grows downwards.
fn distance(class: usize, u: f64, v: f64) -> f64 {
    match class {
        0 => length(u, v) - 0.85,
        1 => (length(u, v) - 0.72).abs() - 0.2,
        2 => u.abs().max(v.abs()) - 0.76,
        3 => (u.abs().max(v.abs()) - 0.68).abs() - 0.18,
        // Three edges; their outward normals stand at 90, 210 and 330 degrees.
        4 => v.max(0.866_025_4 * u.abs() - 0.5 * v) - 0.52,
        5 => bar(u, v).min(bar(v, u)),
        // A pentagram is where at most one of five edges has the point outside: the second largest distance counts.
        6 => {
            let mut edges = PENTAGON.map(|[x, y]| x * u + y * v);
            edges.sort_by(f64::total_cmp);
            edges[3] - 0.36
        }
        7 => (length(u, v) - 0.95).max(0.72 - length(u - 0.42, v)),
        8 => (u.abs() - 0.9).max((v.abs() - 0.62).abs().min(v.abs()) - 0.16),
        9 => length(u.abs() - 0.5, v.abs() - 0.5) - 0.34,
        _ => unreachable!("shapes has ten classes"),
    }
}

/// Directions at 90, 162, 234, 306 and 18 degrees.
const PENTAGON: [[f64; 2]; 5] = [
    [0.0, 1.0],
    [-0.951_056_516_295_153_5, 0.309_016_994_374_947_4],
    [-0.587_785_252_292_473_1, -0.809_016_994_374_947_5],
    [0.587_785_252_292_473_1, -0.809_016_994_374_947_5],
    [0.951_056_516_295_153_5, 0.309_016_994_374_947_4],
];

fn bar(along: f64, across: f64) -> f64 {
    (along.abs() - 0.95).max(across.abs() - 0.27)
}

fn length(x: f64, y: f64) -> f64 {
    (x * x + y * y).sqrt()
}

/// A number in [low, high).
fn uniform(rng: &mut StreamRng, low: f64, high: f64) -> f64 {
    low + (high - low) * (f64::from(rng.next_u32()) / 4_294_967_296.0)
}

/// Three nearly normal numbers of standard deviation 1: each the sum of four uniform ones of 5 bits, rescaled.
fn noise(rng: &mut StreamRng) -> [f64; 3] {
    let mut bits = rng.next_u64();
    [(); 3].map(|()| {
        let mut sum = 0;
        for _ in 0..4 {
            sum += bits & 31;
            bits >>= 5;
        }
        // Mean 4 * 15.5, variance 4 * (32 * 32 - 1) / 12 = 341 = 18.466^2.
        (sum as f64 - 62.0) / 18.466
    })
}

#[cfg(test)]
mod tests {
    use rand::seq::SliceRandom;

    use super::*;

    fn shapes(train: usize, test: usize, seed: u64) -> (ImageSet, ImageSet) {
        draw(&ShapesConfig { train, test, seed }).unwrap()
    }

    #[test]
    fn images_are_the_same_on_every_machine() {
        // Taken from this code; results on `shapes` rest on these bytes.
        let (train, test) = shapes(100, 20, 0);
        assert_eq!(train.fingerprint(), "4c98f7973da3ff1fc5fc50933f3f2fbdff97b722045c1d07ab64bbdf128c5eff");
        assert_eq!(test.fingerprint(), "a8f2487128c738f25ddd682fa3162bb299554419a3ae41c953d33bfff0f05c80");
    }

    #[test]
    fn a_smaller_set_is_the_beginning_of_a_larger() {
        let (large, _) = shapes(40, 10, 5);
        let (small, _) = shapes(25, 10, 5);
        assert_eq!(small.all_pixels(), &large.all_pixels()[..small.all_pixels().len()]);
        assert_ne!(shapes(10, 10, 6).0.all_pixels(), shapes(10, 10, 5).0.all_pixels());
    }

    #[test]
    fn classes_are_balanced_and_splits_share_no_image() {
        let (train, test) = shapes(200, 50, 0);
        assert_eq!(train.class_counts(), [20; 10]);
        assert_eq!(test.class_counts(), [5; 10]);
        for index in 0..test.len() {
            assert!((0..train.len()).all(|other| train.pixels(other) != test.pixels(index)));
        }
    }

    /// Softmax regression on the pixels, trained by plain gradient descent; returns training and test accuracy.
    fn train_linear_classifier(train: &ImageSet, test: &ImageSet, epochs: usize) -> [f64; 2] {
        const BATCH: usize = 50;
        let floats = |set: &ImageSet| -> Vec<f32> {
            set.all_pixels().iter().map(|&pixel| f32::from(pixel) / 255.0 - 0.5).collect()
        };
        let (inputs, test_inputs) = (floats(train), floats(test));
        let size = train.shape().size();
        let mut weights = vec![vec![0.0_f32; size + 1]; CLASSES.len()];
        let scores = |weights: &[Vec<f32>], input: &[f32]| -> Vec<f32> {
            weights.iter().map(|w| w[size] + w.iter().zip(input).map(|(w, x)| w * x).sum::<f32>()).collect()
        };
        let accuracy = |weights: &[Vec<f32>], set: &ImageSet, inputs: &[f32]| {
            let right = inputs.par_chunks(size).zip(set.labels()).filter(|(input, label)| {
                let scores = scores(weights, input);
                scores.iter().all(|&score| score <= scores[usize::from(**label)])
            });
            right.count() as f64 / set.len() as f64
        };
        let mut order: Vec<usize> = (0..train.len()).collect();
        let mut rng = stream(0, "linear");
        for epoch in 0..epochs {
            order.shuffle(&mut rng);
            let learning_rate = 0.02 / (1.0 + epoch as f32 / 4.0) / BATCH as f32;
            for batch in order.chunks(BATCH) {
                // Softmax minus one-hot label, for each image of the batch.
                let errors: Vec<Vec<f32>> = batch
                    .par_iter()
                    .map(|&index| {
                        let scores = scores(&weights, &inputs[index * size..(index + 1) * size]);
                        let largest = scores.iter().copied().fold(f32::MIN, f32::max);
                        let mut errors: Vec<f32> = scores.iter().map(|score| (score - largest).exp()).collect();
                        let sum: f32 = errors.iter().sum();
                        for error in &mut errors {
                            *error /= sum;
                        }
                        errors[usize::from(train.label(index))] -= 1.0;
                        errors
                    })
                    .collect();
                weights.par_iter_mut().enumerate().for_each(|(class, weights)| {
                    for (&index, errors) in batch.iter().zip(&errors) {
                        let step = learning_rate * errors[class];
                        for (weight, input) in weights.iter_mut().zip(&inputs[index * size..(index + 1) * size]) {
                            *weight -= step * input;
                        }
                        weights[size] -= step;
                    }
                });
            }
        }
        [accuracy(&weights, train, &inputs), accuracy(&weights, test, &test_inputs)]
    }

    #[test]
    fn a_linear_classifier_fails_on_shapes() {
        // After 60 epochs it is right about 11 % of the test images, with 20,000 to learn from about 12 %.
        let (train, test) = shapes(4000, 1000, 0);
        let [train_accuracy, test_accuracy] = train_linear_classifier(&train, &test, 10);
        // It learns something (chance is 0.1) and stays far below the 0.9 of a small network.
        assert!(train_accuracy > 0.2, "training accuracy {train_accuracy}: the classifier does not train");
        assert!(test_accuracy < 0.3, "test accuracy {test_accuracy}");
        assert!(test_accuracy > 0.05, "test accuracy {test_accuracy}");
    }

    #[test]
    fn threads_change_no_image() {
        let on = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| shapes(60, 20, 3).0.fingerprint())
        };
        assert_eq!(on(1), on(5));
    }

    fn ends_at_its_extent(thing: &impl Thing) {
        let ([x, y], reach) = thing.extent();
        for degree in 0..360 {
            let (sine, cosine) = f64::from(degree).to_radians().sin_cos();
            // Paint is laid to a pixel beyond the extent, and covers half a pixel beyond the edge.
            let outside = thing.distance(x + (reach + 1.0) * cosine, y + (reach + 1.0) * sine);
            assert!(outside > 0.5, "{outside} at {degree} degrees");
        }
    }

    #[test]
    fn things_end_where_their_extent_says() {
        let rng = &mut stream(0, "extent");
        let shapes = (0..CLASSES.len()).map(|class| Shape::draw(class, [128.0; 3], rng)).collect::<Vec<_>>();
        let specks = [(); 20].map(|()| Speck::draw(rng));
        let strokes = [(); 20].map(|()| Stroke::across(&shapes[0], rng));
        shapes.iter().for_each(ends_at_its_extent);
        specks.iter().for_each(ends_at_its_extent);
        strokes.iter().for_each(ends_at_its_extent);
    }

    #[test]
    fn the_same_linear_classifier_learns_an_easy_set() {
        // The check of the check: shapes that are always lighter, at one place and of one size, are separable.
        let paint = |set: &ImageSet| {
            let mut easy = set.clone();
            for (index, image) in easy.pixels.chunks_exact_mut(set.shape().size()).enumerate() {
                for (at, pixel) in image.iter_mut().enumerate() {
                    let (x, y) = ((at / 3 % SIDE) as f64, (at / 3 / SIDE) as f64);
                    let inside = distance(index % CLASSES.len(), (x - 15.5) / 10.0, (y - 15.5) / 10.0) < 0.0;
                    *pixel = if inside { 200 } else { *pixel / 2 };
                }
            }
            easy
        };
        let (train, test) = shapes(300, 100, 0);
        let [_, test_accuracy] = train_linear_classifier(&paint(&train), &paint(&test), 6);
        assert!(test_accuracy > 0.95, "test accuracy {test_accuracy}");
    }
}
