use burn::tensor::{Tensor, backend::Backend};
use patchdoor_data::{ImageSet, ImageShape};
use patchdoor_kernels::Kernels;
use patchdoor_metrics::accuracy;
use patchdoor_model::{Classifier, GivenRouting, InputShape, ModelError, Routing, TakenRouting, Tapped};

use crate::batches::{BatchAssembler, image_batches};

/// Images predicted at once where nothing speaks for another number; predictions do not depend on it.
pub const PREDICTION_BATCH: usize = 256;

/// What a classifier takes, for images of this shape.
pub fn input_shape(shape: ImageShape) -> InputShape {
    InputShape { height: shape.height, width: shape.width, channels: shape.channels }
}

/// Predicts the class of every image, in the order of the set, without augmentation.
///
/// Give it a classifier of an inner backend (`trained.classifier.valid()`): under autodiff, batch
/// normalization would take each batch's own statistics.
pub fn predict<B: Kernels>(
    classifier: &Classifier<B>,
    images: &ImageSet,
    batch_size: usize,
    device: &B::Device,
) -> Vec<u8> {
    let indices: Vec<usize> = (0..images.len()).collect();
    let assembler = BatchAssembler::<B>::new(images, device);
    let logits = indices
        .chunks(batch_size.max(1))
        .map(|chunk| classifier.forward(assembler.assemble(chunk, None, device).images));
    if B::ON_DEVICE {
        // Nothing is read before all of it is under way.
        let logits: Vec<_> = logits.collect();
        return logits.into_iter().flat_map(classes_of).collect();
    }
    logits.flat_map(classes_of).collect()
}

/// Share of the images whose class a classifier predicts as labelled, as [`predict`] does; `None` without images.
pub fn accuracy_on<B: Kernels>(
    classifier: &Classifier<B>,
    images: &ImageSet,
    batch_size: usize,
    device: &B::Device,
) -> Option<f64> {
    accuracy(&predict(classifier, images, batch_size, device), images.labels())
}

/// What a classifier made of a set of images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoutedPrediction {
    /// The predicted class of every image.
    pub classes: Vec<u8>,
    /// What the experts of its first routed layer selected; `None` if experts select nothing.
    pub selections: Option<Selections>,
}

/// Which patches each expert selected in each image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selections {
    experts: usize,
    patches_per_expert: usize,
    /// `[image, expert, patches_per_expert]`
    indices: Vec<u16>,
}

impl Selections {
    /// Wraps the numbers of the selected patches, `[image, expert, patches_per_expert]`, each in rising order.
    ///
    /// # Panics
    /// If there is no expert, an expert selects nothing, or the numbers fill no whole number of images.
    pub fn new(experts: usize, patches_per_expert: usize, indices: Vec<u16>) -> Self {
        let each = experts * patches_per_expert;
        assert!(each > 0 && indices.len().is_multiple_of(each), "selections are [image, expert, patches_per_expert]");
        Self { experts, patches_per_expert, indices }
    }

    /// Number of images.
    pub fn images(&self) -> usize {
        self.indices.len() / (self.experts * self.patches_per_expert)
    }

    /// Number of experts.
    pub fn experts(&self) -> usize {
        self.experts
    }

    /// How many patches each expert selects.
    pub fn patches_per_expert(&self) -> usize {
        self.patches_per_expert
    }

    /// The numbers of all selected patches, `[image, expert, patches_per_expert]`.
    pub fn indices(&self) -> &[u16] {
        &self.indices
    }

    /// The patches one expert selected in one image, in rising order; patches are numbered row by row.
    ///
    /// # Panics
    /// If there is no such image or expert.
    pub fn of(&self, image: usize, expert: usize) -> &[u16] {
        assert!(expert < self.experts, "expert {expert} of {}", self.experts);
        let start = (image * self.experts + expert) * self.patches_per_expert;
        &self.indices[start..start + self.patches_per_expert]
    }

    /// In how many images one expert selected each patch, up to the last that it ever did.
    ///
    /// # Panics
    /// If there are images and no such expert.
    pub fn counts(&self, expert: usize) -> Vec<usize> {
        let mut counts = Vec::new();
        for image in 0..self.images() {
            for &patch in self.of(image, expert) {
                let patch = usize::from(patch);
                counts.resize(counts.len().max(patch + 1), 0);
                counts[patch] += 1;
            }
        }
        counts
    }
}

/// Like [`predict`], and keeps what experts selected on the way.
///
/// # Panics
/// If a map has more than 65,536 patches.
pub fn predict_with_routing<B: Kernels>(
    classifier: &Classifier<B>,
    images: &ImageSet,
    batch_size: usize,
    device: &B::Device,
) -> RoutedPrediction {
    let order: Vec<usize> = (0..images.len()).collect();
    let assembler = BatchAssembler::<B>::new(images, device);
    let mut classes = Vec::with_capacity(images.len());
    let mut selected: Option<(usize, usize, Vec<u16>)> = None;
    for chunk in order.chunks(batch_size.max(1)) {
        let (logits, routings) = classifier.forward_with_routing(assembler.assemble(chunk, None, device).images);
        classes.extend(classes_of(logits));
        if let Some(choice) = routings.first().and_then(Routing::expert_choice) {
            let [_, experts, patches_per_expert] = choice.indices.dims();
            let (_, _, indices) =
                selected.get_or_insert_with(|| (experts, patches_per_expert, Vec::with_capacity(images.len())));
            let data = choice.indices.to_data();
            indices.extend(data.iter::<i64>().map(|index| u16::try_from(index).expect("a map has few patches")));
        }
    }
    let selections = selected.map(|(experts, kept, indices)| Selections::new(experts, kept, indices));
    RoutedPrediction { classes, selections }
}

/// Predicts the class of every image with the routing that another pass gave: `router`, often the same classifier, routes
/// `others`, and what it gave each image there is taken over for the image of the same number here. One list of classes for
/// each of `taken`.
///
/// # Errors
/// If a classifier has no routers, or the two do not fit each other.
///
/// # Panics
/// If the two sets have different numbers of images.
pub fn predict_given_routing<B: Kernels>(
    classifier: &Classifier<B>,
    images: &ImageSet,
    (router, others): (&Classifier<B>, &ImageSet),
    taken: &[TakenRouting],
    batch_size: usize,
    device: &B::Device,
) -> Result<Vec<Vec<u8>>, ModelError> {
    assert_eq!(images.len(), others.len(), "each image has one that is routed for it");
    let indices: Vec<usize> = (0..images.len()).collect();
    let [own, others] = [images, others].map(|set| BatchAssembler::<B>::new(set, device));
    let mut classes = vec![Vec::with_capacity(images.len()); taken.len()];
    for chunk in indices.chunks(batch_size.max(1)) {
        let (_, routing) = router.forward_with_routing(others.assemble(chunk, None, device).images);
        let given: Vec<_> = taken.iter().map(|&taken| GivenRouting { routing: &routing, taken }).collect();
        let logits = classifier.forward_given_routing(own.assemble(chunk, None, device).images, &given)?;
        for (classes, logits) in classes.iter_mut().zip(logits) {
            classes.extend(classes_of(logits));
        }
    }
    Ok(classes)
}

/// What the head of a classifier sees of every image, `[image, feature]`, in inference.
///
/// # Panics
/// Never: every network hands out its features.
pub fn predict_features<B: Kernels>(
    classifier: &Classifier<B>,
    images: &ImageSet,
    batch_size: usize,
    device: &B::Device,
) -> Vec<f32> {
    let of = |batch| {
        let (_, mut taps) = classifier.forward_with_taps(batch, &["features"]);
        let features = taps.remove("features").and_then(Tapped::features).expect("every network has features");
        features.into_data().convert::<f32>().into_vec::<f32>().expect("converted to f32")
    };
    image_batches(images, batch_size, device).flat_map(of).collect()
}

/// The class with the largest logit of each row; ties go to the lower class.
///
/// # Panics
/// Never: logits are floating-point numbers.
pub fn classes_of<B: Backend>(logits: Tensor<B, 2>) -> Vec<u8> {
    let [_, classes] = logits.dims();
    let data = logits.into_data().convert::<f32>();
    let values = data.as_slice::<f32>().expect("converted to f32");
    let best = |row: &[f32]| (0..classes).fold(0, |best, class| if row[class] > row[best] { class } else { best });
    values.chunks_exact(classes).map(|row| best(row) as u8).collect()
}
