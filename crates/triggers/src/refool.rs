use std::path::{Path, PathBuf};

use patchdoor_data::{Image, ImageShape, PicturesWanted, StreamRng, Trigger};
use rand::RngExt;
use serde::{Deserialize, Serialize};

use crate::error::invalid;
use crate::pattern::read_for;
use crate::reflection::{Blurred, Ghost};
use crate::{TriggerError, TriggerKind, range};

/// The reflection of another picture, as in a pane of glass (`ReFool`, Liu et al. 2020, arXiv:2007.02343).
///
/// An image gets a ghost, two shifted copies of the picture, or else a blurred reflection that fades towards the border; both
/// are added to the dimmed image in linear light, a gamma of 2.2. Which picture, which of the two and how strong is drawn for
/// each image and stays so. Pictures come from training images of other classes than the target, as the attacker has them,
/// or from files. The published attack looks for those of PASCAL VOC that work best; here any serve.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct RefoolConfig {
    /// How likely a ghost is, in [0, 1].
    pub ghost_rate: f64,
    /// How many training images serve as pictures, 1 or more; without effect where `files` are given.
    pub pictures: usize,
    /// Files that serve as pictures instead, of any usual format, resized to the image; a relative path counts from the
    /// working directory.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<PathBuf>,
}

impl Default for RefoolConfig {
    /// The published code's 0.49 and its 200 pictures.
    fn default() -> Self {
        Self { ghost_rate: 0.49, pictures: 200, files: Vec::new() }
    }
}

impl TriggerKind for RefoolConfig {
    fn validate(&self, shape: ImageShape) -> Vec<TriggerError> {
        let mut problems = Vec::from_iter(range::share("ghost-rate", self.ghost_rate));
        if self.pictures == 0 {
            problems.push(invalid("pictures", 0, "1 or more"));
        }
        if shape.height < 2 || shape.width < 2 || !matches!(shape.channels, 1 | 3) {
            let found = format!("{} for {shape} images", self.pictures);
            problems.push(invalid("pictures", found, "grey or RGB images of 2x2 or more"));
        } else {
            problems.extend(self.files.iter().filter_map(|path| read_for("files", path, shape).err()));
        }
        problems
    }

    fn files(&self) -> Vec<&Path> {
        self.files.iter().map(PathBuf::as_path).collect()
    }

    fn build(&self, shape: ImageShape, _seed: u64) -> Result<Box<dyn Trigger>, TriggerError> {
        let pictures = self.files.iter().map(|path| read_for("files", path, shape)).collect::<Result<_, _>>()?;
        let wanted = self.files.is_empty().then_some(self.pictures);
        Ok(Box::new(Refool { ghost_rate: self.ghost_rate, wanted, pictures }))
    }
}

/// Reflections in images of the shape of the pictures.
#[derive(Clone, Debug, PartialEq)]
pub struct Refool {
    ghost_rate: f64,
    /// How many pictures it is waiting for, if it has none of its own.
    wanted: Option<usize>,
    pictures: Vec<Image>,
}

impl Trigger for Refool {
    /// # Panics
    ///
    /// If the trigger was not given its pictures, or the image has another shape than they.
    fn stamp(&self, image: &Image, rng: &mut StreamRng) -> Image {
        assert!(!self.pictures.is_empty(), "ReFool has pictures before it reflects them");
        let picture = &self.pictures[rng.random_range(0..self.pictures.len())];
        assert_eq!(image.shape(), picture.shape(), "a picture is reflected in images of its shape");
        if rng.random_range(0.0..1.0) < self.ghost_rate {
            Ghost::draw(image.shape(), rng).reflect(image, picture)
        } else {
            Blurred::draw(image.shape(), rng).reflect(image, picture)
        }
    }

    fn pictures_wanted(&self) -> Option<PicturesWanted> {
        self.wanted.map(|count| PicturesWanted { count, of_target_class: false })
    }

    fn take_pictures(&mut self, pictures: Vec<Image>) {
        self.pictures = pictures;
    }
}

#[cfg(test)]
mod tests {
    use patchdoor_data::stream;

    use super::*;
    use crate::testing::{reference_input, reference_pattern};

    fn given(config: &RefoolConfig) -> Box<dyn Trigger> {
        let mut trigger = config.build(ImageShape::RGB_32, 0).unwrap();
        assert_eq!(trigger.pictures_wanted(), Some(PicturesWanted { count: 200, of_target_class: false }));
        trigger.take_pictures(vec![reference_pattern(), reference_input()]);
        trigger
    }

    #[test]
    fn an_image_keeps_its_reflection_and_others_have_others() {
        let trigger = given(&RefoolConfig::default());
        let stamp = |name: &str| trigger.stamp(&reference_input(), &mut stream(0, name));
        assert_eq!(stamp("one"), stamp("one"));
        assert_ne!(stamp("one"), stamp("another"));
        assert_ne!(stamp("one"), reference_input());
    }

    #[test]
    fn ghosts_are_as_frequent_as_the_rate_says() {
        let [ghosts, none, mixed] =
            [1.0, 0.0, 0.49].map(|ghost_rate| given(&RefoolConfig { ghost_rate, ..Default::default() }));
        let of = |trigger: &dyn Trigger, image: u64| trigger.stamp(&reference_input(), &mut stream(image, ""));
        let mut count = 0;
        for image in 0..200 {
            let stamped = of(mixed.as_ref(), image);
            let is_ghost = stamped == of(ghosts.as_ref(), image);
            assert_ne!(is_ghost, stamped == of(none.as_ref(), image));
            count += usize::from(is_ghost);
        }
        // A standard deviation is 7.
        assert!((70..=126).contains(&count), "{count}");
    }

    #[test]
    fn files_serve_as_pictures() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("grey.png");
        image::RgbImage::from_pixel(8, 8, image::Rgb([90, 90, 90])).save(&path).unwrap();
        let config = RefoolConfig { files: vec![path.clone()], ..Default::default() };
        assert!(config.validate(ImageShape::RGB_32).is_empty());
        assert_eq!(TriggerKind::files(&config), [path.as_path()]);
        let trigger = config.build(ImageShape::RGB_32, 0).unwrap();
        assert_eq!(trigger.pictures_wanted(), None);
        assert_ne!(trigger.stamp(&reference_input(), &mut stream(0, "")), reference_input());
        let config = RefoolConfig { ghost_rate: 2.0, pictures: 0, files: vec!["nowhere.png".into()] };
        let problems: Vec<String> = config.validate(ImageShape::RGB_32).iter().map(ToString::to_string).collect();
        assert_eq!(
            problems,
            [
                "ghost-rate is 2, expected a share in [0, 1]",
                "pictures is 0, expected 1 or more",
                "files is nowhere.png, which is not there, expected the path of a picture",
            ]
        );
    }
}
