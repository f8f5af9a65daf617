use burn_cubecl::CubeRuntime;
use burn_cubecl::cubecl;
use cubecl::prelude::*;

use crate::cube::sizes::Sizes;
use crate::cube::tile::Form;

/// Rows of a tile.
pub(super) const ROWS: usize = 128;
/// Planes of a cube, and how many of them lie below each other; the others lie side by side.
const PLANES: usize = 8;
pub(super) const DOWN: usize = 4;
/// Units of a cube.
pub(super) const UNITS: usize = PLANES * 32;

/// Rows of taps, and columns, at most: which of them lie inside an image are bits of one number.
const MOST_TAPS: usize = 16;

pub(super) type Four<E> = Vector<E, Const<4>>;
pub(super) type Pair = Vector<f32, Const<2>>;

/// A tile of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Tile {
    /// Columns.
    pub(super) columns: usize,
    /// Terms that are in a half of shared memory at once.
    pub(super) depth: usize,
    pub(super) form: Form,
}

impl Tile {
    /// The tile for a product of so many columns whose sums have so many terms for each tap; none if those do not fit.
    pub(super) fn of<R: Runtime>(
        client: &cubecl::client::ComputeClient<R>,
        columns: usize,
        terms: usize,
        kernel: [usize; 2],
        form: Form,
    ) -> Option<Self> {
        let fits =
            columns.is_multiple_of(4) && terms.is_multiple_of(16) && kernel.iter().all(|&side| side <= MOST_TAPS);
        // Units have tiles of 64 columns only: with fewer of them filled, narrower tiles cost less.
        if !fits || !form.uses_cores() && columns < 48 {
            return None;
        }
        let depth = if form == Form::CoresBf16 && terms.is_multiple_of(32) { 32 } else { 16 };
        let shared = client.properties().hardware.max_shared_memory_size;
        let choices: &[usize] = if form.uses_cores() { &[32, 64, 96, 128, 160] } else { &[64] };
        let tiles = choices.iter().map(|&columns| Self { columns, depth, form });
        // Padding costs most; of the tiles with as little of it the widest reads least.
        tiles
            .filter(|tile| tile.shared_bytes() <= shared)
            .min_by_key(|tile| (columns.next_multiple_of(tile.columns), usize::MAX - tile.columns))
    }

    /// Bytes of shared memory, whichever way operands lie.
    pub(super) fn shared_bytes(self) -> usize {
        let number = if self.form == Form::CoresBf16 { 2 } else { 4 };
        let terms_last = (ROWS + self.columns) * self.row();
        let terms_first = self.depth * (line(ROWS) + line(self.columns));
        2 * terms_last.max(terms_first) * number
    }

    /// Numbers from one row to the next where the terms of a row lie side by side: rows begin in different banks.
    pub(super) fn row(self) -> usize {
        if self.form == Form::CoresBf16 { self.depth + 8 } else { self.depth + 4 }
    }

    /// Rows that a plane has.
    pub(super) fn plane_rows(self) -> usize {
        ROWS / DOWN
    }

    /// Columns that a plane has.
    pub(super) fn plane_columns(self) -> usize {
        self.columns * DOWN / PLANES
    }

    /// Fragments of 16 rows that a plane has.
    pub(super) fn along(self) -> usize {
        self.plane_rows() / 16
    }

    /// Fragments of 8 columns that a plane has.
    pub(super) fn across(self) -> usize {
        self.plane_columns() / 8
    }

    /// Four columns that a unit has, where units multiply.
    pub(super) fn fours(self) -> usize {
        self.columns / 64
    }
}

/// Numbers from one term to the next where the rows of a term lie side by side.
pub(super) fn line(length: usize) -> usize {
    length + 8
}

/// Sizes of a convolution: of what is read, and of what is written.
#[derive(CubeLaunch, CubeType, Clone, Copy)]
pub(super) struct Shape {
    pub(super) batch: u32,
    pub(super) height: u32,
    pub(super) width: u32,
    /// Channels that are read, of all groups, in fours.
    pub(super) channels: u32,
    pub(super) out_height: u32,
    pub(super) out_width: u32,
    /// Channels that are written, of all groups.
    pub(super) out: u32,
    pub(super) groups: u32,
    pub(super) kernel_height: u32,
    pub(super) kernel_width: u32,
    pub(super) stride: u32,
    pub(super) top: u32,
    pub(super) left: u32,
    /// Positions that one cube of a weight's gradient adds up.
    pub(super) chunk: u32,
}

impl Shape {
    /// Of a convolution, or of its way back, in which what was written is read.
    pub(super) fn launch<R: CubeRuntime>(sizes: &Sizes, back: bool, chunk: usize) -> ShapeLaunch<R> {
        let (mut read, mut written) = ((sizes.size, sizes.channels), (sizes.out_size, sizes.out));
        if back {
            std::mem::swap(&mut read, &mut written);
        }
        let [top, left, _, _] = sizes.options.padding;
        let number = |number: usize| u32::try_from(number).expect("a convolution's sizes fit 32 bits");
        ShapeLaunch::new(
            number(sizes.batch),
            number(read.0[0]),
            number(read.0[1]),
            number(read.1 / 4),
            number(written.0[0]),
            number(written.0[1]),
            number(written.1),
            number(sizes.groups),
            number(sizes.kernel[0]),
            number(sizes.kernel[1]),
            number(sizes.options.stride),
            number(top),
            number(left),
            number(chunk),
        )
    }
}
