use serde::{Deserialize, Serialize};

/// What the operands of convolutions are rounded to. Their sums, the weights, the statistics of normalizations and
/// everything else are f32 in each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// Nothing is rounded.
    #[default]
    F32,
    /// To 11 significant bits, as NVIDIA's tensor cores take f32; a GPU's alone.
    Tf32,
    /// To 8 significant bits. On the CPU it takes AVX512-BF16, and convolutions over an odd number of channels, as images
    /// have, round nothing.
    Bf16,
}

impl Precision {
    /// Whether nothing is rounded.
    #[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
    pub fn is_full(&self) -> bool {
        *self == Self::F32
    }

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Tf32 => "tf32",
            Self::Bf16 => "bf16",
        }
    }
}
