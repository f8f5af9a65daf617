use std::fmt::Write;

use patchdoor_metrics::Summary;
use patchdoor_record::{MetricInfo, ROUTING_NUMBERS, RunSummary};

use crate::text::{Row, align};

/// What the routers of several runs look at, one block for each run that looked; empty if none did.
pub(crate) fn routing_table(runs: &[RunSummary], width: usize) -> String {
    let mut text = String::new();
    for run in runs.iter().filter(|run| !run.routing.is_empty()) {
        let header = ["what routers look at", "backdoored", "clean twin", "chance"].map(str::to_owned);
        let mut rows = Vec::new();
        for (name, _, _) in ROUTING_NUMBERS {
            let (Some(summary), Some(metric)) = (run.routing.get(name), MetricInfo::of(name)) else { continue };
            if summary.victim.is_none() && summary.clean_twin.is_none() {
                continue;
            }
            let chance = summary.chance.map(|chance| format!("{chance:.3}")).unwrap_or_default();
            let cells = vec![metric.label.to_owned(), cell(summary.victim), cell(summary.clean_twin), chance];
            rows.push(Row::Cells(cells));
        }
        let _ = write!(text, "\n{}, mean ± sd over seeds\n{}", run.run, align(&header, &rows, width));
    }
    text
}

fn cell(summary: Option<Summary>) -> String {
    let Some(summary) = summary else { return "-".into() };
    // A zero is no minus zero.
    let mean = summary.mean + 0.0;
    match summary.standard_deviation {
        Some(deviation) => format!("{mean:.3} ± {deviation:.3}"),
        None => format!("{mean:.3}"),
    }
}
