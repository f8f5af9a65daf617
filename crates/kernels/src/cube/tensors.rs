//! Buffers of a device, as the kernels of this folder take and give them.

use burn::tensor::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::cubecl;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

/// A tensor whose elements lie one after another.
pub(super) fn contiguous<R: CubeRuntime>(tensor: CubeTensor<R>) -> CubeTensor<R> {
    into_contiguous(tensor)
}

/// A new tensor of numbers not yet written, beside another one.
pub(super) fn empty<R: CubeRuntime>(beside: &CubeTensor<R>, shape: impl Into<burn::tensor::Shape>) -> CubeTensor<R> {
    empty_of(beside, shape, DType::F32)
}

/// Like [`empty`], of any element type.
pub(super) fn empty_of<R: CubeRuntime>(
    beside: &CubeTensor<R>,
    shape: impl Into<burn::tensor::Shape>,
    dtype: DType,
) -> CubeTensor<R> {
    empty_device_contiguous_dtype(beside.client.clone(), beside.device.clone(), shape.into(), dtype)
}

/// The whole tensor as a kernel's argument.
pub(super) fn array<R: CubeRuntime>(tensor: &CubeTensor<R>) -> ArrayArg<R> {
    tensor.clone().into_array_arg()
}

/// So many cubes, over two axes where one does not hold them.
pub(super) fn cubes(count: usize) -> CubeCount {
    const MOST: usize = 32_768;
    if count <= MOST {
        CubeCount::Static(count as u32, 1, 1)
    } else {
        CubeCount::Static(MOST as u32, count.div_ceil(MOST) as u32, 1)
    }
}
