use std::collections::BTreeMap;

use maud::{Markup, html};
use patchdoor_metrics::Summary;
use patchdoor_record::{COLLAPSE, Measurements, MetricInfo, PointResult, RunSummary, SEED_NUMBERS, SeedResult, Unit};

use super::table::{Cell, Table};

/// Seeds beyond this number have no column of their own.
const SEED_COLUMNS: usize = 10;

/// A mean with its spread, and its own number of seeds where its row has another.
pub(crate) fn mean_cell(summary: Option<&Summary>, unit: Unit, count: usize) -> Cell {
    summary.map_or_else(Cell::empty, |summary| {
        let spread = summary.standard_deviation.map(|deviation| format!(" ± {}", unit.text(deviation)));
        let own = if summary.count == count { String::new() } else { format!(" (n = {})", summary.count) };
        Cell::number(format!("{}{}{own}", unit.text(summary.mean), spread.unwrap_or_default()), summary.mean)
    })
}

/// The 95 % confidence interval of a mean, ended where such a number must end; `None` for one seed.
pub(crate) fn interval(summary: &Summary, unit: Unit) -> Option<[f64; 2]> {
    summary.interval_95().map(|(low, high)| [low, high].map(|end| unit.bounded(end)))
}

/// The numbers of the attack with their intervals, beside those that the experiment expects.
pub(crate) fn headline(run: &RunSummary, point: &PointResult) -> Markup {
    let metrics = SEED_NUMBERS.iter().filter_map(|(name, _)| Some((MetricInfo::of(name)?, point.metric(name)?)));
    // Which class is predicted most is worth a line only where it is a collapse.
    let is_shown =
        |metric: &MetricInfo, mean: f64| metric.is_shown || (metric.name == "largest-class-share" && mean > COLLAPSE);
    let metrics = metrics.filter(|(info, metric)| is_shown(info, metric.mean)).collect::<Vec<_>>();
    if metrics.is_empty() {
        return html! { p { "No seed finished, so there are no numbers." } };
    }
    let seeds = run.seeds.iter().map(|seed| seed.seed).collect::<Vec<_>>();
    let seeds = if (2..=SEED_COLUMNS).contains(&seeds.len()) { seeds } else { Vec::new() };
    let expects = !run.expected.is_empty();
    let mut header = ["number", "unit", "mean ± sd", "95 % interval"].map(str::to_owned).to_vec();
    header.extend(expects.then(|| "expected".to_owned()));
    header.push("n".into());
    header.extend(seeds.iter().map(|seed| format!("seed {seed}")));
    let rows = metrics.iter().map(|(info, metric)| {
        let unit = metric.unit();
        let mut cells = vec![
            Cell::text(info.label),
            Cell::text(unit_in_words(unit)),
            Cell::number(metric.mean_text(), metric.mean),
            metric.interval().map_or_else(Cell::empty, |[low, _]| Cell::number(metric.interval_text(), low)),
        ];
        if expects {
            let expected = run.expected.get(info.name);
            cells.push(expected.map_or_else(Cell::empty, |&value| Cell::number(unit.text(value), value)));
        }
        cells.push(Cell::number(metric.count.to_string(), metric.count as f64));
        cells.extend(seeds.iter().map(|seed| {
            let value = metric.values.get(seed);
            value.map_or_else(|| Cell::text("-"), |&value| Cell::number(unit.text(value), value))
        }));
        cells
    });
    let table = Table { caption: "The attack over its seeds".into(), header, rows: rows.collect() };
    html! {
        (table.markup())
        p.note {
            "Intervals are those of the mean over seeds, by Student's t distribution, ended where such a number must end. "
            "One seed has none."
        }
        (classes(&run.seeds))
    }
}

/// In what a number is counted, for a column of its own.
pub(crate) fn unit_in_words(unit: Unit) -> &'static str {
    match unit {
        Unit::Share => "%",
        Unit::Points => "points",
        Unit::Seconds => "s",
        Unit::Mebibytes => "MiB",
        Unit::Images => "images",
        Unit::Index | Unit::Coefficient | Unit::Count | Unit::Size => "",
    }
}

/// The rates of each class of test images, as means over seeds.
fn classes(seeds: &[SeedResult]) -> Markup {
    let measured = seeds.iter().filter_map(SeedResult::measurements).collect::<Vec<&Measurements>>();
    let Some(first) = measured.first().filter(|first| !first.classes.is_empty()) else { return html! {} };
    let rows = first.classes.iter().enumerate().map(|(index, class)| {
        let of_seeds = measured.iter().filter_map(|seed| seed.classes.get(index)).collect::<Vec<_>>();
        let mean = |values: Vec<f64>| mean_cell(Summary::of(&values).as_ref(), Unit::Share, measured.len());
        vec![
            Cell::text(&class.class),
            Cell::number(class.images.to_string(), class.images as f64),
            mean(of_seeds.iter().filter_map(|class| class.clean_accuracy).collect()),
            mean(of_seeds.iter().filter_map(|class| class.asr).collect()),
            mean(of_seeds.iter().filter_map(|class| class.robust_accuracy).collect()),
        ]
    });
    let header = ["class", "test images", "CA, %", "ASR, %", "RA, %"].map(str::to_owned).into();
    let caption = "By true class of the test images, mean ± standard deviation over seeds".into();
    let table = Table { caption, header, rows: rows.collect() };
    html! { details { summary { "By class" } (table.markup()) } }
}

/// The mean of a number of some metrics.
pub(crate) fn mean_of(metrics: &BTreeMap<String, Summary>, name: &str) -> Option<f64> {
    metrics.get(name).map(|summary| summary.mean)
}
