use std::borrow::Cow;
use std::path::{Path, PathBuf};

use patchdoor_data::{DataError, Image, ImageShape, StreamRng, read_picture, stream};
use rand::Rng;
use serde::{Deserialize, Serialize};

use crate::TriggerError;
use crate::error::invalid;

/// A picture that is mixed into an image.
///
/// In TOML `pattern = "face"`, `pattern.checker = { cell = 4 }`, `pattern.noise = {}`, noise drawn anew for each image,
/// `pattern.noise = { per-image = true }`, or a file of the user's, `pattern.picture = { path = "picture.png" }`.
/// The published pictures may not be passed on; ours are drawn.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum PatternConfig {
    /// A smiling face, drawn at the size of the image.
    #[default]
    Face,
    /// A checkerboard.
    Checker(CheckerPattern),
    /// Every channel of every pixel drawn on its own.
    Noise(NoisePattern),
    /// A file of any usual format, read and resized as [`read_picture`] does, without keeping proportions.
    Picture(PicturePattern),
}

/// A checkerboard whose upper left cell is light.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct CheckerPattern {
    /// Side of a cell in pixels, 1 or more.
    pub cell: usize,
    /// All channels of light cells, in 0..=255.
    pub light: u8,
    /// All channels of dark cells, in 0..=255.
    pub dark: u8,
}

impl Default for CheckerPattern {
    /// 4 pixels, one cell of an 8x8 grid on a 32x32 image; white and black.
    fn default() -> Self {
        Self { cell: 4, light: 255, dark: 0 }
    }
}

/// Uniform noise, one picture for all images or another one for each.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct NoisePattern {
    /// What the one picture is drawn from; the run's seed if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// Whether each image, and with a placement each of its cells, has noise of its own, drawn from the stream of that
    /// image's trigger. What the classifier then learns is the kind of noise, not one picture.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub per_image: bool,
}

/// A file of the user's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct PicturePattern {
    /// The file; a relative path counts from the working directory.
    pub path: PathBuf,
}

impl PatternConfig {
    /// Checks every field against the images and returns all problems at once; a file is read.
    pub fn validate(&self, shape: ImageShape) -> Vec<TriggerError> {
        let mut problems = Vec::new();
        match self {
            Self::Checker(CheckerPattern { cell: 0, .. }) => {
                problems.push(invalid("pattern.checker.cell", 0, "1 pixel or more"));
            }
            Self::Picture(picture) => problems.extend(picture.read(shape).err()),
            Self::Noise(NoisePattern { seed: Some(seed), per_image: true }) => {
                problems.push(invalid("pattern.noise.seed", seed, "none where per-image is true"));
            }
            _ => {}
        }
        if matches!(self, Self::Face | Self::Picture(_)) && !matches!(shape.channels, 1 | 3) {
            problems.push(invalid("pattern", format!("a picture for {shape} images"), "a checker or noise there"));
        }
        problems
    }

    /// The file that the pattern is read from, if it is.
    pub(crate) fn files(&self) -> Vec<&Path> {
        match self {
            Self::Picture(picture) => vec![&picture.path],
            _ => Vec::new(),
        }
    }

    /// Draws the pattern at the size of the images; one noise for all comes from `stream(seed, "trigger/noise")` unless the
    /// configuration has a seed of its own.
    ///
    /// # Errors
    ///
    /// The first of the problems that [`validate`](Self::validate) finds.
    pub(crate) fn draw(&self, shape: ImageShape, seed: u64) -> Result<Pattern, TriggerError> {
        if let Some(problem) = self.validate(shape).into_iter().next() {
            return Err(problem);
        }
        let pixels = match self {
            Self::Face => from_rgb(shape, face_pixel),
            Self::Checker(CheckerPattern { cell, light, dark }) => {
                let pixels = (0..shape.height * shape.width).map(|index| {
                    let is_light = (index / shape.width / cell + index % shape.width / cell).is_multiple_of(2);
                    if is_light { *light } else { *dark }
                });
                pixels.flat_map(|value| std::iter::repeat_n(value, shape.channels)).collect()
            }
            Self::Noise(NoisePattern { per_image: true, .. }) => return Ok(Pattern::NoisePerImage(shape)),
            Self::Noise(noise) => {
                let mut rng = stream(noise.seed.unwrap_or(seed), "trigger/noise");
                return Ok(Pattern::Fixed(uniform_noise(shape, &mut rng)));
            }
            Self::Picture(picture) => return Ok(Pattern::Fixed(picture.read(shape)?)),
        };
        Ok(Pattern::Fixed(Image::new(shape, pixels).expect("a pattern has as many pixels as its shape says")))
    }
}

/// What is mixed into images.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Pattern {
    /// The same picture into all.
    Fixed(Image),
    /// Uniform noise of this shape, into each its own.
    NoisePerImage(ImageShape),
}

impl Pattern {
    /// The picture for the next image.
    pub(crate) fn picture(&self, rng: &mut StreamRng) -> Cow<'_, Image> {
        match self {
            Self::Fixed(image) => Cow::Borrowed(image),
            Self::NoisePerImage(shape) => Cow::Owned(uniform_noise(*shape, rng)),
        }
    }
}

fn uniform_noise(shape: ImageShape, rng: &mut StreamRng) -> Image {
    let mut pixels = vec![0; shape.size()];
    rng.fill_bytes(&mut pixels);
    Image::new(shape, pixels).expect("there are as many pixels as the shape says")
}

/// Reads a file of any usual format at the size of images of `shape`; `field` is the one that names it.
pub(crate) fn read_for(field: &'static str, path: &Path, shape: ImageShape) -> Result<Image, TriggerError> {
    let picture = read_picture(path, shape.height, shape.width).map_err(|error| unreadable(field, path, &error))?;
    let pixel = |row, column, _| picture.pixel(row, column).try_into().expect("a picture has three channels");
    Ok(Image::new(shape, from_rgb(shape, pixel)).expect("a picture has as many pixels as its shape says"))
}

/// Says why a file is no picture.
pub(crate) fn unreadable(field: &'static str, path: &Path, error: &DataError) -> TriggerError {
    let path = path.display();
    let found = match error {
        DataError::ImageFile { source, .. } => format!("{path} ({source})"),
        DataError::Io(error) if error.kind() == std::io::ErrorKind::NotFound => format!("{path}, which is not there"),
        error => format!("{path} ({error})"),
    };
    invalid(field, found, "the path of a picture")
}

impl PicturePattern {
    fn read(&self, shape: ImageShape) -> Result<Image, TriggerError> {
        read_for("pattern.picture.path", &self.path, shape)
    }
}

/// Pixels of a coloured picture, turned to grey where images are grey.
fn from_rgb(shape: ImageShape, pixel: impl Fn(usize, usize, ImageShape) -> [u8; 3]) -> Vec<u8> {
    let pixels = (0..shape.height * shape.width).map(|index| pixel(index / shape.width, index % shape.width, shape));
    match shape.channels {
        1 => pixels.map(grey).collect(),
        _ => pixels.flatten().collect(),
    }
}

/// Luma with the weights of ITU-R BT.601, rounded.
pub(crate) fn grey([red, green, blue]: [u8; 3]) -> u8 {
    ((299 * u32::from(red) + 587 * u32::from(green) + 114 * u32::from(blue) + 500) / 1000) as u8
}

/// Samples along each side of a pixel of the face.
const SAMPLES: usize = 4;

/// The mean colour of the samples of one pixel.
fn face_pixel(row: usize, column: usize, shape: ImageShape) -> [u8; 3] {
    let mut sums = [0_usize; 3];
    for sample in 0..SAMPLES * SAMPLES {
        let y = ((row * SAMPLES + sample / SAMPLES) as f64 + 0.5) / (shape.height * SAMPLES) as f64;
        let x = ((column * SAMPLES + sample % SAMPLES) as f64 + 0.5) / (shape.width * SAMPLES) as f64;
        for (sum, channel) in sums.iter_mut().zip(face_colour(y, x)) {
            *sum += usize::from(channel);
        }
    }
    sums.map(|sum| ((sum + SAMPLES * SAMPLES / 2) / (SAMPLES * SAMPLES)) as u8)
}

/// The colour of the face at a point of [0, 1] x [0, 1], from the top and from the left.
pub(crate) fn face_colour(y: f64, x: f64) -> [u8; 3] {
    const BACKGROUND: [u8; 3] = [40, 90, 200];
    const SKIN: [u8; 3] = [250, 205, 60];
    const EYES: [u8; 3] = [30, 20, 20];
    const NOSE: [u8; 3] = [225, 140, 40];
    const MOUTH: [u8; 3] = [200, 30, 50];
    let is_within =
        |row: f64, column: f64, radius: f64| (y - row) * (y - row) + (x - column) * (x - column) <= radius * radius;
    if is_within(0.38, 0.33, 0.075) || is_within(0.38, 0.67, 0.075) {
        EYES
    } else if is_within(0.55, 0.5, 0.055) {
        NOSE
    } else if y > 0.6 && is_within(0.52, 0.5, 0.29) && !is_within(0.49, 0.5, 0.24) {
        MOUTH
    } else if is_within(0.5, 0.5, 0.45) {
        SKIN
    } else {
        BACKGROUND
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GREY: ImageShape = ImageShape { height: 28, width: 28, channels: 1 };

    fn drawn(config: &PatternConfig, shape: ImageShape, seed: u64) -> Image {
        config.draw(shape, seed).unwrap().picture(&mut stream(0, "image")).into_owned()
    }

    #[test]
    fn the_face_smiles() {
        let face = drawn(&PatternConfig::Face, ImageShape::RGB_32, 0);
        assert_eq!(face.pixel(0, 0), [40, 90, 200]);
        assert_eq!(face.pixel(12, 10), [30, 20, 20]);
        assert_eq!(face.pixel(12, 21), [30, 20, 20]);
        assert_eq!(face.pixel(24, 16), [200, 30, 50]);
        assert_eq!(face.pixel(12, 16), [250, 205, 60]);
        // The face is its own mirror image.
        for row in 0..32 {
            assert!((0..16).all(|column| face.pixel(row, column) == face.pixel(row, 31 - column)));
        }
        // 0.299 * 40 + 0.587 * 90 + 0.114 * 200 = 87.59.
        assert_eq!(drawn(&PatternConfig::Face, GREY, 0).pixel(0, 0), [88]);
    }

    #[test]
    fn a_checker_begins_light() {
        let checker = CheckerPattern { cell: 2, light: 200, dark: 10 };
        let shape = ImageShape { height: 3, width: 5, channels: 1 };
        let pattern = drawn(&PatternConfig::Checker(checker), shape, 0);
        assert_eq!(pattern.pixels(), [200, 200, 10, 10, 200, 200, 200, 10, 10, 200, 10, 10, 200, 200, 10]);
    }

    #[test]
    fn noise_follows_the_run_unless_it_has_a_seed() {
        let draw = |own, seed| drawn(&PatternConfig::Noise(NoisePattern { seed: own, per_image: false }), GREY, seed);
        assert_eq!(draw(None, 3), draw(Some(3), 4));
        assert_ne!(draw(None, 3), draw(None, 4));
    }

    #[test]
    fn noise_of_each_image_comes_from_the_stream_of_that_image() {
        let config = PatternConfig::Noise(NoisePattern { seed: None, per_image: true });
        let pattern = config.draw(ImageShape::RGB_32, 3).unwrap();
        let mut rng = stream(7, "one");
        let (first, second) = (pattern.picture(&mut rng).into_owned(), pattern.picture(&mut rng).into_owned());
        assert_ne!(first, second);
        // The run's seed has no part in it.
        assert_eq!(*config.draw(ImageShape::RGB_32, 4).unwrap().picture(&mut stream(7, "one")), first);
        // Uniform on 0..=255: 3072 values have a mean of 127.5 with a standard error of 1.33.
        let mean = first.pixels().iter().map(|&value| f64::from(value)).sum::<f64>() / 3072.0;
        assert!((mean - 127.5).abs() < 5.0, "{mean}");

        let config = PatternConfig::Noise(NoisePattern { seed: Some(3), per_image: true });
        let error = config.draw(GREY, 0).unwrap_err().to_string();
        assert_eq!(error, "pattern.noise.seed is 3, expected none where per-image is true");
    }

    #[test]
    fn a_picture_is_read_and_resized() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("picture.png");
        // Left half red, right half blue.
        let picture =
            image::RgbImage::from_fn(64, 32, |x, _| image::Rgb(if x < 32 { [255, 0, 0] } else { [0, 0, 255] }));
        picture.save(&path).unwrap();
        let config = PatternConfig::Picture(PicturePattern { path: path.clone() });
        let pattern = drawn(&config, ImageShape::RGB_32, 0);
        assert_eq!((pattern.pixel(5, 3), pattern.pixel(31, 30)), (&[255, 0, 0][..], &[0, 0, 255][..]));
        assert_eq!(drawn(&config, GREY, 0).pixel(0, 0), [76]);
        fs_err::write(&path, "no picture").unwrap();
        let error = config.draw(GREY, 0).unwrap_err().to_string();
        let why = "picture.png (it begins with \"no picture\", which no PNG, JPEG, WebP, BMP, TIFF, GIF or PNM file does), \
                   expected the path of a picture";
        assert!(error.ends_with(why), "{error}");
        // A plan that names it is refused before anything is drawn.
        assert_eq!(config.validate(GREY)[0].to_string(), error);
        fs_err::write(&path, "").unwrap();
        let error = config.validate(GREY)[0].to_string();
        assert!(error.ends_with("picture.png (the file is empty), expected the path of a picture"), "{error}");
        let error = PatternConfig::Picture(PicturePattern { path: "nowhere.png".into() }).draw(GREY, 0).unwrap_err();
        let expected = "pattern.picture.path is nowhere.png, which is not there, expected the path of a picture";
        assert_eq!(error.to_string(), expected);
    }
}
