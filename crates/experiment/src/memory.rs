//! How much memory a run will take, known before it runs.

use patchdoor_plan::{DatasetFacts, Plan};
use patchdoor_train::{OptimizerConfig, input_shape};
use serde::Serialize;

/// Bytes of an f32.
const NUMBER: u64 = 4;

/// Gradients and results of the size of the largest map that the backward pass holds at once: of an operation's output and
/// input, and of the shortcut beside it.
const MAPS_AT_ONCE: u64 = 3;

/// Bytes that training takes. What the backend reserves ahead and its workspaces are not in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct MemoryForecast {
    /// Weights and running statistics, of the classifier in training.
    pub weights: u64,
    /// What the optimiser remembers.
    pub optimizer: u64,
    /// Gradients of all weights.
    pub gradients: u64,
    /// What is kept of a batch from the forward to the backward pass, its images among it.
    pub activations: u64,
    /// What the backward pass holds besides.
    pub workspace: u64,
    /// All of these: on the device.
    pub device: u64,
    /// Images on the host, if their number is known: both splits, and the poisoned copy of the first.
    pub images: Option<u64>,
    /// Images of a batch.
    pub batch_size: usize,
}

impl MemoryForecast {
    /// What a plan's trainings take, one after another.
    pub fn of(plan: &Plan) -> Self {
        let config = plan.config();
        let facts = DatasetFacts::published(&config.dataset);
        // Of a folder the number of classes is not known; the head hardly counts.
        let footprint = config.model.network().footprint(input_shape(facts.shape), facts.classes.unwrap_or(10));
        let batch_size = config.training.batch_size;
        let batch = batch_size as u64 * NUMBER;
        let parameters = footprint.parameters as u64 * NUMBER;
        let optimizer = match &config.training.optimizer {
            OptimizerConfig::Sgd(sgd) => {
                if sgd.momentum > 0.0 {
                    parameters
                } else {
                    0
                }
            }
            OptimizerConfig::Adam(_) => 2 * parameters,
        };
        let weights = parameters + footprint.statistics as u64 * NUMBER;
        let activations = footprint.kept as u64 * batch;
        let workspace = MAPS_AT_ONCE * footprint.largest as u64 * batch;
        let image = (facts.shape.height * facts.shape.width * facts.shape.channels) as u64;
        let counts = plan.counts(&facts);
        let sets = facts.training_images.zip(facts.test_images).map(|(training, test)| (training + test) as u64);
        let images = sets.zip(counts.training).map(|(sets, training)| (sets + training as u64) * image);
        Self {
            weights,
            optimizer,
            gradients: parameters,
            activations,
            workspace,
            device: weights + optimizer + parameters + activations + workspace,
            images,
            batch_size,
        }
    }

    /// Says it in one line.
    pub fn line(&self) -> String {
        let optimizer = if self.optimizer == 0 { "nothing".to_owned() } else { size(self.optimizer) };
        let images = self.images.map_or_else(String::new, |images| format!("; images on the host {}", size(images)));
        format!(
            "  memory on the device about {}: weights {}, optimiser {optimizer}, gradients {}, activations at batch {} {}, \
             workspace {}{images}",
            size(self.device),
            size(self.weights),
            size(self.gradients),
            self.batch_size,
            size(self.activations),
            size(self.workspace),
        )
    }
}

/// Bytes as people say them.
fn size(bytes: u64) -> String {
    let mebibytes = bytes as f64 / f64::from(1 << 20);
    match mebibytes {
        0.0..10.0 => format!("{mebibytes:.1} MiB"),
        10.0..1000.0 => format!("{mebibytes:.0} MiB"),
        _ => format!("{:.1} GiB", mebibytes / 1024.0),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use patchdoor_plan::PlanOptions;

    use super::*;

    fn forecast(changes: &[&str]) -> MemoryForecast {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("small.toml");
        let text = "dataset.shapes = { train = 240, test = 60, seed = 0 }\n[poisoning]\nrate = 0.1\n[trigger.square]\n\
                    [model.patch-moe]\nwiden-factor = 1\n[training]\nepochs = 1\nbatch-size = 32\n\
                    optimizer.sgd = { momentum = 0.0, nesterov = false }\n";
        fs_err::write(&file, text).expect("written");
        let overrides = changes.iter().map(|change| (*change).to_owned()).collect();
        let plan = Plan::read(Path::new(&file), &PlanOptions { overrides, ..PlanOptions::default() });
        MemoryForecast::of(&plan.expect("it reads"))
    }

    #[test]
    fn the_thinnest_network_takes_what_was_counted_by_hand() {
        let memory = forecast(&[]);
        // 44,218 parameters and 864 running statistics, worked out with the network (footprint.rs).
        assert_eq!((memory.weights, memory.gradients, memory.optimizer), (4 * 45_082, 4 * 44_218, 0));
        // 159,552 numbers of each of 32 images; three maps of 16 x 32 x 32.
        assert_eq!((memory.activations, memory.workspace), (4 * 32 * 159_552, 3 * 4 * 32 * 16_384));
        // 240 + 60 images, and 216 of them poisoned or not in the set trained on; 3,072 bytes each.
        assert_eq!(memory.images, Some((300 + 216) * 3072));
        assert_eq!(memory.device, 180_328 + 176_872 + 20_422_656 + 6_291_456);
        assert_eq!(
            memory.line(),
            "  memory on the device about 26 MiB: weights 0.2 MiB, optimiser nothing, gradients 0.2 MiB, activations at \
             batch 32 19 MiB, workspace 6.0 MiB; images on the host 1.5 MiB"
        );
    }

    #[test]
    fn an_optimiser_that_remembers_takes_more_and_a_larger_batch_in_proportion() {
        let momentum = forecast(&["training.optimizer.sgd.momentum=0.9"]);
        assert_eq!(momentum.optimizer, 4 * 44_218);
        let double = forecast(&["training.batch-size=64"]);
        assert_eq!(double.activations, 2 * momentum.activations);
    }
}
