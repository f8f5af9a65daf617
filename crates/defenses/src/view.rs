use patchdoor_data::ImageSet;

/// Everything a defender has besides the model: clean images of its own, and a split to choose on.
///
/// There is no trigger, no poisoning plan and no test image in it, and this crate depends on no crate
/// that could supply one.
#[derive(Clone, Copy, Debug)]
pub struct DefenderData<'a> {
    /// Images with true labels that the defender may train on.
    pub clean: &'a ImageSet,
    /// Images with true labels for choosing thresholds and stopping.
    pub validation: &'a ImageSet,
}
