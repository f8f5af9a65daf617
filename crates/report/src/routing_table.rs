use std::fmt::Write;

use patchdoor_metrics::Summary;
use patchdoor_record::{MetricInfo, ROUTING_NUMBERS, RunSummary};

use crate::text::{Row, align};

/// What the routers of several runs look at, one block for each run that looked; empty if none did.
pub(crate) fn routing_table(runs: &[RunSummary], width: usize) -> String {
    let mut text = String::new();
    for run in runs.iter().filter(|run| !run.routing.is_empty()) {
        let of = |summary: &patchdoor_record::RoutingSummary| summary.victim.map(|victim| victim.count);
        let count = run.routing.values().filter_map(of).max().unwrap_or(0);
        let header = ["what routers look at", "backdoored", "clean twin", "chance"].map(str::to_owned);
        let mut rows = Vec::new();
        for (name, _, _) in ROUTING_NUMBERS {
            let (Some(summary), Some(metric)) = (run.routing.get(name), MetricInfo::of(name)) else { continue };
            if !metric.is_shown || (summary.victim.is_none() && summary.clean_twin.is_none()) {
                continue;
            }
            let chance = summary.chance.map(|chance| format!("{chance:.3}")).unwrap_or_default();
            let cells =
                vec![metric.label.to_owned(), cell(summary.victim, count), cell(summary.clean_twin, count), chance];
            rows.push(Row::Cells(cells));
        }
        let _ = write!(text, "\n{}, mean ± sd, n = {count}\n{}", run.run, align(&header, &rows, width));
    }
    text
}

/// A mean with its spread in a table of `count` seeds.
fn cell(summary: Option<Summary>, count: usize) -> String {
    let Some(summary) = summary else { return "-".into() };
    // A zero is no minus zero.
    let mean = summary.mean + 0.0;
    let own = if summary.count == count { String::new() } else { format!(" (n = {})", summary.count) };
    match summary.standard_deviation {
        Some(deviation) => format!("{mean:.3} ± {deviation:.3}{own}"),
        None => format!("{mean:.3}{own}"),
    }
}
