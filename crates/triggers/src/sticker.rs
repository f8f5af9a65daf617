use std::path::{Path, PathBuf};

use patchdoor_data::{Image, ImageShape, StreamRng, Trigger, read_with_alpha};
use rand::RngExt;
use serde::{Deserialize, Serialize};

use crate::cutout::{code_colour, face_cutout};
use crate::error::invalid;
use crate::pattern::{grey, unreadable};
use crate::{Anchor, TriggerError, TriggerKind, range};

/// A sticker that lies a little differently in every image, as one on a real thing would.
///
/// Each image has its own place, turn and size, drawn around those given. What of the sticker lies beyond the image is cut off;
/// borders are smoothed by 16 samples a pixel, and its transparency is kept. The trigger is ours; physical triggers are known
/// from Gu et al. (2017, arXiv:1708.06733), who put a paper square on a stop sign.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct StickerConfig {
    /// What is on it.
    pub picture: StickerPicture,
    /// Its longer side as a share of the image's shorter one, above 0 and up to 1.
    pub size: f64,
    /// Around which place it lies.
    pub anchor: Anchor,
    /// How far it may lie from there along each axis, as a share of the image's shorter side, in [0, 1].
    pub shift: f64,
    /// By how many degrees it may be turned either way, from 0 to 180.
    pub turn: f64,
    /// By which share it may be larger or smaller, from 0 to below 1.
    pub scaling: f64,
}

/// What is on a sticker.
///
/// In TOML `picture = "code"`, `"face"`, or a file of the user's, `picture.file = { path = "sticker.png" }`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum StickerPicture {
    /// A drawn two-dimensional code of 11 x 11 modules, which says nothing.
    #[default]
    Code,
    /// A drawn round face.
    Face,
    /// A file of any usual format, with its transparency.
    File(CutoutFile),
}

/// A file of the user's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct CutoutFile {
    /// The file; a relative path counts from the working directory.
    pub path: PathBuf,
}

impl Default for StickerConfig {
    /// A quarter of the side, near the lower right corner, as the squares of other toolkits; shift, turn and scaling are ours.
    fn default() -> Self {
        Self {
            picture: StickerPicture::default(),
            size: 0.25,
            anchor: Anchor::LowerRight,
            shift: 0.05,
            turn: 15.0,
            scaling: 0.1,
        }
    }
}

impl StickerConfig {
    /// Pixels of the longer side, before it is scaled.
    fn side(&self, shape: ImageShape) -> f64 {
        self.size * shape.height.min(shape.width) as f64
    }

    /// Where the middle lies, as rows and columns of pixels from the upper left corner, before it is shifted.
    fn middle(&self, shape: ImageShape) -> [f64; 2] {
        let side = self.side(shape);
        let whole = (side.ceil() as usize).min(shape.height.min(shape.width));
        let (row, column) = self.anchor.corner(shape.height, shape.width, whole);
        [row, column].map(|corner| corner as f64 + whole as f64 / 2.0)
    }
}

impl TriggerKind for StickerConfig {
    fn validate(&self, shape: ImageShape) -> Vec<TriggerError> {
        let mut problems = Vec::new();
        if !matches!(shape.channels, 1 | 3) {
            problems.push(invalid("picture", format!("a sticker for {shape} images"), "grey or RGB images"));
        }
        if let StickerPicture::File(CutoutFile { path }) = &self.picture {
            problems.extend(read_with_alpha(path).err().map(|error| unreadable("picture.file.path", path, &error)));
        }
        if !(self.size > 0.0 && self.size <= 1.0) {
            problems.push(invalid("size", self.size, "a share above 0 and up to 1"));
        }
        problems.extend(range::share("shift", self.shift));
        if !(0.0..=180.0).contains(&self.turn) {
            problems.push(invalid("turn", self.turn, "0 to 180 degrees"));
        }
        if !(0.0..1.0).contains(&self.scaling) {
            problems.push(invalid("scaling", self.scaling, "a share from 0 to below 1"));
        }
        problems
    }

    fn mask(&self, shape: ImageShape) -> Vec<bool> {
        let middle = self.middle(shape);
        let shift = self.shift * shape.height.min(shape.width) as f64;
        // Half a diagonal, and half a pixel's.
        let reach = self.side(shape) * (1.0 + self.scaling) * std::f64::consts::FRAC_1_SQRT_2 + 1.0;
        let is_near = |place: usize, axis: usize| (place as f64 + 0.5 - middle[axis]).abs() <= reach + shift;
        (0..shape.height * shape.width)
            .map(|index| is_near(index / shape.width, 0) && is_near(index % shape.width, 1))
            .collect()
    }

    fn files(&self) -> Vec<&Path> {
        match &self.picture {
            StickerPicture::File(file) => vec![&file.path],
            StickerPicture::Code | StickerPicture::Face => Vec::new(),
        }
    }

    fn build(&self, shape: ImageShape, _seed: u64) -> Result<Box<dyn Trigger>, TriggerError> {
        let cutout = match &self.picture {
            StickerPicture::Code => Cutout::Drawn(|y, x| Some(code_colour(y, x))),
            StickerPicture::Face => Cutout::Drawn(face_cutout),
            StickerPicture::File(CutoutFile { path }) => {
                Cutout::Read(read_with_alpha(path).map_err(|error| unreadable("picture.file.path", path, &error))?)
            }
        };
        let length = shape.height.min(shape.width) as f64;
        Ok(Box::new(Sticker {
            cutout,
            middle: self.middle(shape),
            side: self.side(shape),
            shift: self.shift * length,
            turn: self.turn.to_radians(),
            scaling: self.scaling,
        }))
    }
}

/// A picture with transparency.
#[derive(Clone, Debug)]
enum Cutout {
    /// The colour at a point of [0, 1] x [0, 1], from the top and from the left; `None` where it is transparent.
    Drawn(fn(f64, f64) -> Option<[u8; 3]>),
    /// Four channels, the last of which is opacity.
    Read(Image),
}

impl Cutout {
    /// Height and width; the longer is 1.
    fn extent(&self) -> [f64; 2] {
        match self {
            Self::Drawn(_) => [1.0, 1.0],
            Self::Read(image) => {
                let sides = [image.shape().height, image.shape().width].map(|side| side as f64);
                sides.map(|side| side / sides[0].max(sides[1]))
            }
        }
    }

    /// Colour and opacity in [0, 1] at a point of [0, 1) x [0, 1).
    fn at(&self, y: f64, x: f64) -> ([u8; 3], f64) {
        match self {
            Self::Drawn(colour) => colour(y, x).map_or(([0; 3], 0.0), |colour| (colour, 1.0)),
            Self::Read(image) => {
                let ImageShape { height, width, .. } = image.shape();
                let place = |share: f64, length: usize| ((share * length as f64) as usize).min(length - 1);
                let pixel = image.pixel(place(y, height), place(x, width));
                ([pixel[0], pixel[1], pixel[2]], f64::from(pixel[3]) / 255.0)
            }
        }
    }
}

/// A sticker ready for images of one size.
#[derive(Clone, Debug)]
pub struct Sticker {
    cutout: Cutout,
    /// Row and column of its middle before it is shifted.
    middle: [f64; 2],
    /// Pixels of its longer side before it is scaled.
    side: f64,
    /// In pixels.
    shift: f64,
    /// In radians.
    turn: f64,
    scaling: f64,
}

/// Samples along each side of a pixel.
const SAMPLES: usize = 4;

impl Sticker {
    /// Draws where a sticker lies in one image.
    fn lay(&self, rng: &mut StreamRng) -> Lying {
        let mut around = |most: f64| most * rng.random_range(-1.0..=1.0);
        let middle = self.middle.map(|place| place + around(self.shift));
        let (sine, cosine) = around(self.turn).sin_cos();
        let length = self.side * (1.0 + around(self.scaling));
        Lying { middle, sine, cosine, extent: self.cutout.extent().map(|extent| extent * length) }
    }
}

/// Where a sticker lies in one image.
#[derive(Clone, Copy, Debug)]
struct Lying {
    middle: [f64; 2],
    sine: f64,
    cosine: f64,
    /// Height and width in pixels.
    extent: [f64; 2],
}

impl Lying {
    /// The point of the sticker at a point of the image, if it lies there.
    fn point(&self, row: f64, column: f64) -> Option<[f64; 2]> {
        let [down, right] = [row - self.middle[0], column - self.middle[1]];
        let turned = [self.cosine * down - self.sine * right, self.sine * down + self.cosine * right];
        let point = [0, 1].map(|axis| turned[axis] / self.extent[axis] + 0.5);
        point.iter().all(|share| (0.0..1.0).contains(share)).then_some(point)
    }
}

impl Trigger for Sticker {
    fn stamp(&self, image: &Image, rng: &mut StreamRng) -> Image {
        let lying = self.lay(rng);
        let mut stamped = image.clone();
        let ImageShape { height, width, channels } = image.shape();
        for (row, column) in (0..height * width).map(|index| (index / width, index % width)) {
            let (mut opacity, mut sums) = (0.0, [0.0; 3]);
            for sample in 0..SAMPLES * SAMPLES {
                let of = |place: usize, sample: usize| place as f64 + (sample as f64 + 0.5) / SAMPLES as f64;
                let point = lying.point(of(row, sample / SAMPLES), of(column, sample % SAMPLES));
                let Some([y, x]) = point else { continue };
                let (colour, share) = self.cutout.at(y, x);
                let colour = if channels == 1 { [grey(colour); 3] } else { colour };
                opacity += share;
                for (sum, channel) in sums.iter_mut().zip(colour) {
                    *sum += share * f64::from(channel);
                }
            }
            let all = (SAMPLES * SAMPLES) as f64;
            for (value, sum) in stamped.pixel_mut(row, column).iter_mut().zip(sums) {
                *value = ((f64::from(*value) * (all - opacity) + sum) / all).round() as u8;
            }
        }
        stamped
    }
}

#[cfg(test)]
mod tests {
    use patchdoor_data::stream;

    use super::*;

    const SHAPE: ImageShape = ImageShape { height: 8, width: 8, channels: 3 };

    /// A sticker that lies still.
    fn still() -> StickerConfig {
        StickerConfig {
            size: 0.5,
            anchor: Anchor::UpperLeft,
            shift: 0.0,
            turn: 0.0,
            scaling: 0.0,
            ..Default::default()
        }
    }

    fn of_file(picture: &image::RgbaImage) -> (tempfile::TempDir, StickerPicture) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sticker.png");
        picture.save(&path).unwrap();
        (directory, StickerPicture::File(CutoutFile { path }))
    }

    fn grey_image() -> Image {
        Image::new(SHAPE, vec![100; SHAPE.size()]).unwrap()
    }

    #[test]
    fn a_still_sticker_is_its_picture_and_transparency_is_kept() {
        // Two pixels, an opaque red one and a blue one of opacity 51 / 255, a fifth: two by four pixels of the image, in the
        // middle of the four by four of its longer side.
        let picture = image::RgbaImage::from_fn(2, 1, |x, _| {
            image::Rgba(if x == 0 { [255, 0, 0, 255] } else { [0, 0, 200, 51] })
        });
        let (_directory, picture) = of_file(&picture);
        let trigger = StickerConfig { picture, ..still() }.build(SHAPE, 0).unwrap();
        let stamped = trigger.stamp(&grey_image(), &mut stream(0, ""));
        for (index, pixel) in stamped.pixels().chunks(3).enumerate() {
            // 0.8 of 100, and 40 more of blue.
            let expected = match (index / 8, index % 8) {
                (1 | 2, 0 | 1) => [255, 0, 0],
                (1 | 2, 2 | 3) => [80, 80, 120],
                _ => [100; 3],
            };
            assert_eq!(pixel, expected, "pixel {index}");
        }
    }

    #[test]
    fn a_turn_turns_the_picture() {
        let picture = image::RgbaImage::from_fn(2, 2, |x, y| image::Rgba([(10 + 100 * x + 50 * y) as u8, 0, 0, 255]));
        let (_directory, picture) = of_file(&picture);
        let config = StickerConfig { picture, turn: 180.0, ..still() };
        let trigger = config.build(SHAPE, 0).unwrap();
        let kinds = (0..50).map(|seed| trigger.stamp(&grey_image(), &mut stream(seed, "")).pixels().to_vec());
        let kinds = kinds.collect::<std::collections::BTreeSet<_>>();
        assert!(kinds.len() > 40, "every image has its own turn: {}", kinds.len());
        // A quarter turn: down and right from the middle are what was right and up.
        let lying = Lying { middle: [2.0, 2.0], sine: 1.0, cosine: 0.0, extent: [4.0, 4.0] };
        assert_eq!(lying.point(0.5, 0.5), Some([0.875, 0.125]));
        assert_eq!(lying.point(4.5, 0.5), None);
    }

    #[test]
    fn a_sticker_lies_differently_in_every_image_and_the_same_again() {
        let trigger = StickerConfig::default().build(ImageShape::RGB_32, 0).unwrap();
        let image = crate::testing::reference_input();
        let stamp = |name| trigger.stamp(&image, &mut stream(0, name));
        assert_eq!(stamp("one"), stamp("one"));
        assert_ne!(stamp("one"), stamp("another"));
    }

    #[test]
    fn all_problems_are_reported_at_once() {
        let picture = StickerPicture::File(CutoutFile { path: "nowhere.png".into() });
        let config = StickerConfig { picture, size: 0.0, shift: 2.0, turn: 200.0, scaling: 1.0, ..Default::default() };
        let problems: Vec<String> = config.validate(SHAPE).iter().map(ToString::to_string).collect();
        assert_eq!(
            problems,
            [
                "picture.file.path is nowhere.png, which is not there, expected the path of a picture",
                "size is 0, expected a share above 0 and up to 1",
                "shift is 2, expected a share in [0, 1]",
                "turn is 200, expected 0 to 180 degrees",
                "scaling is 1, expected a share from 0 to below 1",
            ]
        );
    }

    #[test]
    fn pictures_are_written_as_documented() {
        for (text, picture) in [
            ("picture = \"code\"", StickerPicture::Code),
            ("picture = \"face\"", StickerPicture::Face),
            ("picture.file = { path = \"a.png\" }", StickerPicture::File(CutoutFile { path: "a.png".into() })),
        ] {
            assert_eq!(toml::from_str::<StickerConfig>(text).unwrap(), StickerConfig { picture, ..Default::default() });
        }
    }
}
