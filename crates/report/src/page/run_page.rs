use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use maud::{Markup, html};
use patchdoor_record::{
    CURVES, Environment, PointResult, RecordError, RunSummary, commit_in_words, read_sealed, read_sealed_json,
    run_builds,
};

use super::answer::{answer, rule};
use super::confusion::confusion;
use super::curves::curves;
use super::defenses::defenses;
use super::examples::examples;
use super::frame::{Page, Section};
use super::numbers::headline;
use super::provenance::provenance;
use super::routing::{interventions, routing};
use super::warnings;
use crate::history::{HISTORY, histories};

/// Writes the page of a run to its folder and returns its path: one file that needs nothing else, neither network nor scripts.
///
/// # Errors
/// If a record is not as it was written, or the page cannot be written.
pub fn write_run_page(folder: &Path, run: &RunSummary) -> Result<PathBuf, RecordError> {
    page(folder, run)?.write(folder)
}

fn page(folder: &Path, run: &RunSummary) -> Result<Page, RecordError> {
    let environment: Environment = read_sealed_json(&folder.join("environment.json"))?;
    let config = read_sealed(&folder.join("config.toml"))?;
    let config = String::from_utf8_lossy(&config);
    let commits = run_builds(folder)?.iter().map(commit_in_words).collect::<Vec<_>>();
    let results = run.seeds.iter().map(|seed| (run.run.clone(), seed.clone())).collect::<Vec<_>>();
    let point = PointResult::of(run.experiment.clone(), Vec::new(), &results);

    let section = |anchor, heading, content| Section { anchor, heading, content };
    let mut sections = vec![
        section("numbers", "The attack", html! { (headline(run, &point)) p.note { (rule()) } }),
        section("curves", "Training", curves(&histories(folder, run, HISTORY)?, &histories(folder, run, CURVES)?)),
    ];
    sections.extend(confusion(run).map(|content| section("confusion", "What is taken for what", content)));
    let pictures = examples(folder, run)?.into_iter().chain(pictures(folder)?).collect::<Vec<_>>();
    if !pictures.is_empty() {
        let content = html! { @for part in &pictures { (part) } };
        sections.push(section("pictures", "Pictures", content));
    }
    sections.extend(defenses(run).map(|content| section("defenses", "Defenses", content)));
    sections.extend(routing(folder, run)?.map(|content| section("routing", "Routing", content)));
    sections.extend(interventions(run).map(|content| section("mediation", "Who carries the backdoor", content)));
    let provenance = provenance(folder, run, &environment, &config);
    sections.push(section("provenance", "Where the numbers come from", provenance));
    Ok(Page {
        title: format!("{} on {}", run.experiment, run.images.dataset),
        answer: answer(run),
        warnings: warnings::of_run(run, &commits),
        sections,
    })
}

/// Pictures in the run's folder, such as a contact sheet that was drawn there; `None` without any.
fn pictures(folder: &Path) -> Result<Option<Markup>, RecordError> {
    let mut pictures = Vec::new();
    for entry in fs_err::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "png") {
            pictures.push(path);
        }
    }
    pictures.sort();
    let mut shown = Vec::new();
    for path in &pictures {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        shown.push((name, STANDARD.encode(fs_err::read(path)?)));
    }
    Ok((!shown.is_empty()).then(|| {
        html! {
            @for (name, bytes) in &shown {
                figure {
                    figcaption { (name) }
                    div.picture role="region" tabindex="0" aria-label=(name) {
                        img alt={ "Picture " (name) " from the run's folder" } src={ "data:image/png;base64," (bytes) };
                    }
                }
            }
            p.note { "A contact sheet has the original image, the triggered one, and ten times their difference." }
        }
    }))
}
