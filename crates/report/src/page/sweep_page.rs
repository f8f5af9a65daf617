use std::path::{Path, PathBuf};

use maud::{Markup, html};
use patchdoor_record::{MetricInfo, PointResult, RecordError, ResultTable, Unit};

use super::chart::{Axis, Chart, Look, Point, Series};
use super::frame::{Page, Section};
use super::table::{Cell, Table};
use super::warnings;
use crate::sweep_table::groups;

/// Lines of a chart at most; what is beyond stands in the table alone.
const LINES: usize = 6;

/// Writes the page of a sweep to its folder and returns its path: one file that needs nothing else.
///
/// # Errors
/// If the page cannot be written.
pub fn write_sweep_page(folder: &Path, table: &ResultTable) -> Result<PathBuf, RecordError> {
    page(table).write(folder)
}

fn page(table: &ResultTable) -> Page {
    let section = |anchor, heading, content| Section { anchor, heading, content };
    Page {
        title: format!("{} on {}", table.experiment, table.datasets.join(", ")),
        answer: html! { (answer(table)) },
        warnings: warnings::of_table(table),
        sections: vec![
            section("charts", "By point", charts(table)),
            section("table", "All numbers", tables(table)),
            section("provenance", "Where the numbers come from", provenance(table)),
        ],
    }
}

/// Where the attack succeeds least and most.
fn answer(table: &ResultTable) -> String {
    let mut points = table.points.iter().filter(|point| point.collapse_in_words("asr").is_none()).collect::<Vec<_>>();
    points.retain(|point| point.metric("asr").is_some());
    let mean = |point: &PointResult| point.metric("asr").map_or(f64::NAN, |metric| metric.mean);
    points.sort_by(|a, b| mean(a).total_cmp(&mean(b)));
    let words = |point: &PointResult| {
        point
            .metric("asr")
            .map(|metric| format!("{} % at {}", metric.unit().text(metric.mean), point.label))
            .unwrap_or_default()
    };
    match points.as_slice() {
        [] => "No attack success rate was measured.".into(),
        [only] => format!("The attack success rate is {}.", words(only)),
        [least, .., most] => format!("The attack success rate goes from {} to {}.", words(least), words(most)),
    }
}

/// Along which axis points are drawn, and where each lies on it.
struct Placed {
    axis: Axis,
    /// The place of each point.
    places: Vec<f64>,
    /// To which line each belongs.
    lines: Vec<String>,
    /// Whether points have no number and stand in their order.
    is_order: bool,
}

/// The first axis whose labels are all numbers, logarithmic where they lie far apart; else the order of the points.
fn placed(table: &ResultTable) -> Placed {
    let numbers = |axis: usize| -> Option<Vec<f64>> {
        let labels = table.points.iter().map(|point| point.coordinates.get(axis)?.parse::<f64>().ok());
        labels.collect::<Option<Vec<_>>>().filter(|values| values.iter().all(|value| value.is_finite()))
    };
    let found = (0..table.axes.len()).find_map(|axis| Some((axis, numbers(axis)?)));
    let Some((axis, places)) = found.filter(|_| !table.points.is_empty()) else {
        let places = (1..=table.points.len()).map(|number| number as f64).collect::<Vec<_>>();
        let axis = Axis::at("number of the point in the table", &places, false);
        let lines = vec![String::new(); places.len()];
        return Placed { axis, places, lines, is_order: true };
    };
    let low = places.iter().copied().fold(f64::INFINITY, f64::min);
    let high = places.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let others = |point: &PointResult| {
        let labels = point.coordinates.iter().enumerate().filter(|(other, _)| *other != axis);
        labels.map(|(other, label)| format!("{} {label}", table.axes[other])).collect::<Vec<_>>().join(", ")
    };
    let lines = table.points.iter().map(others).collect();
    let is_logarithmic = low > 0.0 && high / low >= 8.0;
    Placed { axis: Axis::at(&table.axes[axis], &places, is_logarithmic), places, lines, is_order: false }
}

fn charts(table: &ResultTable) -> Markup {
    let asr = chart(table, "Attack success rate (ASR)", "asr", "clean-twin-asr");
    let accuracy = chart(table, "Clean accuracy (CA)", "clean-accuracy", "clean-twin-accuracy");
    html! {
        div.charts { (asr.markup()) (accuracy.markup()) }
        p.note {
            "Bars are 95 % intervals of the mean over seeds, where there are several; broken lines are the clean twin's, whose intervals " "stand in the table. Points whose "
            "classifier has collapsed to one class are left out."
        }
    }
}

fn chart(table: &ResultTable, title: &str, name: &str, of_twin: &str) -> Chart {
    let Placed { axis, places, lines, is_order } = placed(table);
    let mut distinct: Vec<&String> = Vec::new();
    for line in &lines {
        if !distinct.contains(&line) {
            distinct.push(line);
        }
    }
    let points = |line: &String, name: &str| {
        let of_line = table.points.iter().zip(&places).zip(&lines).filter(|(_, other)| *other == line);
        let measured = of_line.filter_map(|((point, &x), _)| {
            let metric = point.metric(name).filter(|_| point.collapse_in_words(name).is_none())?;
            Some(Point { interval: metric.interval(), ..Point::new(x, metric.mean) })
        });
        let mut points = measured.collect::<Vec<_>>();
        points.sort_by(|a, b| a.x.total_cmp(&b.x));
        points
    };
    let look = |look| if is_order { Look::Marks } else { look };
    let mut series = Vec::new();
    for (colour, &line) in distinct.iter().take(LINES).enumerate() {
        let name_of = |what: &str| if line.is_empty() { what.to_owned() } else { format!("{line}, {what}") };
        series.push(Series { name: name_of("backdoored"), colour, look: look(Look::Line), points: points(line, name) });
        // With one line alone its twin's has a colour of its own.
        let colour = if distinct.len() == 1 { 1 } else { colour };
        series.push(Series { name: name_of("twin"), colour, look: look(Look::Broken), points: points(line, of_twin) });
    }
    // The bars of two lines would hide each other.
    for series in series.iter_mut().filter(|series| series.name.ends_with("twin")) {
        series.points.iter_mut().for_each(|point| point.interval = None);
    }
    series.retain(|series| !series.points.is_empty());
    let shown = series.iter().map(|series| series.points.len()).sum::<usize>();
    let left_out = distinct.len().saturating_sub(LINES);
    let rest = if left_out > 0 { format!(" {left_out} more lines stand in the table alone.") } else { String::new() };
    let description = format!("{shown} means; the table below has their numbers.{rest}");
    Chart { title: title.to_owned(), description, x: axis, y: Axis::percent(MetricInfo::heading_of(name)), series }
}

/// The attack's own numbers, then those of each group, folded.
fn tables(table: &ResultTable) -> Markup {
    let groups = groups(table);
    html! {
        @for (group, names) in &groups {
            @if group.is_empty() {
                (rows(table, "The attack", names).markup())
            } @else {
                details { summary { (group) } (rows(table, group, names).markup()) }
            }
        }
    }
}

fn rows(table: &ResultTable, caption: &str, names: &[&str]) -> Table {
    let mut header = vec!["point".to_owned(), "number".into(), "n".into()];
    header.extend(names.iter().map(|name| {
        let unit = if MetricInfo::unit_of(name).is_percent() { ", %" } else { "" };
        format!("{}{unit}", MetricInfo::heading_of(name))
    }));
    let rows = table.points.iter().enumerate().map(|(index, point)| {
        let count = point.count(names);
        let mut row = vec![
            Cell::text(&point.label),
            Cell::number((index + 1).to_string(), index as f64),
            Cell::number(count.to_string(), count as f64),
        ];
        row.extend(names.iter().map(|name| {
            let Some(metric) = point.metric(name) else { return Cell::text("-") };
            if let Some(collapse) = point.collapse_in_words(name) {
                return Cell::text(collapse);
            }
            // How many images are poisoned is no estimate.
            let interval = if metric.unit() == Unit::Images { String::new() } else { metric.interval_text() };
            let text = format!("{} {interval}", metric.mean_text());
            Cell::number(metric.text_beside(count, text.trim_end().to_owned()), metric.mean)
        }));
        row
    });
    let caption = format!("{caption}: mean ± standard deviation over seeds [95 % interval of the mean]");
    Table { caption, header, rows: rows.collect() }
}

fn provenance(table: &ResultTable) -> Markup {
    let seeds = table.seeds.iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
    let rows = [
        ("experiment file", table.file.clone()),
        ("folder", table.result.clone()),
        ("images", table.datasets.join(", ")),
        ("seeds", seeds),
        ("backend", table.backend.clone()),
        ("devices", table.devices.join(", ")),
        ("commits", table.commits.join(", ")),
    ];
    let facts = Table {
        caption: "Environment".into(),
        header: vec!["what".into(), "value".into()],
        rows: rows.into_iter().map(|(what, value)| vec![Cell::text(what), Cell::text(value)]).collect(),
    };
    let runs = table.points.iter().flat_map(|point| {
        point.runs.iter().map(|(seed, run)| {
            vec![Cell::text(&point.label), Cell::number(seed.to_string(), *seed as f64), Cell::text(run)]
        })
    });
    let header = ["point", "seed", "folder"].map(str::to_owned).into();
    let runs = Table { caption: "The runs behind each point".into(), header, rows: runs.collect() };
    html! { (facts.markup()) details { summary { "Runs" } (runs.markup()) } }
}

#[cfg(test)]
mod tests {
    use super::*;
    use patchdoor_record::MetricResult;

    fn table(axes: &[&str], coordinates: &[&[&str]]) -> ResultTable {
        let points = coordinates.iter().map(|labels| PointResult {
            label: labels.join(", "),
            coordinates: labels.iter().map(|&label| label.to_owned()).collect(),
            runs: [(0, "run-0".to_owned()), (1, "run-1".to_owned())].into(),
            failed: [].into(),
            failed_defenses: [].into(),
            chosen_cells: [].into(),
            metrics: [("asr", [0.5, 0.6]), ("clean-twin-asr", [0.02, 0.03]), ("clean-accuracy", [0.7, 0.7])]
                .into_iter()
                .filter_map(|(name, values)| MetricResult::of(name, (0..).zip(values).collect()))
                .collect(),
        });
        ResultTable {
            schema: 1,
            experiment: "rates".into(),
            file: "experiments/rates.toml".into(),
            result: "rates-12345678.sweep".into(),
            quick: false,
            datasets: vec!["shapes".into()],
            substitutions: vec![],
            notes: vec![],
            backend: "flex".into(),
            devices: vec![],
            commits: vec!["abc".into()],
            axes: axes.iter().map(|&axis| axis.to_owned()).collect(),
            seeds: vec![0, 1],
            points: points.collect(),
        }
    }

    #[test]
    fn rates_far_apart_have_a_logarithmic_axis_and_a_line_for_each_other_label() {
        let table =
            table(&["square", "rate"], &[&["2x2", "0.02"], &["2x2", "0.002"], &["4x4", "0.02"], &["4x4", "0.002"]]);
        let chart = chart(&table, "ASR", "asr", "clean-twin-asr");
        assert!(chart.x.is_logarithmic && chart.x.label == "rate");
        let names = chart.series.iter().map(|series| series.name.as_str()).collect::<Vec<_>>();
        assert_eq!(names, ["square 2x2, backdoored", "square 2x2, twin", "square 4x4, backdoored", "square 4x4, twin"]);
        assert_eq!(chart.series[0].points.iter().map(|point| point.x).collect::<Vec<_>>(), [0.002, 0.02]);
        assert!(chart.series[0].points[0].interval.is_some());
    }

    #[test]
    fn points_without_a_number_stand_in_their_order() {
        let chart = chart(&table(&["square"], &[&["2x2"], &["4x4"]]), "ASR", "asr", "clean-twin-asr");
        assert!(!chart.x.is_logarithmic);
        assert_eq!(chart.series[0].points.iter().map(|point| point.x).collect::<Vec<_>>(), [1.0, 2.0]);
        assert_eq!(chart.series[0].look, Look::Marks);
    }

    #[test]
    fn labels_of_points_are_text() {
        let table = table(&["<b>axis</b>"], &[&["<script>alert(1)</script>"], &["\"quoted\""]]);
        let text = page(&table).markup().into_string();
        assert!(!text.contains("<script>alert") && !text.contains("<b>axis"), "{text}");
        assert!(text.contains("&lt;script&gt;alert(1)&lt;/script&gt;"), "{text}");
    }
}
