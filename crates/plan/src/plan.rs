use std::path::{Path, PathBuf};

use patchdoor_attacks::{SurrogateConfig, SurrogateImages};
use patchdoor_data::{DatasetConfig, LabelRule, ShapesConfig};

use crate::checks::check;
use crate::class_names::{ClassNames, WrongName, position, set_class};
use crate::classes::class_notes;
use crate::config::{DataConfig, ExperimentConfig, WhenMissing};
use crate::counts::{ImageCounts, counts};
use crate::diagnostics::{ConfigErrors, Diagnostic, sort_by_place};
use crate::document::Document;
use crate::facts::DatasetFacts;
use crate::hash::digest;
use crate::problem::Problem;
use crate::quick::make_quick;
use crate::reading::Reading;

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

/// A checked experiment; nothing else can run.
///
/// ```
/// use patchdoor_plan::{Plan, PlanOptions};
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
    /// Classes named in the file whose numbers the images will tell; the configuration has stand-ins there.
    class_names: ClassNames,
    /// Digest of the experiment before it was made quick.
    written: String,
}

impl Plan {
    /// Reads and checks an experiment file.
    ///
    /// # Errors
    /// Every problem of the file and the overrides at once.
    pub fn read(path: &Path, options: &PlanOptions) -> Result<Self, ConfigErrors> {
        Self::from_text(path, &read_text(path)?, options)
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

    pub(crate) fn from_reading(
        path: &Path,
        reading: Reading,
        overrides: Vec<String>,
        quick: bool,
        point: Option<String>,
    ) -> Result<Self, ConfigErrors> {
        let Reading { document, config, problems: mut diagnostics, unread, class_names } = reading;
        diagnostics.extend(too_long(path));
        if let Some(config) = &config {
            let known = !unread.iter().any(|path| path == "dataset" || path.starts_with("dataset."));
            let facts = known.then(|| DatasetFacts::published(&config.dataset));
            let untouched = |problem: &Problem| {
                !unread.iter().any(|path| problem.field == *path || problem.field.starts_with(&format!("{path}.")))
            };
            let problems = check(config, facts.as_ref()).into_iter().filter(untouched);
            diagnostics.extend(problems.map(|p| document.problem(&p.field, &p.found, &p.allowed)));
        }
        match config {
            Some(mut config) if diagnostics.is_empty() => {
                let written = digest_of(&config, &class_names);
                if quick {
                    let facts = DatasetFacts::published(&config.dataset);
                    make_quick(&mut config, &facts);
                }
                Ok(Self { path: path.to_owned(), config, class_names, written, overrides, quick, point, document })
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
    pub fn check_against(&self, facts: &DatasetFacts) -> Result<(), ConfigErrors> {
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

    /// The same plan for images that were read: classes that it names have their numbers, a quick one takes no more of
    /// the images than there are, and everything fits them.
    ///
    /// # Errors
    /// Every field that does not fit these images.
    pub fn for_images(&self, facts: &DatasetFacts) -> Result<Self, ConfigErrors> {
        let mut plan = self.clone();
        let classes = facts.class_names.as_deref().unwrap_or_default();
        let mut diagnostics = Vec::new();
        for (field, name) in std::mem::take(&mut plan.class_names) {
            match position(&name, classes) {
                Ok(number) => set_class(&mut plan.config, &field, number),
                Err(WrongName { allowed, help }) => {
                    let problem = self.document.problem(&field, &format!("{name:?}"), &allowed);
                    diagnostics.push(Diagnostic { help, ..problem });
                }
            }
        }
        if !diagnostics.is_empty() {
            return Err(ConfigErrors { path: self.path.clone(), diagnostics });
        }
        if plan.quick {
            make_quick(&mut plan.config, facts);
        }
        plan.check_against(facts)?;
        Ok(plan)
    }

    /// What a reader of its results must know before anything is computed, as far as the images are known: a sentence each.
    pub fn notes(&self, facts: &DatasetFacts) -> Vec<String> {
        if self.class_names.is_empty() { class_notes(&self.config, facts) } else { Vec::new() }
    }

    /// The class that triggered images shall be taken for, by number and name as far as they are known; `None` where there
    /// is no one such class.
    pub fn target_in_words(&self, facts: &DatasetFacts) -> Option<String> {
        if matches!(self.config.poisoning.label_rule, LabelRule::AllToAll) {
            return None;
        }
        let named = self.class_names.iter().find(|(field, _)| field.as_str() == "poisoning.target-class");
        Some(match named {
            Some((_, name)) => name.clone(),
            None => facts.class_in_words(self.config.poisoning.target_class),
        })
    }

    /// A problem with a value of this plan, at its place in the file.
    pub fn problem(&self, field: &str, found: &str, allowed: &str) -> ConfigErrors {
        ConfigErrors { path: self.path.clone(), diagnostics: vec![self.document.problem(field, found, allowed)] }
    }

    /// A digest of the experiment as it is in full, whether this is the quick version or not.
    pub(crate) fn written(&self) -> &str {
        &self.written
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

    /// The surrogate that chooses the placement's cells or the images to poison, or makes the trigger, if one does, and the plan whose
    /// clean twin it is.
    pub fn surrogate(&self) -> Option<(SurrogateConfig, Self)> {
        let (surrogate, model) = self.config.surrogate_in_use()?;
        let mut plan = self.clone();
        plan.config.model = model;
        if surrogate.images == SurrogateImages::Others {
            plan.config.data.apart_from = Some(surrogate.seed_offset);
        }
        Some((surrogate, plan))
    }

    /// Name of a run's folder: the experiment's, and eight digits of what it depends on.
    pub fn run_name(&self, backend: &str) -> String {
        format!("{}-{}", self.name(), self.hash(backend))
    }

    /// Eight hexadecimal digits that differ between experiments whose results may differ.
    ///
    /// They depend on what runs and on the backend; not on the file's name, comments or order, nor on
    /// the numbers it expects.
    pub fn hash(&self, backend: &str) -> String {
        let config = ExperimentConfig { expected: None, ..self.config.clone() };
        if self.class_names.is_empty() {
            digest(&(1, backend, config))
        } else {
            digest(&(1, backend, config, &self.class_names))
        }
    }

    /// Like [`Self::hash`], for what the clean twin depends on: not the attack and not the seeds.
    /// `images` is the fingerprint of the images.
    pub fn twin_hash(&self, backend: &str, images: &str) -> String {
        let ExperimentConfig { dataset, data, model, training, precision, .. } = &self.config;
        let data = DataConfig { when_missing: None, ..data.clone() };
        let twin = (1, backend, images, dataset, data, model, training);
        if precision.is_full() { digest(&twin) } else { digest(&(twin, precision)) }
    }

    /// The experiment as a TOML file with every default written out; reading it gives this plan again.
    ///
    /// # Panics
    /// Never: what came from TOML can be written as TOML.
    pub fn to_toml(&self) -> String {
        let written = "a configuration that came from TOML can be written as TOML";
        if self.class_names.is_empty() {
            return toml::to_string(&self.config).expect(written);
        }
        let mut table = toml::Table::try_from(&self.config).expect(written);
        for (field, name) in &self.class_names {
            let mut parts = field.split('.');
            let first = parts.next().and_then(|part| table.get_mut(part));
            if let Some(value) = parts.fold(first, |value, part| value.and_then(|value| within(value, part))) {
                *value = name.clone().into();
            }
        }
        toml::to_string(&table).expect(written)
    }

    /// How many images serve each purpose, given those there are.
    pub fn counts(&self, facts: &DatasetFacts) -> ImageCounts {
        counts(&self.config, facts)
    }
}

/// What a table holds under a key, or a list in a place counted from 0.
fn within<'a>(value: &'a mut toml::Value, part: &str) -> Option<&'a mut toml::Value> {
    match value {
        toml::Value::Array(items) => items.get_mut(part.parse::<usize>().ok()?),
        value => value.get_mut(part),
    }
}

fn digest_of(config: &ExperimentConfig, class_names: &ClassNames) -> String {
    digest(&(ExperimentConfig { expected: None, ..config.clone() }, class_names))
}

/// The text of an experiment file.
///
/// # Errors
/// If it cannot be read or is no text, with what to do about it.
pub(crate) fn read_text(path: &Path) -> Result<String, ConfigErrors> {
    let problem = |message: String, help: &str| ConfigErrors {
        path: path.to_owned(),
        diagnostics: vec![Diagnostic { field: String::new(), message, position: None, help: Some(help.to_owned()) }],
    };
    let bytes = fs_err::read(path)
        .map_err(|error| problem(error.to_string(), "cargo xtask list shows the experiments there are"))?;
    let save = "save it as UTF-8 (in Notepad: Save as, Encoding)";
    match String::from_utf8(bytes) {
        // An editor's mark that this is UTF-8 is no part of the first line.
        Ok(text) if !text.contains('\0') => Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text)),
        Ok(_) => Err(problem(format!("{} has bytes of zero, so it is no text in UTF-8", path.display()), save)),
        Err(error) => {
            let at = error.utf8_error().valid_up_to();
            let bytes = error.into_bytes();
            let what = if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
                "is in UTF-16".to_owned()
            } else {
                let line = bytes[..at].split(|&byte| byte == b'\n').count();
                format!("is not in UTF-8: line {line} has the byte 0x{:02x}", bytes[at])
            };
            Err(problem(format!("{} {what}, expected a text in UTF-8", path.display()), save))
        }
    }
}

/// Bytes that an experiment's name may have: folders are named for it and more, and most disks end names at 255.
const LONGEST_NAME: usize = 200;

/// What is wrong with a name that no folder of results can have.
fn too_long(path: &Path) -> Option<Diagnostic> {
    let length = path.file_stem().map_or(0, |stem| stem.to_string_lossy().len());
    (length > LONGEST_NAME).then(|| Diagnostic {
        help: Some("rename the file: folders of results are named for it".into()),
        ..Diagnostic::about_file(
            path,
            format!("the file's name is {length} bytes long without its ending, expected at most {LONGEST_NAME}"),
        )
    })
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
    fn a_quick_plan_takes_no_more_images_than_there_are() {
        let text = "dataset.folder = { path = \"a\" }\n[trigger.square]\n[model.patch-moe]\n[[defenses]]\nclean-images = 150\n\
                    fine-tuning = {}\n";
        let options = PlanOptions { quick: true, ..PlanOptions::default() };
        let plan = Plan::from_text("a.toml", text, &options).unwrap_or_else(|errors| panic!("{errors}"));
        let facts = |training, test| DatasetFacts {
            training_images: Some(training),
            test_images: Some(test),
            classes: Some(3),
            ..DatasetFacts::published(&plan.config.dataset)
        };
        // A tenth is held out of 120.
        let small = plan.for_images(&facts(120, 30)).unwrap();
        assert_eq!((small.config.data.training_images, small.config.data.test_images), (Some(108), Some(30)));
        small.check_against(&facts(120, 30)).unwrap();
        assert_eq!(small.counts(&facts(120, 30)).poisoned, Some(2));
        let large = plan.for_images(&facts(12_000, 3000)).unwrap();
        assert_eq!((large.config.data.training_images, large.config.data.test_images), (Some(400), Some(200)));
        let whole = Plan::from_text("a.toml", text, &PlanOptions::default()).unwrap();
        assert_eq!(whole.for_images(&facts(220, 30)).unwrap().config, whole.config, "only a quick plan gives way");
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
                    plan.check_against(&DatasetFacts::published(&plan.config.dataset)).unwrap();
                    if let Some(shapes) = plan.on_shapes() {
                        shapes.check_against(&DatasetFacts::published(&shapes.config.dataset)).unwrap();
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
        assert_eq!(twin(GOOD, "a"), twin(&format!("precision = \"f32\"\n{GOOD}"), "a"));
        assert_ne!(twin(GOOD, "a"), twin(&format!("precision = \"bf16\"\n{GOOD}"), "a"));
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
    fn a_file_that_is_no_text_or_has_a_name_too_long_is_told_what_to_do() {
        let folder = std::env::temp_dir().join(format!("patchdoor-plan-{}", std::process::id()));
        fs_err::create_dir_all(&folder).unwrap();
        let read = |name: &str, bytes: &[u8]| {
            let path = folder.join(name);
            fs_err::write(&path, bytes).unwrap();
            Plan::read(&path, &PlanOptions::default()).map_err(|errors| errors.to_string())
        };
        let utf16 = |big: bool| {
            let mark = std::iter::once(0xfeff_u16).chain(GOOD.encode_utf16());
            mark.flat_map(|unit| if big { unit.to_be_bytes() } else { unit.to_le_bytes() }).collect::<Vec<u8>>()
        };
        for bytes in [utf16(true), utf16(false)] {
            let said = read("a.toml", &bytes).unwrap_err();
            assert!(
                said.contains("is in UTF-16, expected a text in UTF-8") && said.contains("save it as UTF-8"),
                "{said}"
            );
        }
        let plain = GOOD.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
        assert!(read("a.toml", &plain).unwrap_err().contains("bytes of zero"));
        let latin = format!("# a\n{GOOD}# caf\u{e9}\n").chars().map(|c| c as u8).collect::<Vec<u8>>();
        assert!(read("a.toml", &latin).unwrap_err().contains("line 5 has the byte 0xe9"));
        let marked = format!("\u{feff}{}", GOOD.replace('\n', "\r\n"));
        assert_eq!(read("a.toml", marked.as_bytes()).unwrap().hash("flex"), plan(GOOD).unwrap().hash("flex"));
        let wrong = format!("\u{feff}{}", GOOD.replace("cifar10", "cifar11"));
        assert!(read("a.toml", wrong.as_bytes()).unwrap_err().contains("a.toml:1:11"));
        let said = read(&format!("{}.toml", "n".repeat(240)), GOOD.as_bytes()).unwrap_err();
        assert!(
            said.contains("240 bytes long without its ending, expected at most 200") && said.contains("rename"),
            "{said}"
        );
        fs_err::remove_dir_all(folder).unwrap();
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
    fn a_trigger_that_reaches_none_of_its_cells_is_a_problem() {
        let placed = |fit: &str| format!("{GOOD}[placement]\nfit = \"{fit}\"\ncells.list = [[7, 7]]\n");
        let message =
            "placement.cells is where the square changes no pixel, expected at least one cell that it reaches";
        assert!(problems(&placed("image")).contains(&format!("error: {message}\n --> a.toml:6:")));
        assert!(plan(&placed("cell")).is_ok());
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
        let counts = plan.counts(&DatasetFacts::published(&plan.config.dataset));
        assert_eq!((counts.training, counts.validation, counts.poisoned), (Some(50_000), Some(0), Some(25_000)));
    }

    #[test]
    fn training_images_are_what_is_trained_on() {
        let plan = plan(&format!("{GOOD}[data]\ntraining-images = 8000\n")).unwrap();
        let counts = plan.counts(&DatasetFacts::published(&plan.config.dataset));
        assert_eq!((counts.training, counts.validation, counts.poisoned), (Some(8000), Some(889), Some(160)));
    }

    #[test]
    fn quick_shrinks_a_plan_but_still_poisons() {
        let options = PlanOptions { quick: true, ..PlanOptions::default() };
        let text = format!("seeds = [3, 4]\n{GOOD}[poisoning]\nrate = 0.0001\n");
        let plan = Plan::from_text("a.toml", &text, &options).unwrap();
        let counts = plan.counts(&DatasetFacts::published(&plan.config.dataset));
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
