use patchdoor_cli::{Stop, all_experiments, print};
use patchdoor_plan::{DatasetFacts, Experiment};

use crate::arguments::CheckArguments;
use crate::run::read_experiments;

/// Checks experiment files without running them.
pub(crate) fn check(arguments: &CheckArguments) -> Result<(), Stop> {
    let files = if arguments.files.is_empty() { all_experiments()? } else { arguments.files.clone() };
    for experiment in read_experiments(&files, &arguments.changes)? {
        let points = match &experiment {
            Experiment::Single(_) => String::new(),
            Experiment::Sweep(sweep) => format!(": {} points of {}", sweep.points().len(), sweep.shape()),
        };
        print(&format!("ok {}{points}\n", experiment.path().display()))?;
        let mut notes = Vec::new();
        for plan in experiment.plans() {
            notes.extend(plan.notes(&DatasetFacts::published(&plan.config().dataset)));
        }
        notes.dedup();
        for note in notes {
            print(&format!("   note: {note}\n"))?;
        }
    }
    Ok(())
}
