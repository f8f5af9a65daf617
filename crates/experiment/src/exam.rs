use patchdoor_data::ImageSet;
use patchdoor_kernels::Kernels;
use patchdoor_metrics::{AttackOutcome, ConfusionMatrix, accuracy, largest_class_share};
use patchdoor_model::Classifier;
use patchdoor_record::{Confusion, DefenseStanding, RoutedStanding};
use patchdoor_train::{PREDICTION_BATCH, RoutedPrediction, predict, predict_with_routing};

use crate::attack::Attack;

/// The test images without and with the trigger, by which classifiers are judged. It chooses nothing.
pub(crate) struct Exam<'a> {
    pub(crate) attack: &'a Attack<'a>,
    pub(crate) test: &'a ImageSet,
    pub(crate) triggered: ImageSet,
}

/// What a classifier makes of both sets of images.
pub(crate) struct Answers {
    pub(crate) clean: RoutedPrediction,
    pub(crate) triggered: RoutedPrediction,
}

impl<'a> Exam<'a> {
    /// Triggers all test images.
    pub(crate) fn new(attack: &'a Attack<'a>, test: &'a ImageSet) -> Self {
        Self { attack, test, triggered: attack.trigger_all(test) }
    }

    /// Predicts both sets, with what the routers select on the way.
    pub(crate) fn answers<B: Kernels>(&self, classifier: &Classifier<B>, device: &B::Device) -> Answers {
        let of = |images| predict_with_routing(classifier, images, PREDICTION_BATCH, device);
        Answers { clean: of(self.test), triggered: of(&self.triggered) }
    }

    /// What the attack comes to, by its own label rule, given predictions for the triggered images.
    pub(crate) fn outcome(&self, triggered: &[u8]) -> AttackOutcome {
        self.attack.outcome(triggered, self.test.labels(), self.test.class_count())
    }

    /// What images of each class are taken for, given predictions.
    pub(crate) fn confusion(&self, clean: &[u8], triggered: &[u8]) -> Confusion {
        let [clean, triggered] = [clean, triggered]
            .map(|predicted| ConfusionMatrix::of(predicted, self.test.labels(), self.test.class_count()));
        Confusion { clean, triggered }
    }

    /// Where a classifier stands, given its predictions.
    pub(crate) fn standing_of(&self, clean: &[u8], triggered: &[u8]) -> DefenseStanding {
        let attack = self.outcome(triggered);
        DefenseStanding {
            clean_accuracy: accuracy(clean, self.test.labels()).unwrap_or(0.0),
            asr: attack.attack_success_rate(),
            robust_accuracy: attack.robust_accuracy(),
            largest_class_share: largest_class_share(clean),
        }
    }

    /// The same, with how often images are taken for the target without a trigger.
    pub(crate) fn routed_standing_of(&self, clean: &[u8], triggered: &[u8]) -> RoutedStanding {
        let DefenseStanding { clean_accuracy, asr, robust_accuracy, .. } = self.standing_of(clean, triggered);
        let asr_untriggered = self.outcome(clean).attack_success_rate();
        RoutedStanding { clean_accuracy, asr_untriggered, asr, robust_accuracy }
    }

    /// Where a classifier stands.
    pub(crate) fn standing<B: Kernels>(&self, classifier: &Classifier<B>, device: &B::Device) -> DefenseStanding {
        let of = |images| predict(classifier, images, PREDICTION_BATCH, device);
        self.standing_of(&of(self.test), &of(&self.triggered))
    }
}

/// Who measures what a defense comes to.
#[derive(Clone, Copy)]
pub(crate) enum Judge<'a> {
    /// The exam of an attack that is known.
    Attacked(&'a Exam<'a>),
    /// Untouched test images, where nobody knows a trigger.
    Untouched(&'a ImageSet),
}

impl<'a> Judge<'a> {
    /// The untouched test images.
    pub(crate) fn test(self) -> &'a ImageSet {
        match self {
            Self::Attacked(exam) => exam.test,
            Self::Untouched(test) => test,
        }
    }

    /// The exam, if there is an attack.
    pub(crate) fn exam(self) -> Option<&'a Exam<'a>> {
        match self {
            Self::Attacked(exam) => Some(exam),
            Self::Untouched(_) => None,
        }
    }

    /// The classes that the attacker wants; none where nobody knows one.
    pub(crate) fn targets(self) -> Vec<usize> {
        self.exam().map_or_else(Vec::new, |exam| exam.attack.targets(exam.test.class_count()))
    }

    /// Where a classifier stands; without an attack by its clean accuracy alone.
    pub(crate) fn standing<B: Kernels>(self, classifier: &Classifier<B>, device: &B::Device) -> DefenseStanding {
        match self {
            Self::Attacked(exam) => exam.standing(classifier, device),
            Self::Untouched(test) => {
                let clean = predict(classifier, test, PREDICTION_BATCH, device);
                DefenseStanding {
                    clean_accuracy: accuracy(&clean, test.labels()).unwrap_or(0.0),
                    asr: None,
                    robust_accuracy: None,
                    largest_class_share: largest_class_share(&clean),
                }
            }
        }
    }
}
