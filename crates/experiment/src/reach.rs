use patchdoor_model::{ClassifierConfig, ExpertChoiceConfig};
use patchdoor_record::Reach;
use patchdoor_train::input_shape;

use crate::exam::Exam;
use crate::routing::{Area, cells, triggered_patches};

/// How much of a test image the trigger touches, on average.
///
/// Patches and what they see are those of the classifier, or of the patch-level mixture of experts most like a dense one, so
/// that the two are compared at the same reach.
pub(crate) fn reach(exam: &Exam<'_>, model: &ClassifierConfig) -> Option<Reach> {
    let (clean, triggered) = (exam.test, &exam.triggered);
    let images = clean.len();
    if images == 0 {
        return None;
    }
    let geometry = model.network().nearest_patch_moe();
    let input = input_shape(clean.shape());
    let (rows, columns) = geometry.patch_grid(input);
    let fields: Vec<Area> =
        (0..rows * columns).map(|patch| geometry.receptive_field(input, patch / columns, patch % columns)).collect();
    let mean = |areas: &[Area]| {
        let marks = triggered_patches(clean, triggered, areas);
        marks.iter().filter(|&&mark| mark).count() as f64 / images as f64
    };
    let channels = clean.shape().channels;
    let changed = |image: usize| {
        let pairs = clean.pixels(image).chunks_exact(channels).zip(triggered.pixels(image).chunks_exact(channels));
        pairs.filter(|(before, after)| before != after).count()
    };
    let pixels = (0..images).map(changed).sum::<usize>() as f64 / images as f64;
    let of_cells = mean(&cells(clean.shape(), [rows, columns]));
    Some(Reach { pixels, cells: of_cells, patches: mean(&fields), all_patches: rows * columns })
}

#[cfg(test)]
mod tests {
    use patchdoor_data::{ImageSet, ImageShape};
    use patchdoor_plan::{Plan, PlanOptions};

    use super::*;
    use crate::attack::Attack;

    /// Pixels, cells and patches of an attack on shapes.
    fn reach_of(attack: &str, model: &str) -> [u32; 3] {
        let text = format!("dataset = \"shapes\"\n{attack}\n[model.{model}]\nwiden-factor = 1\n");
        let plan = Plan::from_text("a.toml", &text, &PlanOptions::default()).expect("valid");
        let shape = ImageShape::RGB_32;
        let classes: Vec<String> = (0..10).map(|class| class.to_string()).collect();
        let labels = (0..20).map(|image| image % 10).collect();
        let grey = ImageSet::new(shape, vec![128; 20 * shape.size()], labels, classes).expect("whole images");
        let config = plan.config();
        let attack = Attack::prepare(config, config.placement.as_ref(), None, &grey, None, 0).expect("it can be built");
        let reach = reach(&Exam::new(&attack, &grey), &config.model).expect("there are images");
        assert_eq!(reach.all_patches, 64);
        [reach.pixels, reach.cells, reach.patches].map(|count| {
            assert!(count.fract() == 0.0, "the same in every image: {count}");
            count as u32
        })
    }

    #[test]
    fn placements_of_equal_pixels_differ_in_reach() {
        let white = "[poisoning]\nrate = 0.1\n[trigger.square]\nsize = 4\nanchor = \"upper-left\"\nvalue = 255";
        let placed = |cells: &str| format!("{white}\n[placement]\ncells = {cells}");
        // Pixels 28 to 31 of both axes: patches of rows 4r - 5 to 4r + 11 see them for r = 5, 6, 7.
        let corner = white.replace("upper-left", "lower-right");
        assert_eq!(reach_of(&corner, "patch-moe"), [16, 1, 9]);
        assert_eq!(reach_of(&corner, "wide-resnet"), [16, 1, 9], "the dense one is held against the same patches");
        // Pixels 12 to 19: r = 1, .., 6 of each axis see one.
        let block = placed("{ block = { size = 2, anchor = \"mid-mid\" } }");
        assert_eq!(reach_of(&block, "patch-moe"), [64, 4, 36]);
        // As many pixels, four cells far apart, each seen by 5 x 5 patches or fewer at the border.
        let apart = placed("{ list = [[0, 0], [0, 7], [7, 0], [7, 7]] }");
        let [pixels, cells, patches] = reach_of(&apart, "patch-moe");
        assert_eq!((pixels, cells), (64, 4));
        assert_eq!(patches, 9 + 2 * 9 + 9);
        // One pixel in each of all cells.
        let all = placed("\"all\"").replace("size = 4", "size = 1");
        assert_eq!(reach_of(&all, "patch-moe"), [64, 64, 64]);
    }
}
