use patchdoor_data::{ImageShape, Trigger};
use serde::{Deserialize, Serialize};

use crate::placement::{Placed, Placement};
use crate::{
    ArtPatternConfig, BlendConfig, PlacementConfig, SigConfig, SquareConfig, TriggerError, WanetConfig, WarpConfig,
};

/// Which trigger an attacker uses; in TOML the table `[trigger.square]`, and so on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum TriggerConfig {
    /// A square that overwrites what it covers.
    Square(SquareConfig),
    /// A picture mixed into the image.
    Blend(BlendConfig),
    /// The pMoE authors' warp by whole pixels.
    Warp(WarpConfig),
    /// `WaNet`'s warp, with noise-mode images.
    Wanet(WanetConfig),
    /// A sinusoid added to the image.
    Sig(SigConfig),
    /// The Adversarial Robustness Toolbox's four pixels, or one.
    ArtPattern(ArtPatternConfig),
}

impl Default for TriggerConfig {
    fn default() -> Self {
        Self::Square(SquareConfig::default())
    }
}

impl TriggerConfig {
    /// The trigger's name, as in a configuration.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Square(_) => "square",
            Self::Blend(_) => "blend",
            Self::Warp(_) => "warp",
            Self::Wanet(_) => "wanet",
            Self::Sig(_) => "sig",
            Self::ArtPattern(_) => "art-pattern",
        }
    }

    /// Checks every field against the images and returns all problems at once; fields are those of the trigger's own
    /// table. With a placement, the images are those of [`PlacementConfig::trigger_shape`].
    pub fn validate(&self, shape: ImageShape) -> Vec<TriggerError> {
        match self {
            Self::Square(config) => config.validate(shape),
            Self::Blend(config) => config.validate(shape),
            Self::Warp(config) => config.validate(shape),
            Self::Wanet(config) => config.validate(shape),
            Self::Sig(config) => config.validate(),
            Self::ArtPattern(config) => config.validate(shape),
        }
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
    /// The first of the problems that [`validate`](Self::validate) finds, or [`TriggerError::Picture`].
    pub fn build_seeded(&self, shape: ImageShape, seed: u64) -> Result<Box<dyn Trigger>, TriggerError> {
        Ok(match self {
            Self::Square(config) => Box::new(config.build(shape)?),
            Self::Blend(config) => Box::new(config.build(shape, seed)?),
            Self::Warp(config) => Box::new(config.build(shape, seed)?),
            Self::Wanet(config) => Box::new(config.build(shape, seed)?),
            Self::Sig(config) => Box::new(config.build(shape)?),
            Self::ArtPattern(config) => Box::new(config.build(shape)?),
        })
    }

    /// Builds the trigger for the cells of `placement` in images of `shape`. Cells drawn once for all images come from
    /// `stream(seed, "trigger/placement")`; the rest is as in [`build_seeded`](Self::build_seeded).
    ///
    /// # Errors
    ///
    /// The first of the problems that the placement's `validate` finds, or this trigger's for what the placement makes
    /// it cover; [`TriggerError::InvalidField`] if the placement waits for a surrogate's counts
    /// ([`PlacementConfig::resolve`]); [`TriggerError::Picture`].
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
        if let Some(problem) = self.validate(shape).into_iter().next() {
            return Err(problem);
        }
        Ok(match self {
            Self::Square(config) => config.build(shape)?.mask(),
            Self::ArtPattern(config) => config.build(shape)?.mask(),
            Self::Blend(_) | Self::Warp(_) | Self::Wanet(_) | Self::Sig(_) => vec![true; shape.height * shape.width],
        })
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
    use super::*;
    use crate::{CheckerPattern, NoisePattern, PatternConfig, PicturePattern};

    #[test]
    fn the_default_survives_toml() {
        let text = toml::to_string(&TriggerConfig::default()).unwrap();
        assert_eq!(text, "[square]\nsize = 4\nanchor = \"upper-left\"\nvalue = 255\n");
        assert_eq!(toml::from_str::<TriggerConfig>(&text).unwrap(), TriggerConfig::default());
        assert_eq!(toml::from_str::<TriggerConfig>("[square]").unwrap(), TriggerConfig::default());
    }

    #[test]
    fn every_trigger_has_defaults_that_survive_toml_and_fit_32x32() {
        let all = [
            ("[square]", TriggerConfig::Square(SquareConfig::default())),
            ("[blend]", TriggerConfig::Blend(BlendConfig::default())),
            ("[warp]", TriggerConfig::Warp(WarpConfig::default())),
            ("[wanet]", TriggerConfig::Wanet(WanetConfig::default())),
            ("[sig]", TriggerConfig::Sig(SigConfig::default())),
            ("[art-pattern]", TriggerConfig::ArtPattern(ArtPatternConfig::default())),
        ];
        for (text, config) in all {
            assert_eq!(toml::from_str::<TriggerConfig>(text).unwrap(), config);
            assert_eq!(text, format!("[{}]", config.name()));
            assert_eq!(toml::from_str::<TriggerConfig>(&toml::to_string(&config).unwrap()).unwrap(), config);
            assert!(config.build(ImageShape::RGB_32).is_ok());
        }
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
