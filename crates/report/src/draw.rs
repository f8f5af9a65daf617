use std::path::Path;

use patchdoor_record::{
    Measurements, RecordError, RoutingEpoch, RunSummary, SeedResult, read_sealed_json_lines, write_whole,
};

use crate::config::read_config;
use crate::figures;
use crate::maps::SeedMaps;

/// Draws where routers look, as SVG: `routing.svg` for all seeds of a run, and in each seed's folder a page for each
/// classifier, over all classes and by class, and one for its epochs. Nothing is drawn for a run that did not look, or whose
/// `[routing]` says `figures = false`.
///
/// # Errors
/// If an array is not as it was written, or a figure cannot be written.
pub fn draw_run(folder: &Path, summary: &RunSummary) -> Result<(), RecordError> {
    let looked = |seed: &SeedResult| seed.measurements().is_some_and(|measured| measured.routing.is_some());
    if !summary.seeds.iter().any(looked) || !wants_figures(folder)? {
        return Ok(());
    }
    let mut maps = Vec::new();
    for seed in summary.seeds.iter().filter(|seed| looked(seed)) {
        let of_seed = folder.join(format!("seed-{}", seed.seed));
        let read = SeedMaps::read(&of_seed, seed.seed)?;
        if let Some(measured) = seed.measurements() {
            draw_seed(&of_seed.join("routing"), &read, measured)?;
        }
        maps.push(read);
    }
    write_whole(&folder.join("routing.svg"), figures::seeds(&maps).as_bytes())?;
    Ok(())
}

fn draw_seed(folder: &Path, maps: &SeedMaps, measured: &Measurements) -> Result<(), RecordError> {
    let chance = measured.routing.as_ref().map_or(f64::NAN, |routing| routing.chance_capture);
    let names = measured.classes.iter().map(|class| class.class.clone()).collect::<Vec<_>>();
    for (classifier, of) in maps.classifiers.iter().enumerate() {
        let page = figures::experts(maps, classifier, chance);
        write_whole(&folder.join(format!("{}.svg", of.name)), page.as_bytes())?;
        let page = figures::classes(maps, classifier, &names, chance);
        write_whole(&folder.join(format!("{}-classes.svg", of.name)), page.as_bytes())?;
    }
    let epochs = folder.join("epochs.jsonl");
    if epochs.is_file() {
        let lines: Vec<RoutingEpoch> = read_sealed_json_lines(&epochs)?;
        write_whole(&folder.join("epochs.svg"), figures::epochs(maps, &lines, chance).as_bytes())?;
    }
    Ok(())
}

/// What a run's `config.toml` says of figures.
pub(crate) fn wants_figures(folder: &Path) -> Result<bool, RecordError> {
    let config = read_config(folder)?;
    let figures = config.get("routing").and_then(|routing| routing.get("figures"));
    Ok(figures.and_then(toml::Value::as_bool).unwrap_or(false))
}
