use std::sync::atomic::{AtomicU8, Ordering};

/// What the operands of a GPU's products are rounded to; their sums are f32 in each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Precision {
    /// 24 bits: nothing is rounded, and no tensor core used.
    #[default]
    F32,
    /// 11 bits, with the range of f32: `NVIDIA`'s TF32.
    Tf32,
    /// 8 bits, with the range of f32: bfloat16.
    Bf16,
}

static CHOSEN: AtomicU8 = AtomicU8::new(0);

impl Precision {
    /// Uses it for the convolutions that this process computes on a GPU from now on, as `PyTorch`'s `allow_tf32` does.
    ///
    /// Weights, statistics and everything that is no product of a convolution stay f32, and so does all on the CPU.
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
