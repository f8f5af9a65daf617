use std::path::Path;

use maud::{Markup, html};
use patchdoor_record::{DefenseResult, Environment, RunSummary, published_path};

use super::table::{Cell, Table};

/// With what a run was computed, how long it took, and what it can be told by.
pub(crate) fn provenance(folder: &Path, run: &RunSummary, environment: &Environment, config: &str) -> Markup {
    html! {
        (facts(environment).markup())
        (times(run).markup())
        (hashes(folder, run).markup())
        details {
            summary { "config.toml, with every default written out" }
            pre tabindex="0" { (config) }
        }
    }
}

fn facts(environment: &Environment) -> Table {
    let build = &environment.build;
    let commit = match (&build.commit, build.dirty) {
        (Some(commit), Some(true)) => format!("{commit}, source changed"),
        (Some(commit), _) => commit.clone(),
        (None, _) => "not on record".into(),
    };
    let burn = build.burn.clone().unwrap_or_else(|| "-".into());
    let mut rows = vec![
        ("experiment file", published_path(Path::new(&environment.experiment_file))),
        ("changed on the command line", environment.overrides.join(", ")),
        ("images", environment.images.dataset.clone()),
        ("SHA-256 of training and test images", environment.fingerprint.clone()),
        ("backend", environment.backend.clone()),
        ("device", environment.device.clone()),
        ("threads", environment.threads.to_string()),
        ("started", date(environment.started)),
        ("commit", commit),
        ("SHA-256 of Cargo.lock", build.cargo_lock.clone()),
        ("versions", format!("patchdoor {}, burn {burn}, {}", build.patchdoor, build.rustc)),
        ("compiled for", format!("{} {}", build.target, build.rustflags).trim().to_owned()),
    ];
    rows.retain(|(_, value)| !value.is_empty());
    let inputs =
        environment.inputs.iter().map(|(path, sum)| vec![Cell::text(format!("SHA-256 of {path}")), Cell::text(sum)]);
    Table {
        caption: "Environment".into(),
        header: vec!["what".into(), "value".into()],
        rows: rows.into_iter().map(|(what, value)| vec![Cell::text(what), Cell::text(value)]).chain(inputs).collect(),
    }
}

fn times(run: &RunSummary) -> Table {
    let rows = run.seeds.iter().map(|seed| {
        let count = |value: usize| Cell::number(value.to_string(), value as f64);
        let mut row = vec![
            Cell::text(format!("seed {}", seed.seed)),
            count(seed.training_images),
            count(seed.poisoned_images),
            count(seed.validation_images),
        ];
        match seed.measurements() {
            Some(measured) => {
                // A sum of nothing would be minus zero.
                let defenses =
                    measured.defenses.iter().filter_map(DefenseResult::seconds).fold(0.0, |sum, of| sum + of);
                row.push(Cell::number(format!("{:.1}", measured.training_seconds), measured.training_seconds));
                row.push(Cell::number(format!("{:.0}", measured.images_per_second), measured.images_per_second));
                row.push(Cell::number(format!("{defenses:.1}"), defenses));
            }
            None => row.extend(["failed", "", ""].map(Cell::text)),
        }
        row
    });
    let header = ["seed", "training images", "poisoned", "validation", "training, s", "images/s", "defenses, s"];
    Table { caption: "Images and times".into(), header: header.map(str::to_owned).into(), rows: rows.collect() }
}

/// Checksums of what the numbers can be computed from again.
fn hashes(folder: &Path, run: &RunSummary) -> Table {
    let folders = std::iter::once(String::new()).chain(run.seeds.iter().map(|seed| format!("seed-{}/", seed.seed)));
    let kept = ["config.toml", "environment.json", "poisoned-indices.csv", "result.json", "weights.safetensors"];
    let rows = folders.flat_map(|below| {
        let list = fs_err::read_to_string(folder.join(&below).join("SHA256SUMS")).unwrap_or_default();
        let lines = list.lines().filter_map(|line| line.split_once("  ")).filter(|(_, name)| kept.contains(name));
        let lines = lines.filter(|(sum, _)| !sum.starts_with('#'));
        lines.map(|(sum, name)| vec![Cell::text(format!("{below}{name}")), Cell::text(sum)]).collect::<Vec<_>>()
    });
    let header = vec!["file".into(), "SHA-256".into()];
    Table { caption: "Checksums of the records".into(), header, rows: rows.collect() }
}

/// Seconds since 1970 as a date and time of day, UTC (Hinnant, "chrono-Compatible Low-Level Date Algorithms",
/// `civil_from_days`).
fn date(seconds: u64) -> String {
    let days = (seconds / 86_400) as i64 + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute) = (seconds / 3_600 % 24, seconds / 60 % 60);
    format!("{year}-{month:02}-{day:02} {hour:02}:{minute:02} UTC")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_is_that_of_the_calendar() {
        // By `date --utc --date @N`.
        assert_eq!(date(0), "1970-01-01 00:00 UTC");
        assert_eq!(date(951_782_400), "2000-02-29 00:00 UTC");
        assert_eq!(date(1_795_785_071), "2026-11-27 13:11 UTC");
    }
}
