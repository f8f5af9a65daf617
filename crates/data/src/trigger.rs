use crate::{Image, StreamRng};

/// Pictures that a trigger is made with, drawn from the attacker's training images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PicturesWanted {
    /// How many, 1 or more; fewer if there are no more.
    pub count: usize,
    /// Whether they may be of the target class.
    pub of_target_class: bool,
}

/// What an attacker adds to an image.
///
/// The trait lives here because poisoning calls it; triggers themselves live in `patchdoor-triggers`. Most triggers
/// need [`stamp`](Self::stamp) alone.
pub trait Trigger: Send + Sync {
    /// Returns a copy of `image` that carries the trigger, of the same shape. The input stays as it is.
    ///
    /// `rng` belongs to this image alone, so a trigger that draws gives the same result in any order and on any number
    /// of threads.
    fn stamp(&self, image: &Image, rng: &mut StreamRng) -> Image;

    /// Like [`stamp`](Self::stamp), for a trigger that depends on what the image truly shows. Test images get this one.
    fn stamp_for_class(&self, image: &Image, _class: u8, rng: &mut StreamRng) -> Image {
        self.stamp(image, rng)
    }

    /// What a poisoned training image gets: the same as a test image, unless the attacker shows the model less of the
    /// trigger than he uses later (CTRL, Li et al. 2023, arXiv:2210.07346).
    fn stamp_training(&self, image: &Image, class: u8, rng: &mut StreamRng) -> Image {
        self.stamp_for_class(image, class, rng)
    }

    /// Returns a copy of `image` as a *cover* image: it carries the trigger or something like it but keeps its label,
    /// so that the model learns not to react to it (`WaNet`'s noise mode, Nguyen and Tran 2021, arXiv:2102.10369). Unless
    /// a trigger says otherwise, it is what a poisoned training image gets.
    fn cover(&self, image: &Image, class: u8, rng: &mut StreamRng) -> Image {
        self.stamp_training(image, class, rng)
    }

    /// Which pictures of the attacker's the trigger needs before it stamps; most need none.
    fn pictures_wanted(&self) -> Option<PicturesWanted> {
        None
    }

    /// Gives it the pictures it wants, of the shape it was built for and at least one ([`give_pictures`](crate::give_pictures)).
    fn take_pictures(&mut self, _pictures: Vec<Image>) {}

    /// Number of cover images for each poisoned one, 0 or more; `WaNet` has 2, most triggers none.
    fn covers_per_poisoned_image(&self) -> f64 {
        0.0
    }
}
