use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use maud::{Markup, html};
use patchdoor_record::{Listed, RecordError};

use super::defended::{defended, defenses, tried, undefended};
use super::entry::{Entry, entries, warnings};
use super::frame::{BOARD, OVERVIEW, Page, Section};
use super::settings::{Setting, settings};
use super::table::{Cell, Table};

/// Writes the page about all attacks and defenses of a folder's runs into it and returns its path: one file that needs nothing
/// else, with links to the pages of the runs, which must have been written.
///
/// # Errors
/// If the page cannot be written. What cannot be read of a run stands in its row.
pub fn write_board(out: &Path, listed: &[Listed]) -> Result<PathBuf, RecordError> {
    let path = out.join(BOARD);
    page(out, entries(listed)).write_to(&path)?;
    Ok(path)
}

fn page(out: &Path, mut entries: Vec<Entry>) -> Page {
    // The runs of a sweep are runs like any other.
    entries.retain(|entry| !entry.is_sweep());
    let settings = settings(&entries);
    let shown = settings.iter().map(|setting| setting.runs.len()).sum::<usize>();
    let content = html! {
        (contents(&settings))
        @for (number, setting) in settings.iter().enumerate() {
            h3 id={ "setting-" (number + 1) } { (setting.title) }
            (table(out, setting).markup())
        }
        p.note {
            "Each row is one run, and nothing is averaged over runs; that of a sweep's point over its seeds stands in the page of "
            "the sweep. Rates are in percent, AUC lies in [0, 1]. ASR and CA of a filter are those of a classifier trained on "
            "what is left. A series of prunings has its result as a whole here and its strengths in the page of its run. A "
            "number leads to its place there; n is said where fewer seeds have it than finished. "
            a href=(OVERVIEW) { "All runs and sweeps" } " have a row each in the overview."
        }
        @if shown < entries.len() {
            p.note { (entries.len() - shown) " of " (entries.len()) " runs have no row, for their configuration cannot be read." }
        }
    };
    let folder = out.file_name().map_or_else(|| "this folder".into(), OsStr::to_string_lossy);
    Page {
        title: format!("Attacks and defenses in {folder}"),
        answer: html! { (counted(shown, "run")) " in " (counted(settings.len(), "setting")) " that can be compared." },
        warnings: warnings(&entries),
        sections: vec![Section { anchor: "board", heading: "After each defense", content }],
    }
}

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// Links to the tables, where there are several.
fn contents(settings: &[Setting<'_>]) -> Markup {
    html! {
        @if settings.len() > 1 {
            ul {
                @for (number, setting) in settings.iter().enumerate() {
                    li { a href={ "#setting-" (number + 1) } { (setting.title) } ": " (counted(setting.runs.len(), "run")) }
                }
            }
        }
    }
}

fn table(out: &Path, setting: &Setting<'_>) -> Table {
    let tried = setting.runs.iter().map(|run| tried(run.entry)).collect::<Vec<_>>();
    let defenses = defenses(&tried);
    let mut header = ["attack", "run", "seeds", "state", "no defense"].map(str::to_owned).to_vec();
    header.extend(defenses.iter().map(|defense| defense.heading.clone()));
    let rows = setting.runs.iter().zip(&tried).map(|(run, tried)| {
        let entry = run.entry;
        let mut row = vec![
            Cell::text(&run.attack).linked(entry.link("")),
            Cell::text(entry.listed.name()).linked(entry.link("")),
            entry.seeds(),
            state(entry, out),
            undefended(entry),
        ];
        row.extend(defenses.iter().map(|defense| defended(entry, tried, defense)));
        row
    });
    let caption = format!("{}: mean ± standard deviation over seeds", setting.title);
    Table { caption, header, rows: rows.collect() }
}

/// What became of a run, with all that forbids to take it for one like the others.
fn state(entry: &Entry, out: &Path) -> Cell {
    let mut words = vec![entry.state_in_words(out)];
    if let Some(table) = &entry.table {
        words.extend((!table.substitutions.is_empty()).then(|| "stand-in images".to_owned()));
        words.extend(table.clean_build().err().map(|build| build.name().to_owned()));
    }
    Cell::text(words.join("; ")).linked(entry.link("")).of_kind(entry.listed.state.name())
}

#[cfg(test)]
mod tests {
    use super::super::defended::tests::{detected, failed, repaired, result, run_of};
    use super::super::entry::tests::{CONFIG, damaged, entry_of, finished, listed, sweep};
    use super::*;
    use patchdoor_record::{Content, RunState};

    const HOSTILE: &str = "<script>alert(1)</script>";

    /// Two attacks and three defenses, one of which failed with one of them and was not run with the other, and a quick run.
    fn board() -> Vec<Entry> {
        let repair = || result("fine-tuning", repaired(0.65, 0.5, 0.1));
        let square =
            vec![result("detector", detected(Some(0.75))), repair(), result(HOSTILE, failed("loss became <b>NaN</b>"))];
        let mut quick = entry_of("quick-1", CONFIG, run_of(vec![vec![repair()]]));
        quick.table.as_mut().expect("it has one").quick = true;
        let warp = CONFIG.replace("trigger.square", "trigger.warp");
        let defenses = "[[defenses]]\ndata = \"clean\"\n";
        vec![
            quick,
            entry_of("square-1", CONFIG, run_of(vec![square.clone(), square])),
            entry_of("warp-1", &warp, run_of(vec![vec![result("detector", detected(Some(0.5)))]])),
            entry_of(
                "warp-2",
                &format!("{warp}{defenses}"),
                run_of(vec![vec![result("detector", detected(Some(0.5)))]]),
            ),
            damaged(),
            sweep(),
        ]
    }

    fn markup(entries: Vec<Entry>) -> String {
        page(Path::new("/secret/runs"), entries).markup().into_string()
    }

    #[test]
    fn every_attack_stands_beside_every_defense_with_a_number_or_a_reason() {
        let entries = board();
        let settings = settings(&entries);
        assert_eq!(settings.len(), 1);
        let table = table(Path::new("/secret/runs"), &settings[0]);
        assert_eq!(
            table.header,
            [
                "attack",
                "run",
                "seeds",
                "state",
                "no defense",
                "fine-tuning",
                "detector (no data)",
                "detector (data = \"clean\")",
                HOSTILE,
            ]
        );
        let texts = table.rows.iter().map(|row| row.iter().map(|cell| cell.text.as_str()).collect::<Vec<_>>());
        let texts = texts.collect::<Vec<_>>();
        let quick = ["square, rate 0.02", "quick-1", "1 of 2", "finished, quick: its numbers mean nothing"];
        assert_eq!(texts[0][..4], quick);
        assert_eq!(texts[0][4..], ["ASR 90.00, CA 70.00", "ASR 50.00, CA 65.00", "not run", "not run", "not run"]);
        let numbers = ["ASR 90.00 ± 0.00, CA 70.00 ± 0.00", "ASR 50.00 ± 0.00, CA 65.00 ± 0.00", "AUC 0.7500 ± 0.0000"];
        assert_eq!(texts[1][..3], ["square, rate 0.02", "square-1", "2"]);
        assert!(texts[1][3].contains("of seed 1 failed: loss became <b>NaN</b>"), "{}", texts[1][3]);
        assert_eq!(texts[1][4..7], numbers);
        assert_eq!(texts[1][7..], ["not run", "failed"]);
        let warp = ["ASR 90.00, CA 70.00", "not run", "AUC 0.5000", "not run", "not run"];
        assert_eq!((texts[2][0], texts[2][1], &texts[2][4..]), ("warp, rate 0.02", "warp-1", &warp[..]));
        assert_eq!((texts[3][1], texts[3][6], texts[3][7]), ("warp-2", "not run", "AUC 0.5000"));
        assert_eq!(texts.len(), 4, "a sweep and what cannot be read have no row");
    }

    #[test]
    fn numbers_lead_to_their_place_and_reasons_explain_themselves() {
        let markup = markup(board());
        let expected = [
            "<a href=\"./square-1/page.html\">square, rate 0.02</a>",
            "<a href=\"./square-1/page.html#numbers\">ASR 90.00",
            "<a href=\"./square-1/page.html#defenses\">AUC 0.7500",
            "<span class=\"reason\">not run</span>",
            "title=\"seed 0: loss became &lt;b&gt;NaN&lt;/b&gt;; seed 1: loss became &lt;b&gt;NaN&lt;/b&gt;\">failed</span>",
            "<th scope=\"col\">&lt;script&gt;alert(1)&lt;/script&gt;</th>",
            "1 of 5: quick, and their numbers mean nothing.",
            "1 of 5 runs have no row",
            "4 runs in 1 setting that can be compared.",
        ];
        for expected in expected {
            assert!(markup.contains(expected), "no {expected} in {markup}");
        }
        assert!(
            !markup.contains("<script>alert") && !markup.contains("<b>NaN") && !markup.contains("secret"),
            "{markup}"
        );
    }

    #[test]
    fn what_is_not_like_the_others_is_marked_and_has_its_own_row() {
        let mut stand_in = finished("b");
        let table = stand_in.table.as_mut().expect("it has one");
        table.substitutions.push("cifar10 was not found; run on shapes instead".into());
        table.commits = vec!["abc (changed)".into()];
        let state = state(&stand_in, Path::new("/secret/runs"));
        assert_eq!(state.text, "finished; stand-in images; changed source");
        let markup = markup(vec![finished("a"), stand_in]);
        assert_eq!(markup.matches("<th scope=\"row\">").count(), 2);
        assert_eq!(markup.matches("95.00 ± 1.41").count(), 2);
    }

    #[test]
    fn a_run_that_goes_on_has_a_row_of_reasons() {
        let begun = listed("a.partial", RunState::Unfinished, Content::Nothing("unfinished; it goes on".into()));
        let begun = Entry::without_numbers(begun, &CONFIG.parse().expect("TOML"));
        let square = entry_of("b", CONFIG, run_of(vec![vec![result("fine-tuning", repaired(0.65, 0.5, 0.1))]]));
        let entries = [begun, square];
        let table = table(Path::new("/secret/runs"), &settings(&entries)[0]);
        let texts = table.rows[0].iter().map(|cell| cell.text.as_str()).collect::<Vec<_>>();
        assert_eq!(texts[1..], ["a.partial", "none yet", "unfinished; it goes on", "unfinished", "unfinished"]);
    }

    #[test]
    fn several_settings_are_several_tables_with_names_of_their_own() {
        let longer = |epochs: usize| format!("{CONFIG}[training]\nepochs = {epochs}\n");
        let of = |name: &str, epochs| entry_of(name, &longer(epochs), run_of(vec![Vec::new()]));
        let markup = markup(vec![of("a", 4), of("b", 50)]);
        for (number, epochs) in [(1, 4), (2, 50)] {
            let title = format!("cifar10; patch-moe, 4 experts; {epochs} epochs");
            assert!(markup.contains(&format!("<a href=\"#setting-{number}\">{title}</a>: 1 run")), "{markup}");
            assert!(markup.contains(&format!("<h3 id=\"setting-{number}\">{title}</h3>")), "{markup}");
            assert_eq!(markup.matches(&format!("aria-label=\"{title}: mean")).count(), 1, "{markup}");
        }
    }

    #[test]
    fn two_hundred_runs_are_a_page_of_less_than_ten_megabytes() {
        let titles = (0..40).map(|number| format!("defense {number}")).collect::<Vec<_>>();
        let defenses = || titles.iter().map(|title| result(title, repaired(0.65, 0.5, 0.1))).collect::<Vec<_>>();
        let runs = (0..200).map(|number| entry_of(&format!("a-{number:03}"), CONFIG, run_of(vec![defenses()])));
        let markup = markup(runs.collect());
        assert_eq!(markup.matches("<th scope=\"row\">").count(), 200);
        assert_eq!(markup.matches("#defenses\">ASR 50.00, CA 65.00</a>").count(), 8_000);
        assert!(markup.len() < 10_000_000, "{} bytes", markup.len());
    }
}
