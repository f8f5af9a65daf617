use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use maud::html;
use patchdoor_record::{Listed, MetricInfo, MetricResult, RecordError, RunState, group_of, in_group};

use super::entry::{Entry, entries, warnings};
use super::frame::{BOARD, OVERVIEW, Page, Section};
use super::table::{Cell, Table};
use crate::config::Choice;

/// The numbers that have a column, each with the part of a run's page where it stands, and why it may be absent.
const NUMBERS: [(&str, &str, &str); 5] = [
    ("clean-accuracy", "numbers", "not measured"),
    ("asr", "numbers", "no attack measured"),
    ("clean-twin-accuracy", "numbers", "no twin"),
    ("clean-twin-asr", "numbers", "no twin"),
    ("routing/trigger-capture", "routing", "routing not measured"),
];

/// Letters of a commit that are shown.
const COMMIT: usize = 10;

/// Writes the page about all runs and sweeps of a folder into it and returns its path: one file that needs nothing else, with
/// links to their pages, which must have been written.
///
/// # Errors
/// If the page cannot be written. What cannot be read of a run stands in its row.
pub fn write_overview(out: &Path, listed: &[Listed]) -> Result<PathBuf, RecordError> {
    let path = out.join(OVERVIEW);
    page(out, &entries(listed)).write_to(&path)?;
    Ok(path)
}

impl Entry {
    fn row(&self, out: &Path) -> Vec<Cell> {
        let what = match (self.is_sweep(), self.points().len()) {
            (true, 0) => "sweep".to_owned(),
            (true, points) => format!("sweep of {points} points"),
            (false, _) => "run".to_owned(),
        };
        let mut row = vec![
            Cell::text(self.listed.name()).linked(self.link("")),
            Cell::text(what).linked(self.link("")).of_kind(if self.is_sweep() { "sweep" } else { "run" }),
            self.datasets(),
            self.chosen(&self.attacks),
            self.chosen(&self.models),
            self.seeds(),
        ];
        row.extend(NUMBERS.iter().map(|(name, part, absent)| self.number(name, part, absent)));
        row.extend([self.best_defense(), self.state(out), self.commits()]);
        row
    }

    fn datasets(&self) -> Cell {
        let datasets = self.datasets.join(", ");
        match datasets.as_str() {
            "" => Cell::reason("not known").of_kind("not known"),
            _ => Cell::text(&datasets).linked(self.link("#provenance")).of_kind(&datasets),
        }
    }

    fn chosen(&self, choices: &[Choice]) -> Cell {
        let kinds = choices.iter().map(|choice| choice.kind.as_str()).collect::<BTreeSet<_>>();
        let kinds = kinds.into_iter().collect::<Vec<_>>().join(", ");
        let words = match choices {
            [] if self.is_sweep() => return Cell::reason("its runs are not here").of_kind("not known"),
            [] => return Cell::reason("not known").of_kind("not known"),
            [only] => only.words.clone(),
            several => format!("{kinds} in {} settings", several.len()),
        };
        Cell::text(words).linked(self.link("#provenance")).of_kind(kinds)
    }

    /// A mean over seeds, or the least and the largest of those of several points.
    fn number(&self, name: &str, part: &str, absent: &str) -> Cell {
        let measured = self.points().iter().filter_map(|point| Some((point, point.metric(name)?))).collect::<Vec<_>>();
        let (collapsed, sound): (Vec<_>, Vec<_>) =
            measured.into_iter().partition(|(point, _)| point.collapse_in_words(name).is_some());
        let part = if self.is_sweep() { "#table".to_owned() } else { format!("#{part}") };
        let link = self.link(&part);
        let sound = sound.into_iter().map(|(_, metric)| metric).collect::<Vec<&MetricResult>>();
        let mut means = sound.iter().map(|metric| metric.mean).collect::<Vec<_>>();
        means.sort_by(f64::total_cmp);
        let text = match (sound.as_slice(), means.as_slice(), collapsed.first()) {
            ([only], _, None) => only.mean_text(),
            (_, [least, .., largest], _) => {
                let text = |mean: f64| MetricInfo::unit_of(name).text(mean);
                format!("{} to {}", text(*least), text(*largest))
            }
            ([only], ..) => only.mean_text(),
            (_, _, Some((point, _))) => point.collapse_in_words(name).unwrap_or_default(),
            _ if self.table.is_none() => return Cell::reason(self.listed.state.name()),
            _ if self.points().iter().all(|point| point.finished() == 0) => return Cell::reason("no seed finished"),
            _ => return Cell::reason(absent),
        };
        match means.last() {
            Some(&largest) => Cell::number(text, largest).linked(link),
            None => Cell::text(text).linked(link),
        }
    }

    /// The defense after which the attack succeeds least, where it lowers its success.
    fn best_defense(&self) -> Cell {
        let mut left = Vec::new();
        let mut is_tried = false;
        for point in self.points() {
            // What has a rating is a defense; changes of the routing have none.
            let rated = point.metrics.iter().filter(|metric| metric.name.ends_with("/defense-effectiveness"));
            for group in rated.map(|metric| group_of(&metric.name)) {
                is_tried = true;
                let name = in_group(group, "asr");
                let Some(after) = point.metric(&name) else { continue };
                let before = point.metric("asr").map_or(f64::NAN, |metric| metric.mean);
                if point.collapse_in_words(&name).is_none() && after.mean < before {
                    left.push((after.mean, group, point));
                }
            }
        }
        let part = if self.is_sweep() { "#table" } else { "#defenses" };
        match left.into_iter().min_by(|(a, ..), (b, ..)| a.total_cmp(b)) {
            Some((asr, group, point)) => {
                let at = if self.is_sweep() { format!(" at {}", point.label) } else { String::new() };
                let text = format!("{group}: {} %{at}", MetricInfo::unit_of("asr").text(asr));
                Cell::number(text, asr).linked(self.link(part))
            }
            None if is_tried => Cell::text("none lowers ASR without collapse").linked(self.link(part)),
            None if self.table.is_none() => Cell::reason(self.listed.state.name()),
            None => Cell::reason("none tried"),
        }
    }

    fn commits(&self) -> Cell {
        let Some(table) = &self.table else { return Cell::reason(self.listed.state.name()) };
        let short = table.commits.iter().map(|commit| match commit.split_once(' ') {
            Some((hash, rest)) => format!("{} {rest}", hash.chars().take(COMMIT).collect::<String>()),
            None => commit.chars().take(COMMIT).collect(),
        });
        let text = short.collect::<Vec<_>>().join(", ");
        if text.is_empty() { Cell::reason("not on record") } else { Cell::text(text).linked(self.link("#provenance")) }
    }
}

fn page(out: &Path, entries: &[Entry]) -> Page {
    let mut header = ["name", "what", "data set", "attack", "model", "seeds"].map(str::to_owned).to_vec();
    header.extend(NUMBERS.iter().map(|(name, ..)| {
        let unit = if MetricInfo::unit_of(name).is_percent() { ", %" } else { "" };
        format!("{}{unit}", MetricInfo::heading_of(name))
    }));
    header.extend(["best defense, ASR left", "state", "commit"].map(str::to_owned));
    let caption = "All runs and sweeps: mean ± standard deviation over seeds".into();
    let table = Table { caption, header, rows: entries.iter().map(|entry| entry.row(out)).collect() };
    let content = html! {
        (table.markup())
        p.note {
            "What a cell says leads to the place in the page of its run or sweep where it comes from; where there is nothing, it says "
            "why. Of a sweep stand the least and the largest mean of its points; means over classifiers that have collapsed to one "
            "class are left out. " a href=(BOARD) { "The board" } " has every attack beside every defense."
        }
    };
    Page {
        title: format!("Runs in {}", out.file_name().map_or_else(|| "this folder".into(), OsStr::to_string_lossy)),
        answer: html! { (answer(entries)) },
        warnings: warnings(entries),
        sections: vec![Section { anchor: "runs", heading: "Runs and sweeps", content }],
    }
}

/// How much there is, and what became of it.
fn answer(entries: &[Entry]) -> String {
    let counted = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    let sweeps = entries.iter().filter(|entry| entry.is_sweep()).count();
    let of = |state: RunState| entries.iter().filter(|entry| entry.listed.state == state).count();
    let states = RunState::ALL.map(|state| (of(state), state.name())).into_iter().filter(|(count, _)| *count > 0);
    let states = states.map(|(count, name)| format!("{count} {name}")).collect::<Vec<_>>().join(", ");
    format!("{} and {}: {states}.", counted(entries.len() - sweeps, "run"), counted(sweeps, "sweep"))
}

#[cfg(test)]
mod tests {
    use super::super::entry::tests::{damaged, finished, sweep};
    use super::*;

    fn texts(entry: &Entry) -> Vec<String> {
        entry.row(Path::new("/secret/runs")).into_iter().map(|cell| cell.text).collect()
    }

    #[test]
    fn a_row_has_what_was_chosen_what_it_came_to_and_what_became_of_it() {
        assert_eq!(
            texts(&finished("badnets-12345678")),
            [
                "badnets-12345678",
                "run",
                "cifar10",
                "square, rate 0.02",
                "patch-moe, 4 experts",
                "2",
                "70.00 ± 1.41",
                "95.00 ± 1.41",
                "70.00 ± 0.00",
                "2.00 ± 0.00",
                "routing not measured",
                "none tried",
                "finished",
                "0123456789",
            ]
        );
    }

    #[test]
    fn a_sweep_has_the_range_of_its_points_and_its_best_defense_says_where() {
        let mut entry = sweep();
        let rating = MetricResult::of("fine-pruning/defense-effectiveness", [(0, 0.7)].into()).expect("a value");
        entry.table.as_mut().expect("it has one").points[0].metrics.push(rating);
        let texts = texts(&entry);
        assert_eq!(
            &texts[1..6],
            ["sweep of 2 points", "cifar10", "its runs are not here", "its runs are not here", "1 of 2"]
        );
        // ASR: 0.95 and 0.125; clean accuracy stands at one point alone.
        assert_eq!(&texts[6..9], ["71.00 ± 1.41", "12.50 to 95.00", "71.50 ± 0.71"]);
        assert_eq!(texts[11], "fine-pruning: 37.50 % at 0.001, four cells");
        assert!(texts[12].starts_with("failed: 0.001, four cells: fine-tuning failed with seed 1"), "{}", texts[12]);
    }

    #[test]
    fn what_is_not_there_has_a_reason_and_no_link() {
        let entry = damaged();
        let texts = texts(&entry);
        assert!(texts.iter().all(|text| !text.is_empty()), "{texts:?}");
        assert_eq!(texts[12], "damaged: a-1/summary.json has the SHA-256 1");
        let markup = page(Path::new("/secret/runs"), &[entry]).markup().into_string();
        assert!(!markup.contains("href=\"./") && !markup.contains("secret"), "{markup}");
        assert!(markup.contains("1 of 1: damaged"), "{markup}");
    }

    #[test]
    fn a_collapse_is_no_number() {
        let mut entry = finished("a");
        let table = entry.table.as_mut().expect("it has one");
        let share = table.points[0].metrics.iter_mut().find(|metric| metric.name == "largest-class-share");
        share.expect("it is measured").values.insert(1, 0.9);
        let cell = entry.number("asr", "numbers", "-");
        assert_eq!((cell.text.as_str(), cell.number), ("collapse (1 of 2)", None));
    }

    #[test]
    fn hostile_names_are_text_and_lead_nowhere_else() {
        let name = "javascript:alert(1)\"><script>alert(2)#?a&b%41";
        let markup = page(Path::new("<i>"), &[finished(name)]).markup().into_string();
        assert!(!markup.contains("<script>alert") && !markup.contains("<i>"), "{markup}");
        let link = "href=\"./javascript%3Aalert%281%29%22%3E%3Cscript%3Ealert%282%29%23%3Fa%26b%2541/page.html";
        assert!(markup.contains(link), "{markup}");
    }

    #[test]
    fn two_hundred_runs_are_a_page_of_less_than_ten_megabytes() {
        let entries = (0..200).map(|number| finished(&format!("badnets-{number:08}"))).collect::<Vec<_>>();
        let markup = page(Path::new("runs"), &entries).markup().into_string();
        assert_eq!(markup.matches("<th scope=\"row\">").count(), 200);
        assert!(markup.len() < 10_000_000, "{} bytes", markup.len());
        assert!(markup.contains("200 runs and 0 sweeps: 200 finished."), "{markup}");
    }

    #[test]
    fn every_column_has_a_cell_in_every_row() {
        for entry in [finished("a"), sweep(), damaged()] {
            let page = page(Path::new("runs"), std::slice::from_ref(&entry)).markup().into_string();
            assert_eq!(page.matches("scope=\"col\"").count(), entry.row(Path::new("runs")).len());
        }
    }
}
