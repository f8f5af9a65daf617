use std::path::Path;
use std::time::Duration;

use burn::tensor::backend::AutodiffBackend;
use fs_err as fs;
use patchdoor_data::ImageSet;
use patchdoor_kernels::TrainingBackend;
use patchdoor_model::Classifier;
use patchdoor_plan::Plan;
use patchdoor_record::{
    Build, ImagesUsed, RecordError, SCHEMA, check_sealed, commit_in_words, lock, move_aside, read_sealed_json,
    write_sealed, write_sealed_json,
};
use patchdoor_train::{PREDICTION_BATCH, accuracy_on};
use serde::{Deserialize, Serialize};

use crate::config_text::config_text;
use crate::console::Watch;
use crate::halt::{Halt, Step};
use crate::images::SeedImages;
use crate::training::{OneTraining, WEIGHTS, load, remove_checkpoint};

/// What is known of a clean model; its `result.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct CleanRecord {
    schema: u32,
    seed: u64,
    #[serde(flatten)]
    images: ImagesUsed,
    training_images: usize,
    test_images: usize,
    /// Share of untouched test images predicted right.
    clean_accuracy: f64,
    training_seconds: f64,
    /// The commit that trained it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    commit: Option<String>,
}

/// A classifier trained without poison.
pub(crate) struct CleanModel<B: AutodiffBackend> {
    /// Its folder, below the output folder.
    pub(crate) folder: String,
    /// Share of untouched test images predicted right.
    pub(crate) clean_accuracy: f64,
    /// The commit that trained it, if that is on record.
    pub(crate) commit: Option<String>,
    pub(crate) classifier: Classifier<B::InnerBackend>,
}

/// How a clean model is found.
enum State {
    Missing,
    Whole,
    /// And why it cannot be used.
    Damaged(RecordError),
}

/// Looks at everything that a clean model is used for, before anything is trained for its sake.
fn state(folder: &Path) -> State {
    if !folder.exists() {
        return State::Missing;
    }
    let record = read_sealed_json::<CleanRecord>(&folder.join("result.json"));
    match record.and_then(|_| check_sealed(&folder.join(WEIGHTS))) {
        Ok(()) => State::Whole,
        Err(error) => State::Damaged(error),
    }
}

/// What a clean model is trained for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// To know what the poison costs.
    Twin,
    /// To choose cells by.
    Surrogate,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::Twin => "clean twin",
            Self::Surrogate => "surrogate",
        }
    }
}

/// Where clean models are kept, each trained once for all runs that need it: twins of victims, and surrogates, which are
/// clean twins of another plan.
#[derive(Clone, Copy)]
pub(crate) struct CleanModels<'a> {
    /// The output folder.
    pub(crate) out: &'a Path,
    /// Name of the backend; another one makes other models.
    pub(crate) backend: &'a str,
    /// Fingerprint of the images, likewise.
    pub(crate) fingerprint: &'a str,
    pub(crate) used: &'a ImagesUsed,
    /// The program that trains.
    pub(crate) build: &'a Build,
    pub(crate) watch: Watch<'a>,
}

impl CleanModels<'_> {
    /// Finds the surrogate of a plan and seed, or trains it; the plan must have one. Beside it the images that it was trained on
    /// and its seed.
    ///
    /// `train` and `test` are the data set's; the surrogate holds out images of its own.
    pub(crate) fn surrogate<B: TrainingBackend>(
        &self,
        plan: &Plan,
        seed: u64,
        (train, test): (&ImageSet, &ImageSet),
        device: &B::Device,
    ) -> Step<(CleanModel<B>, ImageSet, u64)> {
        let (surrogate, surrogate_plan) = plan.surrogate().expect("it is asked for");
        let seed = seed.wrapping_add(surrogate.seed_offset);
        let images = SeedImages::draw(surrogate_plan.config(), train, seed);
        let model = self.find_or_train::<B>((&surrogate_plan, Role::Surrogate), seed, &images, test, device)?;
        Ok((model, images.training, seed))
    }

    /// Finds the clean model of a plan and seed, or trains it: the same configuration, images, seed, nothing poisoned.
    pub(crate) fn find_or_train<B: TrainingBackend>(
        &self,
        (plan, role): (&Plan, Role),
        seed: u64,
        images: &SeedImages,
        test: &ImageSet,
        device: &B::Device,
    ) -> Step<CleanModel<B>> {
        let hash = plan.twin_hash(self.backend, self.fingerprint);
        let folder = format!("twins/{hash}/seed-{seed}");
        let finished = self.out.join(&folder);
        let label = format!("{} seed {seed}: {}", plan.name(), role.name());
        if matches!(state(&finished), State::Whole) {
            self.watch.say(format!("{label} trained before, in {}", finished.display()));
        } else {
            let _lock = self.wait_for_lock(&format!("twin-{hash}-seed-{seed}"))?;
            // Whoever held the lock may have trained it meanwhile.
            let found = state(&finished);
            if let State::Damaged(reason) = &found {
                let aside = move_aside(&finished)?;
                self.watch.say(format!("warning: {label} is trained anew, {} is kept: {reason}", aside.display()));
            }
            if !matches!(found, State::Whole) {
                let partial = self.out.join(format!("{folder}.partial"));
                self.train::<B>((plan, role), seed, images, test, &partial, device)
                    .map_err(|halt| halt.of(role.name()))?;
                fs::rename(&partial, &finished)?;
            }
        }
        let record: CleanRecord = read_sealed_json(&finished.join("result.json"))?;
        let classifier = load(&plan.config().model, &images.training, seed, &finished, device)?;
        Ok(CleanModel { folder, clean_accuracy: record.clean_accuracy, commit: record.commit, classifier })
    }

    fn train<B: TrainingBackend>(
        &self,
        (plan, role): (&Plan, Role),
        seed: u64,
        images: &SeedImages,
        test: &ImageSet,
        folder: &Path,
        device: &B::Device,
    ) -> Step<()> {
        fs::create_dir_all(folder)?;
        let config = config_text(plan, "The clean twin of", self.used);
        write_sealed(&folder.join("config.toml"), config.as_bytes())?;
        let label = format!("{} seed {seed}, {}", plan.name(), role.name());
        let training = OneTraining::of(plan.config(), seed, (images, &images.training), self.used, folder, label);
        let trained = training.run::<B>(self.watch, None, device)?;
        let clean_accuracy = accuracy_on(&trained.classifier, test, PREDICTION_BATCH, device);
        let record = CleanRecord {
            schema: SCHEMA,
            seed,
            images: self.used.clone(),
            training_images: images.training.len(),
            test_images: test.len(),
            clean_accuracy: clean_accuracy.unwrap_or(0.0),
            training_seconds: trained.history.iter().map(|epoch| epoch.seconds).sum(),
            commit: commit_in_words(self.build),
        };
        write_sealed_json(&folder.join("result.json"), &record)?;
        remove_checkpoint(folder)
    }

    /// Waits until no other process trains this model.
    fn wait_for_lock(&self, name: &str) -> Step<std::fs::File> {
        let mut said = false;
        loop {
            if let Some(file) = lock(self.out, name)? {
                return Ok(file);
            }
            if self.watch.is_stopped() {
                return Err(Halt::Interrupted);
            }
            if !said {
                self.watch.say("waiting for another process, which trains the same clean twin");
                said = true;
            }
            std::thread::sleep(Duration::from_millis(300));
        }
    }
}
