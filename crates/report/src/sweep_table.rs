use std::collections::BTreeMap;
use std::fmt::Write;
use std::io;
use std::path::Path;

use patchdoor_record::{
    METRICS, MetricInfo, MetricResult, PointResult, ResultTable, Unit, group_of, in_group, write_whole,
};

use crate::text::{DEFAULT_WIDTH, Row, align, fold, transposed};

/// Writes a table in the forms that people and spreadsheets read beside its `table.json`: `table.txt`, `table.md`,
/// `table.csv`.
///
/// # Errors
/// If one of them cannot be written.
pub fn write_table(folder: &Path, table: &ResultTable) -> io::Result<()> {
    let csv = table_csv(table).map_err(io::Error::other)?;
    write_whole(&folder.join("table.txt"), table_text(table, DEFAULT_WIDTH).as_bytes())?;
    write_whole(&folder.join("table.md"), table_markdown(table).as_bytes())?;
    write_whole(&folder.join("table.csv"), &csv)
}

/// Names of the numbers that tables for people show, one group after the other; the first is the attack's.
pub(crate) fn groups(table: &ResultTable) -> Vec<(&str, Vec<&str>)> {
    let names = table.metric_names();
    let is_shown = |name: &str| MetricInfo::of(name).is_none_or(|metric| metric.is_shown);
    // The attack's own numbers stand in the order of the table of metrics, whatever the file has.
    let attack = METRICS.iter().map(|metric| metric.name).filter(|name| names.contains(name) && is_shown(name));
    let attack = attack.collect();
    let mut groups: Vec<(&str, Vec<&str>)> = vec![("", attack)];
    for name in names {
        if (group_of(name).is_empty() && MetricInfo::of(name).is_some()) || !is_shown(name) {
            continue;
        }
        let group = group_of(name);
        match groups.iter_mut().find(|(known, _)| *known == group) {
            Some((_, members)) => members.push(name),
            None => groups.push((group, vec![name])),
        }
    }
    groups
}

/// Aligned tables for a terminal of so many columns: means, then their confidence intervals, shares in percent.
pub fn table_text(table: &ResultTable, width: usize) -> String {
    let mut text = fold(&title(table), width);
    for (group, names) in groups(table) {
        let has_shares = names.iter().any(|name| MetricInfo::unit_of(name).is_percent());
        let corner = match (table.axes.as_slice(), has_shares) {
            ([], true) => "in percent".into(),
            ([], false) => String::new(),
            (axes, _) => axes.join(", "),
        };
        let block = |names: &[&str], cell: &dyn Fn(&MetricResult) -> String| {
            let mut header = vec![corner.clone(), "n".to_owned()];
            header.extend(names.iter().map(|name| MetricInfo::heading_of(name).to_owned()));
            let rows = table.points.iter().map(|point| {
                let count = point.count(names);
                let of = |metric: &MetricResult| {
                    let collapse = point.collapse_in_words(&metric.name);
                    collapse.unwrap_or_else(|| metric.text_beside(count, cell(metric)))
                };
                let cells = names.iter().map(|name| point.metric(name).map_or_else(|| "-".into(), of));
                let front = [point.label.clone(), count.to_string()];
                Row::Cells(front.into_iter().chain(cells).collect())
            });
            fitted(&header, &rows.collect::<Vec<_>>(), width)
        };
        let title = if group.is_empty() { String::new() } else { format!("{group}: ") };
        let shares = if has_shares { ", shares in percent" } else { "" };
        let means = block(&names, &MetricResult::mean_text);
        let _ = write!(text, "\n{}\n\n{means}", fold(&format!("{title}mean ± standard deviation{shares}"), width));
        if table.points.iter().any(|point| point.finished() > 1) {
            // How many images are poisoned is no estimate.
            let names = names.iter().copied().filter(|name| MetricInfo::unit_of(name) != Unit::Images);
            let intervals = block(&names.collect::<Vec<_>>(), &MetricResult::interval_text);
            let heading = format!("{title}95 % confidence interval of the mean (t distribution)");
            let _ = write!(text, "\n{}\n\n{intervals}", fold(&heading, width));
        }
    }
    for failure in failures(table) {
        let _ = write!(text, "\n{}", fold(&failure, width));
    }
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text
}

/// A table as it is where it fits; else with rows and columns changed places, where that takes fewer lines.
fn fitted(header: &[String], rows: &[Row], width: usize) -> String {
    let plain = align(header, rows, width);
    let (turned_header, turned_rows) = transposed(header, rows);
    let turned = align(&turned_header, &turned_rows, width);
    // One line of the plain table is its rule, and so one block is as many lines as rows and two more.
    if plain.lines().count() <= rows.len() + 2 || plain.lines().count() <= turned.lines().count() {
        plain
    } else {
        turned
    }
}

/// The same for a document, as Markdown.
pub fn table_markdown(table: &ResultTable) -> String {
    let mut text = format!("# {}\n\n{}\n", table.experiment, title(table).replace('\n', "\n\n").trim_end());
    for (group, names) in groups(table) {
        if !group.is_empty() {
            let _ = write!(text, "\n## {group}\n");
        }
        let points = table.points.iter().collect::<Vec<_>>();
        let _ = write!(text, "\n{}", markdown_rows(table, &points, &names));
    }
    text.push_str(
        "\nMean ± standard deviation [95 % confidence interval of the mean, t distribution], shares in percent.\n",
    );
    for failure in failures(table) {
        let _ = write!(text, "\n- {failure}");
    }
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text
}

/// A Markdown table of some points and numbers.
pub(crate) fn markdown_rows(table: &ResultTable, points: &[&PointResult], names: &[&str]) -> String {
    let mut header = if table.axes.is_empty() { vec!["experiment".to_owned()] } else { table.axes.clone() };
    let labels = header.len();
    header.push("n".into());
    // Where numbers of several groups stand side by side, they have their group's name.
    let mixed = names.iter().any(|name| group_of(name) != group_of(names[0]));
    header.extend(names.iter().map(|name| match group_of(name) {
        group if mixed && !group.is_empty() => format!("{}, {group}", MetricInfo::heading_of(name)),
        _ => MetricInfo::heading_of(name).to_owned(),
    }));
    let mut text = markdown_head(&header, labels);
    for point in points {
        let mut cells = if table.axes.is_empty() { vec![point.label.clone()] } else { point.coordinates.clone() };
        let count = point.count(names);
        cells.push(count.to_string());
        cells.extend(names.iter().map(|name| markdown_cell(point, name, count)));
        text.push_str(&markdown_row(&cells));
    }
    text
}

/// A Markdown table with a row for each group, such as a defense, of each point; numbers are named without their group.
/// The group `""` is the attack itself; `called` has what groups are called, where not by their name.
pub(crate) fn markdown_groups(
    table: &ResultTable,
    points: &[&PointResult],
    groups: &[&str],
    names: &[&str],
    called: &BTreeMap<String, String>,
) -> String {
    // One point needs no column to say which.
    let axes = match (points, table.axes.as_slice()) {
        ([_], _) => Vec::new(),
        (_, []) => vec!["experiment".to_owned()],
        (_, axes) => axes.to_vec(),
    };
    let labels = axes.len() + 1;
    let mut header = axes.clone();
    header.extend([String::new(), "n".into()]);
    header.extend(names.iter().map(|name| MetricInfo::heading_of(name).to_owned()));
    let mut text = markdown_head(&header, labels);
    for point in points {
        for group in groups {
            let in_group = names.iter().map(|name| in_group(group, name)).collect::<Vec<_>>();
            let mut cells = if axes.is_empty() {
                Vec::new()
            } else if table.axes.is_empty() {
                vec![point.label.clone()]
            } else {
                point.coordinates.clone()
            };
            let count = point.count(&in_group.iter().map(String::as_str).collect::<Vec<_>>());
            let name = called.get(*group).map_or(*group, String::as_str);
            cells.extend([if name.is_empty() { "before" } else { name }.to_owned(), count.to_string()]);
            cells.extend(in_group.iter().map(|name| markdown_cell(point, name, count)));
            text.push_str(&markdown_row(&cells));
        }
    }
    text
}

/// A line for each number of each point; shares in [0, 1].
///
/// # Errors
/// Never in memory; the writer's errors are passed on.
pub fn table_csv(table: &ResultTable) -> Result<Vec<u8>, csv::Error> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    let columns = ["metric", "n", "mean", "standard-deviation", "interval-low", "interval-high"];
    let header = std::iter::once("point").chain(table.axes.iter().map(String::as_str)).chain(columns);
    writer.write_record(header)?;
    let optional = |value: Option<f64>| value.map_or_else(String::new, |value| value.to_string());
    for point in &table.points {
        for metric in &point.metrics {
            let mut record = vec![point.label.clone()];
            record.extend(point.coordinates.iter().cloned());
            record.extend([
                metric.name.clone(),
                metric.count.to_string(),
                metric.mean.to_string(),
                optional(metric.standard_deviation),
                optional(metric.interval().map(|[low, _]| low)),
                optional(metric.interval().map(|[_, high]| high)),
            ]);
            writer.write_record(&record)?;
        }
    }
    writer.into_inner().map_err(|error| csv::Error::from(error.into_error()))
}

/// What the numbers are about; one line or more.
fn title(table: &ResultTable) -> String {
    let runs = table.points.len() * table.seeds.len();
    let mut title = format!(
        "{} on {}: {} points, {} of {runs} runs finished, {}",
        table.result,
        table.datasets.join(" and "),
        table.points.len(),
        table.finished(),
        table.backend
    );
    if table.quick {
        title.push_str(", QUICK: these numbers mean nothing");
    }
    title.push('\n');
    for substitution in &table.substitutions {
        let _ = writeln!(title, "NOTE: {substitution}");
    }
    for note in &table.notes {
        let _ = writeln!(title, "note: {note}");
    }
    title
}

/// A line for each run and for each defense that failed.
pub(crate) fn failures(table: &ResultTable) -> Vec<String> {
    let lines = |point: &PointResult| {
        let runs = point.failed.iter();
        let runs = runs.map(|(seed, reason)| format!("{} failed with seed {seed}: {reason}", point.label));
        let defenses = point.failed_defenses.iter().flat_map(|(title, seeds)| {
            let line = |(seed, reason)| format!("{}: {title} failed with seed {seed}: {reason}", point.label);
            seeds.iter().map(line).collect::<Vec<_>>()
        });
        runs.chain(defenses).collect::<Vec<_>>()
    };
    table.points.iter().flat_map(lines).collect()
}

fn markdown_row(cells: &[String]) -> String {
    let cells = cells.iter().map(|cell| cell.replace('|', "\\|")).collect::<Vec<_>>();
    format!("| {} |\n", cells.join(" | "))
}

/// The head of a table whose first columns are labels.
fn markdown_head(header: &[String], labels: usize) -> String {
    let rule = (0..header.len()).map(|column| if column < labels { "---" } else { "---:" });
    format!("{}| {} |\n", markdown_row(header), rule.collect::<Vec<_>>().join(" | "))
}

/// Mean, spread and interval of a number in a row of `count` seeds, if it is there, or that it is one of a collapse.
fn markdown_cell(point: &PointResult, name: &str, count: usize) -> String {
    if let Some(collapse) = point.collapse_in_words(name) {
        return collapse;
    }
    let text = |metric: &MetricResult| {
        let text = format!("{} {}", metric.mean_text(), interval_unless_constant(metric));
        metric.text_beside(count, text.trim_end().to_owned())
    };
    point.metric(name).map_or_else(|| "-".into(), text)
}

fn interval_unless_constant(metric: &MetricResult) -> String {
    if metric.unit() == Unit::Images { String::new() } else { metric.interval_text() }
}

/// A table of two points, the second with one seed that finished and one that failed.
#[cfg(test)]
pub(crate) fn example_table() -> ResultTable {
    use patchdoor_record::TABLE_SCHEMA;

    let metric = |name: &str, values: &[(u64, f64)]| {
        MetricResult::of(name, values.iter().copied().collect()).expect("there are values")
    };
    let first = PointResult {
        label: "0.001, four cells".into(),
        coordinates: vec!["0.001".into(), "four cells".into()],
        runs: [(0, "rates-00000001".to_owned()), (1, "rates-00000002".to_owned())].into(),
        failed: BTreeMap::new(),
        failed_defenses: [("fine-tuning".to_owned(), [(1, "loss became inf".to_owned())].into())].into(),
        chosen_cells: [(0, "[[0, 1]]".into()), (2, "[[7, 7]]".into())].into(),
        metrics: vec![
            metric("poisoned-images", &[(0, 20.0), (1, 20.0)]),
            metric("clean-accuracy", &[(0, 0.7), (1, 0.72)]),
            metric("clean-twin-accuracy", &[(0, 0.71), (1, 0.72)]),
            metric("asr", &[(0, 0.9), (1, 1.0)]),
            metric("fine-pruning/asr", &[(0, 0.5), (1, 0.25)]),
            metric("fine-pruning/robust-improvement", &[(0, 0.5), (1, 0.75)]),
            metric("fine-pruning/seconds", &[(0, 61.2), (1, 60.0)]),
        ],
    };
    let second = PointResult {
        label: "0.01, a | b".into(),
        coordinates: vec!["0.01".into(), "a | b".into()],
        runs: [(0, "rates-00000003".to_owned()), (1, "rates-00000004".to_owned())].into(),
        failed: [(1, "loss became NaN".to_owned())].into(),
        failed_defenses: BTreeMap::new(),
        chosen_cells: BTreeMap::new(),
        metrics: vec![metric("poisoned-images", &[(0, 200.0)]), metric("asr", &[(0, 0.125)])],
    };
    ResultTable {
        schema: TABLE_SCHEMA,
        experiment: "rates".into(),
        file: "experiments/rates.toml".into(),
        result: "rates-12345678.sweep".into(),
        quick: false,
        datasets: vec!["cifar10".into()],
        substitutions: Vec::new(),
        notes: vec!["CIFAR-10 (reconstructed; 104 images JPEG-decoded)".into()],
        backend: "flex".into(),
        devices: vec!["a processor, 2 threads".into()],
        commits: vec!["0123456789abcdef".into()],
        axes: vec!["rate".into(), "placement".into()],
        seeds: vec![0, 1],
        points: vec![first, second],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_for_a_terminal() {
        insta::assert_snapshot!(table_text(&example_table(), DEFAULT_WIDTH));
    }

    #[test]
    fn a_table_for_a_document() {
        insta::assert_snapshot!(table_markdown(&example_table()));
    }

    #[test]
    fn a_table_for_a_spreadsheet() {
        insta::assert_snapshot!(String::from_utf8(table_csv(&example_table()).unwrap()).unwrap());
    }

    #[test]
    fn a_collapse_has_no_mean_in_any_table() {
        let mut table = example_table();
        let share = MetricResult::of("fine-pruning/largest-class-share", [(0, 0.97), (1, 0.2)].into()).unwrap();
        table.points[0].metrics.push(share);
        for text in [table_text(&table, DEFAULT_WIDTH), table_markdown(&table)] {
            assert!(text.contains("collapse (1 of 2)") && !text.contains("37.50"), "{text}");
            assert!(text.contains("95.00 ± 7.07"), "the attack itself has not collapsed: {text}");
        }
        let rows = markdown_groups(&table, &[&table.points[0]], &["fine-pruning"], &["asr"], &BTreeMap::new());
        assert!(rows.contains("| fine-pruning | 2 | collapse (1 of 2) |"), "{rows}");
    }

    #[test]
    fn a_table_of_many_numbers_and_few_points_is_turned_to_fit() {
        let mut table = example_table();
        let value = || [(0, 0.5), (1, 0.625)].into();
        let names = METRICS.iter().map(|metric| format!("routing/{}", metric.name));
        for point in &mut table.points {
            point.metrics = names.clone().map(|name| MetricResult::of(&name, value()).unwrap()).collect();
        }
        let text = table_text(&table, DEFAULT_WIDTH);
        assert!(text.lines().all(|line| line.chars().count() <= DEFAULT_WIDTH), "{text}");
        assert!(text.contains("AUC intensity adjusted  "), "a number is the label of a row: {text}");
    }

    #[test]
    fn a_table_is_written_in_all_forms_beside_its_record() {
        let folder = tempfile::tempdir().unwrap();
        let into = folder.path().join("rates-12345678.sweep");
        example_table().write(&into).unwrap();
        write_table(&into, &example_table()).unwrap();
        // To the last digit of every number.
        assert_eq!(ResultTable::read(&into).unwrap(), Some(example_table()));
        let names = std::fs::read_dir(&into).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>();
        for name in ["table.csv", "table.json", "table.md", "table.txt", "SHA256SUMS"] {
            assert!(names.iter().any(|found| found == name), "{name} of {names:?}");
        }
    }
}
