//! A tile of a product of matrices, in shared memory and registers: what all convolutions compute with.

use burn_cubecl::cubecl;
use cubecl::cmma::{Matrix, MatrixIdent, MatrixLayout};
use cubecl::features::MmaConfig;
use cubecl::ir::{ElemType, FloatKind};
use cubecl::prelude::*;

use crate::Precision;

/// Rows of a tile.
pub(super) const ROWS: usize = 64;
/// Terms of the sum that are in shared memory at once.
pub(super) const DEPTH: usize = 16;

/// How a tile is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Form {
    /// Every unit multiplies 4 by 4, in f32.
    Units,
    /// The same, of operands rounded to TF32: what tensor cores compute, where there are none.
    UnitsTf32,
    /// The same, of operands rounded to bf16.
    UnitsBf16,
    /// Tensor cores, 8 terms at once.
    CoresTf32,
    /// Tensor cores, 16 terms at once.
    CoresBf16,
}

impl Form {
    /// The form for a precision on this device.
    pub(super) fn of<R: Runtime>(client: &cubecl::client::ComputeClient<R>, precision: Precision) -> Self {
        let has = |kind: FloatKind, terms: u32| {
            let operand = ElemType::Float(kind).into();
            let sum = ElemType::Float(FloatKind::F32).into();
            let of =
                |columns| MmaConfig { a_type: operand, b_type: operand, cd_type: sum, m: 16, n: columns, k: terms };
            let can = &client.properties().features.matmul;
            can.cmma.contains(&of(16)) && can.mma.contains(&of(8))
        };
        match precision {
            Precision::F32 => Self::Units,
            Precision::Tf32 if has(FloatKind::TF32, 8) => Self::CoresTf32,
            Precision::Tf32 => Self::UnitsTf32,
            Precision::Bf16 if has(FloatKind::BF16, 16) => Self::CoresBf16,
            Precision::Bf16 => Self::UnitsBf16,
        }
    }

    /// The type of operands in shared memory.
    pub(super) fn operand(self) -> StorageType {
        let kind = match self {
            Self::Units | Self::UnitsTf32 | Self::UnitsBf16 => FloatKind::F32,
            Self::CoresTf32 => FloatKind::TF32,
            Self::CoresBf16 => FloatKind::BF16,
        };
        ElemType::Float(kind).into()
    }

    pub(super) fn uses_cores(self) -> bool {
        matches!(self, Self::CoresTf32 | Self::CoresBf16)
    }

    /// Whether operands are rounded by the kernel itself, not by their type.
    pub(super) fn rounds(self) -> bool {
        self.dropped_bits() > 0
    }

    /// Terms that tensor cores take at once.
    pub(super) fn terms(self) -> usize {
        if self == Self::CoresTf32 { 8 } else { 16 }
    }

    /// Bits of a number that its rounded form does not have.
    fn dropped_bits(self) -> u32 {
        match self {
            Self::Units | Self::CoresTf32 | Self::CoresBf16 => 0,
            Self::UnitsTf32 => 13,
            Self::UnitsBf16 => 16,
        }
    }

    /// Numbers from one term's rows to the next one's in shared memory: tensor cores want them aligned, units want them
    /// in different banks.
    pub(super) fn stride(self, length: usize) -> usize {
        if self.uses_cores() { length + 8 } else { length + 1 }
    }
}

/// Columns of a tile for so many columns of the product.
pub(super) fn columns(count: usize) -> usize {
    match count {
        0..=16 => 16,
        17..=32 => 32,
        _ => 64,
    }
}

/// The units that compute a tile of so many columns.
pub(super) fn units(columns: usize) -> CubeDim {
    CubeDim::new_1d((ROWS * columns / 16) as u32)
}

/// A number as it is put into shared memory: to the nearest of fewer bits, ties to even.
#[cube]
pub(super) fn operand<E: Numeric>(value: f32, #[comptime] form: Form) -> E {
    let dropped = comptime!(form.dropped_bits());
    if comptime!(dropped == 0) {
        E::cast_from(value)
    } else {
        let bits = u32::reinterpret(value);
        let half = comptime!((1u32 << (dropped - 1)) - 1);
        let odd = (bits >> comptime!(dropped)) & 1u32;
        let rounded = ((bits + half + odd) >> comptime!(dropped)) << comptime!(dropped);
        E::cast_from(f32::reinterpret(rounded))
    }
}

/// A unit's sums, all zero.
#[cube]
pub(super) fn no_sums() -> Array<f32> {
    let mut sums = Array::<f32>::new(16usize);
    #[unroll]
    for i in 0..16usize {
        sums[i] = 0.0f32;
    }
    sums
}

/// A plane's two fragments of the tile, all zero; none where units compute.
#[cube]
pub(super) fn no_fragments(#[comptime] form: Form) -> Sequence<Matrix<f32>> {
    let mut fragments = Sequence::<Matrix<f32>>::new();
    if comptime!(form.uses_cores()) {
        #[unroll]
        for _ in 0..2usize {
            fragments.push(Matrix::<f32>::from_value(
                MatrixIdent::Accumulator,
                16usize,
                16usize,
                comptime!(form.terms()),
                MatrixLayout::Undefined,
                0.0f32,
            ));
        }
    }
    fragments
}

/// Adds the products of what lies in shared memory to the sums.
#[cube]
pub(super) fn multiply<E: Numeric>(
    left: &SharedMemory<E>,
    right: &SharedMemory<E>,
    sums: &mut Array<f32>,
    fragments: &Sequence<Matrix<f32>>,
    #[comptime] columns: usize,
    #[comptime] form: Form,
) {
    let left_stride = comptime!(form.stride(64));
    let right_stride = comptime!(form.stride(columns));
    if comptime!(form.uses_cores()) {
        let across = comptime!((columns / 16) as u32);
        let terms = comptime!(form.terms());
        #[unroll]
        for i in 0..2usize {
            let fragment = UNIT_POS / 32u32 * 2u32 + comptime!(i as u32);
            let row = (fragment / across * 16u32) as usize;
            let column = (fragment % across * 16u32) as usize;
            #[unroll]
            for part in 0..comptime!(16 / terms) {
                let a = Matrix::<E>::from_slice(
                    MatrixIdent::A,
                    16usize,
                    16usize,
                    terms,
                    MatrixLayout::ColMajor,
                    &left.slice(comptime!(part * terms * left_stride) + row, comptime!(16 * left_stride)),
                    comptime!(left_stride as u32),
                );
                let b = Matrix::<E>::from_slice(
                    MatrixIdent::B,
                    16usize,
                    16usize,
                    terms,
                    MatrixLayout::RowMajor,
                    &right.slice(comptime!(part * terms * right_stride) + column, comptime!(16 * right_stride)),
                    comptime!(right_stride as u32),
                );
                let c = fragments.index(i);
                cubecl::cmma::execute::<E, E, f32, f32>(&a, &b, c, c);
            }
        }
    } else {
        let step = comptime!((columns / 4) as u32);
        let row = (UNIT_POS / step * 4u32) as usize;
        let column = (UNIT_POS % step * 4u32) as usize;
        let mut a = Array::<f32>::new(4usize);
        let mut b = Array::<f32>::new(4usize);
        for k in 0..16usize {
            #[unroll]
            for i in 0..4usize {
                a[i] = f32::cast_from(left[k * left_stride + row + i]);
                b[i] = f32::cast_from(right[k * right_stride + column + i]);
            }
            #[unroll]
            for i in 0..4usize {
                #[unroll]
                for j in 0..4usize {
                    sums[comptime!(i * 4 + j)] += a[i] * b[j];
                }
            }
        }
    }
}

/// Hands every unit its 4 by 4 of what tensor cores have summed up.
#[cube]
pub(super) fn collect(
    sums: &mut Array<f32>,
    fragments: &Sequence<Matrix<f32>>,
    #[comptime] columns: usize,
    #[comptime] form: Form,
) {
    if comptime!(form.uses_cores()) {
        let mut tile = SharedMemory::<f32>::new(comptime!(64 * columns));
        let across = comptime!((columns / 16) as u32);
        #[unroll]
        for i in 0..2usize {
            let fragment = UNIT_POS / 32u32 * 2u32 + comptime!(i as u32);
            let row = (fragment / across * 16u32) as usize;
            let column = (fragment % across * 16u32) as usize;
            cubecl::cmma::store(
                &mut tile.slice_mut(row * columns + column, comptime!(64 * columns)),
                fragments.index(i),
                comptime!(columns as u32),
                MatrixLayout::RowMajor,
            );
        }
        sync_cube();
        let step = comptime!((columns / 4) as u32);
        let row = (UNIT_POS / step * 4u32) as usize;
        let column = (UNIT_POS % step * 4u32) as usize;
        #[unroll]
        for i in 0..4usize {
            #[unroll]
            for j in 0..4usize {
                sums[comptime!(i * 4 + j)] = tile[(row + i) * columns + column + j];
            }
        }
    }
}
