use burn::tensor::{Int, Tensor};
use patchdoor_data::stream;
use patchdoor_kernels::{TrainingBackend, differentiate};
use patchdoor_model::Classifier;
use sha2::{Digest, Sha256};

use crate::{Batch, BatchPass, Objective, PerturbationConfig, cross_entropy};

/// Adversarial training (Madry et al. 2018, arXiv:1706.06083): the cross-entropy of every batch after its images were perturbed to
/// raise it, from a random start, against the classifier as it is then.
///
/// The perturbation is looked for with the running statistics of inference, the step that follows takes the batch's. The random
/// start depends on seed and batch alone, so that a training that is resumed goes on as if it had never stopped.
pub(crate) struct Adversarial<'a> {
    pub(crate) config: &'a PerturbationConfig,
    pub(crate) seed: u64,
}

impl<B: TrainingBackend> Objective<B> for Adversarial<'_> {
    fn pass(&mut self, classifier: &Classifier<B>, batch: Batch<B>) -> BatchPass {
        let (images, labels) = (batch.images.inner(), batch.labels);
        let pixels = images.to_data();
        let mark = Sha256::digest(pixels.as_bytes());
        let mark = mark.iter().take(8).fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
        let start =
            self.config.random_start::<B>(&images, &mut stream(self.seed, &format!("training/adversarial/{mark}")));
        // A copy, so that its passes leave the statistics alone.
        let frozen = classifier.clone().freeze_all_but(&[]);
        let loss = |frozen: &Classifier<B>, images: Tensor<B, 4>| {
            let labels: Tensor<B, 1, Int> = labels.clone();
            cross_entropy(frozen.forward(images), labels)
        };
        let perturbed = self.config.climb(&frozen, &images, start, loss);
        differentiate(|| {
            let logits = classifier.forward(Tensor::from_inner(perturbed));
            let loss = cross_entropy(logits.clone(), labels.clone());
            BatchPass::backward(classifier, &logits, &loss)
        })
    }
}
