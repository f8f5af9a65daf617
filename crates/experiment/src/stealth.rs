use patchdoor_data::ImageSet;
use patchdoor_metrics::Stealth;
use rayon::prelude::*;

/// Images that are compared at most: a transform of every one of a large set would take minutes.
const MOST: usize = 2000;

/// How much triggered images differ from the originals, on average over at most 2,000 of them at equal distances.
pub(crate) fn stealth(clean: &ImageSet, triggered: &ImageSet) -> Option<Stealth> {
    let shape = clean.shape();
    let shape = [shape.height, shape.width, shape.channels];
    let step = clean.len().div_ceil(MOST).max(1);
    let indices = (0..clean.len()).step_by(step).collect::<Vec<_>>();
    let compare = |&index: &usize| Stealth::between(clean.pixels(index), triggered.pixels(index), shape);
    Stealth::mean(&indices.par_iter().map(compare).collect::<Vec<_>>())
}
