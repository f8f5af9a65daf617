//! Heat maps as SVG, written by hand: tiles of coloured squares under headings.

use std::collections::BTreeMap;
use std::fmt::Write;

use patchdoor_record::RoutingEpoch;

use crate::maps::{SETS, SeedMaps};

/// Space around tiles and for headings, in pixels.
const MARGIN: usize = 12;
const HEADING: usize = 16;
const ROW_HEADING: usize = 96;
/// Width of a letter, on average.
const LETTER: usize = 6;

/// A map of patches.
struct Tile {
    values: Vec<f64>,
    scale: Scale,
}

/// What the colours of a tile mean.
#[derive(Clone, Copy)]
pub(crate) enum Scale {
    /// From white, 0, to dark blue, 1.
    Share,
    /// From red, -1, over white, 0, to blue, 1, by the root of the absolute value, so that small differences show.
    Difference,
}

impl Scale {
    fn colour(self, value: f64) -> String {
        let [red, green, blue] = self.rgb(value);
        format!("#{red:02x}{green:02x}{blue:02x}")
    }

    /// The colour of a value as red, green and blue.
    pub(crate) fn rgb(self, value: f64) -> [u8; 3] {
        let between = |from: [f64; 3], to: [f64; 3], t: f64| {
            std::array::from_fn(|i| (from[i] + (to[i] - from[i]) * t).round() as u8)
        };
        // In steps of 1/64, so that equal colours can share a path.
        let step = |t: f64| (t.clamp(0.0, 1.0) * 64.0).round() / 64.0;
        let (white, blue, red) = ([255.0; 3], [8.0, 48.0, 107.0], [165.0, 0.0, 38.0]);
        match self {
            _ if value.is_nan() => [0xcc; 3],
            Self::Share => between(white, blue, step(value)),
            Self::Difference if value < 0.0 => between(white, red, step((-value).sqrt())),
            Self::Difference => between(white, blue, step(value.sqrt())),
        }
    }
}

/// A page of tiles under one title.
struct Page {
    title: Vec<String>,
    columns: Vec<String>,
    /// Each with its heading.
    rows: Vec<(String, Vec<Tile>)>,
    grid: [usize; 2],
    /// Side of a patch in pixels.
    side: usize,
    /// Patches that get a frame.
    framed: Vec<bool>,
}

impl Page {
    fn draw(&self) -> String {
        let [rows, columns] = self.grid;
        let (across, down) = (columns * self.side + MARGIN, rows * self.side + MARGIN);
        let top = MARGIN + HEADING * (self.title.len() + 1);
        let words = self.title.iter().map(|line| line.chars().count()).max().unwrap_or(0) * LETTER;
        let width = (ROW_HEADING + across * self.columns.len()).max(MARGIN + words) + MARGIN;
        let height = top + down * self.rows.len();
        let mut text = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
             viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"11\">\n\
             <rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>\n"
        );
        for (line, title) in self.title.iter().enumerate() {
            let _ = writeln!(text, "<text x=\"{MARGIN}\" y=\"{}\">{}</text>", HEADING * (line + 1), escape(title));
        }
        for (number, heading) in self.columns.iter().enumerate() {
            let (x, y) = (ROW_HEADING + number * across, top - 5);
            let _ = writeln!(text, "<text x=\"{x}\" y=\"{y}\">{}</text>", escape(heading));
        }
        for (number, (heading, tiles)) in self.rows.iter().enumerate() {
            let y = top + number * down;
            let _ = writeln!(text, "<text x=\"{MARGIN}\" y=\"{}\">{}</text>", y + HEADING, escape(heading));
            for (column, tile) in tiles.iter().enumerate() {
                self.draw_tile(tile, ROW_HEADING + column * across, y, &mut text);
            }
        }
        text.push_str("</svg>\n");
        text
    }

    /// One path for each colour.
    fn draw_tile(&self, tile: &Tile, left: usize, top: usize, text: &mut String) {
        let ([rows, columns], side) = (self.grid, self.side);
        let mut paths: BTreeMap<String, String> = BTreeMap::new();
        let mut frames = String::new();
        for (patch, &value) in tile.values.iter().enumerate() {
            let (x, y) = (left + patch % columns * side, top + patch / columns * side);
            let path = paths.entry(tile.scale.colour(value)).or_default();
            let _ = write!(path, "M{x} {y}h{side}v{side}h-{side}z");
            if self.framed[patch] {
                let _ = write!(frames, "M{x} {y}h{side}v{side}h-{side}z");
            }
        }
        for (colour, path) in paths {
            let _ = writeln!(text, "<path fill=\"{colour}\" d=\"{path}\"/>");
        }
        if !frames.is_empty() {
            let _ = writeln!(text, "<path fill=\"none\" stroke=\"#e08214\" d=\"{frames}\"/>");
        }
        let (width, height) = (columns * side, rows * side);
        let _ = writeln!(
            text,
            "<rect x=\"{left}\" y=\"{top}\" width=\"{width}\" height=\"{height}\" fill=\"none\" stroke=\"#888888\"/>"
        );
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// Lines under a page's title, short enough for three tiles.
fn legend(chance: f64) -> [String; 2] {
    [
        format!("Share of test images: white 0, dark blue 1 (by chance {chance:.2})."),
        "Difference, triggered - clean: red below 0, blue above. Framed: under the trigger.".into(),
    ]
}

/// A title with the legend below it.
fn title(chance: f64, what: String) -> Vec<String> {
    std::iter::once(what).chain(legend(chance)).collect()
}

/// Patches that the trigger changes in at least half of the images.
pub(crate) fn framed(triggered: &[f64]) -> Vec<bool> {
    triggered.iter().map(|&share| share >= 0.5).collect()
}

/// Clean, triggered and their difference, from frequencies; NaN becomes a grey tile.
fn three(clean: Vec<f64>, triggered: Vec<f64>) -> [Tile; 3] {
    let difference = clean.iter().zip(&triggered).map(|(before, after)| after - before).collect();
    [
        Tile { values: clean, scale: Scale::Share },
        Tile { values: triggered, scale: Scale::Share },
        Tile { values: difference, scale: Scale::Difference },
    ]
}

/// A page with a row for each expert, over all classes: clean, triggered, difference.
pub(crate) fn experts(maps: &SeedMaps, classifier: usize, chance: f64) -> String {
    let row = |expert: usize| {
        let [clean, triggered] = SETS.map(|set| maps.of_expert(classifier, set, expert));
        (format!("expert {expert}"), three(clean, triggered).into())
    };
    let name = maps.classifiers[classifier].name;
    Page {
        title: title(chance, format!("{name}: where each expert looks, all classes")),
        columns: ["clean", "triggered", "difference"].map(str::to_owned).into(),
        rows: (0..maps.experts).map(row).collect(),
        grid: maps.grid,
        side: 16,
        framed: framed(&maps.triggered),
    }
    .draw()
}

/// A page with a row for each class and, for each expert, its clean map and the difference.
pub(crate) fn classes(maps: &SeedMaps, classifier: usize, names: &[String], chance: f64) -> String {
    let row = |(class, heading): (usize, &String)| {
        let tiles = (0..maps.experts).flat_map(|expert| {
            let [clean, triggered] = SETS.map(|set| maps.of_class(classifier, set, class, expert).to_vec());
            let [clean, _, difference] = three(clean, triggered);
            [clean, difference]
        });
        (heading.clone(), tiles.collect())
    };
    let columns = (0..maps.experts).flat_map(|expert| [format!("{expert} clean"), "difference".to_owned()]);
    let name = maps.classifiers[classifier].name;
    Page {
        title: title(chance, format!("{name}: where each expert looks, by class")),
        columns: columns.collect(),
        rows: names.iter().enumerate().map(row).collect(),
        grid: maps.grid,
        side: 8,
        framed: framed(&maps.triggered),
    }
    .draw()
}

/// A page with a row for each expert and set, and a column for each epoch.
pub(crate) fn epochs(maps: &SeedMaps, lines: &[RoutingEpoch], chance: f64) -> String {
    let row = |expert: usize, set: &str, of: fn(&RoutingEpoch) -> &Vec<Vec<f64>>| {
        let tiles = lines.iter().filter_map(|line| of(line).get(expert));
        let tiles = tiles.map(|values| Tile { values: values.clone(), scale: Scale::Share });
        (format!("{expert}, {set}"), tiles.collect())
    };
    let rows = (0..maps.experts).flat_map(|expert| {
        [row(expert, "clean", |line| &line.clean_frequency), row(expert, "triggered", |line| &line.triggered_frequency)]
    });
    Page {
        title: title(chance, "victim: where each expert looks after each epoch".into()),
        columns: lines.iter().map(|line| format!("epoch {}", line.epoch + 1)).collect(),
        rows: rows.collect(),
        grid: maps.grid,
        side: 8,
        framed: framed(&maps.triggered),
    }
    .draw()
}

/// A page with a column for each seed and one for their mean, averaged over experts: the first expert of one seed is no kin
/// of the first of another. Seeds of one experiment, at least one.
pub(crate) fn seeds(maps: &[SeedMaps]) -> String {
    let mean = |of: &dyn Fn(&SeedMaps) -> Option<Vec<f64>>| {
        let found = maps.iter().filter_map(of).collect::<Vec<_>>();
        let at = |patch: usize| found.iter().map(|map| map[patch]).sum::<f64>() / found.len() as f64;
        (0..maps[0].triggered.len()).map(at).collect::<Vec<f64>>()
    };
    let rows = (0..maps[0].classifiers.len()).flat_map(|classifier| {
        let [clean, triggered] = SETS.map(|set| {
            move |seed: &SeedMaps| (classifier < seed.classifiers.len()).then(|| seed.of_all(classifier, set))
        });
        let absent = || vec![f64::NAN; maps[0].triggered.len()];
        let of_seed = |seed| three(clean(seed).unwrap_or_else(absent), triggered(seed).unwrap_or_else(absent));
        let mut columns = maps.iter().map(of_seed).collect::<Vec<_>>();
        if maps.len() > 1 {
            columns.push(three(mean(&clean), mean(&triggered)));
        }
        let title = maps[0].classifiers[classifier].title;
        let headings = [format!("{title}, clean"), "  triggered".into(), "  difference".into()];
        let mut rows = headings.map(|heading| (heading, Vec::new()));
        for column in columns {
            for (row, tile) in rows.iter_mut().zip(column) {
                row.1.push(tile);
            }
        }
        rows
    });
    let mut columns = maps.iter().map(|seed| format!("seed {}", seed.seed)).collect::<Vec<_>>();
    if maps.len() > 1 {
        columns.push("mean".into());
    }
    Page {
        title: vec![
            "Where the experts look, mean over experts and classes".into(),
            "Share of test images: white 0, dark blue 1.".into(),
            "Difference: red below 0, blue above. Framed: under the trigger.".into(),
        ],
        columns,
        rows: rows.collect(),
        grid: maps[0].grid,
        side: 12,
        framed: framed(&mean(&|seed| Some(seed.triggered.clone()))),
    }
    .draw()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::maps::example;

    #[test]
    fn a_page_has_a_tile_for_each_expert_and_column_and_frames_the_trigger() {
        let page = experts(&example(0, 0.25), 0, 0.25);
        assert!(page.contains(">victim: where each expert looks, all classes<") && page.ends_with("</svg>\n"));
        assert_eq!(page.matches("stroke=\"#888888\"").count(), 2 * 3, "tiles");
        let frames = page.lines().filter(|line| line.contains("stroke=\"#e08214\""));
        assert!(frames.clone().all(|line| line.matches('M').count() == 1), "the trigger covers one patch");
        assert_eq!(frames.count(), 2 * 3);
        let squares: usize =
            page.lines().filter(|line| line.starts_with("<path fill=\"#")).map(|line| line.matches('M').count()).sum();
        assert_eq!(squares, 2 * 3 * 2, "every patch has a colour");
    }

    #[test]
    fn a_page_is_as_wide_as_its_words() {
        let page = seeds(&[example(3, 0.5)]);
        let width = page.split("width=\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap();
        let longest = "Difference: red below 0, blue above. Framed: under the trigger.".len();
        // Letters of this size are 6 pixels wide on average and 8 at most.
        assert!(width.parse::<usize>().unwrap() >= 6 * longest, "{width}");
        assert!(!page.contains("mean<"), "one seed needs no mean");
    }

    #[test]
    fn names_of_classes_are_text_and_no_markup() {
        let page = classes(&example(0, 0.5), 0, &["a <b>".into(), "c & d".into()], 0.5);
        assert!(page.contains(">a &lt;b&gt;<") && page.contains(">c &amp; d<"));
    }

    #[test]
    fn a_page_of_seeds_ends_with_their_mean() {
        let page = seeds(&[example(0, 0.0), example(7, 1.0)]);
        for heading in ["seed 0", "seed 7", "mean", "victim, clean", "  triggered", "  difference"] {
            assert!(page.contains(&format!(">{heading}<")), "{heading} in {page}");
        }
        assert_eq!(page.matches("stroke=\"#888888\"").count(), 3 * 3, "tiles");
        // Half of white and dark blue, in both patches of the clean and of the triggered mean.
        let half = format!("<path fill=\"{}\"", Scale::Share.colour(0.5));
        let squares = page.lines().filter(|line| line.starts_with(&half)).map(|line| line.matches('M').count());
        assert_eq!(squares.sum::<usize>(), 4, "{page}");
    }

    #[test]
    fn colours_tell_shares_and_signs() {
        assert_eq!(Scale::Share.colour(0.0), "#ffffff");
        assert_eq!(Scale::Share.colour(1.0), "#08306b");
        assert_eq!(Scale::Difference.colour(0.0), "#ffffff");
        assert_eq!(Scale::Difference.colour(-1.0), "#a50026");
        assert_eq!(Scale::Share.colour(f64::NAN), "#cccccc");
    }
}
