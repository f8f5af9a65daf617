use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use crate::axes::{Combine, Outline, PointOutline};
use crate::diagnostics::{ConfigErrors, Diagnostic, sort_by_place};
use crate::document::Document;
use crate::hash::digest;
use crate::plan::{Plan, PlanOptions, read_text};

/// What an experiment file holds: one experiment, or a sweep of them.
///
/// ```
/// use patchdoor_plan::{Experiment, PlanOptions};
///
/// let text = r#"
///     dataset = "shapes"
///     seeds = [0, 1]
///     [trigger.square]
///     [model.patch-moe]
///     [[sweep.axes]]
///     field = "poisoning.rate"
///     values = [0.01, 0.1]
///     [[sweep.axes]]
///     name = "square"
///     variants = [
///         { label = "small", set = { "trigger.square.size" = 2 } },
///         { label = "large", set = { "trigger.square.size" = 6, "trigger.square.value" = 0 } },
///     ]
/// "#;
/// let Ok(Experiment::Sweep(sweep)) = Experiment::from_text("example.toml", text, &PlanOptions::default()) else {
///     panic!("it is a sweep")
/// };
/// let labels = sweep.points().iter().map(|point| point.label()).collect::<Vec<_>>();
/// assert_eq!(labels, ["0.01, small", "0.01, large", "0.1, small", "0.1, large"]);
/// assert_eq!(sweep.seeds(), [0, 1]);
/// assert_eq!(sweep.points()[3].plan().config().poisoning.rate, 0.1);
/// ```
#[derive(Clone, Debug)]
pub enum Experiment {
    /// One experiment.
    Single(Box<Plan>),
    /// A file with `[sweep]`.
    Sweep(Sweep),
}

impl Experiment {
    /// Reads and checks an experiment file.
    ///
    /// # Errors
    /// Every problem of the file and the overrides at once; for a sweep, of all its points.
    pub fn read(path: &Path, options: &PlanOptions) -> Result<Self, ConfigErrors> {
        Self::from_text(path, &read_text(path)?, options)
    }

    /// Checks an experiment that has been read; `path` names it in messages and in its results.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn from_text(path: impl AsRef<Path>, text: &str, options: &PlanOptions) -> Result<Self, ConfigErrors> {
        let path = path.as_ref();
        let (outline, problems) = Document::read_outline(&path.display().to_string(), text, &options.all_overrides());
        match outline {
            _ if !problems.is_empty() => Err(ConfigErrors { path: path.to_owned(), diagnostics: problems }),
            None => Plan::from_text(path, text, options).map(|plan| Self::Single(Box::new(plan))),
            Some(outline) => Sweep::new(path, text, options, outline).map(Self::Sweep),
        }
    }

    /// The experiment file.
    pub fn path(&self) -> &Path {
        match self {
            Self::Single(plan) => plan.path(),
            Self::Sweep(sweep) => sweep.path(),
        }
    }

    /// The plan, or those of all points.
    pub fn plans(&self) -> Vec<&Plan> {
        match self {
            Self::Single(plan) => vec![plan],
            Self::Sweep(sweep) => sweep.points.iter().map(Point::plan).collect(),
        }
    }
}

/// Checked experiments that differ in what the axes of a sweep set.
///
/// A run of it is one point with one seed, an ordinary run in a folder of its own, so that points and seeds can be added
/// without computing anything again.
#[derive(Clone, Debug)]
pub struct Sweep {
    path: PathBuf,
    axes: Vec<(String, usize)>,
    combine: Combine,
    points: Vec<Point>,
}

/// One choice of a value on each axis.
#[derive(Clone, Debug)]
pub struct Point {
    labels: Vec<String>,
    plan: Plan,
}

impl Sweep {
    fn new(path: &Path, text: &str, options: &PlanOptions, outline: Outline) -> Result<Self, ConfigErrors> {
        let Outline { axes, combine, points: outlines, document } = outline;
        let mut points = Vec::new();
        let mut problems = Vec::new();
        let count = outlines.len();
        let mut places = Vec::new();
        for (number, PointOutline { labels, settings, places: of_point }) in outlines.into_iter().enumerate() {
            places.push(of_point);
            let names = axes.iter().map(|(name, _)| name);
            let description =
                names.zip(&labels).map(|(name, label)| format!("{name} = {label}")).collect::<Vec<_>>().join(", ");
            match Plan::from_point(path, text, options, number, description.clone(), &settings) {
                Ok(plan) => points.push(Point { labels, plan }),
                Err(errors) => problems.push((description, errors.diagnostics)),
            }
        }
        if !problems.is_empty() {
            return Err(ConfigErrors { path: path.to_owned(), diagnostics: merged(problems, count) });
        }
        let same = same_experiments(points.iter().map(|point: &Point| &point.plan));
        if !same.is_empty() {
            let diagnostic = |(first, second): (usize, usize)| {
                let [first_label, second_label] = [first, second].map(|number: usize| points[number].label());
                let message = format!(
                    "the points {first_label:?} and {second_label:?} of the sweep are the same experiment, expected \
                     points that differ"
                );
                let differs = |axis: &usize| places[first][*axis] != places[second][*axis];
                let axis = (0..axes.len()).rev().find(differs).unwrap_or(0);
                document.diagnostic("sweep.axes", message, places[second][axis].clone(), None)
            };
            let diagnostics = same.into_iter().map(diagnostic).collect();
            return Err(ConfigErrors { path: path.to_owned(), diagnostics });
        }
        Ok(Self { path: path.to_owned(), axes, combine, points })
    }

    /// The sweep's file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file's name without its ending.
    pub fn name(&self) -> String {
        self.points[0].plan.name()
    }

    /// Names of the axes, in their order.
    pub fn axes(&self) -> impl Iterator<Item = &str> {
        self.axes.iter().map(|(name, _)| name.as_str())
    }

    /// The axes in words: `rate (3) x placement (2)`.
    pub fn shape(&self) -> String {
        let axes = self.axes.iter().map(|(name, length)| match self.combine {
            Combine::Grid => format!("{name} ({length})"),
            Combine::Zip => name.clone(),
        });
        let between = match self.combine {
            Combine::Grid => " x ",
            Combine::Zip => " with ",
        };
        axes.collect::<Vec<_>>().join(between)
    }

    /// The points, in the order written; the last axis changes fastest.
    pub fn points(&self) -> &[Point] {
        &self.points
    }

    /// The seeds each point runs with.
    pub fn seeds(&self) -> &[u64] {
        &self.points[0].plan.config().seeds
    }

    /// Whether this is the quick version.
    pub fn is_quick(&self) -> bool {
        self.points[0].plan.is_quick()
    }

    /// Name of the folder of its tables.
    pub fn result_name(&self, backend: &str) -> String {
        format!("{}-{}.sweep", self.name(), self.hash(backend))
    }

    /// Eight hexadecimal digits that depend on the points, their labels and the backend, not on the seeds.
    pub fn hash(&self, backend: &str) -> String {
        let points = self.points.iter().map(|point| (&point.labels, point.plan.with_seed(0).hash(backend)));
        digest(&(1, self.axes().collect::<Vec<_>>(), points.collect::<Vec<_>>()))
    }

    /// The same sweep with other plans for its points, made from their numbers and plans.
    #[must_use]
    pub fn with_plans(&self, change: impl Fn(usize, &Plan) -> Plan) -> Self {
        let points = self.points.iter().enumerate();
        let points = points.map(|(number, point)| Point { plan: change(number, &point.plan), ..point.clone() });
        Self { points: points.collect(), ..self.clone() }
    }
}

impl Point {
    /// The label of its value on each axis.
    pub fn labels(&self) -> &[String] {
        &self.labels
    }

    /// What it is called in tables: its labels, with commas.
    pub fn label(&self) -> String {
        self.labels.join(", ")
    }

    /// What runs there, with all seeds.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }
}

/// Pairs of plans that are the same experiment, each with the first of its kind.
fn same_experiments<'a>(plans: impl Iterator<Item = &'a Plan>) -> Vec<(usize, usize)> {
    let mut seen = BTreeMap::new();
    let pair = |(number, plan): (usize, &'a Plan)| match seen.entry(plan.written()) {
        Entry::Occupied(first) => Some((*first.get(), number)),
        Entry::Vacant(entry) => {
            entry.insert(number);
            None
        }
    };
    plans.enumerate().filter_map(pair).collect()
}

/// The problems of several points of `count`, each problem once, with the points that have it if not all have.
pub fn merged(points: Vec<(String, Vec<Diagnostic>)>, count: usize) -> Vec<Diagnostic> {
    let mut problems: Vec<(Diagnostic, Vec<String>)> = Vec::new();
    for (point, diagnostics) in points {
        for diagnostic in diagnostics {
            match problems.iter_mut().find(|(known, _)| *known == diagnostic) {
                Some((_, points)) => points.push(point.clone()),
                None => problems.push((diagnostic, vec![point.clone()])),
            }
        }
    }
    let named = problems.into_iter().map(|(mut diagnostic, points)| {
        let others = points.len() - 1;
        if points.len() < count {
            let _ = write!(diagnostic.message, " (in the point {}", points[0]);
            match others {
                0 => {}
                1 => diagnostic.message.push_str(" and in another"),
                _ => {
                    let _ = write!(diagnostic.message, " and in {others} others");
                }
            }
            diagnostic.message.push(')');
        }
        diagnostic
    });
    let mut diagnostics = named.collect::<Vec<_>>();
    sort_by_place(&mut diagnostics);
    diagnostics
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: &str = "dataset = \"shapes\"\n[trigger.square]\n[model.patch-moe]\n";

    fn read(axes: &str, overrides: &[&str]) -> Result<Experiment, ConfigErrors> {
        let overrides = overrides.iter().map(|&text| text.to_owned()).collect();
        let options = PlanOptions { overrides, ..PlanOptions::default() };
        Experiment::from_text("a.toml", &format!("{BASE}{axes}"), &options)
    }

    fn sweep(axes: &str) -> Sweep {
        match read(axes, &[]) {
            Ok(Experiment::Sweep(sweep)) => sweep,
            Ok(Experiment::Single(_)) => panic!("no sweep"),
            Err(errors) => panic!("{errors}"),
        }
    }

    fn labels(sweep: &Sweep) -> Vec<String> {
        sweep.points.iter().map(Point::label).collect()
    }

    fn problems(axes: &str, overrides: &[&str]) -> String {
        read(axes, overrides).expect_err("has problems").to_string()
    }

    const TWO: &str = r#"
[[sweep.axes]]
field = "training.epochs"
values = [3, 1, 2]
[[sweep.axes]]
name = "attack"
variants = [
    { label = "white", set = { "trigger.square.value" = 250 } },
    { label = "blend", set = { trigger = { blend = { alpha = 0.2 } }, poisoning.rate = 0.1 } },
    { label = "as written", set = {} },
]
"#;

    #[test]
    fn a_grid_keeps_the_order_written_and_its_last_axis_changes_fastest() {
        let sweep = sweep(TWO);
        let expected = [
            "3, white",
            "3, blend",
            "3, as written",
            "1, white",
            "1, blend",
            "1, as written",
            "2, white",
            "2, blend",
            "2, as written",
        ];
        assert_eq!(labels(&sweep), expected);
        assert_eq!(sweep.shape(), "epochs (3) x attack (3)");
        let config = sweep.points[4].plan.config();
        assert_eq!((config.training.epochs, config.trigger_name(), config.poisoning.rate), (1, "blend", 0.1));
        assert_eq!(sweep.points[4].plan.point(), Some("epochs = 1, attack = blend"));
        let overrides = ["training.epochs=1", "trigger={ blend = { alpha = 0.2 } }", "poisoning.rate=0.1"];
        assert_eq!(sweep.points[4].plan.overrides(), overrides);
    }

    #[test]
    fn zipped_axes_go_together() {
        let sweep = sweep(&format!("{TWO}[sweep]\ncombine = \"zip\"\n"));
        assert_eq!(labels(&sweep), ["3, white", "1, blend", "2, as written"]);
        assert_eq!(sweep.shape(), "epochs with attack");
    }

    #[test]
    fn axes_over_fields_of_one_last_word_are_named_in_full() {
        let axes = "[[sweep.axes]]\nfield = \"trigger.square.size\"\nvalues = [2]\n[[sweep.axes]]\n\
                    field = \"model.patch-moe.batch-norm.momentum\"\nvalues = [0.1]\n[[sweep.axes]]\n\
                    field = \"training.optimizer.sgd.momentum\"\nvalues = [0.5]\n";
        let names = ["size", "model.patch-moe.batch-norm.momentum", "training.optimizer.sgd.momentum"];
        assert_eq!(sweep(axes).axes().collect::<Vec<_>>(), names);
    }

    #[test]
    fn the_sweep_itself_is_no_part_of_a_points_hash() {
        let sweep = sweep("[[sweep.axes]]\nfield = \"training.epochs\"\nvalues = [3]\n");
        let alone = Plan::from_text("a.toml", &format!("{BASE}[training]\nepochs = 3\n"), &PlanOptions::default());
        assert_eq!(sweep.points[0].plan.hash("flex"), alone.unwrap().hash("flex"));
    }

    #[test]
    fn a_sweeps_hash_depends_on_its_points_and_not_on_its_seeds() {
        let hash = |text: &str, seeds: &[u64]| {
            let options = PlanOptions { seeds: Some(seeds.to_vec()), ..PlanOptions::default() };
            match Experiment::from_text("a.toml", &format!("{BASE}{text}"), &options) {
                Ok(Experiment::Sweep(sweep)) => sweep.hash("flex"),
                _ => panic!("no sweep"),
            }
        };
        assert_eq!(hash(TWO, &[0]), hash(TWO, &[0, 1]));
        assert_ne!(hash(TWO, &[0]), hash(&TWO.replace("[3, 1, 2]", "[3, 1]"), &[0]));
        assert_ne!(hash(TWO, &[0]), hash(&TWO.replace("as written", "plain"), &[0]));
    }

    #[test]
    fn an_impossible_value_is_shown_where_the_sweep_has_it_with_its_point() {
        let axes = TWO.replace("[3, 1, 2]", "[3, 0]").replace("alpha = 0.2", "alpha = 1.5");
        insta::assert_snapshot!(problems(&axes, &[]));
    }

    #[test]
    fn an_unknown_field_of_an_axis_is_shown_where_the_axis_names_it() {
        let axes = TWO.replace("training.epochs", "training.epoch").replace("poisoning.rate", "poisoning.rat");
        insta::assert_snapshot!(problems(&axes, &[]));
    }

    #[test]
    fn a_problem_of_the_file_is_said_once_and_without_a_point() {
        let axes = format!("{TWO}[poisoning]\ntarget-class = 99\n");
        insta::assert_snapshot!(problems(&axes, &[]));
    }

    #[test]
    fn axes_of_unequal_length_cannot_be_zipped() {
        let axes = TWO.replace("[3, 1, 2]", "[3, 1]") + "[sweep]\ncombine = \"zip\"\n";
        insta::assert_snapshot!(problems(&axes, &[]));
    }

    #[test]
    fn a_sweep_that_is_no_sweep_is_refused_with_what_is_allowed() {
        let axes = r#"
[sweep]
combine = "product"
axis = 3
[[sweep.axes]]
field = "seeds"
values = [1, 2]
[[sweep.axes]]
field = "training.epochs"
values = []
[[sweep.axes]]
field = "training epochs"
values = 3
[[sweep.axes]]
name = "both"
field = "training.epochs"
variants = []
[[sweep.axes]]
variants = [{ label = "a", set = {} }]
[[sweep.axes]]
name = "c"
variants = [{ label = 3, sets = {} }, { label = "b", set = 3 }]
"#;
        insta::assert_snapshot!(problems(axes, &[]));
        insta::assert_snapshot!(problems("[sweep]\n", &[]), @"
        error: sweep.axes is missing
         --> a.toml:4:1
          |
        4 | [sweep]
          | ^^^^^^^
          = help: write [[sweep.axes]]
        ");
    }

    #[test]
    fn two_points_that_are_one_experiment_are_refused_in_full_and_quick() {
        let same = "[[sweep.axes]]\nfield = \"poisoning.rate\"\nvalues = [0.05, 5e-2, 0.050]\n[[sweep.axes]]\n\
                    field = \"clean-twin\"\nvalues = [true, false]\n";
        let said = problems(same, &[]);
        assert!(
            said.contains("the points \"0.05, true\" and \"5e-2, true\" of the sweep are the same experiment"),
            "{said}"
        );
        assert!(said.contains("a.toml:6:17"), "{said}");
        let text = format!("{BASE}{same}");
        let quick = PlanOptions { quick: true, ..PlanOptions::default() };
        assert!(Experiment::from_text("a.toml", &text, &quick).is_err());
        let zeros = "[[sweep.axes]]\nfield = \"poisoning.rate\"\nvalues = [0.0, -0.0]\n";
        assert!(problems(zeros, &[]).contains("same experiment"));
        // What only the quick version makes the same is no mistake of the file.
        let other = "[[sweep.axes]]\nfield = \"training.epochs\"\nvalues = [20, 30]\n";
        Experiment::from_text("a.toml", format!("{BASE}{other}").as_str(), &quick).unwrap();
    }

    #[test]
    fn nothing_is_set_from_two_sides() {
        let axes = "[[sweep.axes]]\nfield = \"training.epochs\"\nvalues = [1, 1]\n[[sweep.axes]]\nname = \"b\"\n\
                    variants = [{ label = \"x\", set = { training = { epochs = 3 } } }]\n";
        insta::assert_snapshot!(problems(axes, &["training.epochs=4", "training.batch-size=8"]));
    }

    #[test]
    fn a_sweep_is_no_single_experiment() {
        let errors = Plan::from_text("a.toml", &format!("{BASE}{TWO}"), &PlanOptions::default()).unwrap_err();
        insta::assert_snapshot!(errors);
    }

    #[test]
    fn axes_can_be_given_on_the_command_line() {
        let axes = "sweep.axes=[{ field = \"training.epochs\", values = [1, -2] }]";
        insta::assert_snapshot!(problems("", &[axes]));
    }
}
