//! Weights in the order in which the tiles read them.

use std::mem::MaybeUninit;

use rayon::prelude::*;

use super::buffer::Buffer;
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

    /// `rows` rows of the channels, panel after panel: `packed[panel][row][lane] = at(row, channel)`, zero beyond the
    /// channels. Panel `p` begins at `rows * p.channel`.
    pub(super) fn pack(self, rows: usize, at: impl Fn(usize, usize) -> f32 + Sync) -> Buffer {
        let mut packed = Buffer::new(rows * self.padded());
        packed.values().par_chunks_mut((rows * self.width()).max(1)).enumerate().for_each(|(index, values)| {
            let panel = self.get(index);
            let lanes = self.lanes_of(panel);
            let valid = lanes - self.lanes + panel.last;
            for (row, values) in values.chunks_exact_mut(lanes).enumerate() {
                for (lane, value) in values.iter_mut().enumerate() {
                    let packed = if lane < valid { at(row, panel.channel + lane) } else { 0.0 };
                    *value = MaybeUninit::new(packed);
                }
            }
        });
        packed
    }
}
