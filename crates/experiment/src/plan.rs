use std::path::{Path, PathBuf};

use patchdoor_data::{Budget, CleanLabel, DatasetConfig, LabelRule, PoisoningConfig, ShapesConfig};
use patchdoor_model::ClassifierConfig;
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::ExperimentConfig;
use crate::checks::{Problem, check};
use crate::config::WhenMissing;
use crate::diagnostics::{ConfigErrors, Diagnostic};
use crate::document::{Document, Reading};
use crate::facts::DatasetFacts;

/// What the command line changes about an experiment file.
#[derive(Clone, Debug, Default)]
pub struct PlanOptions {
    /// `a.b=c`, applied in order.
    pub overrides: Vec<String>,
    /// Other seeds than the file's.
    pub seeds: Option<Vec<u64>>,
    /// Seconds instead of minutes: few images, two epochs, a thin network, one seed.
    pub quick: bool,
}

impl PlanOptions {
    /// The overrides, and the seeds as one more.
    pub(crate) fn all_overrides(&self) -> Vec<String> {
        let seeds = self.seeds.as_ref().map(|seeds| format!("seeds={seeds:?}"));
        self.overrides.iter().cloned().chain(seeds).collect()
    }
}

/// Orders problems as they stand in the file, those of overrides last.
pub(crate) fn sort_by_place(diagnostics: &mut [Diagnostic]) {
    diagnostics.sort_by_key(|diagnostic| {
        let position = diagnostic.position.as_ref();
        position.map(|position| (position.origin == "--set", position.line, position.column))
    });
}

/// A checked experiment; nothing else can run.
///
/// ```
/// use patchdoor_experiment::{Plan, PlanOptions};
///
/// let text = r#"
///     dataset = "shapes"
///     [trigger.square]
///     [model.patch-moe]
/// "#;
/// let plan = Plan::from_text("example.toml", text, &PlanOptions::default()).unwrap();
/// assert_eq!(plan.name(), "example");
///
/// let wrong = text.replace("[trigger.square]", "[trigger.square]\nsize = 99");
/// let problems = Plan::from_text("example.toml", &wrong, &PlanOptions::default()).unwrap_err();
/// assert!(problems.to_string().contains("trigger.square.size is 99"));
/// ```
#[derive(Clone, Debug)]
pub struct Plan {
    path: PathBuf,
    config: ExperimentConfig,
    overrides: Vec<String>,
    quick: bool,
    /// Which point of a sweep this is, in words.
    point: Option<String>,
    document: Document,
}

/// A number of images for each purpose, as far as it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageCounts {
    /// Images trained on.
    pub training: Option<usize>,
    /// Images held out of training.
    pub validation: Option<usize>,
    /// Images tested on.
    pub test: Option<usize>,
    /// Training images that are poisoned.
    pub poisoned: Option<usize>,
}

impl Plan {
    /// Reads and checks an experiment file.
    ///
    /// # Errors
    /// Every problem of the file and the overrides at once.
    pub fn read(path: &Path, options: &PlanOptions) -> Result<Self, ConfigErrors> {
        let text = fs_err::read_to_string(path).map_err(|error| ConfigErrors {
            path: path.to_owned(),
            diagnostics: vec![Diagnostic {
                field: String::new(),
                message: error.to_string(),
                position: None,
                help: Some("cargo xtask list shows the experiments there are".into()),
            }],
        })?;
        Self::from_text(path, &text, options)
    }

    /// Checks an experiment that has been read; `path` names it in messages and in its results.
    ///
    /// # Errors
    /// Every problem of the text and the overrides at once.
    pub fn from_text(path: impl AsRef<Path>, text: &str, options: &PlanOptions) -> Result<Self, ConfigErrors> {
        let path = path.as_ref();
        let overrides = options.all_overrides();
        let reading = Document::read(&path.display().to_string(), text, &overrides);
        Self::from_reading(path, reading, overrides, options.quick, None)
    }

    /// Like [`Self::from_text`], for one point of the text's sweep, which is described in words.
    pub(crate) fn from_point(
        path: &Path,
        text: &str,
        options: &PlanOptions,
        number: usize,
        description: String,
        settings: &[String],
    ) -> Result<Self, ConfigErrors> {
        let mut overrides = options.all_overrides();
        let reading = Document::read_point(&path.display().to_string(), text, &overrides, number);
        overrides.extend_from_slice(settings);
        Self::from_reading(path, reading, overrides, options.quick, Some(description))
    }

    fn from_reading(
        path: &Path,
        reading: Reading,
        overrides: Vec<String>,
        quick: bool,
        point: Option<String>,
    ) -> Result<Self, ConfigErrors> {
        let Reading { document, config, problems: mut diagnostics, unread } = reading;
        if let Some(config) = &config {
            let known = !unread.iter().any(|path| path == "dataset" || path.starts_with("dataset."));
            let facts = known.then(|| DatasetFacts::published(&config.dataset));
            let untouched = |problem: &Problem| {
                !unread.iter().any(|path| problem.field == *path || problem.field.starts_with(&format!("{path}.")))
            };
            let problems = check(config, facts).into_iter().filter(untouched);
            diagnostics.extend(problems.map(|p| document.problem(&p.field, &p.found, &p.allowed)));
        }
        match config {
            Some(mut config) if diagnostics.is_empty() => {
                if quick {
                    make_quick(&mut config);
                }
                Ok(Self { path: path.to_owned(), config, overrides, quick, point, document })
            }
            _ => {
                sort_by_place(&mut diagnostics);
                Err(ConfigErrors { path: path.to_owned(), diagnostics })
            }
        }
    }

    /// Checks the plan again, against images that were read: a folder's, or those that stand in for a
    /// missing set.
    ///
    /// # Errors
    /// Every field that does not fit these images.
    pub fn check_against(&self, facts: DatasetFacts) -> Result<(), ConfigErrors> {
        let problems = check(&self.config, Some(facts));
        if problems.is_empty() {
            return Ok(());
        }
        let diagnostics = problems.iter().map(|p| self.document.problem(&p.field, &p.found, &p.allowed)).collect();
        Err(ConfigErrors { path: self.path.clone(), diagnostics })
    }

    /// The experiment file's name without its ending.
    pub fn name(&self) -> String {
        self.path.file_stem().map_or_else(|| "experiment".into(), |stem| stem.to_string_lossy().into_owned())
    }

    /// The experiment file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What runs, with every default resolved.
    pub fn config(&self) -> &ExperimentConfig {
        &self.config
    }

    /// The overrides given on the command line, in order.
    pub fn overrides(&self) -> &[String] {
        &self.overrides
    }

    /// Which point of a sweep this is, in words; `None` for an experiment of its own.
    pub fn point(&self) -> Option<&str> {
        self.point.as_deref()
    }

    /// The same plan with one seed.
    #[must_use]
    pub fn with_seed(&self, seed: u64) -> Self {
        let mut plan = self.clone();
        plan.config.seeds = vec![seed];
        plan
    }

    /// Whether this is the quick version of the experiment.
    pub fn is_quick(&self) -> bool {
        self.quick
    }

    /// The same plan on the built-in shapes, if the experiment allows that in place of a missing set.
    pub fn on_shapes(&self) -> Option<Self> {
        (self.config.data.when_missing == Some(WhenMissing::Shapes)).then(|| {
            let mut plan = self.clone();
            let mut shapes = ShapesConfig::default();
            // As many images as the experiment asks for, where it asks for more than the set has by default.
            let held_out = 1.0 - self.config.data.validation_fraction;
            let wanted = self.config.data.training_images.unwrap_or(0) as f64 / held_out;
            shapes.train = shapes.train.max(wanted.ceil() as usize + 10);
            shapes.test = shapes.test.max(self.config.data.test_images.unwrap_or(0));
            plan.config.dataset = DatasetConfig::Shapes(shapes);
            plan
        })
    }

    /// The same plan with another network.
    pub(crate) fn with_model(&self, model: ClassifierConfig) -> Self {
        let mut plan = self.clone();
        plan.config.model = model;
        plan
    }

    /// Eight hexadecimal digits that differ between experiments whose results may differ.
    ///
    /// They depend on what runs and on the backend; not on the file's name, comments or order, nor on
    /// the numbers it expects.
    pub fn hash(&self, backend: &str) -> String {
        let config = ExperimentConfig { expected: None, ..self.config.clone() };
        digest(&(1, backend, config))
    }

    /// Like [`Self::hash`], for what the clean twin depends on: not the attack and not the seeds.
    /// `images` is the fingerprint of the images.
    pub fn twin_hash(&self, backend: &str, images: &str) -> String {
        let ExperimentConfig { dataset, data, model, training, .. } = &self.config;
        let data = crate::DataConfig { when_missing: None, ..data.clone() };
        digest(&(1, backend, images, dataset, data, model, training))
    }

    /// The experiment as a TOML file with every default written out; reading it gives this plan again.
    ///
    /// # Panics
    /// Never: what came from TOML can be written as TOML.
    pub fn to_toml(&self) -> String {
        toml::to_string(&self.config).expect("a configuration that came from TOML can be written as TOML")
    }

    /// How many images serve each purpose, given those there are.
    pub fn counts(&self, facts: DatasetFacts) -> ImageCounts {
        counts(&self.config, facts)
    }
}

pub(crate) fn digest(value: &impl Serialize) -> String {
    // serde_json's map is sorted by key, so the order of fields in our types does not matter.
    let canonical = serde_json::to_value(value).expect("configurations are plain data").to_string();
    hex(&Sha256::digest(canonical.as_bytes())[..4])
}

/// Lowercase hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;

    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// How many images serve each purpose.
pub(crate) fn counts(config: &ExperimentConfig, facts: DatasetFacts) -> ImageCounts {
    let fraction = config.data.validation_fraction.clamp(0.0, 0.5);
    let held_out = facts.training_images.map(|images| share_of(images, fraction));
    let rest = facts.training_images.zip(held_out).map(|(images, held_out)| images - held_out);
    let training = config.data.training_images.or(rest);
    let validation = match config.data.training_images {
        Some(training) => Some(share_of(training, fraction / (1.0 - fraction)).min(held_out.unwrap_or(usize::MAX))),
        None => held_out,
    };
    ImageCounts {
        training,
        validation,
        test: config.data.test_images.or(facts.test_images),
        poisoned: training.filter(|_| is_of_all_images(&config.poisoning)).map(|images| config.poisoning.count(images)),
    }
}

/// Whether the poisoning rate is a fraction of all training images, whose number is known before they are read.
fn is_of_all_images(poisoning: &PoisoningConfig) -> bool {
    !matches!(poisoning.label_rule, LabelRule::CleanLabel(CleanLabel { budget: Budget::TargetClass }))
}

/// The whole number nearest to a share of some images.
pub(crate) fn share_of(images: usize, share: f64) -> usize {
    (images as f64 * share).round() as usize
}

/// Shrinks an experiment to seconds, keeping every code path it takes.
fn make_quick(config: &mut ExperimentConfig) {
    config.seeds.truncate(1);
    let facts = DatasetFacts::published(&config.dataset);
    let training = counts(config, facts).training.unwrap_or(usize::MAX).min(400);
    config.data.training_images = Some(training);
    config.data.test_images = Some(config.data.test_images.or(facts.test_images).unwrap_or(usize::MAX).min(200));
    if config.poisoning.rate > 0.0 && config.poisoning.count(training) == 0 {
        config.poisoning.rate = 1.5 / training as f64;
    }
    config.training.epochs = config.training.epochs.min(2);
    config.training.batch_size = config.training.batch_size.min(64);
    config.defenses.iter_mut().for_each(crate::DefenderConfig::make_quick);
    config.model.network_mut().make_quick();
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Experiment;

    const GOOD: &str = "dataset = \"cifar10\"\n[trigger.square]\n[model.patch-moe]\n";

    fn plan(text: &str) -> Result<Plan, ConfigErrors> {
        Plan::from_text("a.toml", text, &PlanOptions::default())
    }

    fn problems(text: &str) -> String {
        plan(text).expect_err("has problems").to_string()
    }

    /// Every experiment file of the project, with its text.
    fn experiments() -> Vec<(PathBuf, String)> {
        fn collect(folder: &Path, files: &mut Vec<(PathBuf, String)>) {
            for entry in fs_err::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    collect(&path, files);
                } else if path.extension().is_some_and(|extension| extension == "toml")
                    && !path.ends_with("claims.toml")
                {
                    files.push((path.clone(), fs_err::read_to_string(path).unwrap()));
                }
            }
        }
        let mut files = Vec::new();
        collect(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../experiments"), &mut files);
        assert!(!files.is_empty());
        files
    }

    #[test]
    fn every_experiment_of_the_project_is_valid_in_full_and_quick() {
        for (path, text) in experiments() {
            assert!(text.starts_with("# "), "{} opens with what it shows", path.display());
            assert!(text.contains("cargo xtask run"), "{} has its command", path.display());
            for quick in [false, true] {
                let options = PlanOptions { quick, ..PlanOptions::default() };
                let experiment = Experiment::from_text(&path, &text, &options);
                for plan in experiment.unwrap_or_else(|errors| panic!("{errors}")).plans() {
                    plan.check_against(DatasetFacts::published(&plan.config.dataset)).unwrap();
                    if let Some(shapes) = plan.on_shapes() {
                        shapes.check_against(DatasetFacts::published(&shapes.config.dataset)).unwrap();
                    }
                }
            }
        }
    }

    #[test]
    fn a_written_plan_reads_back_as_the_same_plan() {
        for (path, text) in experiments() {
            for first in Experiment::from_text(&path, &text, &PlanOptions::default()).unwrap().plans() {
                let second = Plan::from_text(&path, &first.to_toml(), &PlanOptions::default()).unwrap();
                assert_eq!(first.config, second.config);
                assert_eq!(first.hash("flex"), second.hash("flex"));
                assert_eq!(first.to_toml(), second.to_toml());
            }
        }
    }

    #[test]
    fn a_hash_depends_on_what_changes_results_and_on_nothing_else() {
        let hash = |text: &str| plan(text).unwrap().hash("flex");
        let same = format!("# A comment.\nseeds = [0]\n{GOOD}\n[training]\nepochs = 25\n[expected]\nasr = 1.0\n");
        assert_eq!(hash(GOOD), hash(&same));
        assert_ne!(hash(GOOD), hash(&format!("seeds = [1]\n{GOOD}")));
        assert_ne!(hash(GOOD), hash(&format!("{GOOD}[training]\nepochs = 24\n")));
        assert_ne!(hash(GOOD), plan(GOOD).unwrap().hash("cuda"));
        // If this changes, nobody's finished runs are found any more: say so in the changelog.
        insta::assert_snapshot!(hash(GOOD), @"3764e80b");
    }

    #[test]
    fn a_clean_twin_is_shared_by_attacks_and_seeds_but_not_by_other_images() {
        let twin = |text: &str, images: &str| plan(text).unwrap().twin_hash("flex", images);
        let other_attack = GOOD.replace("[trigger.square]", "[poisoning]\nrate = 0.1\n[trigger.square]\nsize = 2");
        assert_eq!(twin(GOOD, "a"), twin(&format!("seeds = [3]\n{other_attack}"), "a"));
        assert_ne!(twin(GOOD, "a"), twin(GOOD, "b"));
        assert_ne!(twin(GOOD, "a"), twin(&format!("{GOOD}[training]\nepochs = 24\n"), "a"));
    }

    #[test]
    fn impossible_values_are_reported_at_once_with_what_is_allowed() {
        insta::assert_snapshot!(problems(
            r#"
dataset = "cifar10"
seeds = [1, 1]

[data]
training-images = 48000
test-images = 10001

[data.augmentation]
crop-padding = 32

[poisoning]
rate = 1.7
target-class = 12

[trigger.square]
size = 33

[model.patch-moe]
patches-per-expert = 70
widen-factor = 0

[training]
learning-rate = nan

[expected]
asr = 97
"#
        ));
    }

    #[test]
    fn a_rate_that_poisons_no_image_is_a_problem() {
        insta::assert_snapshot!(problems(&format!("{GOOD}[poisoning]\nrate = 0.001\n[data]\ntraining-images = 900\n")));
    }

    #[test]
    fn a_default_that_does_not_fit_the_images_is_a_problem_of_its_table() {
        let text = "dataset = \"mnist\"\n[trigger.square]\n[model.patch-moe]\npatch-size = 7\n";
        insta::assert_snapshot!(problems(text));
    }

    #[test]
    fn overrides_and_seeds_change_the_plan_and_are_recorded() {
        let options = PlanOptions {
            overrides: vec!["poisoning.rate=0.5".into(), "data.validation-fraction=0".into()],
            seeds: Some(vec![4, 5]),
            quick: false,
        };
        let plan = Plan::from_text("a.toml", GOOD, &options).unwrap();
        assert_eq!(plan.config.poisoning.rate.to_string(), "0.5");
        assert_eq!(plan.config.seeds, [4, 5]);
        assert_eq!(plan.overrides(), ["poisoning.rate=0.5", "data.validation-fraction=0", "seeds=[4, 5]"]);
        let counts = plan.counts(DatasetFacts::published(&plan.config.dataset));
        assert_eq!((counts.training, counts.validation, counts.poisoned), (Some(50_000), Some(0), Some(25_000)));
    }

    #[test]
    fn training_images_are_what_is_trained_on() {
        let plan = plan(&format!("{GOOD}[data]\ntraining-images = 8000\n")).unwrap();
        let counts = plan.counts(DatasetFacts::published(&plan.config.dataset));
        assert_eq!((counts.training, counts.validation, counts.poisoned), (Some(8000), Some(889), Some(160)));
    }

    #[test]
    fn quick_shrinks_a_plan_but_still_poisons() {
        let options = PlanOptions { quick: true, ..PlanOptions::default() };
        let text = format!("seeds = [3, 4]\n{GOOD}[poisoning]\nrate = 0.0001\n");
        let plan = Plan::from_text("a.toml", &text, &options).unwrap();
        let counts = plan.counts(DatasetFacts::published(&plan.config.dataset));
        assert_eq!((counts.training, counts.test, counts.poisoned), (Some(400), Some(200), Some(1)));
        assert_eq!((plan.config.seeds.as_slice(), plan.config.training.epochs), (&[3][..], 2));
    }

    /// Lines that go together more or less, so that random files get far into the checks.
    fn lines() -> impl Strategy<Value = String> {
        let keys = prop::sample::select(vec![
            "dataset",
            "seeds",
            "clean-twin",
            "rate",
            "target-class",
            "size",
            "anchor",
            "row",
            "value",
            "colour",
            "widen-factor",
            "experts",
            "patches-per-expert",
            "patch-size",
            "epochs",
            "batch-size",
            "learning-rate",
            "optimizer",
            "schedule",
            "validation-fraction",
            "training-images",
            "when-missing",
            "asr",
            "folder.path",
        ]);
        let values = prop::sample::select(vec![
            "0",
            "1",
            "-1",
            "300",
            "1.7",
            "nan",
            "inf",
            "1e400",
            "99999999999999999999",
            "true",
            "\"shapes\"",
            "\"é\"",
            "\"cifar10\"",
            "[]",
            "[0, 1]",
            "[255, 0, 300]",
            "{}",
            "{ sgd = {} }",
            "{ a = [{ b = 1 }] }",
            "1979-05-27",
            "\"\"\"a\nb\"\"\"",
            "\"upper-left\"",
            "\"constant\"",
        ]);
        let tables = prop::sample::select(vec![
            "[data]",
            "[poisoning]",
            "[trigger.square]",
            "[trigger]",
            "[model.patch-moe]",
            "[model.wide-resnet]",
            "[model.patch-moe.batch-norm]",
            "[training]",
            "[training.schedule.step]",
            "[expected]",
            "[[defenses]]",
            "[\"a.b\"]",
            "[dataset.shapes]",
            "[dataset.folder]",
            "[data.augmentation]",
        ]);
        prop_oneof![
            4 => (keys, values).prop_map(|(key, value)| format!("{key} = {value}")),
            2 => tables.prop_map(str::to_owned),
            1 => Just("# comment".to_owned()),
        ]
    }

    proptest! {
        #[test]
        fn any_text_is_a_plan_or_an_error(text in any::<String>(), set in any::<Option<String>>()) {
            let options = PlanOptions { overrides: set.into_iter().collect(), ..PlanOptions::default() };
            if let Err(errors) = Plan::from_text("a.toml", &text, &options) {
                prop_assert!(!errors.diagnostics.is_empty());
                let _ = errors.to_string();
            }
        }

        #[test]
        fn any_lines_are_a_plan_or_an_error(lines in prop::collection::vec(lines(), 0..24), quick in any::<bool>()) {
            let text = lines.join("\n");
            let options = PlanOptions { quick, ..PlanOptions::default() };
            match Plan::from_text("a.toml", &text, &options) {
                Ok(plan) => {
                    let again = Plan::from_text("a.toml", &plan.to_toml(), &PlanOptions::default());
                    prop_assert_eq!(again.unwrap().config, plan.config);
                }
                Err(errors) => {
                    prop_assert!(!errors.diagnostics.is_empty());
                    let _ = errors.to_string();
                }
            }
        }

        #[test]
        fn any_override_of_a_good_file_is_a_plan_or_an_error(line in lines(), prefix in "(training|poisoning|data|model|trigger\\.square)?") {
            let dot = if prefix.is_empty() { "" } else { "." };
            let options = PlanOptions { overrides: vec![format!("{prefix}{dot}{line}")], ..PlanOptions::default() };
            if let Err(errors) = Plan::from_text("a.toml", GOOD, &options) {
                prop_assert!(!errors.diagnostics.is_empty());
                let _ = errors.to_string();
            }
        }
    }
}
