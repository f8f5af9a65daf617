use patchdoor_train::{PerturbationConfig, TrainError};
use serde::{Deserialize, Serialize};

use crate::problem::Problem;

/// How the classifiers are attacked at inference, by perturbations of single test images that know the weights: the fast gradient
/// sign method (FGSM, Goodfellow et al. 2015, arXiv:1412.6572) and projected gradient descent (PGD, Madry et al. 2018,
/// arXiv:1706.06083). For measurement alone; nothing is chosen by it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct EvasionConfig {
    /// Largest change of a pixel, in steps of 1/255, in (0, 255].
    pub epsilon: f64,
    /// How far each step of PGD moves every pixel, in steps of 1/255.
    pub step: f64,
    /// Steps of PGD.
    pub steps: usize,
    /// Random starts of PGD; an image withstands it if it withstands all.
    pub restarts: usize,
    /// Test images to attack, a stratified draw, the same for every seed; all if there are fewer.
    pub images: usize,
}

impl Default for EvasionConfig {
    /// 8/255 in ten steps of 2/255, as `AdvMoE` and RT-ER measure on CIFAR-10; one start, on 1,000 images, are ours.
    fn default() -> Self {
        let PerturbationConfig { epsilon, step, steps } = PerturbationConfig::default();
        Self { epsilon, step, steps, restarts: 1, images: 1000 }
    }
}

impl EvasionConfig {
    /// What PGD does from one start.
    pub fn perturbation(&self) -> PerturbationConfig {
        PerturbationConfig { epsilon: self.epsilon, step: self.step, steps: self.steps }
    }

    /// What FGSM does: one step as long as the ball is wide, from the image itself.
    pub fn single_step(&self) -> PerturbationConfig {
        PerturbationConfig { epsilon: self.epsilon, step: self.epsilon, steps: 1 }
    }

    /// Shortens it to a second.
    pub(crate) fn make_quick(&mut self) {
        (self.steps, self.restarts) = (self.steps.min(2), 1);
        self.images = self.images.min(20);
    }

    /// Every value that cannot be.
    pub(crate) fn check(&self) -> Vec<Problem> {
        let own = self.perturbation().validate().into_iter().filter_map(|problem| match problem {
            TrainError::InvalidField { field, found, allowed } => {
                Some(Problem { field: format!("evasion.{field}"), found, allowed })
            }
            _ => None,
        });
        let mut problems = own.collect::<Vec<_>>();
        for (field, number) in [("restarts", self.restarts), ("images", self.images)] {
            if number == 0 {
                problems.push(Problem {
                    field: format!("evasion.{field}"),
                    found: "0".into(),
                    allowed: "1 or more".into(),
                });
            }
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use crate::{Plan, PlanOptions};

    const GOOD: &str = "dataset = \"shapes\"\n[trigger.square]\n[model.patch-moe]\n";

    #[test]
    fn a_run_that_measures_evasion_is_another_with_the_same_twin() {
        let read = |text: &str| Plan::from_text("a.toml", &format!("{GOOD}{text}"), &PlanOptions::default());
        let (plain, attacked) = (read("").unwrap(), read("[evasion]\n").unwrap());
        assert_ne!(plain.hash("flex"), attacked.hash("flex"));
        assert_eq!(plain.twin_hash("flex", ""), attacked.twin_hash("flex", ""));
        let said = read("[evasion]\nepsilon = 0\nsteps = 0\nrestarts = 0\n").unwrap_err().to_string();
        for field in ["epsilon", "steps", "restarts"] {
            assert!(said.contains(&format!("evasion.{field} is 0, expected")), "{said}");
        }
    }

    #[test]
    fn adversarial_training_is_another_training_of_twin_and_victim() {
        let read = |text: &str| Plan::from_text("a.toml", &format!("{GOOD}{text}"), &PlanOptions::default());
        let (plain, hardened) = (read("").unwrap(), read("[training.adversarial]\n").unwrap());
        assert_ne!(plain.twin_hash("flex", ""), hardened.twin_hash("flex", ""));
        assert_eq!(hardened.config().training.adversarial.as_ref().map(|perturbation| perturbation.steps), Some(10));
        let said = read("[training.adversarial]\nepsilon = 300\n").unwrap_err().to_string();
        assert!(said.contains("training.adversarial.epsilon is 300, expected a number in (0, 255]"), "{said}");
    }
}
