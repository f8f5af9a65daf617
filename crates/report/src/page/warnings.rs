use patchdoor_record::{PointResult, ResultTable, RunSummary, UncleanBuild};

use super::answer::collapse;

const QUICK: &str = "This is a quick run through all code paths: its numbers mean nothing.";
const ONE_SEED: &str =
    "One seed alone (n = 1): nobody knows how far another would be from it, and there are no intervals.";

/// What nobody may miss about a run; `commits` are those of the builds that computed it.
pub(crate) fn of_run(run: &RunSummary, commits: &[Option<String>]) -> Vec<String> {
    let mut warnings = Vec::new();
    warnings.extend(run.quick.then(|| QUICK.to_owned()));
    warnings.extend(run.images.substitution.iter().map(|reason| format!("Stand-in data: {reason}.")));
    match run.finished() {
        0 => warnings.push("No seed finished.".into()),
        1 => warnings.push(ONE_SEED.into()),
        _ => {}
    }
    warnings.extend(run.failures().iter().map(|failure| format!("Incomplete: {failure}.")));
    warnings.extend(collapse(run));
    if commits.iter().any(Option::is_none) {
        warnings.push(unclean(UncleanBuild::Unknown).into());
    }
    if commits.iter().flatten().any(|commit| commit.contains(' ')) {
        warnings.push(unclean(UncleanBuild::Changed).into());
    }
    let mut distinct = commits.to_vec();
    distinct.sort();
    distinct.dedup();
    if distinct.len() > 1 {
        warnings.push(unclean(UncleanBuild::Mixed).into());
    }
    warnings.extend(run.notes.iter().map(|note| format!("About the images: {note}.")));
    warnings
}

/// What nobody may miss about a sweep.
pub(crate) fn of_table(table: &ResultTable) -> Vec<String> {
    let mut warnings = Vec::new();
    warnings.extend(table.quick.then(|| QUICK.to_owned()));
    warnings.extend(table.substitutions.iter().map(|reason| format!("Stand-in data: {reason}.")));
    if table.points.iter().map(PointResult::finished).max() == Some(1) {
        warnings.push(ONE_SEED.into());
    }
    let expected = table.points.len() * table.seeds.len();
    if table.finished() < expected {
        warnings.push(format!("Incomplete: {} of {expected} runs are finished.", table.finished()));
    }
    for point in &table.points {
        warnings.extend(
            point.failed.iter().map(|(seed, reason)| format!("{}, seed {seed} failed: {reason}.", point.label)),
        );
    }
    warnings.extend(table.clean_build().err().map(|build| unclean(build).to_owned()));
    warnings.extend(table.notes.iter().map(|note| format!("About the images: {note}.")));
    warnings
}

fn unclean(build: UncleanBuild) -> &'static str {
    match build {
        UncleanBuild::Mixed => "Several commits computed these numbers.",
        UncleanBuild::Changed => {
            "The source differed from its commit when the program was built, so nobody can build it again."
        }
        UncleanBuild::Unknown => "The commit that computed these numbers is not on record.",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run_table::tests::{run, seed};

    #[test]
    fn stand_in_quick_dirty_and_single_runs_are_warned_of() {
        let mut run = run("badnets", vec![seed(0, 0.69, 0.96)]);
        run.notes.clear();
        run.quick = true;
        run.images.substitution = Some("cifar10 was not found; run on shapes instead".into());
        let warnings = of_run(&run, &[Some("abc (changed)".into()), Some("def".into())]);
        let begin = [
            "This is a quick run",
            "Stand-in data: cifar10",
            "One seed alone",
            "The source differed",
            "Several commits",
        ];
        assert_eq!(warnings.len(), begin.len(), "{warnings:?}");
        for (warning, begin) in warnings.iter().zip(begin) {
            assert!(warning.starts_with(begin), "{warning}");
        }
    }

    #[test]
    fn a_clean_run_of_two_seeds_is_not_warned_of() {
        let mut run = run("badnets", vec![seed(0, 0.69, 0.96), seed(1, 0.69, 0.95)]);
        run.notes.clear();
        assert_eq!(of_run(&run, &[Some("abc".into())]), Vec::<String>::new());
    }
}
