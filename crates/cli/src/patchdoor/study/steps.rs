use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use patchdoor_plan::{DatasetFacts, Experiment, Plan, PlanOptions, Precision};
use serde_json::Value;

/// One thing a study does.
#[derive(Clone, Debug)]
pub(super) struct Step {
    /// What its files are called.
    pub(super) name: String,
    /// What it is called in the report.
    pub(super) title: String,
    /// The longest it may take, whatever time is left.
    pub(super) limit: Duration,
    pub(super) work: Work,
}

/// How a step is done.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Work {
    /// Says what the machine offers.
    Doctor,
    /// Compares operations with the CPU's.
    Operations { precision: Precision },
    /// Runs an experiment in its quick form.
    Quick,
    /// Times our training.
    Speed { widen: usize, precision: Precision },
    /// Times `PyTorch`'s.
    Pytorch { widen: usize, form: PytorchForm },
    /// Runs an experiment at the authors' scale.
    Training(Training),
}

/// How `PyTorch` computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PytorchForm {
    pub(super) precision: &'static str,
    pub(super) compiled: bool,
}

/// An experiment at the authors' scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Training {
    /// Its file, from the folder of the program's source or bundle.
    pub(super) file: &'static str,
    /// Whether it trains the clean twin that the later ones share.
    pub(super) trains_twin: bool,
}

/// Epochs of the authors' trainings.
pub(super) const EPOCHS: usize = 25;

/// The file that the first training of a study runs.
pub(super) const FIRST: &str = "experiments/paper/fine-tuning.toml";

/// The steps, the most valuable first.
pub(super) fn steps(backend: &str, tiny: bool) -> Vec<Step> {
    let step = |name: String, title: String, seconds: u64, work: Work| Step {
        name,
        title,
        limit: Duration::from_secs(seconds),
        work,
    };
    let mut steps = vec![step("doctor".into(), "what the machine offers".into(), 30, Work::Doctor)];
    for &precision in precisions(backend) {
        let title = format!("operations and gradients beside the CPU's, {}", precision.name());
        steps.push(step(named("operations", precision), title, 90, Work::Operations { precision }));
    }
    steps.push(step("quick".into(), "one quick run, all code paths".into(), 120, Work::Quick));
    let widens: &[usize] = if tiny { &[1] } else { &[10, 4, 1] };
    for (number, &widen) in widens.iter().enumerate() {
        for &precision in precisions(backend) {
            let title = format!("images/s in training, widen {widen}, {}", precision.name());
            steps.push(step(speed_step(widen, precision), title, 60, Work::Speed { widen, precision }));
        }
        steps.extend(pytorch(backend, widen, false));
        // Trainings are worth more than how PyTorch compiles the same network, and more than smaller networks.
        if number == 0 {
            steps.extend(trainings());
        }
        steps.extend(pytorch(backend, widen, true));
    }
    steps
}

/// `PyTorch`'s timings of one network; it is compiled for a GPU only.
fn pytorch(backend: &str, widen: usize, compiled: bool) -> Vec<Step> {
    let precisions: &[_] = match (backend, compiled) {
        ("cuda", _) => &["tf32", "bf16"],
        (_, false) => &["f32"],
        (_, true) => &[],
    };
    let how = if compiled { "compiled" } else { "eager" };
    let timing = |&precision: &&'static str| Step {
        name: format!("pytorch-{widen}-{precision}-{how}"),
        title: format!("widen {widen} in PyTorch, {precision}, {how}"),
        limit: Duration::from_secs(90),
        work: Work::Pytorch { widen, form: PytorchForm { precision, compiled } },
    };
    precisions.iter().map(timing).collect()
}

/// The trainings, the most valuable first.
fn trainings() -> Vec<Step> {
    let trainings = [
        ("fine-tuning", "white square, then fine-tuning (claims C1, C3)", FIRST, true),
        ("published-square", "the published square (claim C1)", "experiments/paper/badnets.toml", false),
        ("lowest-rate", "BadPatches at 0.01 % with controls (claim C5)", "experiments/paper/lowest-rate.toml", false),
    ];
    let training = |(name, title, file, trains_twin): (&str, &str, &'static str, bool)| Step {
        name: name.into(),
        title: title.into(),
        limit: Duration::from_secs(u64::MAX >> 20),
        work: Work::Training(Training { file, trains_twin }),
    };
    trainings.map(training).into()
}

/// What a backend can round operands to.
fn precisions(backend: &str) -> &'static [Precision] {
    if backend == "cuda" { &[Precision::F32, Precision::Tf32, Precision::Bf16] } else { &[Precision::F32] }
}

/// What trainings round to, unless asked for: what other programs round convolutions to on a GPU unless told not to.
pub(super) fn training_precision(backend: &str) -> Precision {
    if backend == "cuda" { Precision::Tf32 } else { Precision::F32 }
}

fn named(name: &str, precision: Precision) -> String {
    if precision.is_full() { name.to_owned() } else { format!("{name}-{}", precision.name()) }
}

/// The step that times our training.
pub(super) fn speed_step(widen: usize, precision: Precision) -> String {
    named(&format!("speed-{widen}"), precision)
}

/// What changes of an experiment file: its epochs and precision; in a rehearsal any images do.
pub(super) fn overrides(epochs: usize, precision: Precision, tiny: bool) -> Vec<String> {
    let mut changes = vec![format!("training.epochs={epochs}")];
    if !precision.is_full() {
        changes.push(format!("precision={:?}", precision.name()));
    }
    if tiny {
        changes.push("data.when-missing=\"shapes\"".into());
    }
    changes
}

/// Images that a training file has its networks go through: for every epoch, and besides.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Load {
    pub(super) per_epoch: f64,
    pub(super) besides: f64,
}

impl Load {
    /// Seconds at a speed in images a second, with a sixth more for what no forecast knows.
    pub(super) fn seconds(self, epochs: usize, speed: f64, overhead: f64) -> f64 {
        overhead + (self.per_epoch * epochs as f64 + self.besides) / speed * 7.0 / 6.0
    }

    /// The most epochs that fit, up to the authors'.
    pub(super) fn epochs_within(self, seconds: f64, speed: f64, overhead: f64) -> usize {
        (1..=EPOCHS).rev().find(|&epochs| self.seconds(epochs, speed, overhead) <= seconds).unwrap_or(0)
    }
}

/// Reads an experiment and counts the images it goes through; a prediction counts as a third of a training step.
///
/// # Errors
/// If the file has problems; in words.
pub(super) fn load_of(file: &Path, training: Training, tiny: bool) -> Result<Load, String> {
    let options = PlanOptions { overrides: overrides(1, Precision::F32, tiny), seeds: Some(vec![0]), quick: tiny };
    let experiment = Experiment::read(file, &options).map_err(|errors| errors.to_string())?;
    let plans: Vec<&Plan> = match &experiment {
        Experiment::Single(plan) => vec![plan],
        Experiment::Sweep(sweep) => sweep.points().iter().map(patchdoor_plan::Point::plan).collect(),
    };
    let mut load = Load { per_epoch: 0.0, besides: 0.0 };
    for (number, plan) in plans.iter().enumerate() {
        let counts = plan.counts(&DatasetFacts::published(&plan.config().dataset));
        let (training_images, test) = (counts.training.unwrap_or(0), counts.test.unwrap_or(0));
        let trainings = if training.trains_twin && number == 0 { 2 } else { 1 };
        load.per_epoch += (trainings * training_images) as f64;
        // Each classifier predicts the test images untouched and triggered.
        load.besides += (test * 3 * 2) as f64 / 3.0;
        for defender in &plan.config().defenses {
            let epochs = defender.most_epochs(&plan.config().training);
            let images = defender.amount.count(training_images) * epochs + test * 2 / 3;
            load.besides += images as f64;
        }
    }
    Ok(load)
}

/// A file of the program's source, or of its bundle: from here, or else from where the program was built.
pub(super) fn source_file(relative: &str) -> PathBuf {
    let here = PathBuf::from(relative);
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap_or(Path::new(".")).join(relative);
    if here.exists() || !source.exists() { here } else { source }
}

/// The numbers of a step's document.
pub(super) fn numbers(work: &Work, document: &Value) -> BTreeMap<String, f64> {
    let mut numbers = BTreeMap::new();
    let mut put = |name: String, value: &Value| {
        if let Some(value) = value.as_f64() {
            numbers.insert(name, value);
        }
    };
    match work {
        Work::Doctor => {}
        Work::Operations { .. } => {
            let distances = document["operations"].as_array().into_iter().flatten();
            let worst = distances.filter_map(|check| check["distance"].as_f64()).fold(0.0, f64::max);
            put("largest distance".into(), &worst.into());
        }
        Work::Speed { .. } => {
            put("images/s".into(), &document["images-per-second"]);
            put("seconds of the first steps".into(), &document["first-seconds"]);
        }
        Work::Pytorch { .. } => put("images/s".into(), &document["timings"][0]["training"]),
        Work::Quick | Work::Training(_) => {
            for run in document["runs"].as_array().into_iter().flatten() {
                for (name, metric) in run["metrics"].as_object().into_iter().flatten() {
                    put(name.clone(), &metric["mean"]);
                }
                put("images/s".into(), &run["seeds"][0]["outcome"]["finished"]["images-per-second"]);
                for defense in run["defenses"].as_array().into_iter().flatten() {
                    let (title, data) = (defense["title"].as_str(), defense["data"].as_str());
                    let label = format!("{} on {} images", title.unwrap_or_default(), data.unwrap_or_default());
                    for name in ["asr", "clean-accuracy"] {
                        put(format!("{label}: {name}"), &defense["metrics"][name]["mean"]);
                    }
                }
            }
            for point in document["sweeps"][0]["points"].as_array().into_iter().flatten() {
                let label = point["label"].as_str().unwrap_or_default();
                for metric in point["metrics"].as_array().into_iter().flatten() {
                    let name = metric["name"].as_str().unwrap_or_default();
                    if ["asr", "clean-accuracy"].contains(&name) {
                        put(format!("{label}: {name}"), &metric["mean"]);
                    }
                }
            }
        }
    }
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_load_of_the_papers_run_is_counted() {
        let training = Training { file: FIRST, trains_twin: true };
        let load = load_of(&source_file(FIRST), training, false).expect("it reads");
        // 50,000 images for twin and victim.
        assert!((load.per_epoch - 100_000.0).abs() < 0.5);
        // 10,000 test images twice for two classifiers and, each pass a third, twice for each of two repaired ones; five
        // epochs of a share of the images for each of these.
        let repairs = load.besides - 20_000.0 - 2.0 * 6_666.0;
        assert!(repairs > 0.0 && repairs <= 500_000.0, "{repairs}");
        // At 100,000 images a second an epoch takes a second and a sixth.
        let besides = load.seconds(0, 100_000.0, 0.0);
        assert_eq!(load.epochs_within(besides + 3.0 * 7.0 / 6.0 + 0.01, 100_000.0, 0.0), 3);
        assert_eq!(load.epochs_within(besides + 1.0, 100_000.0, 0.0), 0);
        assert_eq!(load.epochs_within(1e9, 100_000.0, 0.0), EPOCHS);
    }

    #[test]
    fn every_training_of_a_study_is_an_experiment_that_reads() {
        for tiny in [false, true] {
            for step in steps("cuda", tiny) {
                if let Work::Training(training) = step.work {
                    let load = load_of(&source_file(training.file), training, tiny).expect("it reads");
                    assert!(load.per_epoch > 0.0, "{}", step.name);
                }
            }
        }
    }

    #[test]
    fn steps_have_names_of_their_own_and_pytorch_all_its_forms_on_a_gpu() {
        let all = steps("cuda", false);
        let names = all.iter().map(|step| step.name.as_str()).collect::<std::collections::BTreeSet<_>>();
        assert_eq!(names.len(), all.len());
        assert_eq!(all.iter().filter(|step| matches!(step.work, Work::Pytorch { .. })).count(), 12);
        assert_eq!(all.iter().filter(|step| matches!(step.work, Work::Speed { .. })).count(), 9);
        assert_eq!(steps("flex", false).len(), 3 + 3 * 2 + 3);
    }

    #[test]
    fn numbers_of_runs_and_sweeps_are_found() {
        let run = serde_json::json!({ "runs": [{
            "metrics": { "asr": { "mean": 0.5 } },
            "seeds": [{ "outcome": { "finished": { "images-per-second": 80.0 } } }],
            "defenses": [{ "title": "fine-tuning", "data": "clean", "metrics": { "asr": { "mean": 0.125 } } }],
        }] });
        let expected = [("asr", 0.5), ("images/s", 80.0), ("fine-tuning on clean images: asr", 0.125)];
        let expected = expected.map(|(name, value)| (name.to_owned(), value));
        assert_eq!(numbers(&Work::Quick, &run), BTreeMap::from(expected));
        let sweep = serde_json::json!({ "runs": [], "sweeps": [{ "points": [
            { "label": "random", "metrics": [{ "name": "asr", "mean": 0.25 }, { "name": "other", "mean": 1.0 }] },
        ] }] });
        assert_eq!(numbers(&Work::Quick, &sweep), BTreeMap::from([("random: asr".to_owned(), 0.25)]));
    }
}
