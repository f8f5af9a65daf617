use burn::tensor::backend::Backend;
use patchdoor_model::{Classifier, Part, Pruning};

/// What of a classifier a training may change; everything, if nothing else is said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trainable {
    /// The parts that learn; all if `None`. The others keep their weights and their running statistics bit for bit, and
    /// normalize with those statistics in training too, as in inference.
    pub parts: Option<Vec<Part>>,
    /// Filters that are zero before the first step and after every step.
    pub pruned: Option<Pruning>,
}

impl Trainable {
    /// Only these parts.
    pub fn only(parts: &[Part]) -> Self {
        Self { parts: Some(parts.to_vec()), pruned: None }
    }

    /// Everything but filters that stay away.
    pub fn without(pruned: Pruning) -> Self {
        Self { parts: None, pruned: Some(pruned) }
    }

    /// Whether anything of a classifier learns: it has one of the parts, and its configuration does not freeze that.
    pub(crate) fn leaves_something_to<B: Backend>(&self, classifier: &Classifier<B>) -> bool {
        let config = classifier.config();
        let ever = config.network().learning_parts();
        self.parts.as_ref().is_none_or(|parts| parts.iter().any(|part| ever.contains(part)))
    }

    /// Freezes what does not learn and takes away what is pruned.
    pub(crate) fn apply<B: Backend>(&self, classifier: Classifier<B>) -> Classifier<B> {
        let classifier = match &self.parts {
            Some(parts) => classifier.freeze_all_but(parts),
            None => classifier,
        };
        match &self.pruned {
            Some(pruning) => classifier.prune(pruning),
            None => classifier,
        }
    }
}
