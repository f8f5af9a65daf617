use std::collections::BTreeMap;
use std::fmt::Write;

use maud::{Markup, PreEscaped, html};
use patchdoor_metrics::ConfusionMatrix;
use patchdoor_record::{Confusion, Measurements, RunSummary, SeedResult, Unit};

use super::table::{Cell, Table};

/// Width of a picture in its own units; a page scales it.
const WIDTH: usize = 520;
/// Height of a line of letters, in the same, on a phone too.
const LINE: usize = 28;
/// Classes beyond this number have their numbers alone beside the picture, where their names would run into each other.
const NAMED: usize = 16;
/// Letters of a name that have room there.
const NAME: usize = 12;
/// Least shade that is seen on the page, in twentieths.
const FAINTEST: usize = 3;
/// Classes that one class is most often taken for, by name.
const MISTAKES: usize = 3;

/// What images of each class are taken for, untouched and triggered, over all seeds; `None` where no seed has it on record.
pub(crate) fn confusion(run: &RunSummary) -> Option<Markup> {
    let measured = run.seeds.iter().filter_map(SeedResult::measurements);
    let measured = measured.filter(|seed| seed.confusion.is_some()).collect::<Vec<&Measurements>>();
    let sum = |of: fn(&Confusion) -> &ConfusionMatrix| {
        ConfusionMatrix::sum(measured.iter().filter_map(|seed| seed.confusion.as_ref()).map(of))
    };
    let matrices = [sum(|both| &both.clean)?, sum(|both| &both.triggered)?];
    let names = measured.first()?.classes.iter().map(|class| class.class.as_str()).collect::<Vec<_>>();
    let [clean, triggered] = &matrices;
    let seeds = if measured.len() == 1 { "one seed".into() } else { format!("mean of {} seeds", measured.len()) };
    Some(html! {
        p.note {
            "A row is a true class, a column the class that its images are taken for. Numbers are percent of the row (" (seeds) "), and "
            "colours go by their root, so that small shares show. What is right lies on the diagonal."
        }
        div.charts {
            (picture("Untouched test images", clean, &names))
            (picture("The same images, triggered", triggered, &names))
        }
        details {
            summary { "By class, as a table" }
            (table(&matrices, &names, measured.len()).markup())
        }
    })
}

/// The share of a row's images in each of its columns; zero in a row without images.
fn shares(row: &[usize]) -> Vec<f64> {
    let images = row.iter().sum::<usize>().max(1) as f64;
    row.iter().map(|&count| count as f64 / images).collect()
}

/// What a class is called: its name, or its number where it has none.
fn name_of(names: &[&str], class: usize) -> String {
    names.get(class).map_or_else(|| class.to_string(), |name| (*name).to_owned())
}

/// A picture of a matrix with its caption.
fn picture(title: &str, matrix: &ConfusionMatrix, names: &[&str]) -> Markup {
    let svg = draw(matrix, names);
    let label = html! { (title) ". " (description(matrix, names)) }.into_string();
    html! {
        figure.chart {
            figcaption { (title) }
            (PreEscaped(svg.replacen("<svg ", &format!("<svg role=\"img\" aria-label=\"{label}\" "), 1)))
        }
    }
}

/// What there is to see, for those who do not see it.
fn description(matrix: &ConfusionMatrix, names: &[&str]) -> String {
    let mut mistakes = Vec::new();
    for (class, row) in matrix.rows().iter().enumerate() {
        let others = shares(row).into_iter().enumerate().filter(|&(other, share)| other != class && share > 0.0);
        mistakes.extend(others.map(|(other, share)| (share, class, other)));
    }
    mistakes.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    if mistakes.is_empty() {
        return "Nothing is taken for another class.".into();
    }
    let said = mistakes.iter().take(MISTAKES).map(|&(share, class, other)| {
        format!("{} for {}, {} %", name_of(names, class), name_of(names, other), Unit::Share.text(share))
    });
    format!(
        "Most often taken for another class: {}. The table below has all classes.",
        said.collect::<Vec<_>>().join("; ")
    )
}

/// How many classes lie between two labels, so that labels of `size` stay apart.
fn step(cell: usize, size: usize) -> usize {
    [1, 2, 5, 10, 20].into_iter().find(|step| step * cell >= size).unwrap_or(50)
}

/// The matrix as squares under the numbers of predicted classes, one path for each shade.
fn draw(matrix: &ConfusionMatrix, names: &[&str]) -> String {
    let classes = matrix.rows().len().max(1);
    let is_named = classes <= NAMED;
    let left = if is_named { NAME * 12 } else { 3 * 14 };
    let cell = ((WIDTH - left) / classes).clamp(1, 56);
    let side = cell * classes;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {}\" font-size=\"15\">\n",
        LINE + side + 4
    );
    let mut shades: BTreeMap<usize, String> = BTreeMap::new();
    let mut numbers = String::new();
    for (class, row) in matrix.rows().iter().enumerate() {
        for (predicted, share) in shares(row).into_iter().enumerate().filter(|(_, share)| *share > 0.0) {
            let (x, y) = (left + predicted * cell, LINE + class * cell);
            let path = shades.entry(((share.sqrt() * 20.0).ceil() as usize).max(FAINTEST)).or_default();
            let _ = write!(path, "M{x} {y}h{cell}v{cell}h-{cell}z");
            if cell >= 36 {
                let percent = if share < 0.005 { "&lt;1".into() } else { format!("{:.0}", 100.0 * share) };
                let (x, y) = (x + cell / 2, y + cell / 2 + 6);
                let _ = writeln!(numbers, "<text x=\"{x}\" y=\"{y}\" text-anchor=\"middle\">{percent}</text>");
            }
        }
    }
    for (shade, path) in shades {
        let _ = writeln!(text, "<path fill=\"var(--heat)\" fill-opacity=\"{:.2}\" d=\"{path}\"/>", shade as f64 / 20.0);
    }
    let _ = writeln!(
        text,
        "<rect x=\"{left}\" y=\"{LINE}\" width=\"{side}\" height=\"{side}\" fill=\"none\" stroke=\"var(--soft)\"/>"
    );
    // Letters take the colour of the page's.
    let _ = writeln!(text, "<g fill=\"currentColor\">\n{numbers}");
    for class in (0..classes).step_by(step(cell, 36)) {
        let x = left + class * cell + cell / 2;
        let _ = writeln!(text, "<text x=\"{x}\" y=\"{}\" text-anchor=\"middle\">{class}</text>", LINE - 6);
    }
    for class in (0..classes).step_by(if is_named { 1 } else { step(cell, LINE) }) {
        let (x, y) = (left - 6, LINE + class * cell + cell / 2 + 6);
        let name = if is_named { format!("{} {class}", shortened(&name_of(names, class))) } else { class.to_string() };
        let name = html! { (name) }.into_string();
        let _ = writeln!(text, "<text x=\"{x}\" y=\"{y}\" text-anchor=\"end\">{name}</text>");
    }
    text.push_str("</g>\n</svg>\n");
    text
}

/// A name that has room beside the picture; the table has all of it.
fn shortened(name: &str) -> String {
    let most = NAME - 3;
    if name.chars().count() <= most {
        return name.to_owned();
    }
    name.chars().take(most - 1).chain(['…']).collect()
}

/// What each class is taken for, in words.
fn table([clean, triggered]: &[ConfusionMatrix; 2], names: &[&str], seeds: usize) -> Table {
    let of = |class: usize, row: &[usize]| {
        if row.iter().sum::<usize>() == 0 {
            return [Cell::text("-"), Cell::text("-")];
        }
        let right = shares(row)[class];
        [Cell::number(Unit::Share.text(right), right), Cell::text(mistakes(class, row, names))]
    };
    let rows = clean.rows().iter().zip(triggered.rows()).enumerate().map(|(class, (untouched, changed))| {
        let images = untouched.iter().sum::<usize>() / seeds.max(1);
        let label = format!("{class} {}", name_of(names, class));
        let mut row = vec![Cell::text(label), Cell::number(images.to_string(), images as f64)];
        row.extend(of(class, untouched));
        row.extend(of(class, changed));
        row
    });
    Table {
        caption: "What test images of each class are taken for, percent of the class".into(),
        header: ["class", "images", "right", "taken for", "triggered: right", "triggered: taken for"]
            .map(str::to_owned)
            .into(),
        rows: rows.collect(),
    }
}

/// The classes that images of a class are most often taken for, with their shares, and how much is left.
fn mistakes(class: usize, row: &[usize], names: &[&str]) -> String {
    let others = shares(row).into_iter().enumerate().filter(|&(other, share)| other != class && share > 0.0);
    let mut others = others.collect::<Vec<_>>();
    others.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    let rest = others.split_off(others.len().min(MISTAKES));
    let mut said = others
        .iter()
        .map(|&(other, share)| format!("{} {}", name_of(names, other), Unit::Share.text(share)))
        .collect::<Vec<_>>();
    if !rest.is_empty() {
        let share = rest.iter().map(|(_, share)| share).sum::<f64>();
        said.push(format!("{} more {}", rest.len(), Unit::Share.text(share)));
    }
    said.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run_table::tests::{run, seed};
    use patchdoor_record::{ClassMeasurements, SeedOutcome};

    /// A seed whose classifier made these predictions of untouched and triggered images.
    fn seed_with(number: u64, names: &[&str], truth: &[u8], [clean, triggered]: [&[u8]; 2]) -> SeedResult {
        let mut seed = seed(number, 0.7, 0.9);
        if let SeedOutcome::Finished(measured) = &mut seed.outcome {
            let of = |predicted| ConfusionMatrix::of(predicted, truth, names.len());
            measured.confusion = Some(Confusion { clean: of(clean), triggered: of(triggered) });
            let class = |name: &&str| ClassMeasurements {
                class: (*name).to_owned(),
                images: 0,
                clean_accuracy: None,
                asr: None,
                robust_accuracy: None,
            };
            measured.classes = names.iter().map(class).collect();
        }
        seed
    }

    #[test]
    fn seeds_are_taken_together_and_rows_are_percent_of_their_class() {
        // Class 0: four images, with seed 0 one of them taken for 1, with seed 1 none: 7 of 8 right.
        let truth = [0, 0, 0, 0, 1];
        let seeds = [[0, 0, 0, 1, 1], [0, 0, 0, 0, 1]].iter().enumerate();
        let seeds = seeds.map(|(number, clean)| seed_with(number as u64, &["cat", "dog"], &truth, [clean, &[0; 5]]));
        let markup = confusion(&run("badnets", seeds.collect())).expect("it is on record").into_string();
        assert!(markup.contains("mean of 2 seeds") && markup.contains("cat for dog, 12.50 %"), "{markup}");
        // The root of 1/8 is 0.35, the twentieth above is 0.40; 88 is 7 of 8, rounded.
        assert!(markup.contains("fill-opacity=\"0.40\"") && markup.contains(">88</text>"), "{markup}");
        assert!(markup.contains(">4</td>") && markup.contains("dog 12.50"), "{markup}");
        assert!(markup.contains("dog for cat, 100.00 %"), "triggered: {markup}");
    }

    #[test]
    fn a_run_of_an_earlier_version_has_no_such_part_and_a_class_without_images_no_rate() {
        assert!(confusion(&run("badnets", vec![seed(0, 0.7, 0.9)])).is_none());
        let seed = seed_with(0, &["cat", "dog"], &[0], [&[0], &[0]]);
        let markup = confusion(&run("badnets", vec![seed])).expect("it is on record").into_string();
        assert!(markup.contains("Nothing is taken for another class."), "{markup}");
        assert!(!markup.contains("NaN"), "{markup}");
        assert_eq!(markup.matches("<td>-</td>").count() + markup.matches("<td class=\"number\">-</td>").count(), 4);
    }

    #[test]
    fn many_classes_have_numbers_at_a_distance_and_their_names_in_the_table() {
        let names = (0..43).map(|class| format!("sign <b>{class}</b>")).collect::<Vec<_>>();
        let names = names.iter().map(String::as_str).collect::<Vec<_>>();
        let truth = (0..43).collect::<Vec<u8>>();
        let seed = seed_with(0, &names, &truth, [&truth, &[7; 43]]);
        let markup = confusion(&run("gtsrb", vec![seed])).expect("it is on record").into_string();
        assert!(!markup.contains("<b>") && markup.contains("42 sign &lt;b&gt;42&lt;/b&gt;"), "{markup}");
        let labels = markup.matches("text-anchor=\"middle\">").count();
        // 11 units a class: 36 have room for every fifth along the top, 9 of 43.
        assert_eq!(labels, 2 * 9);
        assert!(markup.len() < 40_000, "{}", markup.len());
    }

    #[test]
    fn names_are_text_and_short_beside_the_picture() {
        let long = "</text><script>alert(1)</script>".repeat(50);
        let seed = seed_with(0, &[&long, "\"quoted\" & more"], &[0, 1], [&[1, 0], &[0, 0]]);
        let markup = confusion(&run("badnets", vec![seed])).expect("it is on record").into_string();
        assert!(!markup.contains("<script"), "{markup}");
        assert!(markup.contains("&quot;quoted&quot; &amp; more"), "the table has all of it: {markup}");
        let svg = markup.split("<svg ").nth(1).and_then(|rest| rest.split_once('>')).expect("a picture").1;
        let svg = svg.split("</svg>").next().expect("it ends");
        assert!(svg.lines().all(|line| line.len() < 200), "{svg}");
    }
}
