use patchdoor_data::{ImageShape, LabelRule};
use patchdoor_kernels::TrainingBackend;
use patchdoor_model::ClassifierConfig;
use patchdoor_triggers::PlacementConfig;
use serde::{Deserialize, Serialize};

use crate::controlled::attack::{ControlledAttack, ControlledKind, HandInTraining, Scene};
use crate::controlled::checks;
use crate::controlled::input_aware::InputAware;
use crate::{AttackError, InputAwareConfig};

/// Source-specific and dynamic trigger (Mo et al. 2024, arXiv:2312.02673): the networks and losses of the input-aware attack,
/// with poisoned images of one class alone. It was made for detectors that take a trigger for something that works on all
/// images.
///
/// The authors poison every image of the source class in every batch, and nothing keeps the trigger from working on other
/// classes but the images with another image's trigger; here cover classes of the label rule may do so too.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SsdtConfig(pub InputAwareConfig);

impl ControlledKind for SsdtConfig {
    fn validate(&self, shape: ImageShape) -> Vec<AttackError> {
        self.0.validate(shape)
    }

    fn refuse(
        &self,
        rule: &LabelRule,
        placement: Option<&PlacementConfig>,
        model: &ClassifierConfig,
    ) -> Vec<AttackError> {
        let mut problems = self.0.refuse(rule, placement, model);
        if !matches!(rule, LabelRule::SourceSpecific(_)) {
            let found = "without a source class";
            let allowed = "\"source-specific\", because ssdt poisons images of one class alone";
            problems.push(checks::invalid("poisoning.label-rule", found, allowed));
        }
        problems
    }

    fn make_quick(&mut self) {
        self.0.make_quick();
    }
}

impl<B: TrainingBackend> ControlledAttack<B> for SsdtConfig {
    fn enter<'a>(
        &'a self,
        scene: Scene<'a>,
        device: &B::Device,
    ) -> Result<Box<dyn HandInTraining<B> + 'a>, AttackError> {
        Ok(Box::new(InputAware::<B>::new("ssdt", &self.0, scene, device)?))
    }
}
