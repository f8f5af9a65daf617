//! Weights in the order in which the tiles read them.

use std::mem::MaybeUninit;

use rayon::prelude::*;

use super::buffer::Buffer;
use super::pairs;
use super::simd::lanes_and_panel;

/// How the output channels of a product are divided: panels of one or two vectors.
#[derive(Clone, Copy, Debug)]
pub(super) struct Panels {
    channels: usize,
    lanes: usize,
    /// Vectors of every panel but perhaps the last.
    vectors: usize,
}

/// Some consecutive output channels.
#[derive(Clone, Copy, Debug)]
pub(super) struct Panel {
    /// First channel.
    pub(super) channel: usize,
    /// Vectors of channels, 1 or 2.
    pub(super) vectors: usize,
    /// Valid lanes of the last vector.
    pub(super) last: usize,
}

impl Panels {
    pub(super) fn new(channels: usize) -> Self {
        let (lanes, vectors) = lanes_and_panel();
        Self { channels, lanes, vectors }
    }

    /// The number of panels.
    pub(super) fn count(self) -> usize {
        self.channels.div_ceil(self.lanes * self.vectors)
    }

    /// Channels, with those that only fill the last vector.
    pub(super) fn padded(self) -> usize {
        self.channels.next_multiple_of(self.lanes)
    }

    /// Lanes of every panel but perhaps the last.
    pub(super) fn width(self) -> usize {
        self.lanes * self.vectors
    }

    /// Whether the channels are exactly one panel, so that a map needs no packing.
    pub(super) fn is_one_exactly(self) -> bool {
        self.count() == 1 && self.channels == self.padded()
    }

    pub(super) fn get(self, index: usize) -> Panel {
        let channel = index * self.width();
        let valid = (self.channels - channel).min(self.width());
        let vectors = valid.div_ceil(self.lanes);
        Panel { channel, vectors, last: valid - (vectors - 1) * self.lanes }
    }

    /// The panel's lanes, valid or not.
    pub(super) fn lanes_of(self, panel: Panel) -> usize {
        panel.vectors * self.lanes
    }

    /// The panel's channels.
    pub(super) fn channels_of(self, panel: Panel) -> usize {
        self.lanes_of(panel) - self.lanes + panel.last
    }

    /// A row of the channels for every offset, panel after panel: `packed[panel][row][lane]`, zero beyond the channels.
    /// Panel `p` begins at `offsets.len() * p.channel`.
    pub(super) fn pack(self, offsets: &[usize], weights: Unpacked) -> Buffer {
        let rows = offsets.len();
        // Neighbours share cache lines, so rows are read in the order of memory.
        let mut order: Vec<usize> = (0..rows).collect();
        order.sort_unstable_by_key(|row| offsets[*row]);
        let mut packed = Buffer::new(rows * self.padded());
        packed.values().par_chunks_mut((rows * self.width()).max(1)).enumerate().for_each(|(index, values)| {
            let panel = self.get(index);
            let (lanes, valid) = (self.lanes_of(panel), self.channels_of(panel));
            for &row in &order {
                let values = &mut values[row * lanes..][..lanes];
                weights.row(offsets[row], panel.channel, &mut values[..valid]);
                values[valid..].fill(MaybeUninit::new(0.0));
            }
        });
        packed
    }
}

/// Weights as tensors hold them.
#[derive(Clone, Copy)]
pub(super) struct Unpacked<'a> {
    pub(super) values: &'a [f32],
    /// Values from one of the panels' channels to the next.
    pub(super) stride: usize,
    /// Values from the first of a [pair](super::pairs) to the second, if they are packed as pairs.
    pub(super) partner: Option<usize>,
    /// What the channels are multiplied by, if by anything.
    pub(super) scale: Option<&'a [f32]>,
}

impl Unpacked<'_> {
    /// The value at an offset, of a channel.
    pub(super) fn value(&self, channel: usize, offset: usize) -> f32 {
        let value = self.values[channel * self.stride + offset];
        self.scale.map_or(value, |scale| value * scale[channel])
    }

    /// The values at an offset, of the channels from `first`.
    fn row(&self, offset: usize, first: usize, row: &mut [MaybeUninit<f32>]) {
        for (channel, place) in (first..).zip(row) {
            place.write(match self.partner {
                None => self.value(channel, offset),
                Some(partner) => pairs::pair(self.value(channel, offset), self.value(channel, offset + partner)),
            });
        }
    }
}
