use patchdoor_model::NetworkConfig;
use patchdoor_train::TrainingConfig;

use crate::problem::Problem;

/// What a training lacks that shall keep experts apart.
pub(crate) fn check_diversity(table: &str, training: &TrainingConfig, network: &dyn NetworkConfig) -> Option<Problem> {
    let has_pairs = network.expert_choice().is_some_and(|choice| choice.experts() > 1);
    (training.diversity.is_some() && !has_pairs).then(|| Problem {
        field: format!("{table}.diversity"),
        found: "given".into(),
        allowed: "none, for a network without two experts that choose patches".into(),
    })
}
