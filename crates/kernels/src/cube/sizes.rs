use crate::ConvOptions;

/// Sizes of a convolution on the host.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    pub(super) batch: usize,
    pub(super) size: [usize; 2],
    pub(super) channels: usize,
    pub(super) out_size: [usize; 2],
    pub(super) out: usize,
    pub(super) groups: usize,
    pub(super) kernel: [usize; 2],
    pub(super) options: ConvOptions,
}
