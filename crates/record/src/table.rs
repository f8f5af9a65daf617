use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{
    Build, Environment, PointResult, RecordError, RunSummary, SeedResult, is_sealed, read_sealed_json,
    write_sealed_json,
};

/// What stands behind a commit that the source differed from.
const CHANGED: &str = " (changed)";
/// What stands for a commit that is not on record.
const UNKNOWN: &str = "unknown";

/// Version of the layout of `table.json`.
pub const TABLE_SCHEMA: u32 = 1;

/// What a sweep or a run came to, a row for each point; `table.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ResultTable {
    /// Layout of this file.
    pub schema: u32,
    /// Name of the experiment.
    pub experiment: String,
    /// Its file, from `experiments/` on if it lies there.
    pub file: String,
    /// Folder of the results.
    pub result: String,
    /// Whether this is the quick version, whose numbers mean nothing.
    pub quick: bool,
    /// Data sets that were used.
    pub datasets: Vec<String>,
    /// Why they are not those that the experiment names, if they are not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub substitutions: Vec<String>,
    /// What is to be known about these copies of the images.
    pub notes: Vec<String>,
    /// What it was computed with.
    pub backend: String,
    /// On which devices.
    pub devices: Vec<String>,
    /// Commits of the source; with ` (changed)` if it differed from the commit.
    pub commits: Vec<String>,
    /// Names of the axes.
    pub axes: Vec<String>,
    /// Seeds asked for so far.
    pub seeds: Vec<u64>,
    /// The points, in their order.
    pub points: Vec<PointResult>,
}

/// Why numbers do not come from one clean build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UncleanBuild {
    /// Several commits computed them.
    Mixed,
    /// The source differed from its commit.
    Changed,
    /// The commit is not on record.
    Unknown,
}

impl UncleanBuild {
    /// In two words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mixed => "mixed builds",
            Self::Changed => "changed source",
            Self::Unknown => "unknown build",
        }
    }
}

/// What is known of a table without its runs.
#[derive(Clone, Debug, Default)]
pub struct TableHead {
    /// Name of the experiment.
    pub experiment: String,
    /// Its file.
    pub file: PathBuf,
    /// Folder of the results.
    pub result: String,
    /// Whether this is the quick version.
    pub quick: bool,
    /// What it is computed with.
    pub backend: String,
    /// Names of the axes.
    pub axes: Vec<String>,
    /// Data sets that the experiment names, in case no run has been finished.
    pub datasets: Vec<String>,
    /// Seeds asked for so far.
    pub seeds: Vec<u64>,
}

/// The runs of one point.
#[derive(Clone, Debug, Default)]
pub struct PointRuns {
    /// What the point is called.
    pub label: String,
    /// Its label on each axis.
    pub coordinates: Vec<String>,
    /// Each finished run with its folder. Of a seed that several of them have, the first counts.
    pub runs: Vec<(PathBuf, RunSummary)>,
    /// Why seeds left no run.
    pub failed: BTreeMap<u64, String>,
}

impl ResultTable {
    /// Puts the runs of all points together.
    ///
    /// # Errors
    /// If the environment of a run cannot be read back.
    pub fn of(head: TableHead, points: Vec<PointRuns>) -> Result<Self, RecordError> {
        let mut facts = Facts::default();
        let mut rows = Vec::new();
        for point in points {
            let mut results: BTreeMap<u64, (String, SeedResult)> = BTreeMap::new();
            let mut images: Option<(PathBuf, String)> = None;
            for (folder, summary) in point.runs {
                let fingerprint = facts.add(&summary, &folder)?;
                // The runs of a point differ in nothing but their seeds.
                match &images {
                    Some((first, known)) if *known != fingerprint => {
                        return Err(RecordError::MixedImages { first: first.clone(), second: folder });
                    }
                    Some(_) => {}
                    None => images = Some((folder.clone(), fingerprint)),
                }
                for result in summary.seeds {
                    results.entry(result.seed).or_insert((summary.run.clone(), result));
                }
            }
            let results = results.into_values().collect::<Vec<_>>();
            let mut row = PointResult::of(point.label, point.coordinates, &results);
            row.failed.extend(point.failed);
            rows.push(row);
        }
        if facts.datasets.is_empty() {
            head.datasets.iter().for_each(|dataset| add(&mut facts.datasets, dataset));
        }
        Ok(Self {
            schema: TABLE_SCHEMA,
            experiment: head.experiment,
            file: published_path(&head.file),
            result: head.result,
            quick: head.quick,
            datasets: facts.datasets,
            substitutions: facts.substitutions,
            notes: facts.notes,
            backend: head.backend,
            devices: facts.devices,
            commits: facts.commits,
            axes: head.axes,
            seeds: head.seeds,
            points: rows,
        })
    }

    /// What runs of one experiment that differ only in their seeds came to, as a table of one point; `None` without any. Of
    /// a seed that several of them have, the first counts.
    ///
    /// # Errors
    /// If the environment of a run cannot be read back.
    pub fn of_runs(runs: Vec<(PathBuf, RunSummary)>) -> Result<Option<Self>, RecordError> {
        let Some((folder, first)) = runs.first() else { return Ok(None) };
        let environment = read_sealed_json::<Environment>(&folder.join("environment.json"))?;
        let mut seeds = runs.iter().flat_map(|(_, run)| run.seeds.iter().map(|seed| seed.seed)).collect::<Vec<_>>();
        seeds.sort_unstable();
        seeds.dedup();
        let head = TableHead {
            experiment: first.experiment.clone(),
            file: environment.experiment_file.into(),
            result: first.run.clone(),
            quick: first.quick,
            backend: first.backend.clone(),
            seeds,
            ..TableHead::default()
        };
        let label = first.experiment.clone();
        Self::of(head, vec![PointRuns { label, runs, ..PointRuns::default() }]).map(Some)
    }

    /// The point of that label.
    pub fn point(&self, label: &str) -> Option<&PointResult> {
        self.points.iter().find(|point| point.label == label)
    }

    /// The one commit that computed all of it, from unchanged source; or what it is instead.
    ///
    /// # Errors
    /// If several builds computed it, the source differed from its commit, or nobody knows.
    pub fn clean_build(&self) -> Result<&str, UncleanBuild> {
        match self.commits.as_slice() {
            [] => Err(UncleanBuild::Unknown),
            [commit] if commit.ends_with(CHANGED) => Err(UncleanBuild::Changed),
            [commit] => Ok(commit),
            _ => Err(UncleanBuild::Mixed),
        }
    }

    /// Takes in the seeds that another table has of the same sweep, computed elsewhere by the same clean build; says whether it is
    /// such a table. Of seeds that both have, this table's numbers stay.
    pub fn take_seeds_of(&mut self, other: &Self) -> bool {
        let is_same = |(own, other): (&PointResult, &PointResult)| {
            own.label == other.label && own.coordinates == other.coordinates
        };
        let is_more_of_it = self.result == other.result
            && self.backend == other.backend
            && self.datasets == other.datasets
            && self.notes == other.notes
            && self.points.len() == other.points.len()
            && self.points.iter().zip(&other.points).all(is_same)
            && matches!((self.clean_build(), other.clean_build()), (Ok(own), Ok(theirs)) if own == theirs);
        if !is_more_of_it {
            return false;
        }
        for (point, other) in self.points.iter_mut().zip(&other.points) {
            point.take_seeds_of(other);
        }
        other.devices.iter().for_each(|device| add(&mut self.devices, device));
        self.seeds.extend(&other.seeds);
        self.seeds.sort_unstable();
        self.seeds.dedup();
        true
    }

    /// Finished runs, counted once for each point.
    pub fn finished(&self) -> usize {
        self.points.iter().map(PointResult::finished).sum()
    }

    /// Names of all numbers, in the order in which they are shown.
    pub fn metric_names(&self) -> Vec<&str> {
        let mut names = Vec::new();
        for metric in self.points.iter().flat_map(|point| &point.metrics) {
            if !names.contains(&metric.name.as_str()) {
                names.push(metric.name.as_str());
            }
        }
        names
    }

    /// Writes `table.json` to a folder, which is made if need be.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&self, folder: &Path) -> Result<(), RecordError> {
        fs_err::create_dir_all(folder)?;
        write_sealed_json(&folder.join("table.json"), self)
    }

    /// Reads `table.json`; `None` if there is none.
    ///
    /// # Errors
    /// If it is not as it was written.
    pub fn read(folder: &Path) -> Result<Option<Self>, RecordError> {
        let path = folder.join("table.json");
        if path.is_file() { read_sealed_json(&path).map(Some) } else { Ok(None) }
    }
}

/// What several runs were computed with, each thing once.
#[derive(Default)]
struct Facts {
    datasets: Vec<String>,
    substitutions: Vec<String>,
    notes: Vec<String>,
    devices: Vec<String>,
    commits: Vec<String>,
}

impl Facts {
    /// Adds those of a run, and returns the fingerprint of its images and other files.
    fn add(&mut self, summary: &RunSummary, folder: &Path) -> Result<String, RecordError> {
        add(&mut self.datasets, &summary.images.dataset);
        if let Some(substitution) = &summary.images.substitution {
            add(&mut self.substitutions, substitution);
        }
        for note in &summary.notes {
            add(&mut self.notes, note);
        }
        add(&mut self.devices, &summary.device);
        let builds = run_builds(folder)?;
        let commits = builds.iter().filter_map(commit_in_words).collect::<Vec<_>>();
        // A twin or a surrogate that was trained before may be of another build than the run that found it.
        let measured = summary.seeds.iter().filter_map(SeedResult::measurements);
        let of_clean_models = measured.flat_map(|m| {
            let twin = m.clean_twin.as_ref().map(|twin| &twin.commit);
            twin.into_iter().chain(m.chosen_cells.as_ref().map(|chosen| &chosen.commit))
        });
        let of_twins = of_clean_models.map(|commit| commit.as_deref().unwrap_or(UNKNOWN));
        let of_twins = of_twins.filter(|commit| !commits.is_empty() || *commit != UNKNOWN);
        commits.iter().map(String::as_str).chain(of_twins).for_each(|commit| add(&mut self.commits, commit));
        let environment = read_sealed_json::<Environment>(&folder.join("environment.json"))?;
        let inputs = environment.inputs.iter().map(|(path, sum)| format!(" {path} {sum}"));
        Ok(environment.fingerprint + &inputs.collect::<String>())
    }
}

/// The builds that computed a run: the one that began it, then those that resumed it, in their order.
///
/// # Errors
/// If one of its environments cannot be read back.
pub fn run_builds(folder: &Path) -> Result<Vec<Build>, RecordError> {
    let begun = read_sealed_json::<Environment>(&folder.join("environment.json"))?;
    let mut builds = vec![begun.build];
    for resumption in 1.. {
        let path = folder.join(format!("environment-resumed-{resumption}.json"));
        if !is_sealed(&path)? {
            break;
        }
        builds.push(read_sealed_json::<Environment>(&path)?.build);
    }
    Ok(builds)
}

/// The commit of a build, with ` (changed)` where the source differed from it; `None` if it was built outside of git.
pub fn commit_in_words(build: &Build) -> Option<String> {
    let changed = if build.dirty == Some(true) { CHANGED } else { "" };
    build.commit.as_ref().map(|commit| format!("{commit}{changed}"))
}

fn add(list: &mut Vec<String>, word: &str) {
    if !list.iter().any(|known| known == word) {
        list.push(word.to_owned());
    }
}

/// A file's path from `experiments/` on, or its name alone: where it lay on some machine is nobody's business.
pub fn published_path(path: &Path) -> String {
    let parts = path.components().map(|part| part.as_os_str().to_string_lossy().into_owned()).collect::<Vec<_>>();
    let first = parts.iter().rposition(|part| part == "experiments").unwrap_or(parts.len().saturating_sub(1));
    parts[first..].join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_published_without_the_machine_it_lay_on() {
        assert_eq!(published_path(Path::new("/home/me/p/experiments/cpu/c5.toml")), "experiments/cpu/c5.toml");
        assert_eq!(published_path(Path::new("experiments/c5.toml")), "experiments/c5.toml");
        assert_eq!(published_path(Path::new("/tmp/c5.toml")), "c5.toml");
    }
}
