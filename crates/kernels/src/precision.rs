use std::sync::atomic::{AtomicU8, Ordering};

/// What the operands of products are rounded to; their sums are f32 in each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Precision {
    /// 24 bits: nothing is rounded, and no tensor core used.
    #[default]
    F32,
    /// 11 bits, with the range of f32: `NVIDIA`'s TF32. The CPU rounds nothing to it.
    Tf32,
    /// 8 bits, with the range of f32: bfloat16.
    Bf16,
}

static CHOSEN: AtomicU8 = AtomicU8::new(0);

impl Precision {
    /// Uses it for the convolutions that this process computes on a GPU or with `Flex` from now on, as `PyTorch`'s
    /// `allow_tf32` does.
    ///
    /// Weights, statistics and everything that is no product of a convolution stay f32. On the CPU so do maps that are
    /// summed over an odd number of channels, as images are: bf16 is multiplied in pairs of channels there.
    pub fn choose(self) {
        CHOSEN.store(self as u8, Ordering::Relaxed);
    }

    /// The one in use.
    pub fn chosen() -> Self {
        match CHOSEN.load(Ordering::Relaxed) {
            1 => Self::Tf32,
            2 => Self::Bf16,
            _ => Self::F32,
        }
    }
}

/// Whether this processor multiplies bf16 by instructions of its own (AVX512-BF16).
///
/// Elsewhere `Flex` computes the same numbers one by one, to the bit and far more slowly.
#[cfg(feature = "flex")]
pub fn multiplies_bf16() -> bool {
    crate::flex::multiplies_pairs()
}
