use std::fmt::Write;

use patchdoor_metrics::Summary;

use super::numbers::METRICS;
use crate::result::RunSummary;

/// What the routers of several runs look at, one block for each run that looked; empty if none did.
pub(crate) fn table(runs: &[RunSummary]) -> String {
    let mut text = String::new();
    for run in runs.iter().filter(|run| !run.routing.is_empty()) {
        let mut rows = vec![["what routers look at", "backdoored", "clean twin", "chance"].map(str::to_owned)];
        for metric in &METRICS {
            let Some(summary) = run.routing.get(metric.name) else { continue };
            if summary.victim.is_none() && summary.clean_twin.is_none() {
                continue;
            }
            let chance = summary.chance.map(|chance| format!("{chance:.3}")).unwrap_or_default();
            rows.push([metric.label.to_owned(), cell(summary.victim), cell(summary.clean_twin), chance]);
        }
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths = [0, 1, 2, 3].map(width);
        let _ = writeln!(text, "\n{}, mean ± sd over seeds", run.run);
        for (number, row) in rows.iter().enumerate() {
            let mut line = format!("{:<1$}", row[0], widths[0]);
            for column in 1..4 {
                let _ = write!(line, "  {:>1$}", row[column], widths[column]);
            }
            let _ = writeln!(text, "{}", line.trim_end());
            if number == 0 {
                let _ = writeln!(text, "{}", "─".repeat(widths.iter().sum::<usize>() + 6));
            }
        }
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
