use std::collections::BTreeMap;

use maud::{Markup, html};
use patchdoor_metrics::Summary;
use patchdoor_record::{DefenseSummary, MetricInfo, RunSummary, Unit};

use super::answer::label;
use super::chart::{Axis, Chart, Look, Point, Series};
use super::numbers::{interval, mean_cell, mean_of};
use super::table::{Cell, Table};

/// The numbers that defenses are judged by.
const COLUMNS: [&str; 6] =
    ["clean-accuracy", "asr", "robust-accuracy", "defense-effectiveness", "robust-improvement", "seconds"];

/// Every defense before and after; `None` where none was tried.
pub(crate) fn defenses(run: &RunSummary) -> Option<Markup> {
    if run.defenses.is_empty() {
        return None;
    }
    Some(html! {
        div.charts { (chart(run).markup()) }
        (table(run).markup())
        p.note {
            "DER and RIR lie in [0, 1]; 0.5 means that nothing happened. A classifier that gives one class to more than half of "
            "the untouched test images has collapsed: where it stands depends on whether that class is the target."
        }
    })
}

fn table(run: &RunSummary) -> Table {
    let numbers = COLUMNS.iter().filter_map(|name| MetricInfo::of(name)).collect::<Vec<_>>();
    let heading = |number: &&MetricInfo| match number.unit {
        Unit::Share => format!("{}, %", number.heading),
        _ => number.heading.to_owned(),
    };
    let mut header = ["defense", "mark", "its images", "n"].map(str::to_owned).to_vec();
    header.extend(numbers.iter().map(heading));
    let count = |metrics: &BTreeMap<String, Summary>| {
        COLUMNS.iter().filter_map(|name| metrics.get(*name)).map(|summary| summary.count).max().unwrap_or(0)
    };
    let front = |name: String, mark: usize, data: &str, count: usize| {
        vec![
            Cell::text(name),
            Cell::number(mark.to_string(), mark as f64),
            Cell::text(data),
            Cell::number(count.to_string(), count as f64),
        ]
    };
    let before = count(&run.metrics);
    let mut none = front("none".into(), 0, "", before);
    none.extend(numbers.iter().map(|number| mean_cell(run.metrics.get(number.name), number.unit, before)));
    let mut rows = vec![none];
    for (index, defense) in run.defenses.iter().enumerate() {
        let seeds = count(&defense.metrics);
        let mut row = front(label(defense), index + 1, &defense.data, seeds);
        row.extend(numbers.iter().map(|number| match number.name {
            name if defense.collapsed > 0 && name != "seconds" => {
                Cell::text(format!("collapse ({} of {seeds})", defense.collapsed))
            }
            name => mean_cell(defense.metrics.get(name), number.unit, seeds),
        }));
        rows.push(row);
    }
    let caption =
        "After each defense, mean ± standard deviation over seeds; the mark is its number in the chart".into();
    Table { caption, header, rows }
}

fn chart(run: &RunSummary) -> Chart {
    let point = |metrics: &BTreeMap<String, Summary>| {
        let asr = metrics.get("asr")?;
        let x = mean_of(metrics, "clean-accuracy")?;
        Some(Point { interval: interval(asr, Unit::Share), ..Point::new(x, asr.mean) })
    };
    let of = |choose: &dyn Fn(&DefenseSummary) -> bool| {
        let chosen = run.defenses.iter().enumerate().filter(|(_, defense)| choose(defense));
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
