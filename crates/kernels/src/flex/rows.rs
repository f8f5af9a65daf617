//! Rows of channels that are normalized, wherever they come from.

#![allow(unsafe_code, reason = "rows are read and written through pointers")]
#![allow(clippy::inline_always, reason = "see Kernel::run")]

use super::simd::Simd;

/// Values in a block of rows: two maps' blocks stay in the first-level cache.
const BLOCK_VALUES: usize = 4096;

/// Rows of groups of channels, `[row, group, channel]`, each computed from a map's values where it is read.
///
/// `SUMS` is the number of partial sums that a sum over rows is added up in.
pub(super) trait Rows<const SUMS: usize>: Copy + Sync {
    /// What a group makes of the values of a row.
    type Weight<S: Simd>: Copy;
    /// Where the gradients of what the rows come from go, for rows of their own.
    type Gradients: Copy;

    /// Number of rows.
    fn count(&self) -> usize;
    /// Channels of a group.
    fn channels(&self) -> usize;
    /// Groups of a row.
    fn groups(&self) -> usize;
    /// The rows from `first`, at most `count`.
    fn part(&self, first: usize, count: usize) -> Self;
    /// The map's values from a row and channel, `[row, channel]`.
    fn values(&self, row: usize, channel: usize) -> *const f32;

    /// # Safety
    /// Row and group are among these, and the machine has the instructions.
    unsafe fn weight<S: Simd>(&self, row: usize, group: usize) -> Self::Weight<S>;
    /// What a group sees of values.
    ///
    /// # Safety
    /// The machine has the instructions.
    unsafe fn seen<S: Simd>(values: S::Vector, weight: Self::Weight<S>) -> S::Vector;
    /// `sum` and what a group sees of values.
    ///
    /// # Safety
    /// The machine has the instructions.
    unsafe fn add_seen<S: Simd>(values: S::Vector, weight: Self::Weight<S>, sum: S::Vector) -> S::Vector;
    /// Takes the gradient of what a group sees of values, and adds up in `products` what concerns its weight.
    ///
    /// Groups of a row come in their order.
    ///
    /// # Safety
    /// Place and gradients are of these rows, and the machine has the instructions.
    unsafe fn take<S: Simd>(
        &self,
        to: Self::Gradients,
        place: Place,
        read: Read<S, Self::Weight<S>>,
        gradient: S::Vector,
        products: &mut S::Vector,
    );
    /// Takes the products of a row and group.
    ///
    /// # Safety
    /// Those of [`take`](Self::take).
    unsafe fn take_products<S: Simd>(&self, to: Self::Gradients, row: usize, group: usize, products: S::Vector);

    /// Channels of all groups together.
    fn wide(&self) -> usize {
        self.groups() * self.channels()
    }

    /// Rows in a block; depends on the sizes alone, so that sums are the same on any number of threads.
    fn per_block(&self) -> usize {
        (BLOCK_VALUES / self.channels().max(1)).max(8)
    }

    /// Rows that one thread does at a time.
    fn per_task(&self) -> usize {
        self.per_block() * (16 / self.groups().max(1)).max(1)
    }
}

/// Some channels of a group of a row.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) row: usize,
    pub(super) group: usize,
    /// First channel.
    pub(super) channel: usize,
    /// Valid lanes.
    pub(super) valid: usize,
}

/// What was read at a place.
#[derive(Clone, Copy)]
pub(super) struct Read<S: Simd, W> {
    /// The map's values; lanes beyond the channels are zero.
    pub(super) values: S::Vector,
    pub(super) weight: W,
}

/// The rows of a map, in one group and as they are.
#[derive(Clone, Copy)]
pub(super) struct Plain<'a> {
    /// `[row, channel]`.
    pub(super) map: &'a [f32],
    pub(super) channels: usize,
}

impl Rows<4> for Plain<'_> {
    type Weight<S: Simd> = ();
    /// The map's gradient, `[row, channel]`.
    type Gradients = *mut f32;

    fn count(&self) -> usize {
        self.map.len() / self.channels.max(1)
    }

    fn channels(&self) -> usize {
        self.channels
    }

    #[inline(always)]
    fn groups(&self) -> usize {
        1
    }

    fn part(&self, first: usize, count: usize) -> Self {
        let end = self.count().min(first + count);
        Self { map: &self.map[first * self.channels..end * self.channels], ..*self }
    }

    #[inline(always)]
    fn values(&self, row: usize, channel: usize) -> *const f32 {
        self.map.as_ptr().wrapping_add(row * self.channels + channel)
    }

    #[inline(always)]
    unsafe fn weight<S: Simd>(&self, _row: usize, _group: usize) {}

    #[inline(always)]
    unsafe fn seen<S: Simd>(values: S::Vector, (): ()) -> S::Vector {
        values
    }

    #[inline(always)]
    unsafe fn add_seen<S: Simd>(values: S::Vector, (): (), sum: S::Vector) -> S::Vector {
        // SAFETY: the machine has the instructions.
        unsafe { S::add(sum, values) }
    }

    #[inline(always)]
    unsafe fn take<S: Simd>(
        &self,
        to: *mut f32,
        Place { row, channel, valid, .. }: Place,
        _read: Read<S, ()>,
        gradient: S::Vector,
        _products: &mut S::Vector,
    ) {
        // SAFETY: the place is in the map's gradient.
        unsafe { store::<S>(to.add(row * self.channels + channel), gradient, valid) };
    }

    #[inline(always)]
    unsafe fn take_products<S: Simd>(&self, _to: *mut f32, _row: usize, _group: usize, _products: S::Vector) {}
}

/// Calls `$body` for every vector of channels with its first channel and its number of valid lanes.
macro_rules! for_vectors {
    ($simd:ident, $channels:expr, |$channel:ident, $valid:ident| $body:expr) => {{
        let mut $channel = 0;
        while $channel < $channels {
            let $valid = ($channels - $channel).min($simd::LANES);
            $body;
            $channel += $simd::LANES;
        }
    }};
}

pub(super) use for_vectors;

/// Reads `valid` lanes; the whole vector if all are.
#[inline(always)]
pub(super) unsafe fn load<S: Simd>(from: *const f32, valid: usize) -> S::Vector {
    // SAFETY: passed on.
    unsafe { if valid == S::LANES { S::load(from) } else { S::load_some(from, valid) } }
}

/// Writes `valid` lanes; the whole vector if all are.
#[inline(always)]
pub(super) unsafe fn store<S: Simd>(to: *mut f32, vector: S::Vector, valid: usize) {
    // SAFETY: passed on.
    unsafe { if valid == S::LANES { S::store(to, vector) } else { S::store_some(to, vector, valid) } }
}
