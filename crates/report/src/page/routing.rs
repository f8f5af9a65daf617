use std::path::Path;

use maud::{Markup, PreEscaped, html};
use patchdoor_metrics::Summary;
use patchdoor_record::{
    BlockingMaps, INTERVENTION_NUMBERS, Measurements, MetricInfo, ROUTING_NUMBERS, RecordError, RoutingEpoch,
    RunSummary, SeedResult, read_sealed_json, read_sealed_json_lines,
};

use super::chart::{Axis, Chart, Look, Point, Series};
use super::numbers::{interval, mean_cell};
use super::routing_steps::{after_training, by_class, by_class_and_epoch, by_epoch, by_pair};
use super::table::{Cell, Table};
use crate::draw::wants_figures;
use crate::figures;
use crate::maps::SeedMaps;

/// What the routers select in clean and in triggered images; `None` where the run did not look.
///
/// # Errors
/// If an array is not as it was written.
pub(crate) fn routing(folder: &Path, run: &RunSummary) -> Result<Option<Markup>, RecordError> {
    if run.routing.is_empty() {
        return Ok(None);
    }
    let maps = if wants_figures(folder)? {
        pictures(folder, run)?
    } else {
        html! {}
    };
    Ok(Some(html! {
        (capture(run))
        (numbers(run).markup())
        (maps)
    }))
}

/// What the numbers of the attack become with routing or experts changed; `None` where the run did not try.
pub(crate) fn interventions(run: &RunSummary) -> Option<Markup> {
    if run.interventions.is_empty() {
        return None;
    }
    let numbers = INTERVENTION_NUMBERS.iter().filter_map(|(name, _)| MetricInfo::of(name)).collect::<Vec<_>>();
    let mut header = vec!["changed".to_owned(), "n".to_owned()];
    header.extend(numbers.iter().map(|number| format!("{}, %", number.heading)));
    let changes = run.interventions.iter().map(|change| (change.title.as_str(), &change.metrics));
    let rows = std::iter::once(("nothing", &run.metrics)).chain(changes).map(|(title, metrics)| {
        let count = numbers.iter().filter_map(|number| metrics.get(number.name)).map(|found| found.count).max();
        let count = count.unwrap_or(0);
        let mut row = vec![Cell::text(title), Cell::number(count.to_string(), count as f64)];
        row.extend(numbers.iter().map(|number| mean_cell(metrics.get(number.name), number.unit, count)));
        row
    });
    let caption = "With routing or experts changed, mean ± standard deviation over seeds".into();
    let table = Table { caption, header, rows: rows.collect() };
    let said = ["mediated-by-routing", "carried-by-routing"].map(|name| run.metrics.get(name));
    let sentence = |summary: &Summary, what: &str| {
        let unit = MetricInfo::unit_of("mediated-by-routing");
        let ends = interval(summary, unit).map(|[low, high]| format!(", 95 % interval [{low:.3}, {high:.3}]"));
        format!("{what}: {:.3}{} (n = {}).", summary.mean, ends.unwrap_or_default(), summary.count)
    };
    Some(html! {
        @if let Some(mediated) = said[0] {
            p { (sentence(mediated, "Share of the attack's effect that goes when routing does not see the trigger")) }
        }
        @if let Some(carried) = said[1] {
            p { (sentence(carried, "Share that routing brings about alone")) }
        }
        (table.markup())
    })
}

/// How much of the trigger experts take, beside what they would take by chance.
fn capture(run: &RunSummary) -> Markup {
    let shown = ["trigger-capture-untouched", "trigger-capture", "trigger-capture-any"];
    let of = |victim: bool| {
        let points = shown.iter().enumerate().filter_map(|(index, name)| {
            let routing = run.routing.get(*name)?;
            let summary = if victim { routing.victim } else { routing.clean_twin }?;
            let interval = interval(&summary, MetricInfo::unit_of(name));
            let beside = if victim { -0.06 } else { 0.06 };
            Some(Point { interval, ..Point::new(index as f64 + 1.0 + beside, summary.mean) })
        });
        points.collect::<Vec<_>>()
    };
    let chance = shown.iter().enumerate().filter_map(|(index, name)| {
        let chance = run.routing.get(*name)?.chance.or_else(|| run.routing.get("trigger-capture")?.chance)?;
        Some(Point::new(index as f64 + 1.0, chance))
    });
    let marks =
        |name: &str, colour: usize, points: Vec<Point>| Series { name: name.into(), colour, look: Look::Marks, points };
    let series = vec![
        marks("backdoored", 1, of(true)),
        marks("clean twin", 0, of(false)),
        marks("by chance", 4, chance.collect()),
    ];
    let series = series.into_iter().filter(|series| !series.points.is_empty()).collect::<Vec<_>>();
    if series.is_empty() {
        return html! {};
    }
    let chart = Chart {
        title: "Trigger capture: share of the patches under the trigger that experts take".into(),
        description:
            "From left to right: 1, the same patches in untouched images; 2, in triggered images; 3, taken by any \
                      expert in triggered images. The table below has the numbers."
                .into(),
        x: Axis::at("1: untouched, 2: triggered, 3: triggered, by any expert", &[1.0, 2.0, 3.0], false),
        y: Axis::percent("trigger capture"),
        series,
    };
    html! { div.charts { (chart.markup()) } }
}

fn numbers(run: &RunSummary) -> Table {
    let rows = ROUTING_NUMBERS.iter().filter_map(|(name, _, _)| {
        let (summary, metric) = (run.routing.get(*name)?, MetricInfo::of(name)?);
        if !metric.is_shown || (summary.victim.is_none() && summary.clean_twin.is_none()) {
            return None;
        }
        let cell = |summary: Option<Summary>| match summary {
            Some(summary) => {
                // A zero is no minus zero.
                let mean = summary.mean + 0.0;
                let ends = interval(&summary, metric.unit).map(|[low, high]| format!(" [{low:.3}, {high:.3}]"));
                Cell::number(format!("{mean:.3}{}", ends.unwrap_or_default()), mean)
            }
            None => Cell::text("-"),
        };
        let chance =
            summary.chance.map_or_else(|| Cell::text("-"), |chance| Cell::number(format!("{chance:.3}"), chance));
        let count = summary.victim.map_or(0, |victim| victim.count);
        let count = Cell::number(count.to_string(), count as f64);
        Some(vec![Cell::text(metric.label), cell(summary.victim), cell(summary.clean_twin), chance, count])
    });
    Table {
        caption: "What routers look at, mean over seeds with its 95 % interval".into(),
        header: ["number", "backdoored", "clean twin", "by chance", "n"].map(str::to_owned).into(),
        rows: rows.collect(),
    }
}

/// Where the experts look, in all seeds and in each.
fn pictures(folder: &Path, run: &RunSummary) -> Result<Markup, RecordError> {
    let looked = |seed: &&SeedResult| seed.measurements().is_some_and(|measured| measured.routing.is_some());
    let seeds = run.seeds.iter().filter(looked).count();
    let mut maps = Vec::new();
    let mut of_seeds = Vec::new();
    for seed in run.seeds.iter().filter(looked) {
        let of_seed = folder.join(format!("seed-{}", seed.seed));
        let read = SeedMaps::read(&of_seed, seed.seed)?;
        if let Some(measured) = seed.measurements() {
            of_seeds.push(of_one_seed(&of_seed, &read, measured, (of_seeds.is_empty(), seeds))?);
        }
        maps.push(read);
    }
    if maps.is_empty() {
        return Ok(html! {});
    }
    let what = "Where the experts look, mean over experts and classes, for each seed";
    Ok(html! {
        h3 { "Where the experts look" }
        p.note {
            "A square is a patch: the darker, the more test images have it taken. Framed: under the trigger. Those of the first seed are "
            "here by class too; figures by class of every seed lie in its folder."
        }
        (picture(what, &figures::seeds(&maps)))
        @for seed in &of_seeds { (seed) }
    })
}

/// The maps of one of `seeds` seeds, the first or another.
fn of_one_seed(
    folder: &Path,
    maps: &SeedMaps,
    measured: &Measurements,
    (is_first, seeds): (bool, usize),
) -> Result<Markup, RecordError> {
    let chance = measured.routing.as_ref().map_or(f64::NAN, |routing| routing.chance_capture);
    let path = folder.join("routing/epochs.jsonl");
    let epochs: Vec<RoutingEpoch> = if path.is_file() { read_sealed_json_lines(&path)? } else { Vec::new() };
    let classes = if is_first { by_class(maps, measured)? } else { None };
    let classes_and_epochs = if is_first { by_class_and_epoch(maps, &epochs, measured)? } else { None };
    let blocking = measured.routing.as_ref().and_then(|routing| routing.blocking.as_ref());
    let pairs = blocking.map(|blocking| -> Result<_, RecordError> {
        let found: BlockingMaps = read_sealed_json(&folder.join("routing/blocking.json"))?;
        Ok(by_pair(maps.seed, &found, blocking, &figures::framed(&maps.triggered))?)
    });
    let pairs = pairs.transpose()?;
    Ok(html! {
        (after_training(maps, chance, is_first)?)
        @if let Some(pairs) = pairs { (pairs) }
        @if !epochs.is_empty() { (by_epoch(maps, &epochs, seeds)?) }
        @if let Some(classes) = classes { (classes) }
        @if let Some(both) = classes_and_epochs { (both) }
    })
}

/// A figure that is drawn on white, whatever the page is on.
fn picture(what: &str, svg: &str) -> Markup {
    let label = html! { (what) }.into_string();
    let svg = svg.replacen("<svg ", &format!("<svg role=\"img\" aria-label=\"{label}\" "), 1);
    html! {
        figure {
            figcaption { (what) }
            div.picture role="region" tabindex="0" aria-label=(what) { (PreEscaped(svg)) }
        }
    }
}
