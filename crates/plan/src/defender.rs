use std::fmt;

use patchdoor_defenses::{DefenseConfig, DefenseName, TuneConfig};
use patchdoor_train::TrainingConfig;
use serde::de::{self, MapAccess};
use serde::{Deserialize, Deserializer, Serialize};

use crate::amount::CleanAmount;

/// One `[[defenses]]` table: what the defender does, and with which images.
///
/// The defense is the key of a table of its own, `fine-pruning = { pruned-fraction = 0.2 }`; exactly one stands beside
/// the keys of this struct.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct DefenderConfig {
    /// What to call it in the report, instead of its name and images.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// The images it has.
    pub data: DefenderSet,
    /// How many of them; what the defense says if not given.
    #[serde(flatten)]
    pub amount: CleanAmount,
    /// Whether the same is done to the clean twin and measured, which says what the defense does without a backdoor.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub twin: bool,
    /// How its strength is chosen on validation images; `None` where the table says it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tune: Option<TuneConfig>,
    /// What it does.
    #[serde(flatten)]
    pub defense: DefenseConfig,
}

/// The training images that a defender has. Their labels are always the true ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DefenderSet {
    /// Untouched images.
    #[default]
    Clean,
    /// The same, but where the attacker poisoned an image, the triggered one under its true label: what stamping in
    /// place left in the arrays of Chan et al. (2025, arXiv:2505.01811). Fitting it is unlearning.
    Contaminated,
}

impl DefenderSet {
    /// Its name, as a configuration writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Clean => "clean",
            Self::Contaminated => "contaminated",
        }
    }
}

/// A key of a `[[defenses]]` table.
enum Key {
    Label,
    Data,
    CleanFraction,
    CleanImages,
    Twin,
    Tune,
    Defense(DefenseName),
}

/// The names of the keys beside a defense.
const OWN_KEYS: [&str; 6] = ["label", "data", "clean-fraction", "clean-images", "twin", "tune"];

/// The names of all keys, those of the defenses last.
const KEYS: [&str; OWN_KEYS.len() + DefenseConfig::NAMES.len()] = {
    let mut keys = [""; OWN_KEYS.len() + DefenseConfig::NAMES.len()];
    let mut index = 0;
    while index < OWN_KEYS.len() {
        keys[index] = OWN_KEYS[index];
        index += 1;
    }
    let mut index = 0;
    while index < DefenseConfig::NAMES.len() {
        keys[OWN_KEYS.len() + index] = DefenseConfig::NAMES[index];
        index += 1;
    }
    keys
};

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_identifier(KeyVisitor)
    }
}

struct KeyVisitor;

impl de::Visitor<'_> for KeyVisitor {
    type Value = Key;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a key")
    }

    fn visit_str<E: de::Error>(self, key: &str) -> Result<Key, E> {
        Ok(match key {
            "label" => Key::Label,
            "data" => Key::Data,
            "clean-fraction" => Key::CleanFraction,
            "clean-images" => Key::CleanImages,
            "twin" => Key::Twin,
            "tune" => Key::Tune,
            name => Key::Defense(DefenseName::of(name).ok_or_else(|| E::unknown_field(name, &KEYS))?),
        })
    }
}

/// Written by hand because with `flatten` an error would point at the whole table instead of the key.
impl<'de> Deserialize<'de> for DefenderConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Visitor)
    }
}

struct Visitor;

impl<'de> de::Visitor<'de> for Visitor {
    type Value = DefenderConfig;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a table with one defense in it")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<DefenderConfig, A::Error> {
        let (mut label, mut data, mut fraction, mut images, mut twin, mut tune) =
            (None, DefenderSet::default(), None, None, false, None);
        let mut found: Vec<DefenseConfig> = Vec::new();
        while let Some(key) = map.next_key::<Key>()? {
            match key {
                Key::Label => label = Some(map.next_value()?),
                Key::Data => data = map.next_value()?,
                Key::CleanFraction => fraction = Some(map.next_value()?),
                Key::CleanImages => images = Some(map.next_value()?),
                Key::Twin => twin = map.next_value()?,
                Key::Tune => tune = map.next_value_seed(Tune)?,
                Key::Defense(name) => found.push(map.next_value_seed(name)?),
            }
        }
        if found.len() > 1 {
            let names = found.iter().map(DefenseConfig::name).collect::<Vec<_>>().join(", ");
            return Err(de::Error::custom(format!("holds {names}, expected one defense in each [[defenses]] table")));
        }
        let Some(defense) = found.pop() else {
            let names = DefenseConfig::NAMES.join(", ");
            return Err(de::Error::custom(format!("holds no defense, expected one of {names}")));
        };
        let amount = match (fraction, images) {
            (Some(_), Some(_)) => {
                return Err(de::Error::custom("holds clean-fraction and clean-images, expected one of them"));
            }
            (None, Some(images)) => CleanAmount::CleanImages(images),
            (Some(fraction), None) => CleanAmount::CleanFraction(fraction),
            (None, None) => CleanAmount::CleanFraction(defense.as_defense().default_clean_fraction()),
        };
        Ok(DefenderConfig { label, data, amount, twin, tune, defense })
    }
}

/// Reads `true`, `false`, or a table of [`TuneConfig`].
struct Tune;

impl<'de> de::DeserializeSeed<'de> for Tune {
    type Value = Option<TuneConfig>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> de::Visitor<'de> for Tune {
    type Value = Option<TuneConfig>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("true, false or a table such as { max-accuracy-drop = 0.02 }")
    }

    fn visit_bool<E: de::Error>(self, tunes: bool) -> Result<Self::Value, E> {
        Ok(tunes.then(TuneConfig::default))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        TuneConfig::deserialize(de::value::MapAccessDeserializer::new(map)).map(Some)
    }
}

impl DefenderConfig {
    /// Epochs of training it takes at most, beside an undefended training of that `recipe`: of every strength that it tries.
    pub fn most_epochs(&self, recipe: &TrainingConfig) -> usize {
        let strengths = self.tune.and_then(|_| self.defense.as_defense().strengths());
        self.defense.epochs(recipe) * strengths.map_or(1, |strengths| strengths.values.len())
    }

    /// What to call it in a report.
    pub fn title(&self) -> String {
        self.label.clone().unwrap_or_else(|| match self.data {
            DefenderSet::Clean => self.defense.name().to_owned(),
            DefenderSet::Contaminated => format!("{}, contaminated", self.defense.name()),
        })
    }

    /// Shrinks it to a second, keeping every code path it takes; there are so many training images.
    pub(crate) fn make_quick(&mut self, training: usize) {
        if let CleanAmount::CleanImages(images) = &mut self.amount {
            *images = (*images).min(200).min(training);
        }
        self.defense.make_quick();
    }
}
