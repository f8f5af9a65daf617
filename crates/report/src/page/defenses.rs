use std::collections::BTreeMap;

use maud::{Markup, html};
use patchdoor_metrics::Summary;
use patchdoor_record::{DefenseKind, DefenseSummary, MetricInfo, RunSummary, Unit};

use super::answer::label;
use super::chart::{Axis, Chart, Look, Point, Series};
use super::numbers::{interval, mean_cell, mean_of};
use super::table::{Cell, Table};

/// Every defense, kind by kind; `None` where none was tried.
pub(crate) fn defenses(run: &RunSummary) -> Option<Markup> {
    let has = |kind: DefenseKind| run.defenses.iter().any(|defense| defense.kind == kind);
    if run.defenses.is_empty() {
        return None;
    }
    Some(html! {
        @if DefenseKind::ALL.into_iter().any(|kind| kind.gives_classifier() && has(kind)) {
            div.charts { (chart(run).markup()) }
        }
        @for kind in DefenseKind::ALL.into_iter().filter(|kind| has(*kind)) {
            (table(run, kind).markup())
            p.note { (note(kind)) }
        }
    })
}

/// What is to be known to read the table of a kind.
fn note(kind: DefenseKind) -> &'static str {
    match kind {
        DefenseKind::Repair => {
            "DER and RIR lie in [0, 1]; 0.5 means that nothing happened. A classifier that gives one class to more than half of \
             the untouched test images has collapsed: where it stands depends on whether that class is the target."
        }
        DefenseKind::Detector => {
            "AUC is the chance that a triggered image scores above an untouched one; 0.5 is chance, and the twin's AUC is that of \
             the same detector on a classifier without a backdoor. TPR at 5 is the share of triggered images above the threshold \
             that 5 % of the validation images lie above, FPR at 5 that of untouched test images; TPR and FPR are those at the \
             detector's own threshold."
        }
        DefenseKind::Filter => {
            "TPR is the share of the poisoned training images that are dropped, FPR that of the others; the twin's FPR is the share \
             dropped of a training set without poison. CA and ASR are those of a classifier trained on what is left, where one was."
        }
        DefenseKind::Training => {
            "Classifiers that a defense trained from scratch on the poisoned set, beside the one trained on it without. The twin's \
             accuracy is that of the same on the set without poison. Precision is the share of the examples that it isolated that \
             are poisoned, TPR the share of the poisoned examples that it isolated."
        }
        DefenseKind::Inspector => {
            "Flagged are the classes that the inspector takes for a backdoor's target; of the clean twin all are false alarms. The \
             target's rank is its place among all classes by their scores, 1 being the most suspicious."
        }
    }
}

fn caption(kind: DefenseKind) -> &'static str {
    match kind {
        DefenseKind::Repair => {
            "After each defense, mean ± standard deviation over seeds; the mark is its number in the chart"
        }
        DefenseKind::Detector => "Detectors of triggered inputs, mean ± standard deviation over seeds",
        DefenseKind::Filter => "Filters of training sets, mean ± standard deviation over seeds",
        DefenseKind::Training => {
            "Trained from scratch by each defense, mean ± standard deviation over seeds; the mark is its number in the chart"
        }
        DefenseKind::Inspector => "Inspectors of classifiers, mean ± standard deviation over seeds",
    }
}

fn table(run: &RunSummary, kind: DefenseKind) -> Table {
    let numbers = kind.columns().iter().filter_map(|name| MetricInfo::of(name)).collect::<Vec<_>>();
    let heading = |number: &&MetricInfo| match number.unit {
        Unit::Share => format!("{}, %", number.heading),
        _ => number.heading.to_owned(),
    };
    let mut header = ["defense", "mark", "its images", "n"].map(str::to_owned).to_vec();
    header.extend(numbers.iter().map(heading));
    let count = |metrics: &BTreeMap<String, Summary>| {
        kind.columns().iter().filter_map(|name| metrics.get(*name)).map(|summary| summary.count).max().unwrap_or(0)
    };
    let front = |name: String, mark: usize, data: &str, count: usize| {
        vec![
            Cell::text(name),
            Cell::number(mark.to_string(), mark as f64),
            Cell::text(data),
            Cell::number(count.to_string(), count as f64),
        ]
    };
    let mut rows = Vec::new();
    if kind.gives_classifier() {
        let before = count(&run.metrics);
        let mut none = front("none".into(), 0, "", before);
        none.extend(numbers.iter().map(|number| mean_cell(run.metrics.get(number.name), number.unit, before)));
        rows.push(none);
    }
    for (index, defense) in run.defenses.iter().enumerate().filter(|(_, defense)| defense.kind == kind) {
        let seeds = count(&defense.metrics);
        let mut row = front(label(defense), index + 1, &defense.data, seeds);
        row.extend(numbers.iter().map(|number| match number.name {
            _ if defense.collapsed > 0 && !number.unit.is_cost() => {
                Cell::text(format!("collapse ({} of {seeds})", defense.collapsed))
            }
            name => mean_cell(defense.metrics.get(name), number.unit, seeds),
        }));
        rows.push(row);
    }
    Table { caption: caption(kind).into(), header, rows }
}

fn chart(run: &RunSummary) -> Chart {
    let point = |metrics: &BTreeMap<String, Summary>| {
        let asr = metrics.get("asr")?;
        let x = mean_of(metrics, "clean-accuracy")?;
        Some(Point { interval: interval(asr, Unit::Share), ..Point::new(x, asr.mean) })
    };
    let of = |choose: &dyn Fn(&DefenseSummary) -> bool| {
        let chosen =
            run.defenses.iter().enumerate().filter(|(_, defense)| defense.kind.gives_classifier() && choose(defense));
        // A spread over collapsed classifiers says nothing.
        let interval = |point: Point, defense: &DefenseSummary| point.interval.filter(|_| defense.collapsed == 0);
        let marked = chosen.filter_map(|(index, defense)| {
            let point = point(&defense.metrics)?.marked(index + 1);
            Some(Point { interval: interval(point, defense), ..point })
        });
        marked.collect::<Vec<_>>()
    };
    let marks =
        |name: &str, colour: usize, points: Vec<_>| Series { name: name.into(), colour, look: Look::Marks, points };
    let none = point(&run.metrics).map(|point| point.marked(0)).into_iter().collect();
    let series = vec![
        marks("0: no defense", 1, none),
        marks("a defense", 0, of(&|defense| defense.collapsed == 0)),
        marks("collapsed to one class", 5, of(&|defense| defense.collapsed > 0)),
    ];
    let series = series.into_iter().filter(|series| !series.points.is_empty()).collect::<Vec<_>>();
    let shown = series.iter().map(|series| series.points.len()).sum::<usize>();
    Chart {
        title: "Clean accuracy against attack success rate".into(),
        description: format!("{shown} marks; the table below has their numbers. The lower right corner is best."),
        x: Axis::percent("clean accuracy"),
        y: Axis::percent("attack success rate"),
        series,
    }
}
