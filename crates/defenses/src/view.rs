use std::ops::ControlFlow;
use std::path::Path;

use burn::tensor::Tensor;
use patchdoor_data::{ImageSet, ImageShape};
use patchdoor_kernels::Kernels;
use patchdoor_train::{EpochRecord, TrainingObserver, image_batches};

/// Everything a defender has besides the model: clean images of its own, and a split to choose on.
///
/// There is no trigger, no poisoning plan and no test image in it, and this crate depends on no crate
/// that could supply one.
#[derive(Clone, Copy, Debug)]
pub struct DefenderData<'a> {
    /// Images with true labels that the defender may train on.
    pub clean: &'a ImageSet,
    /// Images with true labels for choosing thresholds and stopping, if there are any.
    pub validation: Option<&'a ImageSet>,
}

/// Images that a detector judges: pixels without labels, and without a word on where they come from.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a>(&'a ImageSet);

impl<'a> Inputs<'a> {
    /// The images of a set without its labels.
    pub fn of(images: &'a ImageSet) -> Self {
        Self(images)
    }

    /// Number of images.
    pub fn len(self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self.0.is_empty()
    }

    /// Height, width and channels of every image.
    pub fn shape(self) -> ImageShape {
        self.0.shape()
    }

    /// The images batch by batch in their order.
    ///
    /// # Shapes
    /// - each batch: `[batch, height, width, channel]`, pixels in [0, 1]; the last may be smaller
    pub fn batches<B: Kernels>(
        self,
        batch_size: usize,
        device: &'a B::Device,
    ) -> impl Iterator<Item = Tensor<B, 4>> + 'a {
        image_batches(self.0, batch_size, device)
    }
}

/// What an inspector works with, and who may stop it.
pub struct InspectionWork<'a> {
    /// What the defender has.
    pub data: DefenderData<'a>,
    /// Feeds every random choice.
    pub seed: u64,
    /// Asked now and then whether to stop.
    pub is_stopped: &'a dyn Fn() -> bool,
}

/// What a repair works with, and who follows it.
pub struct RepairWork<'a> {
    /// What the defender has.
    pub data: DefenderData<'a>,
    /// Feeds every random choice.
    pub seed: u64,
    /// Where finished epochs of its training are kept, so that the same repair goes on after an interruption.
    pub checkpoints: Option<&'a Path>,
    /// Follows its training and may stop it.
    pub observer: &'a mut dyn TrainingObserver,
}

impl RepairWork<'_> {
    /// Does a part of the work that is no part of the repair's history, such as training a teacher: what it keeps for an
    /// interruption lies in a folder of its own, and its epochs show only in that they can be stopped.
    pub(crate) fn aside<T>(&mut self, name: &str, part: impl FnOnce(&mut RepairWork<'_>) -> T) -> T {
        let checkpoints = self.checkpoints.map(|folder| folder.join(name));
        let observer = &mut Aside(self.observer);
        part(&mut RepairWork { data: self.data, seed: self.seed, checkpoints: checkpoints.as_deref(), observer })
    }
}

/// Passes on what has to be known: damage, and the wish to stop.
struct Aside<'a>(&'a mut dyn TrainingObserver);

impl TrainingObserver for Aside<'_> {
    fn checkpoint_refused(&mut self, path: &Path, reason: &str) {
        self.0.checkpoint_refused(path, reason);
    }

    fn epoch_done(&mut self, _record: &EpochRecord) -> ControlFlow<()> {
        if self.0.is_stopped() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn is_stopped(&self) -> bool {
        self.0.is_stopped()
    }
}
