use crate::ConvOptions;
use crate::flex::tile::Run;

/// What the products of a convolution take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::flex) enum Operands {
    /// Values as they are.
    F32,
    /// Values rounded to bf16, in [pairs](crate::flex::pairs); where there are no pairs, for want of an even number of channels, values.
    Bf16,
}

impl Operands {
    /// Channels of a map in one place of it, for so many channels of a group.
    pub(super) fn channels_together(self, channels: usize) -> usize {
        if self == Self::Bf16 && channels.is_multiple_of(2) { 2 } else { 1 }
    }
}

/// Sizes of a convolution.
#[derive(Clone, Copy, Debug)]
pub(in crate::flex) struct Geometry {
    pub(in crate::flex) batch: usize,
    pub(in crate::flex) size: [usize; 2],
    pub(in crate::flex) groups: usize,
    /// Input channels of one group.
    pub(in crate::flex) channels: usize,
    /// Output channels of one group.
    pub(in crate::flex) out: usize,
    pub(in crate::flex) kernel: [usize; 2],
    pub(in crate::flex) options: ConvOptions,
}

impl Geometry {
    pub(in crate::flex) fn output_size(&self) -> [usize; 2] {
        self.options.output_size(self.size, self.kernel)
    }
}

/// The runs of `rows` rows of `columns` pixels, one pixel after the other if only some channels of each are met.
pub(super) fn runs(rows: usize, columns: usize, row: usize, [channels, all]: [usize; 2]) -> Vec<Run> {
    let whole = channels == all;
    let (count, length) = if whole { (1, columns * channels) } else { (columns, channels) };
    (0..rows)
        .flat_map(|index| (0..count).map(move |column| Run { offset: index * row + column * all, length }))
        .filter(|run| run.length > 0)
        .collect()
}

/// Kernel rows, kernel columns and channels in the order in which a map holds them.
pub(super) fn taps(rows: Vec<usize>, columns: &[usize], channels: usize) -> Vec<[usize; 3]> {
    rows.into_iter()
        .flat_map(|row| {
            columns.iter().flat_map(move |column| (0..channels).map(move |channel| [row, *column, channel]))
        })
        .collect()
}
