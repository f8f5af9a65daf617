//! Pairs of bf16 in the place of one f32.
//!
//! Processors multiply bf16 two at a time and add both products to one f32 (`vdpbf16ps`). So what is to be multiplied
//! is kept as pairs, each in the 32 bits of a value, the earlier one in the lower half; a map of pairs is then a map of
//! half as many channels or pixels, and all loops that hold for values hold for pairs.

#![allow(clippy::inline_always, reason = "see Kernel::run")]

/// Rounds to the nearest bf16, ties to even; subnormals to zero.
#[inline(always)]
fn rounded(value: f32) -> u32 {
    let bits = value.to_bits();
    let nearest = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    let quiet = bits >> 16 | 0x40;
    let zero = bits >> 16 & 0x8000;
    if value.is_nan() {
        quiet
    } else if bits & 0x7f80_0000 == 0 {
        zero
    } else {
        nearest
    }
}

/// Both values rounded to bf16, the nearest one, ties to even, with subnormals as zero.
#[inline(always)]
pub(super) fn pair(low: f32, high: f32) -> f32 {
    f32::from_bits(rounded(low) | rounded(high) << 16)
}

/// `c` and the products of two pairs: first that of the upper halves, then that of the lower ones, each product and sum
/// rounded once and subnormals taken for zero, as `vdpbf16ps` does it.
#[inline(always)]
pub(super) fn add_products(a: f32, b: f32, c: f32) -> f32 {
    let upper = |pair: f32| flushed(f32::from_bits(pair.to_bits() & 0xffff_0000));
    let lower = |pair: f32| flushed(f32::from_bits(pair.to_bits() << 16));
    let sum = flushed(upper(a).mul_add(upper(b), flushed(c)));
    flushed(lower(a).mul_add(lower(b), sum))
}

/// Zero of its sign for a subnormal.
#[inline(always)]
fn flushed(value: f32) -> f32 {
    if value.is_subnormal() { 0.0_f32.copysign(value) } else { value }
}
