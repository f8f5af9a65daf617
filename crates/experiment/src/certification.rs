use burn::tensor::{Tensor, TensorData};
use patchdoor_data::{ImageSet, stratified_subset, stream};
use patchdoor_kernels::Kernels;
use patchdoor_metrics::{DoubleMasking, MaskedPredictions, accuracy, pairs_of_masks};
use patchdoor_model::Classifier;
use patchdoor_plan::{CertificationConfig, ExperimentConfig};
use patchdoor_record::{CertificationMeasurements, CertificationStanding, MaskedStanding};
use patchdoor_train::{PREDICTION_BATCH, classes_of, image_batches, input_shape, predict};

use crate::attack::Attack;
use crate::console::Watch;
use crate::exam::Exam;
use crate::halt::{Halt, Step};

/// What pixels under a mask show, in [0, 1].
const GREY: f32 = 0.5;

/// What double masking comes to with the backdoored classifier and its clean twin; `None` where the experiment does not ask.
pub(crate) fn measure_certificates<B: Kernels>(
    config: &ExperimentConfig,
    test: &ImageSet,
    attack: &Attack<'_>,
    (victim, twin): (&Classifier<B>, Option<&Classifier<B>>),
    watch: Watch<'_>,
    device: &B::Device,
) -> Step<Option<CertificationMeasurements>> {
    let Some(config) = &config.certification else { return Ok(None) };
    let chosen = stratified_subset(test, config.images.min(test.len()), &mut stream(0, "certification-images"));
    let images = test.subset(&chosen);
    let exam = Exam::new(attack, &images);
    let of = |classifier| certify(config, &exam, classifier, watch, device);
    let (victim, clean_twin) = (of(victim)?, twin.map(of).transpose()?);
    Ok(Some(CertificationMeasurements { images: images.len(), window: config.window, victim, clean_twin }))
}

/// Decides for untouched and triggered images by double masking, and counts for how many of the untouched no change in one window could
/// alter that.
fn certify<B: Kernels>(
    config: &CertificationConfig,
    exam: &Exam<'_>,
    classifier: &Classifier<B>,
    watch: Watch<'_>,
    device: &B::Device,
) -> Step<CertificationStanding> {
    let images = exam.test;
    let plain = |images| predict(classifier, images, PREDICTION_BATCH, device);
    let standing = |masks: usize, passes: &Passes<'_, B>| {
        let of = |images| masked(images, masks, passes, watch, device);
        let (untouched, triggered) = (of(images)?, of(&exam.triggered)?);
        let found = DoubleMasking::of(&untouched, &triggered, images.labels(), |verdicts| exam.outcome(verdicts));
        Ok::<_, Halt>(MaskedStanding::of(masks, found))
    };
    let routing = config.patch_masks(&classifier.config(), input_shape(images.shape())).map(|masks| {
        let joined = pairs_of_masks(masks.len()).map(|(first, second)| {
            let mut patches = [&masks[first][..], &masks[second]].concat();
            patches.sort_unstable();
            patches.dedup();
            patches
        });
        let joined = joined.collect::<Vec<_>>();
        standing(masks.len(), &|batch| {
            let logits = classifier.forward_blocked(batch, &joined).expect("its experts choose patches");
            logits.into_iter().map(classes_of).collect()
        })
    });
    let pixels = (config.pixel_masks > 0).then(|| {
        let masks = pixel_masks::<B>(config, images, device);
        standing(masks.len(), &|batch| {
            let under = |kept: Tensor<B, 4>| batch.clone() * kept.clone() + (kept.neg() + 1.0) * GREY;
            let pairs = pairs_of_masks(masks.len());
            let logits = pairs.map(|(first, second)| under(masks[first].clone() * masks[second].clone()));
            logits.map(|images| classes_of(classifier.forward(images))).collect()
        })
    });
    Ok(CertificationStanding {
        untouched_accuracy: accuracy(&plain(images), images.labels()).unwrap_or(0.0),
        asr: exam.outcome(&plain(&exam.triggered)).attack_success_rate(),
        routing: routing.transpose()?,
        pixels: pixels.transpose()?,
    })
}

/// The classes of a batch of images, `[batch, height, width, channel]`, under each pair of masks in their order.
type Passes<'a, B> = dyn Fn(Tensor<B, 4>) -> Vec<Vec<u8>> + 'a;

fn masked<B: Kernels>(
    images: &ImageSet,
    masks: usize,
    passes: &Passes<'_, B>,
    watch: Watch<'_>,
    device: &B::Device,
) -> Step<Vec<MaskedPredictions>> {
    let mut found = Vec::with_capacity(images.len());
    for batch in image_batches::<B>(images, PREDICTION_BATCH, device) {
        if watch.is_stopped() {
            return Err(Halt::Interrupted);
        }
        let count = batch.dims()[0];
        let classes = passes(batch);
        let of_image = |image: usize| classes.iter().map(|classes| classes[image]).collect();
        found.extend((0..count).map(|image| MaskedPredictions::new(masks, of_image(image))));
    }
    Ok(found)
}

/// One where pixels stay and zero where they are masked, `[1, height, width, 1]` each.
fn pixel_masks<B: Kernels>(config: &CertificationConfig, images: &ImageSet, device: &B::Device) -> Vec<Tensor<B, 4>> {
    let shape = images.shape();
    let ((rows, tall), (columns, wide)) =
        (config.pixel_mask_places(shape.height), config.pixel_mask_places(shape.width));
    let of = |row: usize, column: usize| {
        let is_masked = |pixel: usize| {
            (row..row + tall).contains(&(pixel / shape.width))
                && (column..column + wide).contains(&(pixel % shape.width))
        };
        let kept =
            (0..shape.height * shape.width).map(|pixel| f32::from(u8::from(!is_masked(pixel)))).collect::<Vec<_>>();
        Tensor::from_data(TensorData::new(kept, [1, shape.height, shape.width, 1]), device)
    };
    rows.iter()
        .flat_map(|&row| columns.iter().map(move |&column| (row, column)))
        .map(|(row, column)| of(row, column))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use burn_flex::{Flex, FlexDevice};
    use patchdoor_data::{DatasetConfig, ShapesConfig, load};
    use patchdoor_model::{ClassifierConfig, PatchMoeConfig, WideResNetConfig};
    use patchdoor_plan::{Plan, PlanOptions};

    use super::*;
    use crate::console::Console;

    fn shapes() -> ImageSet {
        load(&DatasetConfig::Shapes(ShapesConfig { train: 60, test: 10, seed: 0 }), &[]).expect("no file").train
    }

    fn untrained(config: impl Into<ClassifierConfig>) -> Classifier<Flex> {
        let input = input_shape(shapes().shape());
        config.into().init(input, 10, &mut stream(0, "weights"), &FlexDevice).expect("valid")
    }

    fn certified(classifier: &Classifier<Flex>, certification: &CertificationConfig) -> CertificationStanding {
        let text = "dataset = \"shapes\"\n[trigger.square]\n[model.patch-moe]\n";
        let plan = Plan::from_text("a.toml", text, &PlanOptions::default()).expect("valid");
        let images = shapes();
        let attack = Attack::prepare(plan.config(), None, None, &images, None, 0).expect("a square needs nothing");
        let watch = Watch { console: Console::plain(), stop: &AtomicBool::new(false) };
        certify(certification, &Exam::new(&attack, &images), classifier, watch, &FlexDevice).expect("nothing stops it")
    }

    #[test]
    fn a_network_that_always_says_the_same_is_certified_where_that_is_right() {
        // A head of zeros with one bias: class 3, whatever it sees.
        let mixture = PatchMoeConfig { widen_factor: 1, ..PatchMoeConfig::default() };
        let dense = WideResNetConfig { widen_factor: 1, ..WideResNetConfig::default() };
        let constant = |classifier: Classifier<Flex>| {
            let biases = (0..10).map(|class| f32::from(u8::from(class == 3))).collect::<Vec<_>>();
            let head = [
                ("head.weight".to_owned(), TensorData::zeros::<f32, _>([10, 64])),
                ("head.bias".to_owned(), TensorData::new(biases, [10])),
            ];
            classifier.with_tensors(head.into())
        };
        let config = CertificationConfig { pixel_masks: 2, ..CertificationConfig::default() };
        let share = accuracy(&[3; 60], shapes().labels()).expect("there are images");
        let standing = certified(&constant(untrained(mixture)), &config);
        let expected = |masks| {
            Some(MaskedStanding {
                masks,
                accuracy: share,
                certified_accuracy: share,
                asr: Some(0.0),
                robust_accuracy: standing.pixels.and_then(|pixels| pixels.robust_accuracy),
            })
        };
        assert_eq!((standing.untouched_accuracy, standing.asr), (share, Some(0.0)));
        assert_eq!((standing.routing, standing.pixels), (expected(16), expected(4)));
        let standing = certified(&constant(untrained(dense)), &config);
        assert_eq!((standing.routing, standing.pixels), (None, expected(4)));
    }

    #[test]
    fn what_stands_under_a_mask_changes_no_answer_under_it() {
        let classifier = untrained(PatchMoeConfig { widen_factor: 1, gate_init_std: 0.5, ..PatchMoeConfig::default() });
        let config = CertificationConfig { pixel_masks: 4, ..CertificationConfig::default() };
        let images = shapes().subset(&(0..4).collect::<Vec<_>>());
        let masks = pixel_masks::<Flex>(&config, &images, &FlexDevice);
        assert_eq!(masks.len(), 16);
        let hidden = |mask: &Tensor<Flex, 4>| mask.clone().into_data().iter::<f32>().filter(|&kept| kept < 0.5).count();
        let hidden = masks.iter().map(hidden).collect::<Vec<_>>();
        // 29 windows in four strides of 8: masks of 11 by 11 pixels.
        assert!(hidden.iter().all(|&pixels| pixels == 121), "{hidden:?}");
        let (batch, white) = (
            image_batches::<Flex>(&images, 4, &FlexDevice).next().expect("four images"),
            Tensor::<Flex, 4>::full([4, 4, 4, 3], 1.0, &FlexDevice),
        );
        let stamped = batch.clone().slice_assign([0..4, 28..32, 28..32, 0..3], white);
        let under = |images: Tensor<Flex, 4>| {
            let patches =
                config.patch_masks(&classifier.config(), input_shape(shapes().shape())).expect("experts choose");
            let routed = classifier.forward_blocked(images.clone(), &patches).expect("experts choose");
            let hidden = images * masks[15].clone() + (masks[15].clone().neg() + 1.0) * GREY;
            (routed.into_iter().map(Tensor::into_data).collect::<Vec<_>>(), classifier.forward(hidden).into_data())
        };
        let ((routed, hidden), (routed_stamped, hidden_stamped)) = (under(batch), under(stamped));
        assert_eq!((&routed[15], &hidden), (&routed_stamped[15], &hidden_stamped), "the corner is masked");
        assert_ne!(routed[0], routed_stamped[0], "another corner is masked");
    }
}
