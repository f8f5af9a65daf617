use serde::{Deserialize, Serialize};

use crate::{PerturbationConfig, TrainError};

/// How the images of every step are perturbed, and what is learned from them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct AdversarialConfig {
    /// Largest change of a pixel, in steps of 1/255, in (0, 255].
    pub epsilon: f64,
    /// How far each step moves every pixel, in steps of 1/255, in (0, 255].
    pub step: f64,
    /// Steps.
    pub steps: usize,
    /// What is climbed and learned.
    #[serde(skip_serializing_if = "AdversarialMethod::is_default")]
    pub method: AdversarialMethod,
}

/// What a perturbation climbs and what the classifier then descends on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AdversarialMethod {
    /// The cross-entropy of perturbed images, both (Madry et al. 2018, arXiv:1706.06083).
    #[default]
    CrossEntropy,
    /// Network and routers, each by a loss of its own, after `AdvMoE` (Zhang et al. 2023, arXiv:2308.10110): see `docs/experiments.md`.
    Alternating(DivergenceConfig),
    /// The expert that comes second is kept from changing its mind, after RT-ER (2025, arXiv:2502.06832): see `docs/experiments.md`.
    SecondBest(DivergenceConfig),
}

impl AdversarialMethod {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// What a divergence between perturbed and untouched images counts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct DivergenceConfig {
    /// Its weight beside the cross-entropy, a finite number of 0 or more.
    pub weight: f64,
}

impl Default for DivergenceConfig {
    /// The weight of `AdvMoE` and RT-ER, which is that of TRADES (Zhang et al. 2019, arXiv:1901.08573).
    fn default() -> Self {
        Self { weight: 6.0 }
    }
}

impl Default for AdversarialConfig {
    /// 8/255 in ten steps of 2/255.
    fn default() -> Self {
        let PerturbationConfig { epsilon, step, steps } = PerturbationConfig::default();
        Self { epsilon, step, steps, method: AdversarialMethod::default() }
    }
}

impl AdversarialConfig {
    /// How far a perturbation may lead, and how it is looked for.
    pub(crate) fn perturbation(&self) -> PerturbationConfig {
        PerturbationConfig { epsilon: self.epsilon, step: self.step, steps: self.steps }
    }

    /// Every field that cannot be, by its path below a table of training.
    pub(crate) fn validate(&self) -> Vec<TrainError> {
        let mut problems =
            self.perturbation().validate_as(["adversarial.epsilon", "adversarial.step", "adversarial.steps"]);
        let (field, weight) = match &self.method {
            AdversarialMethod::CrossEntropy => return problems,
            AdversarialMethod::Alternating(divergence) => ("adversarial.method.alternating.weight", divergence.weight),
            AdversarialMethod::SecondBest(divergence) => ("adversarial.method.second-best.weight", divergence.weight),
        };
        if !(weight >= 0.0 && weight.is_finite()) {
            let allowed = "a finite number of 0 or more".to_owned();
            problems.push(TrainError::InvalidField { field, found: weight.to_string(), allowed });
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_method_is_a_word_or_a_table() {
        let read = |text: &str| toml::from_str::<AdversarialConfig>(text).expect("valid");
        assert_eq!(read(""), AdversarialConfig::default());
        assert_eq!(read("method = \"cross-entropy\""), AdversarialConfig::default());
        let second = read("method.second-best = {}");
        assert_eq!(second.method, AdversarialMethod::SecondBest(DivergenceConfig { weight: 6.0 }));
        assert_eq!(read(&toml::to_string(&second).expect("written")), second);
        // What is not said is not written: experiments of before keep their names.
        assert!(!toml::to_string(&AdversarialConfig::default()).expect("written").contains("method"));
        let said = read("method.alternating = { weight = -1 }\nsteps = 0").validate();
        let said = said.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert!(said[0].contains("adversarial.steps is 0"), "{said:?}");
        assert!(said[1].contains("adversarial.method.alternating.weight is -1"), "{said:?}");
    }
}
