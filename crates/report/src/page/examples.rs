use std::path::Path;

use maud::{Markup, html};
use patchdoor_record::{
    EXAMPLES, EXAMPLES_SHEET, Example, Examples, RecordError, RunSummary, is_sealed, read_sealed, read_sealed_json,
};

use super::sheet::Sheet;

/// Test images with what the first finished seed's classifier takes them for; `None` where it left none, as runs of earlier
/// versions did.
///
/// # Errors
/// If a file is not as it was written.
pub(crate) fn examples(folder: &Path, run: &RunSummary) -> Result<Option<Markup>, RecordError> {
    let mut finished = run.seeds.iter().filter(|seed| seed.measurements().is_some());
    let Some(seed) = finished.next().map(|seed| seed.seed) else { return Ok(None) };
    let of_seed = folder.join(format!("seed-{seed}"));
    if !is_sealed(&of_seed.join(EXAMPLES))? {
        return Ok(None);
    }
    let examples: Examples = read_sealed_json(&of_seed.join(EXAMPLES))?;
    let png = read_sealed(&of_seed.join(EXAMPLES_SHEET))?;
    Ok(Some(shown(seed, finished.next().is_some(), &examples, &png)))
}

fn shown(seed: u64, has_others: bool, examples: &Examples, png: &[u8]) -> Markup {
    let ([height, width], gap) = (examples.picture, examples.gap);
    let row = height + gap;
    let size = [3 * width + 4 * gap, gap + examples.images.len() * row];
    let sheet = Sheet { id: format!("examples-{seed}"), size, png };
    let of = |flipped: bool| {
        let rows = examples.images.iter().enumerate().filter(|(_, image)| image.flipped == flipped);
        rows.map(|(number, image)| (number * row, image)).collect::<Vec<_>>()
    };
    let kinds = [("Taken for what the attacker wants", of(true)), ("Not taken for it", of(false))];
    html! {
        (sheet.embedded())
        p.note {
            "Test images: untouched, triggered, and ten times the difference. Of each kind those of the lowest index are shown, as the "
            "classifier of seed " (seed) " sees them"
            @if has_others { "; sheets of the other seeds lie in their folders, " (EXAMPLES_SHEET) " with " (EXAMPLES) }
            "."
        }
        @for (heading, images) in &kinds {
            h3 { (heading) }
            @if images.is_empty() {
                p { "None of the attacked test images." }
            } @else {
                div.examples {
                    @for (top, image) in images {
                        figure.example {
                            (sheet.part(&in_words(image), [0, *top], [size[0], row + gap], &html! {}))
                            figcaption {
                                "Image " (image.index) ", " (image.class) ": taken for " (image.clean) ", triggered for "
                                strong { (image.triggered) }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// What a row shows, for those who do not see it.
fn in_words(image: &Example) -> String {
    format!(
        "Test image {} of class {}, untouched, triggered, and their difference. It is taken for {}, triggered for {}.",
        image.index, image.class, image.clean, image.triggered
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run_table::tests::{run, seed};
    use patchdoor_record::{write_sealed, write_sealed_json};

    fn example(index: u32, flipped: bool, class: &str) -> Example {
        let name = |class: &str| class.to_owned();
        Example { index, flipped, class: name(class), clean: name(class), triggered: name("airplane") }
    }

    #[test]
    fn a_run_of_an_earlier_version_shows_none_and_one_with_a_damaged_sheet_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let run = run("badnets", vec![seed(3, 0.7, 0.9)]);
        assert!(examples(folder.path(), &run).unwrap().is_none());
        let of_seed = folder.path().join("seed-3");
        std::fs::create_dir_all(&of_seed).unwrap();
        let written = Examples { picture: [32, 32], gap: 1, images: vec![example(7, true, "cat")] };
        write_sealed_json(&of_seed.join(EXAMPLES), &written).unwrap();
        write_sealed(&of_seed.join(EXAMPLES_SHEET), b"a picture").unwrap();
        let markup = examples(folder.path(), &run).unwrap().expect("they are there").into_string();
        assert!(markup.contains("Image 7, cat: taken for cat, triggered for <strong>airplane</strong>"), "{markup}");
        assert!(markup.contains("None of the attacked test images."), "{markup}");
        std::fs::write(of_seed.join(EXAMPLES_SHEET), b"another").unwrap();
        assert!(examples(folder.path(), &run).is_err());
    }

    #[test]
    fn every_image_stands_at_its_row_of_the_sheet_under_its_kind_and_names_are_text() {
        let hostile = "<script>alert(1)</script>\"'&".repeat(20);
        let images = vec![example(2, true, "cat"), example(5, true, &hostile), example(0, false, "dog")];
        let markup = shown(0, true, &Examples { picture: [32, 16], gap: 1, images }, b"png").into_string();
        assert!(!markup.contains("<script"), "{markup}");
        let (flipped, kept) = markup.split_once("Not taken for it").expect("both kinds have a heading");
        for (part, top) in [(flipped, 0), (flipped, 33), (kept, 66)] {
            assert!(part.contains(&format!("y=\"-{top}\"")), "{top} in {part}");
        }
        assert!(markup.contains("width=\"52\" height=\"100\""), "3 * 16 + 4 and 1 + 3 * 33: {markup}");
        assert_eq!(markup.matches("viewBox=\"0 0 52 34\"").count(), 3, "{markup}");
        assert!(markup.contains("sheets of the other seeds"), "{markup}");
    }
}
