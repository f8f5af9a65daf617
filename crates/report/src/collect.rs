use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use fs_err as fs;
use patchdoor_record::{
    Environment, MetricResult, PointResult, RecordError, ResultTable, RunSummary, commit_in_words, read_sealed,
    read_sealed_json, read_summary, run_builds,
};

use crate::result_file::{ResultsError, read_result, write_result};

/// What became of one result that could be collected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Collected {
    /// Its compact copy is written.
    Written {
        /// The file.
        path: PathBuf,
        /// Seeds of each point.
        seeds: usize,
    },
    /// It is not taken.
    Skipped {
        /// Its folder's name.
        result: String,
        /// Why.
        reason: String,
    },
}

/// Copies the tables of finished sweeps and runs below `runs` to `into`, one compact file for each experiment, ready to be
/// committed.
///
/// Quick versions and runs on stand-in images are left out, and seeds that are not finished at every point. Seeds of the same sweep that
/// the same build computed elsewhere, and that were collected before, are kept beside the new ones. Any other result that has more seeds
/// than the new one is replaced only with `force`, which keeps nothing. If one of those that would be taken was not computed by one
/// commit with unchanged source, nothing is.
///
/// # Errors
/// If a folder cannot be read or a file not be written, or builds are mixed, changed or unknown.
pub fn collect_results(runs: &Path, into: &Path, force: bool) -> Result<Vec<Collected>, ResultsError> {
    let mut tables = Vec::new();
    let mut singles = Vec::new();
    let mut entries =
        fs::read_dir(runs)?.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>()?;
    entries.sort();
    // What was moved aside is no result any more.
    entries.retain(|path| !path.to_string_lossy().contains(".old-"));
    for folder in entries {
        if let Some(table) = ResultTable::read(&folder)? {
            tables.push(table);
        } else if folder.join("summary.json").is_file() {
            match read_summary(&folder) {
                Ok(summary) => singles.push((folder, summary)),
                // A run of an earlier version is none of ours; a damaged one is not passed over.
                Err(RecordError::OtherSchema { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    let of_sweeps = tables.iter().flat_map(|table| &table.points).flat_map(|point| point.runs.values());
    let of_sweeps = of_sweeps.cloned().collect::<BTreeSet<_>>();
    // Runs of one experiment with some of its seeds each belong together.
    let mut experiments: BTreeMap<String, Vec<(PathBuf, RunSummary)>> = BTreeMap::new();
    for (folder, summary) in singles.into_iter().filter(|(_, summary)| !of_sweeps.contains(&summary.run)) {
        experiments.entry(identity_without_seeds(&folder, &summary)?).or_default().push((folder, summary));
    }
    for runs in experiments.into_values() {
        tables.extend(ResultTable::of_runs(runs)?);
    }

    let mut collected = Vec::new();
    // With the folders of the runs, which the compact copy does not name.
    let mut best: BTreeMap<String, (BTreeSet<String>, ResultTable)> = BTreeMap::new();
    for table in tables {
        let result = table.result.clone();
        let runs_of = table.points.iter().flat_map(|point| point.runs.values().cloned()).collect();
        let mut skip = |result: &str, reason: &str| {
            collected.push(Collected::Skipped { result: result.to_owned(), reason: reason.to_owned() });
        };
        match compact(table) {
            Err(reason) => skip(&result, reason),
            Ok(table) => match best.get(&file_name(&table)) {
                Some((_, other)) if other.finished() >= table.finished() => {
                    skip(&result, &format!("{} of the same experiment has as many runs or more", other.result));
                }
                other => {
                    if let Some((_, other)) = other {
                        let reason = format!("{result} of the same experiment has more runs");
                        skip(&other.result, &reason);
                    }
                    best.insert(file_name(&table), (runs_of, table));
                }
            },
        }
    }
    let refused = best.values().filter_map(|(runs_of, table)| Some((table.clean_build().err()?, runs_of, table)));
    let refused = refused.map(|(why, runs_of, table)| {
        format!("{} has {}: {}", table.result, why.name(), builds_of(runs, runs_of, table).join("; "))
    });
    let refused = refused.collect::<Vec<_>>();
    if !refused.is_empty() {
        return Err(ResultsError::Unclean { refused });
    }
    fs::create_dir_all(into)?;
    for (name, (_, mut table)) in best {
        let path = into.join(format!("{name}.json"));
        if path.is_file() && !force {
            let known = read_result(&path)?;
            if !table.take_seeds_of(&known) && known.seeds.len() > table.seeds.len() {
                let reason =
                    format!("{} has {} seeds, this has {}", path.display(), known.seeds.len(), table.seeds.len());
                collected.push(Collected::Skipped {
                    result: table.result,
                    reason: format!("{reason} (--force replaces it)"),
                });
                continue;
            }
        }
        write_result(&path, &table)?;
        collected.push(Collected::Written { path, seeds: table.seeds.len() });
    }
    Ok(collected)
}

/// Which of a result's runs are of which build, a line for each build.
fn builds_of(runs: &Path, runs_of: &BTreeSet<String>, table: &ResultTable) -> Vec<String> {
    let mut found: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for run in runs_of {
        // A run that lies elsewhere by now is not named; its commit is still one of the table's.
        for build in run_builds(&runs.join(run)).into_iter().flatten() {
            let commit = commit_in_words(&build).unwrap_or_else(|| "no commit on record".into());
            let runs = found.entry(commit).or_default();
            if !runs.contains(&run.as_str()) {
                runs.push(run);
            }
        }
    }
    for commit in &table.commits {
        found.entry(commit.clone()).or_default();
    }
    let line = |(commit, runs): (String, Vec<&str>)| match runs.as_slice() {
        [] => format!("{commit} (a clean twin, or a run that is not here)"),
        runs => format!("{commit} ({})", runs.join(", ")),
    };
    found.into_iter().map(line).collect()
}

/// What runs of one experiment have in common: all that decides on their numbers except their seeds.
fn identity_without_seeds(folder: &Path, summary: &RunSummary) -> Result<String, ResultsError> {
    let bytes = read_sealed(&folder.join("config.toml"))?;
    let config = String::from_utf8(bytes).ok().and_then(|text| text.parse::<toml::Table>().ok());
    let Some(mut config) = config else { return Ok(summary.run.clone()) };
    let environment: Environment = read_sealed_json(&folder.join("environment.json"))?;
    let images = (environment.fingerprint, environment.inputs);
    config.remove("seeds");
    config.remove("expected");
    Ok(format!("{} {} {} {:?} {images:?} {config}", summary.experiment, summary.backend, summary.quick, summary.images))
}

/// What a result is called: its experiment's path below `experiments/`, with dashes.
fn file_name(table: &ResultTable) -> String {
    let path = table.file.strip_prefix("experiments/").unwrap_or(&table.file);
    match path.strip_suffix(".toml").unwrap_or(path) {
        "" => table.experiment.clone(),
        name => name.replace('/', "-"),
    }
}

/// A table without the folders of its runs and without seeds that some point does not have yet, or why it is of no use.
fn compact(mut table: ResultTable) -> Result<ResultTable, &'static str> {
    if table.quick {
        return Err("it is a quick version, whose numbers mean nothing");
    }
    if !table.substitutions.is_empty() {
        return Err("other images stood in for those that it names");
    }
    let has = |point: &PointResult, seed: u64| {
        point.failed.contains_key(&seed) || point.metrics.iter().any(|metric| metric.values.contains_key(&seed))
    };
    let complete = table.seeds.iter().copied().filter(|&seed| table.points.iter().all(|point| has(point, seed)));
    let complete = complete.collect::<Vec<_>>();
    if complete.is_empty() || table.finished() == 0 {
        return Err("no seed is finished at every point");
    }
    for point in &mut table.points {
        point.runs.clear();
        point.failed.retain(|seed, _| complete.contains(seed));
        point.chosen_cells.retain(|seed, _| complete.contains(seed));
        for seeds in point.failed_defenses.values_mut() {
            seeds.retain(|seed, _| complete.contains(seed));
        }
        point.failed_defenses.retain(|_, seeds| !seeds.is_empty());
        let metrics = point.metrics.iter().filter_map(|metric| {
            let values = metric.values.iter().filter(|(seed, _)| complete.contains(seed));
            MetricResult::of(&metric.name, values.map(|(&seed, &value)| (seed, value)).collect())
        });
        point.metrics = metrics.collect();
    }
    table.seeds = complete;
    Ok(table)
}

#[cfg(test)]
mod tests {
    use patchdoor_record::{Build, write_sealed, write_sealed_json};

    use super::*;
    use crate::sweep_table::example_table;

    /// A folder of runs with one sweep.
    fn runs(table: &ResultTable) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        table.write(&folder.path().join(&table.result)).unwrap();
        folder
    }

    #[test]
    fn what_is_collected_has_only_seeds_that_every_point_has() {
        let mut table = example_table();
        // Seed 1 of the second point failed, which is an end too; seed 2 is there for the first point only.
        table.seeds.push(2);
        table.points[0].metrics[3].values.insert(2, 0.5);
        let runs = runs(&table);
        let into = runs.path().join("results");
        let collected = collect_results(runs.path(), &into, false).unwrap();
        let path = into.join("rates.json");
        assert_eq!(collected, [Collected::Written { path: path.clone(), seeds: 2 }]);
        let written = read_result(&path).unwrap();
        assert_eq!(written.seeds, [0, 1]);
        assert_eq!(
            written.points[0].metric("asr").unwrap().values,
            example_table().points[0].metric("asr").unwrap().values
        );
        assert_eq!(written.points[1].failed.len(), 1);
        // The cells that were chosen are committed, of the seeds that are there.
        assert_eq!(written.points[0].chosen_cells, [(0, "[[0, 1]]".into())].into());
        assert!(!fs::read_to_string(&path).unwrap().contains("rates-0000000"), "names of run folders are left out");
    }

    #[test]
    fn runs_of_one_experiment_with_some_of_its_seeds_each_are_one_result() {
        use crate::run_table::tests::{run, seed};
        let folder = tempfile::tempdir().unwrap();
        let put = |name: &str, config: &str, seeds: &[(u64, f64)]| {
            let seeds = seeds.iter().map(|&(number, asr)| seed(number, 0.7, asr)).collect();
            let summary = RunSummary { run: name.to_owned(), expected: BTreeMap::new(), ..run("badnets", seeds) };
            fs::create_dir_all(folder.path().join(name)).unwrap();
            let folder = folder.path().join(name);
            write_sealed(&folder.join("config.toml"), config.as_bytes()).unwrap();
            let build = Build { commit: Some("0123456789abcdef".into()), dirty: Some(false), ..Build::default() };
            let file = "experiments/badnets.toml".into();
            let environment = Environment { experiment_file: file, build, ..Environment::default() };
            write_sealed_json(&folder.join("environment.json"), &environment).unwrap();
            write_sealed_json(&folder.join("summary.json"), &summary).unwrap();
        };
        put("badnets-00000000", "seeds = [2]\n[training]\nepochs = 3\n", &[(2, 0.5)]);
        put(
            "badnets-11111111",
            "seeds = [0, 1]\n[training]\nepochs = 3\n[expected]\nasr = 1.0\n",
            &[(0, 1.0), (1, 0.9)],
        );
        // Another training is another experiment; with fewer runs under the same name it is left out.
        put("badnets-22222222", "seeds = [3, 4]\n[training]\nepochs = 4\n", &[(3, 0.1), (4, 0.1)]);
        let into = folder.path().join("results");
        let collected = collect_results(folder.path(), &into, false).unwrap();
        let path = into.join("badnets.json");
        assert!(collected.contains(&Collected::Written { path: path.clone(), seeds: 3 }), "{collected:?}");
        let written = read_result(&path).unwrap();
        let asr = written.points[0].metric("asr").unwrap();
        assert_eq!(asr.values, [(0, 1.0), (1, 0.9), (2, 0.5)].into());
        assert_eq!((written.seeds, asr.count), (vec![0, 1, 2], 3));
    }

    #[test]
    fn results_of_mixed_or_changed_builds_are_refused_with_the_runs_that_make_them_so() {
        for (commits, why) in [
            (vec!["a", "b"], "rates-12345678.sweep has mixed builds: a (rates-00000001); b (rates-00000002)"),
            (vec!["a (changed)"], "rates-12345678.sweep has changed source: a (changed)"),
            (vec![], "rates-12345678.sweep has unknown build"),
        ] {
            let mut table = example_table();
            table.commits = commits.iter().map(|commit| (*commit).to_owned()).collect();
            let mut clean = example_table();
            clean.file = "experiments/clean.toml".into();
            clean.result = "clean-00000000.sweep".into();
            let runs = runs(&table);
            clean.write(&runs.path().join(&clean.result)).unwrap();
            for (run, commit) in [("rates-00000001", "a"), ("rates-00000002", "b")] {
                if commits.contains(&commit) {
                    let build = Build { commit: Some(commit.into()), dirty: Some(false), ..Build::default() };
                    fs::create_dir_all(runs.path().join(run)).unwrap();
                    let environment = Environment { build, ..Environment::default() };
                    write_sealed_json(&runs.path().join(run).join("environment.json"), &environment).unwrap();
                }
            }
            let into = runs.path().join("results");
            let refused = collect_results(runs.path(), &into, true).unwrap_err().to_string();
            assert!(refused.contains(why), "{refused}");
            assert!(!into.exists(), "nothing is written");
        }
    }

    #[test]
    fn quick_results_and_stand_ins_are_not_collected() {
        let quick = ResultTable { quick: true, ..example_table() };
        let shapes = ResultTable { substitutions: vec!["run on shapes instead".into()], ..example_table() };
        for table in [quick, shapes] {
            let runs = runs(&table);
            let collected = collect_results(runs.path(), &runs.path().join("results"), false).unwrap();
            assert!(matches!(&collected[..], [Collected::Skipped { .. }]), "{collected:?}");
            assert!(!runs.path().join("results/rates.json").exists());
        }
    }

    #[test]
    fn a_result_of_more_seeds_is_replaced_only_by_force() {
        let runs = runs(&example_table());
        let into = runs.path().join("results");
        fs::create_dir(&into).unwrap();
        let commits = vec!["fedcba9876543210".into()];
        let more = ResultTable { seeds: vec![0, 1, 2], commits, ..example_table() };
        write_result(&into.join("rates.json"), &more).unwrap();
        let collected = collect_results(runs.path(), &into, false).unwrap();
        assert!(matches!(&collected[..], [Collected::Skipped { reason, .. }] if reason.contains("3 seeds")));
        assert_eq!(read_result(&into.join("rates.json")).unwrap().seeds, [0, 1, 2]);
        collect_results(runs.path(), &into, true).unwrap();
        assert_eq!(read_result(&into.join("rates.json")).unwrap().seeds, [0, 1]);
    }

    #[test]
    fn seeds_that_the_same_build_computed_elsewhere_stay_beside_the_new_ones() {
        let of_seeds = |seeds: [u64; 2]| {
            let renamed = |seed: &u64| seeds[*seed as usize];
            let mut table = example_table();
            table.seeds = seeds.to_vec();
            for point in &mut table.points {
                let moved = |values: &BTreeMap<u64, f64>| values.iter().map(|(s, &v)| (renamed(s), v)).collect();
                let metrics = point.metrics.iter().filter_map(|one| MetricResult::of(&one.name, moved(&one.values)));
                point.metrics = metrics.collect();
                point.failed = point.failed.iter().map(|(seed, why)| (renamed(seed), why.clone())).collect();
                point.chosen_cells.clear();
                point.failed_defenses.clear();
            }
            table
        };
        let runs = runs(&of_seeds([3, 1]));
        let into = runs.path().join("results");
        fs::create_dir(&into).unwrap();
        let path = into.join("rates.json");
        let mut before = of_seeds([0, 1]);
        before.devices = vec!["another processor".into()];
        // What both have is the new one's.
        before.points[0].metrics[3] = MetricResult::of("asr", [(0, 0.25), (1, 0.0)].into()).unwrap();
        write_result(&path, &before).unwrap();
        let collected = collect_results(runs.path(), &into, false).unwrap();
        assert_eq!(collected, [Collected::Written { path: path.clone(), seeds: 3 }]);
        let whole = read_result(&path).unwrap();
        assert_eq!((&whole.seeds, whole.devices.len()), (&vec![0, 1, 3], 2));
        assert_eq!(whole.points[0].metric("asr").unwrap().values, [(0, 0.25), (1, 1.0), (3, 0.9)].into());
        assert_eq!(whole.points[0].metric("asr").unwrap().count, 3);
        assert_eq!(whole.points[1].failed.keys().collect::<Vec<_>>(), [&1], "once failed, and twice the same seed");
        assert_eq!(whole.points[1].metric("asr").unwrap().values, [(0, 0.125), (3, 0.125)].into());

        // Another build, or another sweep, is another result.
        let other = ResultTable { commits: vec!["fedcba9876543210".into()], ..before.clone() };
        write_result(&path, &other).unwrap();
        collect_results(runs.path(), &into, false).unwrap();
        assert_eq!(read_result(&path).unwrap().seeds, [3, 1]);
        write_result(&path, &before).unwrap();
        collect_results(runs.path(), &into, true).unwrap();
        assert_eq!(read_result(&path).unwrap().seeds, [3, 1], "force keeps nothing");
    }

    #[test]
    fn results_of_two_files_of_one_name_are_two() {
        let mut paper = example_table();
        paper.file = "experiments/paper/rates.toml".into();
        paper.result = "rates-00000000.sweep".into();
        let runs = runs(&example_table());
        paper.write(&runs.path().join(&paper.result)).unwrap();
        let into = runs.path().join("results");
        collect_results(runs.path(), &into, false).unwrap();
        assert_eq!(read_result(&into.join("rates.json")).unwrap().file, example_table().file);
        assert_eq!(read_result(&into.join("paper-rates.json")).unwrap().file, paper.file);
    }

    #[test]
    fn of_two_sweeps_of_one_experiment_the_larger_is_collected() {
        let mut smaller = example_table();
        smaller.result = "rates-00000000.sweep".into();
        smaller.points.truncate(1);
        let runs = runs(&example_table());
        smaller.write(&runs.path().join(&smaller.result)).unwrap();
        let into = runs.path().join("results");
        let collected = collect_results(runs.path(), &into, false).unwrap();
        assert!(
            collected.iter().any(|one| matches!(one, Collected::Skipped { result, .. } if *result == smaller.result))
        );
        assert_eq!(read_result(&into.join("rates.json")).unwrap().result, example_table().result);
    }
}
