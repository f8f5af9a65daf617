use serde::Deserialize;

use patchdoor_record::Unit;

use crate::lookup::{Missing, Results};
use crate::page::{Axis, Chart, Look, Point, Series};

/// A picture of numbers side by side.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct ClaimFigure {
    /// Its file's name without the ending.
    pub(crate) file: String,
    /// What it shows, below it.
    pub(crate) caption: String,
    /// What the numbers are.
    label: String,
    numbers: Vec<ShownNumber>,
}

/// One number of a result.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct ShownNumber {
    /// What it is called.
    name: String,
    /// Where it stands: `result/point/number`.
    path: String,
}

/// How far the seeds' marks lie from their mean's, and apart from each other at most.
const BESIDE: f64 = 0.14;
const SPREAD: f64 = 0.3;

impl ClaimFigure {
    /// What is wrong about its name.
    pub(crate) fn problem(&self) -> Option<String> {
        let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let is_usable = !self.file.is_empty() && self.file.chars().all(is_plain);
        (!is_usable).then(|| format!("the figure's file is {:?}, expected small letters, digits and -", self.file))
    }

    /// Draws it: SVG, and in words what it shows.
    ///
    /// # Errors
    /// If a number is not there, or they are in different units; all such problems.
    pub(crate) fn draw(&self, results: &Results) -> Result<(String, String), Vec<String>> {
        let found = self.numbers.iter().map(|number| results.find(&number.path).map_err(Missing::reason));
        let problems = found.clone().filter_map(Result::err).collect::<Vec<_>>();
        if !problems.is_empty() {
            return Err(problems);
        }
        let metrics = found.flatten().map(|found| found.metric).collect::<Vec<_>>();
        let Some(unit) = metrics.first().map(|metric| metric.unit()) else {
            return Err(vec![format!("the figure {:?} has no numbers", self.file)]);
        };
        if metrics.iter().any(|metric| metric.unit() != unit) {
            return Err(vec![format!("the numbers of the figure {:?} have different units", self.file)]);
        }
        let seeds = metrics.iter().enumerate().flat_map(|(place, metric)| {
            let count = metric.values.len().max(2) as f64 - 1.0;
            let place = place as f64 + BESIDE;
            metric
                .values
                .values()
                .enumerate()
                .map(move |(nth, &value)| Point::new(place + SPREAD * (nth as f64 / count), value))
        });
        let means = metrics.iter().enumerate().map(|(place, metric)| Point {
            interval: metric.interval(),
            ..Point::new(place as f64 - BESIDE, metric.mean)
        });
        let (seeds, means) = (seeds.collect::<Vec<_>>(), means.collect::<Vec<_>>());
        let ends = means.iter().flat_map(|mean| mean.interval.into_iter().flatten().chain([mean.y]));
        let y = if unit == Unit::Share {
            Axis::percent(&self.label)
        } else {
            Axis::around(&self.label, ends.chain(seeds.iter().map(|seed| seed.y)))
        };
        let words = self.numbers.iter().zip(&metrics).map(|(number, metric)| {
            format!("{}: {}{} (n = {})", number.name, metric.mean_text(), unit.suffix(), metric.count)
        });
        let words = words.collect::<Vec<_>>().join("; ");
        let chart = Chart {
            title: self.label.clone(),
            description: words.clone(),
            x: Axis::named("", self.numbers.iter().map(|number| number.name.clone()).collect()),
            y,
            series: vec![
                Series { name: "each seed".into(), colour: 1, look: Look::Marks, points: seeds },
                Series { name: "mean".into(), colour: 0, look: Look::Marks, points: means },
            ],
        };
        Ok((chart.picture(), words))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::sweep_table::example_table;

    fn results() -> Results {
        Results { tables: BTreeMap::from([("rates".to_owned(), example_table())]) }
    }

    fn figure(paths: &[&str]) -> ClaimFigure {
        let number = |path: &&str| ShownNumber { name: "<script>".into(), path: (*path).into() };
        ClaimFigure {
            file: "rates".into(),
            caption: "-".into(),
            label: "ASR".into(),
            numbers: paths.iter().map(number).collect(),
        }
    }

    #[test]
    fn a_figure_has_a_mark_for_each_seed_and_each_mean() {
        let (svg, words) =
            figure(&["rates/0.001, four cells/asr", "rates/0.01, a | b/asr"]).draw(&results()).expect("it draws");
        let table = example_table();
        let seeds: usize = ["0.001, four cells", "0.01, a | b"]
            .map(|label| {
                table.point(label).and_then(|point| point.metric("asr")).map_or(0, |metric| metric.values.len())
            })
            .iter()
            .sum();
        assert!(seeds >= 2);
        assert_eq!(svg.matches("<polygon").count(), seeds + 2, "{svg}");
        assert!(!svg.contains("<script>"), "{svg}");
        assert!(words.starts_with("<script>: ") && words.contains("(n = "), "{words}");
    }

    #[test]
    fn a_number_that_is_not_there_and_units_that_differ_are_problems() {
        let missing =
            figure(&["rates/0.001, four cells/assr", "rats/asr"]).draw(&results()).expect_err("neither is there");
        assert_eq!(missing.len(), 2, "{missing:?}");
        assert!(figure(&[]).draw(&results()).is_err());
        let name = ClaimFigure { file: "../Rates".into(), ..figure(&[]) };
        assert!(name.problem().is_some() && figure(&[]).problem().is_none());
    }
}
