use std::error::Error;
use std::fmt::Write;

use patchdoor_record::{MetricInfo, MetricResult, PointResult, ResultTable, Unit};

use crate::sweep_table::{groups, table_csv, table_markdown};

/// Another form of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExportForm {
    /// A line for each number of each point, shares in [0, 1].
    Csv,
    /// Everything that the table knows, with the value of each seed.
    Json,
    /// Tables for a document.
    Markdown,
    /// Tables for a paper; they need the package `booktabs`.
    Latex,
}

/// A table in another form.
///
/// # Errors
/// Never in memory; the writers' errors are passed on.
pub fn export_table(table: &ResultTable, form: ExportForm) -> Result<String, Box<dyn Error + Send + Sync>> {
    match form {
        ExportForm::Csv => Ok(String::from_utf8_lossy(&table_csv(table)?).into_owned()),
        ExportForm::Json => Ok(serde_json::to_string_pretty(table)? + "\n"),
        ExportForm::Markdown => Ok(table_markdown(table)),
        ExportForm::Latex => Ok(table_latex(table)),
    }
}

/// A table for each group of numbers: means with their intervals below, shares in percent.
fn table_latex(table: &ResultTable) -> String {
    let mut text = format!(
        "% {} on {}, {}; seeds: {}. Needs \\usepackage{{booktabs}}.\n",
        one_line(&table.result),
        one_line(&table.datasets.join(" and ")),
        one_line(&table.backend),
        table.seeds.len(),
    );
    for commit in &table.commits {
        let _ = writeln!(text, "% commit {}", one_line(commit));
    }
    if table.quick {
        text.push_str("% QUICK: these numbers mean nothing.\n");
    }
    let axes = if table.axes.is_empty() { vec!["experiment".to_owned()] } else { table.axes.clone() };
    for (group, names) in groups(table).into_iter().filter(|(_, names)| !names.is_empty()) {
        if !group.is_empty() {
            let _ = writeln!(text, "% {}", one_line(group));
        }
        let columns = format!("{}r{}", "l".repeat(axes.len()), "r".repeat(names.len()));
        let _ = write!(text, "\\begin{{tabular}}{{{columns}}}\n\\toprule\n");
        let headings = axes.iter().map(|axis| escaped(axis)).chain(["$n$".to_owned()]);
        let headings = headings.chain(names.iter().map(|name| heading(name)));
        let _ = write!(text, "{} \\\\\n\\midrule\n", headings.collect::<Vec<_>>().join(" & "));
        for point in &table.points {
            for line in rows(table, point, &names) {
                let _ = writeln!(text, "{} \\\\", line.join(" & "));
            }
        }
        text.push_str("\\bottomrule\n\\end{tabular}\n");
    }
    text
}

/// A point's means, and below them the intervals of those that have one.
fn rows(table: &ResultTable, point: &PointResult, names: &[&str]) -> Vec<Vec<String>> {
    let labels = if table.axes.is_empty() { vec![point.label.clone()] } else { point.coordinates.clone() };
    let mut means = labels.iter().map(|label| escaped(label)).collect::<Vec<_>>();
    means.push(point.count(names).to_string());
    let mut intervals = vec![String::new(); means.len()];
    let mut has_intervals = false;
    for name in names {
        let (mean, interval) = match (point.collapse_in_words(name), point.metric(name)) {
            (Some(collapse), _) => (escaped(&collapse), None),
            (None, Some(metric)) => (mathematical(&metric.mean_text()), interval_of(metric)),
            (None, None) => ("--".to_owned(), None),
        };
        has_intervals |= interval.is_some();
        means.push(mean);
        intervals.push(interval.unwrap_or_default());
    }
    if has_intervals { vec![means, intervals] } else { vec![means] }
}

fn interval_of(metric: &MetricResult) -> Option<String> {
    // How many images are poisoned is no estimate.
    (metric.unit() != Unit::Images && metric.interval().is_some()).then(|| mathematical(&metric.interval_text()))
}

/// Numbers as mathematics, so that a minus is one.
fn mathematical(text: &str) -> String {
    format!("${}$", text.replace('±', "\\pm").replace('[', "[\\,").replace(']', "\\,]"))
}

fn heading(name: &str) -> String {
    let unit = if MetricInfo::unit_of(name).is_percent() { " (\\%)" } else { "" };
    format!("{}{unit}", escaped(MetricInfo::heading_of(name)))
}

/// A text in which no character commands.
fn escaped(text: &str) -> String {
    let mut safe = String::new();
    for character in text.chars() {
        match character {
            '&' | '%' | '$' | '#' | '_' | '{' | '}' => {
                safe.push('\\');
                safe.push(character);
            }
            '\\' => safe.push_str("\\textbackslash{}"),
            '~' => safe.push_str("\\textasciitilde{}"),
            '^' => safe.push_str("\\textasciicircum{}"),
            '|' => safe.push_str("\\textbar{}"),
            '<' => safe.push_str("\\textless{}"),
            '>' => safe.push_str("\\textgreater{}"),
            '±' => safe.push_str("$\\pm$"),
            '\n' => safe.push(' '),
            _ => safe.push(character),
        }
    }
    safe
}

/// A comment ends with its line.
fn one_line(text: &str) -> String {
    text.replace(['\n', '\r'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sweep_table::example_table;

    #[test]
    fn a_table_for_a_paper() {
        insta::assert_snapshot!(table_latex(&example_table()));
    }

    #[test]
    fn no_text_is_a_command() {
        assert_eq!(
            escaped("100 % of a_b & \\input{x} ~^<>"),
            "100 \\% of a\\_b \\& \\textbackslash{}input\\{x\\} \\textasciitilde{}\\textasciicircum{}\\textless{}\\textgreater{}"
        );
        let mut table = example_table();
        table.result = "a\n\\input{secrets}".into();
        assert!(table_latex(&table).starts_with("% a \\input{secrets} on "), "it stays in the comment");
    }

    #[test]
    fn every_form_has_every_point() {
        let table = example_table();
        for form in [ExportForm::Csv, ExportForm::Json, ExportForm::Markdown, ExportForm::Latex] {
            let text = export_table(&table, form).expect("it is written into memory");
            for point in &table.points {
                let coordinate = point.coordinates.first().unwrap_or(&point.label);
                assert!(text.contains(coordinate.as_str()), "{form:?}: {coordinate} in {text}");
            }
        }
        let json: ResultTable = serde_json::from_str(&export_table(&table, ExportForm::Json).unwrap()).unwrap();
        assert_eq!(json, table);
    }
}
