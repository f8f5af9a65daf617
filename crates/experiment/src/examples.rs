use std::io;
use std::path::Path;

use patchdoor_data::{Image, ImageShape};
use patchdoor_record::{EXAMPLES, EXAMPLES_SHEET, Example, Examples, write_sealed, write_sealed_json};
use patchdoor_triggers::ContactSheet;

use crate::exam::Exam;
use crate::halt::Step;

/// Images of each kind, those that the trigger flips and those that it does not.
const EACH: usize = 6;

/// Pixels of a picture's longer side beyond which it is made smaller, so that a page stays small.
const LARGEST: usize = 64;

/// Leaves a sheet of test images in the seed's folder, and what the backdoored classifier takes them for, given its
/// predictions: the first [`EACH`] of the attacked images that are taken for what the attacker wants, and the first of those
/// that are not. The lowest index chooses, nobody's taste. Nothing is left where no test image is attacked.
pub(crate) fn leave_examples(exam: &Exam<'_>, clean: &[u8], triggered: &[u8], folder: &Path) -> Step<()> {
    let chosen = choose(exam, triggered);
    if chosen.is_empty() {
        return Ok(());
    }
    let (test, names) = (exam.test, exam.test.classes());
    let name = |class: u8| names[usize::from(class)].clone();
    let images = chosen.iter().map(|&(index, flipped)| Example {
        index: test.origin(index),
        flipped,
        class: name(test.label(index)),
        clean: name(clean[index]),
        triggered: name(triggered[index]),
    });
    let shape = reduced_shape(test.shape());
    let row = |&(index, _): &(usize, bool)| {
        let pair = [test, &exam.triggered].map(|set| reduced(&set.image(index)));
        (index.to_string(), vec![pair])
    };
    let sheet = ContactSheet::of_pairs(shape, chosen.iter().map(row).collect(), 1);
    let examples = Examples { picture: [shape.height, shape.width], gap: 1, images: images.collect() };
    write_sealed(&folder.join(EXAMPLES_SHEET), &sheet.png().map_err(io::Error::other)?)?;
    Ok(write_sealed_json(&folder.join(EXAMPLES), &examples)?)
}

/// The test images to show by their place in the set, and whether each is flipped: those that are, then those that are not.
fn choose(exam: &Exam<'_>, triggered: &[u8]) -> Vec<(usize, bool)> {
    let test = exam.test;
    let judged = |index: usize| exam.attack.succeeds(triggered[index], test.label(index), test.class_count());
    let of = |wanted: bool| (0..test.len()).filter(move |&index| judged(index) == Some(wanted)).take(EACH);
    of(true).map(|index| (index, true)).chain(of(false).map(|index| (index, false))).collect()
}

/// By how much a picture is made smaller along each side.
fn reduction(shape: ImageShape) -> usize {
    shape.height.max(shape.width).div_ceil(LARGEST).max(1)
}

fn reduced_shape(shape: ImageShape) -> ImageShape {
    let by = reduction(shape);
    ImageShape { height: (shape.height / by).max(1), width: (shape.width / by).max(1), ..shape }
}

/// The image with the means of squares of pixels as its pixels, if it is too large; what fills no square is cut off.
fn reduced(image: &Image) -> Image {
    let (whole, small, by) = (image.shape(), reduced_shape(image.shape()), reduction(image.shape()));
    if by == 1 {
        return image.clone();
    }
    let mut pixels = Vec::with_capacity(small.size());
    for (row, column) in (0..small.height).flat_map(|row| (0..small.width).map(move |column| (row, column))) {
        let [rows, columns] =
            [(row, whole.height), (column, whole.width)].map(|(at, end)| at * by..end.min((at + 1) * by));
        let of_square = || rows.clone().flat_map(|row| columns.clone().map(move |column| image.pixel(row, column)));
        let count = (rows.len() * columns.len()).max(1);
        pixels.extend((0..whole.channels).map(|channel| {
            let sum = of_square().map(|pixel| usize::from(pixel[channel])).sum::<usize>();
            ((sum + count / 2) / count) as u8
        }));
    }
    Image::new(small, pixels).expect("a pixel for each square")
}

#[cfg(test)]
mod tests {
    use patchdoor_data::{DatasetConfig, ShapesConfig, load};
    use patchdoor_plan::{Plan, PlanOptions};
    use patchdoor_record::{read_sealed, read_sealed_json};

    use super::*;
    use crate::attack::Attack;

    const TEXT: &str = "dataset.shapes = { train = 40, test = 40, seed = 0 }\n[poisoning]\nrate = 0.1\ntarget-class = 1\n\
                        [trigger.square]\n[model.patch-moe]\n";

    #[test]
    fn the_lowest_indices_of_each_kind_are_shown_and_images_of_the_target_never() {
        let dataset = DatasetConfig::Shapes(ShapesConfig { train: 40, test: 40, seed: 0 });
        let images = load(&dataset, &[]).expect("shapes need no file");
        let plan = Plan::from_text("a.toml", TEXT, &PlanOptions::default()).expect("valid");
        let Ok(attack) = Attack::prepare(plan.config(), None, None, &images.train, None, 0) else {
            panic!("it can be prepared")
        };
        let exam = Exam::new(&attack, &images.test);
        // Every third image is flipped; the others keep their class.
        let labels = images.test.labels();
        let predicted =
            labels.iter().enumerate().map(|(index, &label)| if index % 3 == 0 { 1 } else { label }).collect::<Vec<_>>();
        let attacked = (0..40).filter(|&index| labels[index] != 1);
        let (flipped, kept): (Vec<usize>, Vec<usize>) = attacked.partition(|index| index % 3 == 0);

        let folder = tempfile::tempdir().expect("a temporary folder");
        let Ok(()) = leave_examples(&exam, labels, &predicted, folder.path()) else { panic!("the folder is writable") };
        let examples: Examples = read_sealed_json(&folder.path().join(EXAMPLES)).expect("just written");
        let indices = |wanted| {
            let of_kind = examples.images.iter().filter(|example| example.flipped == wanted);
            of_kind.map(|example| example.index as usize).collect::<Vec<_>>()
        };
        assert_eq!(indices(true), flipped[..6]);
        assert_eq!(indices(false), kept[..6]);
        for example in &examples.images {
            assert_eq!(example.class, example.clean);
            assert_eq!(example.triggered == images.test.classes()[1], example.flipped);
        }
        // A row has three pictures of 32 pixels with a gap on each side.
        assert_eq!((examples.picture, examples.gap), ([32, 32], 1));
        let sheet = read_sealed(&folder.path().join(EXAMPLES_SHEET)).expect("just written");
        let side = |at: usize| u32::from_be_bytes([sheet[at], sheet[at + 1], sheet[at + 2], sheet[at + 3]]);
        assert_eq!((side(16), side(20)), (3 * 32 + 4, 1 + 12 * 33));
    }

    #[test]
    fn a_large_picture_is_made_of_the_means_of_squares() {
        // 130 columns are three times 43 and a rest of one; a row of two pixels alone is not made less than one.
        let shape = ImageShape { height: 2, width: 130, channels: 1 };
        let pixels = (0..260).map(|at| if at < 130 { 10 } else { 20 }).collect();
        let small = reduced(&Image::new(shape, pixels).expect("260 pixels"));
        assert_eq!((small.shape().height, small.shape().width), (1, 43));
        assert!(small.pixels().iter().all(|&pixel| pixel == 15), "{:?}", small.pixels());
        let whole = Image::new(ImageShape { height: 1, width: 2, channels: 1 }, vec![1, 2]).expect("two pixels");
        assert_eq!(reduced(&whole), whole);
    }
}
