use std::path::Path;

use patchdoor_data::{ImageShape, LabelRule, Trigger};
use serde::{Deserialize, Serialize};

use crate::error::invalid;
use crate::placement::{Placed, Placement};
use crate::registry::triggers;
use crate::{
    AdaptiveBlendConfig, AdaptivePatchConfig, ArtPatternConfig, BlendConfig, BppConfig, CtrlConfig, FtrojanConfig,
    PlacementConfig, RefoolConfig, SigConfig, SquareConfig, StickerConfig, TriggerError, TriggerKind, WanetConfig,
    WarpConfig,
};

triggers! {
    /// Which trigger an attacker uses; in TOML the table `[trigger.square]`, and so on.
    ///
    /// This list is all there is to registering a trigger: its names, defaults and tests follow from it.
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    #[non_exhaustive]
    pub enum TriggerConfig {
        /// A square that overwrites what it covers.
        Square(SquareConfig) = "square",
        /// A picture mixed into the image.
        Blend(BlendConfig) = "blend",
        /// A picture mixed into the image, in training some pieces of it.
        AdaptiveBlend(AdaptiveBlendConfig) = "adaptive-blend",
        /// Several patches, in training one at a time.
        AdaptivePatch(AdaptivePatchConfig) = "adaptive-patch",
        /// The pMoE authors' warp by whole pixels.
        Warp(WarpConfig) = "warp",
        /// `WaNet`'s warp, with noise-mode images.
        Wanet(WanetConfig) = "wanet",
        /// A sinusoid added to the image.
        Sig(SigConfig) = "sig",
        /// Fewer levels of every colour, dithered or not.
        Bpp(BppConfig) = "bpp",
        /// Frequencies added to the colours.
        Ftrojan(FtrojanConfig) = "ftrojan",
        /// Frequencies added to the colours, in test images more.
        Ctrl(CtrlConfig) = "ctrl",
        /// The reflection of another picture.
        Refool(RefoolConfig) = "refool",
        /// A sticker that looks as if it lay in the scene.
        Sticker(StickerConfig) = "sticker",
        /// The Adversarial Robustness Toolbox's four pixels, or one.
        ArtPattern(ArtPatternConfig) = "art-pattern",
    }
}

impl Default for TriggerConfig {
    fn default() -> Self {
        Self::Square(SquareConfig::default())
    }
}

impl TriggerConfig {
    /// Checks every field against the images and returns all problems at once; fields are those of the trigger's own
    /// table. With a placement, the images are those of [`PlacementConfig::trigger_shape`].
    pub fn validate(&self, shape: ImageShape) -> Vec<TriggerError> {
        self.kind().validate(shape)
    }

    /// Checks that the trigger makes sense with the label rule and the placement, which are valid for images of `shape`,
    /// and returns all problems at once; fields are paths from the root of the experiment, such as `placement.cells`.
    pub fn validate_use(
        &self,
        shape: ImageShape,
        rule: &LabelRule,
        placement: Option<&PlacementConfig>,
    ) -> Vec<TriggerError> {
        let mut problems = self.kind().refuse(rule, placement);
        if placement.is_some_and(|placement| matches!(self.placed_pixel_budget(shape, placement), Ok(0))) {
            let found = format!("where the {} changes no pixel", self.name());
            problems.push(invalid("placement.cells", found, "at least one cell that it reaches"));
        }
        problems
    }

    /// Builds the trigger for images of `shape`, with seed 0 for what it draws once for all images.
    ///
    /// # Errors
    ///
    /// Those of [`build_seeded`](Self::build_seeded).
    pub fn build(&self, shape: ImageShape) -> Result<Box<dyn Trigger>, TriggerError> {
        self.build_seeded(shape, 0)
    }

    /// Builds the trigger for images of `shape`. What it draws once for all images, such as a warp's field, comes from
    /// streams of `seed`, the run's, unless its table has a seed of its own.
    ///
    /// # Errors
    ///
    /// The first of the problems that [`validate`](Self::validate) finds.
    pub fn build_seeded(&self, shape: ImageShape, seed: u64) -> Result<Box<dyn Trigger>, TriggerError> {
        self.expect_valid(shape)?;
        self.kind().build(shape, seed)
    }

    /// Builds the trigger for the cells of `placement` in images of `shape`. Cells drawn once for all images come from
    /// `stream(seed, "trigger/placement")`; the rest is as in [`build_seeded`](Self::build_seeded).
    ///
    /// # Errors
    ///
    /// The first of the problems that the placement's `validate` finds, or this trigger's for what the placement makes
    /// it cover; [`TriggerError::InvalidField`] if the placement waits for a surrogate's counts
    /// ([`PlacementConfig::resolve`]).
    pub fn build_placed(
        &self,
        shape: ImageShape,
        placement: &PlacementConfig,
        seed: u64,
    ) -> Result<Box<dyn Trigger>, TriggerError> {
        let built = Placement::build(placement, shape, seed)?;
        let trigger = self.build_seeded(placement.trigger_shape(shape), seed)?;
        Ok(Box::new(Placed::new(trigger, built)))
    }

    /// Which pixels of an image the trigger may change, row by row: for a square its own, for what acts on the whole
    /// image all.
    ///
    /// # Errors
    ///
    /// The first of the problems that [`validate`](Self::validate) finds.
    pub fn mask(&self, shape: ImageShape) -> Result<Vec<bool>, TriggerError> {
        self.expect_valid(shape)?;
        Ok(self.kind().mask(shape))
    }

    /// Cover images for each poisoned one.
    pub fn covers_per_poisoned_image(&self) -> f64 {
        self.kind().covers_per_poisoned_image()
    }

    /// Files that the trigger is made of, beside its configuration; a result depends on what is in them.
    pub fn files(&self) -> Vec<&Path> {
        self.kind().files()
    }

    fn expect_valid(&self, shape: ImageShape) -> Result<(), TriggerError> {
        self.validate(shape).into_iter().next().map_or(Ok(()), Err)
    }

    /// How many pixels of one image the trigger may change; attacks of equal budget can be compared.
    ///
    /// # Errors
    ///
    /// The first of the problems that [`validate`](Self::validate) finds.
    pub fn pixel_budget(&self, shape: ImageShape) -> Result<usize, TriggerError> {
        Ok(self.mask(shape)?.into_iter().filter(|&is_changed| is_changed).count())
    }

    /// How many pixels of one image the trigger may change in the cells of `placement`; the most of any image where
    /// cells differ from image to image or class to class.
    ///
    /// ```
    /// use patchdoor_data::ImageShape;
    /// use patchdoor_triggers::{CellsConfig, PlacementConfig, RandomCells, TriggerConfig};
    ///
    /// # fn main() -> Result<(), patchdoor_triggers::TriggerError> {
    /// let four = CellsConfig::Random(RandomCells { count: 4, per_image: true });
    /// let placement = PlacementConfig { cells: four, ..PlacementConfig::default() };
    /// let square = TriggerConfig::default();
    /// assert_eq!(square.pixel_budget(ImageShape::RGB_32)?, 16);
    /// assert_eq!(square.placed_pixel_budget(ImageShape::RGB_32, &placement)?, 64);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`build_placed`](Self::build_placed), save that a surrogate's counts need not be known where all cells
    /// are whole.
    pub fn placed_pixel_budget(&self, shape: ImageShape, placement: &PlacementConfig) -> Result<usize, TriggerError> {
        placement.pixel_budget(shape, &self.mask(placement.trigger_shape(shape))?)
    }
}

#[cfg(test)]
mod tests {
    use patchdoor_data::{Image, stream};
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{image_of, with_pictures};
    use crate::{
        Anchor, BlockCells, CellsConfig, CheckerPattern, Fit, NoisePattern, PatternConfig, PicturePattern, RandomCells,
    };

    #[test]
    fn the_default_survives_toml() {
        let text = toml::to_string(&TriggerConfig::default()).unwrap();
        assert_eq!(text, "[square]\nsize = 4\nanchor = \"upper-left\"\nvalue = 255\n");
        assert_eq!(toml::from_str::<TriggerConfig>(&text).unwrap(), TriggerConfig::default());
        assert_eq!(toml::from_str::<TriggerConfig>("[square]").unwrap(), TriggerConfig::default());
    }

    #[test]
    fn every_trigger_is_known_by_the_name_that_serde_reads_and_an_empty_table_is_its_default() {
        assert_eq!(TriggerConfig::defaults().len(), TriggerConfig::NAMES.len());
        for (config, &name) in TriggerConfig::defaults().iter().zip(TriggerConfig::NAMES) {
            assert_eq!(config.name(), name);
            assert_eq!(&toml::from_str::<TriggerConfig>(&format!("[{name}]")).unwrap(), config);
            assert_eq!(&toml::from_str::<TriggerConfig>(&toml::to_string(config).unwrap()).unwrap(), config);
        }
        let error = toml::from_str::<TriggerConfig>("[none]").unwrap_err().to_string();
        let names = TriggerConfig::NAMES.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>();
        assert!(error.contains(&format!("expected one of {}", names.join(", "))), "{error}");
    }

    #[test]
    fn every_trigger_has_a_name_in_kebab_case_and_a_section_in_the_documents() {
        let documents = include_str!("../../../docs/attacks.md");
        let headings: Vec<&str> = documents.lines().filter(|line| line.starts_with("### ")).collect();
        for name in TriggerConfig::NAMES {
            assert!(name.split('-').all(|word| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_lowercase())));
            let quoted = format!("`{name}`");
            assert!(
                headings.iter().any(|heading| heading.contains(&quoted)),
                "docs/attacks.md has no section {quoted}"
            );
        }
    }

    #[test]
    fn every_trigger_is_built_for_all_images_that_it_finds_valid_and_for_no_other() {
        for config in TriggerConfig::defaults() {
            assert!(config.validate(ImageShape::RGB_32).is_empty(), "{config:?}");
            for (height, width, channels) in (0..200).map(|i| (i / 20 + 1, i / 2 % 10 + 1, [1, 3][i % 2])) {
                let shape = ImageShape { height, width, channels };
                let is_valid = config.validate(shape).is_empty();
                let built = config.build_seeded(shape, 1);
                assert_eq!(built.is_ok(), is_valid, "{config:?} in {shape} images");
                let black = Image::new(shape, vec![0; shape.size()]).unwrap();
                // What is valid can also be stamped.
                let stamped = built.map(|trigger| with_pictures(trigger, shape).stamp(&black, &mut stream(0, "")));
                assert!(stamped.is_err() || stamped.unwrap().shape() == shape);
                assert_eq!(config.mask(shape).is_ok(), is_valid, "{config:?} in {shape} images");
            }
        }
    }

    proptest! {
        #[test]
        fn every_trigger_changes_pixels_under_its_mask_alone_and_only_in_the_copy(
            image in image_of(ImageShape { height: 12, width: 8, channels: 3 }), seed: u64, class in 0_u8..10,
        ) {
            let cells = CellsConfig::Random(RandomCells { count: 1, per_image: true });
            let placement = PlacementConfig { grid: 2, cells, ..PlacementConfig::default() };
            let before = image.clone();
            for config in TriggerConfig::defaults() {
                let shape = image.shape();
                let whole = with_pictures(config.build_seeded(shape, seed).unwrap(), shape);
                let placed = with_pictures(config.build_placed(shape, &placement, seed).unwrap(), shape);
                let mask = config.mask(shape).unwrap();
                let most = config.placed_pixel_budget(shape, &placement).unwrap();
                for part in 0..3 {
                    let of = |trigger: &dyn Trigger| {
                        let rng = &mut stream(seed, "trigger/test/0");
                        match part {
                            0 => trigger.stamp_for_class(&image, class, rng),
                            1 => trigger.stamp_training(&image, class, rng),
                            _ => trigger.cover(&image, class, rng),
                        }
                    };
                    let stamped = of(whole.as_ref());
                    prop_assert_eq!(stamped.shape(), shape);
                    let is_changed = |other: &Image, index: usize| {
                        let (row, column) = (index / shape.width, index % shape.width);
                        other.pixel(row, column) != image.pixel(row, column)
                    };
                    for (index, may_change) in mask.iter().enumerate() {
                        prop_assert!(*may_change || !is_changed(&stamped, index), "{} at {}", config.name(), index);
                    }
                    let changed = (0..mask.len()).filter(|&index| is_changed(&of(placed.as_ref()), index)).count();
                    prop_assert!(changed <= most, "{} changes {} pixels of {}", config.name(), changed, most);
                    prop_assert_eq!(of(whole.as_ref()), stamped, "the same stream gives the same image");
                }
                prop_assert_eq!(&image, &before);
            }
        }
    }

    #[test]
    fn a_placement_that_the_trigger_does_not_reach_is_refused() {
        let block = BlockCells { size: 2, anchor: Anchor::LowerRight };
        let placed = |fit| PlacementConfig { fit, cells: CellsConfig::Block(block), ..PlacementConfig::default() };
        let said = |config: &TriggerConfig, fit| -> Vec<String> {
            let problems = config.validate_use(ImageShape::RGB_32, &LabelRule::AllToOne, Some(&placed(fit)));
            problems.iter().map(ToString::to_string).collect()
        };
        // The square lies in the upper left corner of each cell, or of the image.
        let square = TriggerConfig::default();
        assert!(said(&square, Fit::Cell).is_empty());
        assert_eq!(
            said(&square, Fit::Image),
            ["placement.cells is where the square changes no pixel, expected at least one cell that it reaches"]
        );
        let corner = SquareConfig { anchor: Anchor::LowerRight, ..SquareConfig::default() };
        assert!(said(&TriggerConfig::Square(corner), Fit::Image).is_empty());
        assert!(square.validate_use(ImageShape::RGB_32, &LabelRule::AllToAll, None).is_empty());
    }

    #[test]
    fn patterns_are_written_as_documented() {
        for (text, pattern) in [
            ("pattern = \"face\"", PatternConfig::Face),
            (
                "pattern.checker = { cell = 2 }",
                PatternConfig::Checker(CheckerPattern { cell: 2, ..CheckerPattern::default() }),
            ),
            ("pattern.noise = {}", PatternConfig::Noise(NoisePattern::default())),
            ("pattern.noise = { seed = 3 }", PatternConfig::Noise(NoisePattern { seed: Some(3), per_image: false })),
            (
                "pattern.noise = { per-image = true }",
                PatternConfig::Noise(NoisePattern { seed: None, per_image: true }),
            ),
            ("pattern.picture = { path = \"a.png\" }", PatternConfig::Picture(PicturePattern { path: "a.png".into() })),
        ] {
            let config = TriggerConfig::Blend(BlendConfig { alpha: 0.2, pattern });
            let read: TriggerConfig = toml::from_str(&format!("[blend]\nalpha = 0.2\n{text}")).unwrap();
            assert_eq!(read, config);
            assert_eq!(toml::from_str::<TriggerConfig>(&toml::to_string(&config).unwrap()).unwrap(), config);
        }
    }

    #[test]
    fn budgets_count_pixels() {
        let budget = |config: TriggerConfig| config.pixel_budget(ImageShape::RGB_32).unwrap();
        assert_eq!(budget(TriggerConfig::Square(SquareConfig { size: 3, ..SquareConfig::default() })), 9);
        assert_eq!(budget(TriggerConfig::ArtPattern(ArtPatternConfig::default())), 4);
        assert_eq!(budget(TriggerConfig::Wanet(WanetConfig::default())), 1024);
        let too_large = TriggerConfig::Square(SquareConfig { size: 33, ..SquareConfig::default() });
        assert!(too_large.pixel_budget(ImageShape::RGB_32).is_err());
    }

    #[test]
    fn unknown_triggers_and_keys_are_refused_with_what_is_allowed() {
        let error = toml::from_str::<TriggerConfig>("[sqare]").unwrap_err().to_string();
        assert!(error.contains("unknown variant `sqare`, expected one of `square`"), "{error}");
        let error = toml::from_str::<TriggerConfig>("[square]\nsise = 3").unwrap_err().to_string();
        assert!(error.contains("unknown field `sise`") && error.contains("`size`"), "{error}");
        let error = toml::from_str::<TriggerConfig>("[square]\nvalue = 256").unwrap_err().to_string();
        assert!(error.contains("256"), "{error}");
    }
}
