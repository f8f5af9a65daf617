use std::io;

use maud::{Markup, html};
use patchdoor_record::{BlockingMaps, BlockingMeasurements, Measurements, RoutingEpoch};

use super::map_sheet::{MapSheet, Panel, panel_size};
use crate::figures::{Scale, framed};
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
    let [width, height] = panel_size(maps.grid, maps.experts, Panel::SELECTED);
    let (every, shown) = thinned(lines, EPOCHS / seeds.max(1) / (width * height).max(1));
    let panel = |line: &&RoutingEpoch| Panel::selected(line.clean_frequency.clone(), line.triggered_frequency.clone());
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
    Panel::selected(clean, triggered)
}

/// Where the experts of a seed's backdoored classifier look after its training, in the test images of each class; `None` for
/// more classes than a page has room for.
///
/// # Errors
/// If a picture cannot be encoded.
pub(crate) fn by_class(maps: &SeedMaps, measured: &Measurements) -> io::Result<Option<Markup>> {
    let [width, height] = panel_size(maps.grid, maps.experts, Panel::SELECTED);
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

/// Where the experts of a seed's backdoored classifier look after its epochs in the test images of each class, of these names; each class
/// has a slider of its own. `None` where the epochs have no maps by class, and for more classes than a page has room for.
///
/// # Errors
/// If a picture cannot be encoded.
pub(crate) fn by_class_and_epoch(
    maps: &SeedMaps,
    lines: &[RoutingEpoch],
    measured: &Measurements,
) -> io::Result<Option<Markup>> {
    let names = measured.classes.iter().map(|class| class.class.as_str()).collect::<Vec<_>>();
    let has_all = |line: &RoutingEpoch| {
        [&line.clean_frequency_by_class, &line.triggered_frequency_by_class]
            .iter()
            .all(|maps| maps.len() == names.len())
    };
    let [width, height] = panel_size(maps.grid, maps.experts, Panel::SELECTED);
    let most = EPOCHS / (names.len() * width * height).max(1);
    if names.is_empty() || lines.len() < 2 || most < 2 || !lines.iter().all(has_all) {
        return Ok(None);
    }
    let (every, shown) = thinned(lines, most);
    let of_class = |maps: &[Vec<Vec<f64>>], class: usize| maps[class].clone();
    let panels = (0..names.len()).flat_map(|class| {
        let of = move |line: &&RoutingEpoch| {
            let [clean, triggered] = [&line.clean_frequency_by_class, &line.triggered_frequency_by_class];
            Panel::selected(of_class(clean, class), of_class(triggered, class))
        };
        shown.iter().map(of)
    });
    let panels = panels.collect::<Vec<_>>();
    let sheet = MapSheet::draw(format!("classes-epochs-{}", maps.seed), maps.grid, &panels, &framed(&maps.triggered))?;
    Ok(Some(html! {
        details {
            summary { "Seed " (maps.seed) ": by class, after each epoch" }
            p.note {
                (HOW_TO_READ)
                @if every > 1 { " Shown is one epoch in " (every) ", and the last." }
            }
            (sheet.embedded())
            @for (class, name) in names.iter().enumerate() {
                details.steps {
                    summary { (name) }
                    ol {
                        @for (number, line) in shown.iter().enumerate() {
                            li { (figure(&sheet, class * shown.len() + number, &format!("{name}, epoch {}", line.epoch + 1))) }
                        }
                    }
                }
            }
        }
    }))
}

/// Every so many-th of the lines and the last, at most `most` of them or two, and of how many each shown one is one.
fn thinned(lines: &[RoutingEpoch], most: usize) -> (usize, Vec<&RoutingEpoch>) {
    let every = lines.len().div_ceil(most.max(2));
    let last = lines.len().saturating_sub(1);
    let shown = lines.iter().enumerate().filter(|&(number, _)| number == last || (number + 1).is_multiple_of(every));
    (every, shown.map(|(_, line)| line).collect())
}

/// What remains of a seed's attack and of its clean accuracy where one expert passes over one patch.
///
/// # Errors
/// If the picture cannot be encoded.
pub(crate) fn by_pair(
    seed: u64,
    maps: &BlockingMaps,
    measured: &BlockingMeasurements,
    framed: &[bool],
) -> io::Result<Markup> {
    let numbers = |maps: &[Vec<Option<f64>>], less: f64| {
        let of_pair = |number: &Option<f64>| number.map_or(f64::NAN, |number| number - less);
        maps.iter().map(|of_expert| of_expert.iter().map(of_pair).collect()).collect::<Vec<_>>()
    };
    let panel = Panel {
        rows: vec![
            (Scale::Share, numbers(&maps.asr, 0.0)),
            (Scale::Difference, numbers(&maps.clean_accuracy, measured.own.clean_accuracy)),
        ],
    };
    let sheet = MapSheet::draw(format!("pairs-{seed}"), maps.grid, &[panel], framed)?;
    let percent = |share: Option<f64>| share.map_or_else(|| "-".to_owned(), |share| format!("{:.1} %", 100.0 * share));
    let first = measured.most_needed.first().zip(measured.together.first());
    Ok(html! {
        details {
            summary { "Seed " (seed) ": each expert without each patch" }
            p.note {
                "A column for each expert, from 0. Above: attack success while the expert passes over the patch, the darker the more; below: what that "
                "changes in clean accuracy, red where it falls. Grey: cannot be passed over. Framed: under the trigger. "
                (measured.images) " test images; nothing passed over: " (percent(measured.own.asr)) "."
            }
            @if let Some((&(expert, patch), pair)) = first {
                p {
                    "Chosen by triggered training images: without patch " (patch) " for expert " (expert) ", attack success is "
                    (percent(pair.most_needed.asr)) "; without a random patch for a random expert "
                    (percent(pair.random.mean.asr)) "."
                }
            }
            (sheet.embedded())
            figure.panel {
                (sheet.part(0, "What remains of attack success and what changes in clean accuracy for each expert and patch"))
            }
        }
    })
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
    use patchdoor_record::{
        AssociationNumbers, BlockedPairs, ClassMeasurements, RoutedStanding, RoutingNumbers, SetNumbers, StandingBand,
    };

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
        RoutingEpoch {
            epoch,
            images: 4,
            numbers,
            clean_frequency: map.clone(),
            triggered_frequency: map.clone(),
            clean_frequency_by_class: vec![map.clone(), Vec::new()],
            triggered_frequency_by_class: vec![map, Vec::new()],
        }
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
    fn pairs_are_shown_with_what_the_attack_needs_most() {
        let standing = |clean_accuracy: f64, asr: f64| RoutedStanding {
            clean_accuracy,
            asr: Some(asr),
            ..RoutedStanding::default()
        };
        let pairs = BlockedPairs {
            count: 1,
            most_needed: standing(0.75, 0.125),
            random: StandingBand::of(&[standing(0.75, 0.875)]),
        };
        let measured = BlockingMeasurements {
            images: 40,
            ranking_images: 20,
            own: standing(0.75, 1.0),
            most_needed: vec![(1, 0)],
            together: vec![pairs],
            mediated_by_one_pair: None,
        };
        let map = vec![vec![Some(0.5), None]; 2];
        let maps = BlockingMaps { grid: [1, 2], clean_accuracy: map.clone(), asr: map.clone(), ranking_asr: map };
        let markup = by_pair(4, &maps, &measured, &[true, false]).expect("it is encoded").into_string();
        assert!(markup.starts_with("<details><summary>Seed 4: each expert without each patch</summary>"), "{markup}");
        assert!(markup.contains("without patch 0 for expert 1, attack success is 12.5 %"), "{markup}");
        assert!(markup.contains("a random expert 87.5 %.") && markup.contains("nothing passed over: 100.0 %."));
        // Two maps side by side of two patches, two kinds below each other.
        assert!(markup.contains("viewBox=\"0 0 7 5\""), "{markup}");
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
        let lines = [line(0), line(1), line(2)];
        let epochs =
            by_class_and_epoch(&example(0, 0.5), &lines, &measured).expect("it is encoded").expect("two classes");
        let epochs = epochs.into_string();
        assert!(!epochs.contains("<script") && epochs.contains("<summary>&lt;script&gt;"), "{epochs}");
        assert_eq!((epochs.matches("<details class=\"steps\">").count(), epochs.matches("<li>").count()), (2, 6));
        assert_eq!(epochs.matches("data:image/png").count(), 1, "the picture is embedded once");
        assert!(epochs.contains("<figcaption>cat, epoch 3</figcaption>"), "{epochs}");
        assert!(by_class_and_epoch(&example(0, 0.5), &lines[..1], &measured).expect("nothing to encode").is_none());
        measured.classes.clear();
        assert!(by_class(&example(0, 0.5), &measured).expect("nothing to encode").is_none());
        assert!(by_class_and_epoch(&example(0, 0.5), &lines, &measured).expect("nothing to encode").is_none());
    }
}
