use std::io;

use maud::{Markup, html};
use patchdoor_record::{Measurements, RoutingEpoch};

use super::map_sheet::{MapSheet, Panel, panel_size};
use crate::figures::framed;
use crate::maps::{SETS, SeedMaps};

/// Pixels that the maps of all seeds may have after their epochs, so that a page stays small: about as many bytes.
const EPOCHS: usize = 200_000;
/// Pixels that the maps by class may have.
const CLASSES: usize = 120_000;

const HOW_TO_READ: &str = "A column for each expert, from 0; from the top down untouched images, triggered ones, and the difference, red below 0 \
                           and blue above. A square is a patch: the darker, the more test images have it taken. Framed: under the trigger.";

/// Where the experts of a seed's backdoored classifier look after its epochs, to be chosen by a slider, one of `seeds` on the
/// page; folded where no scripts run.
///
/// # Errors
/// If a picture cannot be encoded.
pub(crate) fn by_epoch(maps: &SeedMaps, lines: &[RoutingEpoch], seeds: usize) -> io::Result<Markup> {
    let [width, height] = panel_size(maps.grid, maps.experts);
    let most = (EPOCHS / seeds.max(1) / (width * height).max(1)).max(2);
    let every = lines.len().div_ceil(most);
    let last = lines.len().saturating_sub(1);
    let shown = lines.iter().enumerate().filter(|&(number, _)| number == last || (number + 1).is_multiple_of(every));
    let shown = shown.map(|(_, line)| line).collect::<Vec<_>>();
    let panel = |line: &&RoutingEpoch| Panel {
        clean: line.clean_frequency.clone(),
        triggered: line.triggered_frequency.clone(),
    };
    let panels = shown.iter().map(panel).collect::<Vec<_>>();
    let sheet = MapSheet::draw(format!("epochs-{}", maps.seed), maps.grid, &panels, &framed(&maps.triggered))?;
    let captions = shown.iter().map(|line| {
        let capture = line.numbers.trigger_capture.as_ref();
        let capture = capture.map(|capture| format!(", trigger capture {:.3}", capture.value)).unwrap_or_default();
        format!("Epoch {}{capture}", line.epoch + 1)
    });
    Ok(html! {
        details.steps {
            summary { "Seed " (maps.seed) ": after each epoch" }
            p.note {
                (HOW_TO_READ)
                @if every > 1 { " Shown is one epoch in " (every) ", and the last; epochs.svg in the seed's folder has all." }
            }
            (sheet.embedded())
            ol {
                @for (number, caption) in captions.enumerate() {
                    li { (figure(&sheet, number, &caption)) }
                }
            }
        }
    })
}

/// Where the experts of a seed's classifiers look after training, in the test images of all classes, beside the share by
/// `chance`; unfolded if `is_open`.
///
/// # Errors
/// If the picture cannot be encoded.
pub(crate) fn after_training(maps: &SeedMaps, chance: f64, is_open: bool) -> io::Result<Markup> {
    let of = |classifier: usize| panel(maps, |set, expert| maps.of_expert(classifier, set, expert));
    let panels = (0..maps.classifiers.len()).map(of).collect::<Vec<_>>();
    let sheet = MapSheet::draw(format!("experts-{}", maps.seed), maps.grid, &panels, &framed(&maps.triggered))?;
    let in_words = |name: &str| if name == "victim" { "Backdoored classifier" } else { "Clean twin" };
    Ok(html! {
        details open[is_open] {
            summary { "Seed " (maps.seed) ": each expert, after training" }
            p.note { (HOW_TO_READ) " By chance an expert takes a patch in " (format!("{:.0} %", 100.0 * chance)) " of the images." }
            (sheet.embedded())
            @for (number, classifier) in maps.classifiers.iter().enumerate() {
                (figure(&sheet, number, in_words(classifier.name)))
            }
        }
    })
}

/// A panel of the maps that `of` gives for each set of test images and each expert.
fn panel(maps: &SeedMaps, of: impl Fn(usize, usize) -> Vec<f64>) -> Panel {
    let [clean, triggered] = SETS.map(|set| (0..maps.experts).map(|expert| of(set, expert)).collect());
    Panel { clean, triggered }
}

/// Where the experts of a seed's backdoored classifier look after its training, in the test images of each class; `None` for
/// more classes than a page has room for.
///
/// # Errors
/// If a picture cannot be encoded.
pub(crate) fn by_class(maps: &SeedMaps, measured: &Measurements) -> io::Result<Option<Markup>> {
    let [width, height] = panel_size(maps.grid, maps.experts);
    let names = measured.classes.iter().map(|class| class.class.as_str()).take(maps.classes()).collect::<Vec<_>>();
    let Some(victim) = maps.classifiers.iter().position(|classifier| classifier.name == "victim") else {
        return Ok(None);
    };
    if names.is_empty() || names.len() * width * height > CLASSES {
        return Ok(None);
    }
    let of = |class: usize| panel(maps, |set, expert| maps.of_class(victim, set, class, expert).to_vec());
    let panels = (0..names.len()).map(of).collect::<Vec<_>>();
    let sheet = MapSheet::draw(format!("classes-{}", maps.seed), maps.grid, &panels, &framed(&maps.triggered))?;
    Ok(Some(html! {
        details {
            summary { "Seed " (maps.seed) ": by class, backdoored classifier" }
            p.note { (HOW_TO_READ) " Grey: no test image of the class." }
            (sheet.embedded())
            div.panels { @for (class, name) in names.iter().enumerate() { (figure(&sheet, class, name)) } }
        }
    }))
}

fn figure(sheet: &MapSheet, number: usize, caption: &str) -> Markup {
    html! {
        figure.panel {
            figcaption { (caption) }
            (sheet.part(number, &format!("{caption}: what each expert selects, untouched, triggered, and the difference")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::maps::example;
    use crate::run_table::tests::seed;
    use patchdoor_metrics::Estimate;
    use patchdoor_record::{AssociationNumbers, ClassMeasurements, RoutingNumbers, SetNumbers};

    fn line(epoch: usize) -> RoutingEpoch {
        let associations = AssociationNumbers::default;
        let set = || SetNumbers {
            intensity: associations(),
            variance: associations(),
            gradient: associations(),
            load_entropy: None,
            expert_similarity: None,
        };
        let numbers = RoutingNumbers {
            trigger_capture: Some(Estimate { value: 0.25, low: None, high: None, images: 4 }),
            trigger_capture_untouched: None,
            trigger_capture_receptive_field: None,
            trigger_capture_any: None,
            overlap: None,
            clean: set(),
            triggered: set(),
        };
        let map = vec![vec![0.5, 0.5]; 2];
        RoutingEpoch { epoch, images: 4, numbers, clean_frequency: map.clone(), triggered_frequency: map }
    }

    #[test]
    fn every_epoch_has_its_panel_with_its_number_in_a_folded_list() {
        let markup = by_epoch(&example(3, 0.5), &[line(0), line(1)], 1).expect("it is encoded").into_string();
        assert!(markup.contains("<details class=\"steps\"><summary>Seed 3: after each epoch</summary>"), "{markup}");
        assert_eq!(markup.matches("<li>").count(), 2);
        assert!(markup.contains("Epoch 2, trigger capture 0.250</figcaption>"), "{markup}");
        assert_eq!(markup.matches("data:image/png").count(), 1, "the picture is embedded once");
    }

    #[test]
    fn of_a_long_training_every_kth_epoch_and_the_last_are_shown() {
        // A panel has 7 * 7 pixels; 100 seeds leave room for 200,000 / 100 / 49 = 40 of them.
        let lines = (0..1001).map(line).collect::<Vec<_>>();
        let markup = by_epoch(&example(0, 0.5), &lines, 100).expect("it is encoded").into_string();
        assert!(markup.contains("Shown is one epoch in 26, and the last;"), "{markup}");
        // 26, 52 and so on to 988, which are 38, and the last.
        assert_eq!(markup.matches("<li>").count(), 39);
        assert!(markup.contains("Epoch 1001,"), "{markup}");
    }

    #[test]
    fn each_classifier_has_a_panel_and_the_first_seed_is_unfolded() {
        let markup = after_training(&example(2, 0.5), 0.25, true).expect("it is encoded").into_string();
        assert!(markup.starts_with("<details open><summary>Seed 2: each expert, after training</summary>"), "{markup}");
        assert!(markup.contains("in 25 % of the images") && markup.contains("Backdoored classifier</figcaption>"));
        assert!(!markup.contains("Clean twin"), "there is none");
    }

    #[test]
    fn classes_are_folded_and_their_names_are_text() {
        let finished = seed(0, 0.7, 0.9);
        let mut measured = finished.measurements().expect("it finished").clone();
        let hostile = format!("<script>alert(1)</script>{}", "x".repeat(500));
        let class = |name: &str| ClassMeasurements {
            class: name.to_owned(),
            images: 1,
            clean_accuracy: None,
            asr: None,
            robust_accuracy: None,
        };
        measured.classes = vec![class("cat"), class(&hostile)];
        let markup = by_class(&example(0, 0.5), &measured).expect("it is encoded").expect("two classes").into_string();
        assert!(!markup.contains("<script") && markup.contains("&lt;script&gt;"), "{markup}");
        assert_eq!(markup.matches("<figure class=\"panel\">").count(), 2);
        assert!(markup.starts_with("<details><summary>"), "folded: {markup}");
        measured.classes.clear();
        assert!(by_class(&example(0, 0.5), &measured).expect("nothing to encode").is_none());
    }
}
