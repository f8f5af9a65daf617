use crate::{Image, StreamRng};

/// What an attacker adds to an image.
///
/// The trait lives here because poisoning calls it; triggers themselves live in `patchdoor-triggers`.
pub trait Trigger: Send + Sync {
    /// Returns a copy of `image` that carries the trigger, of the same shape. The input stays as it is.
    ///
    /// `rng` belongs to this image alone, so a trigger that draws gives the same result in any order and on any number
    /// of threads.
    fn stamp(&self, image: &Image, rng: &mut StreamRng) -> Image;
}
