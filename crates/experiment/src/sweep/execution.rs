use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use patchdoor_data::DatasetConfig;
use patchdoor_plan::{ConfigErrors, Sweep, merged};
use patchdoor_record::{
    Again, PointRuns, RecordError, ResultTable, RunDirectory, RunDirectoryError, TableHead, lock, read_summary,
};

use crate::backend::Backend;
use crate::describe::describe_images;
use crate::error::RunError;
use crate::images::{Acquired, ImagesError, acquire};
use crate::run::{Execution, Reporter, RunSettings, execute_on};
use crate::sources::Sources;
use crate::sweep::forecast::Forecast;
use crate::sweep::units::{SweepOptions, Unit, UnitState, units};

/// How a sweep ended.
#[derive(Debug)]
pub struct SweepExecution {
    /// What there is of it, earlier runs included.
    pub table: ResultTable,
    /// Where the table is written.
    pub folder: PathBuf,
    /// Runs that failed, now or earlier.
    pub failures: Vec<SweepFailure>,
    /// Runs that another process is computing.
    pub elsewhere: usize,
    /// Whether it was interrupted; the same call goes on.
    pub interrupted: bool,
}

/// A run of a sweep that has no results, or not those of a defense, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SweepFailure {
    /// The point, in words.
    pub point: String,
    /// The seed.
    pub seed: u64,
    /// The run's name.
    pub run: String,
    /// Why.
    pub reason: String,
}

/// Runs what is missing of a sweep, all points with one seed before any with the next, and tabulates all there is after
/// every run.
///
/// A run that fails does not keep the others from running.
///
/// # Errors
/// If there are no images, a point does not fit them, or nothing can be written.
///
/// # Panics
/// Never: the images of all runs to compute are read first.
pub fn execute_sweep(
    sweep: &Sweep,
    backend: &Backend,
    settings: &RunSettings<'_>,
    options: SweepOptions,
) -> Result<SweepExecution, RunError> {
    let console = settings.console;
    let (sweep, images) = prepare(sweep, backend, settings, options)?;
    let units = units(&sweep, backend, settings.out);
    let sources = images.iter().map(|images| images.as_ref().map(|images| images.sources.clone())).collect::<Vec<_>>();
    expect_same_sources(&sweep, backend, settings.out, &sources, options)?;
    let fingerprints = sources.iter().map(|sources| sources.as_ref().map(|sources| sources.fingerprint.clone()));
    let fingerprints = fingerprints.collect::<Vec<_>>();
    let forecast = Forecast::on(&sweep, units.clone(), backend, settings.out, &fingerprints, options);
    for line in forecast.describe(&sweep, backend, settings.out) {
        console.say(line);
    }
    let mut tables = Tables {
        sweep: &sweep,
        backend,
        out: settings.out,
        reporter: settings.reporter,
        sources: &sources,
        failures: BTreeMap::new(),
    };
    let mut elsewhere = 0;
    let mut interrupted = false;
    let pending = units.iter().filter(|unit| options.computes(unit.state)).collect::<Vec<_>>();
    for (number, unit) in pending.iter().enumerate() {
        if settings.watch().is_stopped() {
            interrupted = true;
            break;
        }
        let Unit { point, seed, run, state } = *unit;
        let acquired = images[*point].as_ref().expect("the images of every pending run were acquired");
        let plan = acquired.plan.with_seed(*seed);
        let words = plan.point().unwrap_or_default().to_owned();
        // What a run that failed left is kept under another name.
        let again = match state {
            _ if options.fresh => Again::Fresh,
            UnitState::Failed => Again::Failed,
            _ => Again::No,
        };
        let settings = RunSettings { again, ..*settings };
        let acquired = Acquired { plan, ..acquired.clone() };
        let announce = |folder: &Path| {
            let progress = format!("run {} of {}", number + 1, pending.len());
            console.say(format!("{progress}: {words}, seed {seed}; results go to {}", folder.display()));
        };
        match execute_on(&acquired, backend, &settings, announce) {
            Ok(Execution::Done { .. }) => {}
            Ok(Execution::Interrupted { .. }) => {
                interrupted = true;
                break;
            }
            Err(RunError::Directory(RunDirectoryError::Busy { .. })) => {
                console.say(format!("{words}, seed {seed} is being computed by another process"));
                elsewhere += 1;
                continue;
            }
            // These are about the machine, and every other run would meet them too.
            Err(
                error @ (RunError::Directory(_)
                | RunError::Io(_)
                | RunError::Csv(_)
                | RunError::Record(RecordError::Io(_))),
            ) => return Err(error),
            Err(error) => {
                let reason = with_causes(&error);
                console.say(format!("{words}, seed {seed} failed: {reason}"));
                tables.failures.insert(run.clone(), reason);
            }
        }
        tables.write()?;
    }
    let (table, folder) = tables.write()?;
    let failures = table.points.iter().zip(sweep.points()).flat_map(|(result, point)| {
        let runs = result.failed.iter().map(|(&seed, reason)| (seed, reason.clone()));
        let defenses = result
            .failed_defenses
            .iter()
            .flat_map(|(title, seeds)| seeds.iter().map(move |(&seed, reason)| (seed, format!("{title}: {reason}"))));
        let asked = runs.chain(defenses).filter(|(seed, _)| sweep.seeds().contains(seed)).collect::<Vec<_>>();
        asked.into_iter().map(|(seed, reason)| SweepFailure {
            point: point.plan().point().unwrap_or_default().to_owned(),
            seed,
            run: point.plan().with_seed(seed).run_name(backend.name()),
            reason,
        })
    });
    let failures = failures.collect();
    Ok(SweepExecution { table, folder, failures, elsewhere, interrupted })
}

/// Makes sure that the results of a sweep, those it will show and those it will compute, rest on the same images and files:
/// those that are there now or, where they are not there, those of the first run on that data set.
fn expect_same_sources(
    sweep: &Sweep,
    backend: &Backend,
    out: &Path,
    now: &[Option<Sources>],
    options: SweepOptions,
) -> Result<(), RunError> {
    if options.fresh {
        return Ok(());
    }
    let mut of_missing: Vec<(&DatasetConfig, Sources)> = Vec::new();
    for (point, now) in sweep.points().iter().zip(now) {
        for seed in seeds_of(sweep, backend, out)? {
            let Some(folder) = RunDirectory::finished(out, &point.plan().with_seed(seed).run_name(backend.name()))
            else {
                continue;
            };
            let Ok(then) = Sources::of_run(&folder) else { continue };
            let dataset = &point.plan().config().dataset;
            match (now, of_missing.iter().find(|(known, _)| *known == dataset)) {
                (Some(now), _) => then.expect(now, &folder)?,
                (None, Some((_, first))) => then.expect(first, &folder)?,
                (None, None) => of_missing.push((dataset, Sources { inputs: BTreeMap::new(), ..then })),
            }
        }
    }
    Ok(())
}

/// All seeds that were ever asked for, sorted.
fn seeds_of(sweep: &Sweep, backend: &Backend, out: &Path) -> Result<Vec<u64>, RecordError> {
    let mut seeds = sweep.seeds().to_vec();
    let table = ResultTable::read(&out.join(sweep.result_name(backend.name())))?;
    seeds.extend(table.map(|table| table.seeds).unwrap_or_default());
    seeds.sort_unstable();
    seeds.dedup();
    Ok(seeds)
}

/// Reads the images of every point that has something to compute or to show, each data set once, and checks the points
/// against them. Where the shapes stand in for a missing set, the sweep is one of shapes. Images that are only to be shown
/// results of may be missing.
fn prepare(
    sweep: &Sweep,
    backend: &Backend,
    settings: &RunSettings<'_>,
    options: SweepOptions,
) -> Result<(Sweep, Vec<Option<Acquired>>), RunError> {
    let mut read: Vec<(DatasetConfig, Acquired)> = Vec::new();
    let units = units(sweep, backend, settings.out);
    let (pending, shown): (Vec<_>, Vec<_>) = units.iter().partition(|unit| options.computes(unit.state));
    for (unit, is_pending) in pending.iter().map(|unit| (unit, true)).chain(shown.iter().map(|unit| (unit, false))) {
        let plan = sweep.points()[unit.point].plan();
        let dataset = &plan.config().dataset;
        if read.iter().any(|(known, _)| known == dataset) {
            continue;
        }
        let acquired = if is_pending {
            Some(acquire(plan, settings.roots, settings.offline, settings.watch())?)
        } else {
            Acquired::if_there(plan, settings.roots)?
        };
        if let Some(acquired) = acquired {
            for line in describe_images(&acquired.dataset) {
                settings.console.say(line);
            }
            read.push((dataset.clone(), acquired));
        }
    }
    let mut images = Vec::new();
    let mut problems = Vec::new();
    let mut notes: Vec<String> = Vec::new();
    for point in sweep.points() {
        let plan = point.plan();
        let Some((_, known)) = read.iter().find(|(dataset, _)| *dataset == plan.config().dataset) else {
            images.push(None);
            continue;
        };
        let acquired = match (&known.used.substitution, plan.on_shapes()) {
            (None, _) => known.for_plan(plan),
            (Some(_), Some(plan)) => known.for_plan(&plan),
            // This point does not allow shapes; asking for its own images says what is missing.
            (Some(_), None) => acquire(plan, settings.roots, settings.offline, settings.watch()),
        };
        match acquired {
            Ok(acquired) => {
                for note in acquired.notes.iter().filter(|note| !acquired.dataset.notes.contains(note)) {
                    if !notes.contains(note) {
                        settings.console.say(format!("  note: {note}"));
                        notes.push(note.clone());
                    }
                }
                images.push(Some(acquired));
            }
            Err(ImagesError::Unfit(errors)) => {
                problems.push((plan.point().unwrap_or_default().to_owned(), errors.diagnostics));
                images.push(None);
            }
            Err(error) => return Err(error.into()),
        }
    }
    if !problems.is_empty() {
        let diagnostics = merged(problems, sweep.points().len());
        return Err(ImagesError::Unfit(ConfigErrors { path: sweep.path().to_owned(), diagnostics }).into());
    }
    let sweep = sweep.with_plans(|number, plan| match &images[number] {
        Some(acquired) => acquired.plan.clone(),
        None => plan.clone(),
    });
    Ok((sweep, images))
}

/// An error and what caused it, in one line.
fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |&error| error.source());
    std::iter::once(error.to_string()).chain(causes.map(ToString::to_string)).collect::<Vec<_>>().join(": ")
}

/// Writes what there is of a sweep.
struct Tables<'a> {
    sweep: &'a Sweep,
    backend: &'a Backend,
    out: &'a Path,
    reporter: &'a dyn Reporter,
    /// What each point's results rest on now, as far as it is there.
    sources: &'a [Option<Sources>],
    /// Why runs left no result, by their names.
    failures: BTreeMap<String, String>,
}

impl Tables<'_> {
    /// The table of all seeds that were ever asked for, and its folder.
    fn write(&self) -> Result<(ResultTable, PathBuf), RunError> {
        let name = self.sweep.result_name(self.backend.name());
        let folder = self.out.join(&name);
        // Another process may be at other seeds of the same sweep.
        let _lock = loop {
            if let Some(lock) = lock(self.out, &name)? {
                break lock;
            }
            std::thread::sleep(Duration::from_millis(50));
        };
        let seeds = seeds_of(self.sweep, self.backend, self.out)?;
        let points = self.sweep.points().iter().zip(self.sources).map(|(point, now)| {
            let mut runs =
                PointRuns { label: point.label(), coordinates: point.labels().to_vec(), ..PointRuns::default() };
            for &seed in &seeds {
                let run = point.plan().with_seed(seed).run_name(self.backend.name());
                if let Some(reason) = self.failures.get(&run) {
                    runs.failed.insert(seed, reason.clone());
                }
                if let Some(folder) = RunDirectory::finished(self.out, &run) {
                    // With --fresh, seeds that were not asked for may be left from other images.
                    let is_of_now = |now| Sources::of_run(&folder).is_ok_and(|then| then.expect(now, &folder).is_ok());
                    if !now.as_ref().is_none_or(is_of_now) {
                        continue;
                    }
                    let summary = read_summary(&folder)?;
                    runs.runs.push((folder, summary));
                }
            }
            Ok(runs)
        });
        let points = points.collect::<Result<Vec<_>, RecordError>>()?;
        let head = TableHead {
            experiment: self.sweep.name(),
            file: self.sweep.path().to_owned(),
            result: name,
            quick: self.sweep.is_quick(),
            backend: self.backend.name().into(),
            axes: self.sweep.axes().map(str::to_owned).collect(),
            datasets: self.sweep.points().iter().map(|point| point.plan().config().dataset.name().to_owned()).collect(),
            seeds,
        };
        let table = ResultTable::of(head, points)?;
        table.write(&folder)?;
        self.reporter.table_written(&folder, &table)?;
        Ok((table, folder))
    }
}
