//! Vectors of `f32` in the widest form the machine has, chosen at run time.

#![allow(
    unsafe_code,
    reason = "vector instructions and raw pointers are unsafe to call; every kernel goes through here"
)]
#![allow(clippy::inline_always, reason = "see Kernel::run")]

use std::sync::OnceLock;

use super::pairs;

/// A set of vector instructions.
///
/// # Safety
/// All methods may only be called where the machine has the instructions, that is below [`dispatch`]. Pointers must be
/// valid for as many values as the method says; they need no alignment.
pub(super) trait Simd: Copy {
    /// Values in one vector.
    const LANES: usize;
    /// Vectors of channels that the tiles of a product hold for every pixel, 1 or 2.
    const PANEL: usize;
    /// Vectors of sums that fit in the registers, beside what is multiplied.
    const SUMS: usize;
    /// One vector.
    type Vector: Copy;

    /// All lanes hold `value`.
    unsafe fn splat(value: f32) -> Self::Vector;
    /// Reads [`LANES`](Self::LANES) values.
    unsafe fn load(from: *const f32) -> Self::Vector;
    /// Writes [`LANES`](Self::LANES) values.
    unsafe fn store(to: *mut f32, vector: Self::Vector);
    /// Reads `count <= LANES` values, the other lanes are zero.
    unsafe fn load_some(from: *const f32, count: usize) -> Self::Vector;
    /// Writes the first `count <= LANES` values.
    unsafe fn store_some(to: *mut f32, vector: Self::Vector, count: usize);
    /// `a * b + c`, rounded once where the machine can.
    unsafe fn multiply_add(a: Self::Vector, b: Self::Vector, c: Self::Vector) -> Self::Vector;
    /// `a + b`.
    unsafe fn add(a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// `a - b`.
    unsafe fn subtract(a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// `a * b`.
    unsafe fn multiply(a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// The greater of both; zero for a NaN in `a` and a zero in `b`.
    unsafe fn max(a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// `value` where `condition > 0`, else zero.
    unsafe fn where_positive(condition: Self::Vector, value: Self::Vector) -> Self::Vector;

    /// `c` and the products of the [pairs](super::pairs) in the lanes of `a` and `b`: exactly
    /// [`pairs::add_products`](super::pairs::add_products).
    #[inline(always)]
    unsafe fn add_products(a: Self::Vector, b: Self::Vector, c: Self::Vector) -> Self::Vector {
        // SAFETY: passed on.
        unsafe { lane_by_lane::<Self>([a, b, c], |[a, b, c]| pairs::add_products(a, b, c)) }
    }

    /// A pair of both vectors' values in every lane.
    #[inline(always)]
    unsafe fn pair(low: Self::Vector, high: Self::Vector) -> Self::Vector {
        // SAFETY: passed on.
        unsafe { lane_by_lane::<Self>([low, high, low], |[low, high, _]| pairs::pair(low, high)) }
    }

    /// Pairs of neighbours of `2 * LANES` values: those of `first`, then those of `second`.
    #[inline(always)]
    unsafe fn pair_neighbours(first: Self::Vector, second: Self::Vector) -> Self::Vector {
        // SAFETY: passed on.
        unsafe { paired_neighbours::<Self>(first, second) }
    }
}

/// Lanes of the widest vectors.
const MOST_LANES: usize = 16;

/// [`Simd::pair_neighbours`] lane by lane.
#[inline(always)]
unsafe fn paired_neighbours<S: Simd>(first: S::Vector, second: S::Vector) -> S::Vector {
    let mut values = [0.0; 2 * MOST_LANES];
    // SAFETY: the array holds two vectors, of which every pair is read before it is written over.
    unsafe {
        S::store(values.as_mut_ptr(), first);
        S::store(values.as_mut_ptr().add(S::LANES), second);
        for lane in 0..S::LANES {
            values[lane] = pairs::pair(values[2 * lane], values[2 * lane + 1]);
        }
        S::load(values.as_ptr())
    }
}

/// A function of single values on every lane of three vectors.
#[inline(always)]
unsafe fn lane_by_lane<S: Simd>(vectors: [S::Vector; 3], function: impl Fn([f32; 3]) -> f32) -> S::Vector {
    let mut values = [[0.0; MOST_LANES]; 3];
    // SAFETY: every array holds a vector.
    unsafe {
        for (values, vector) in values.iter_mut().zip(vectors) {
            S::store(values.as_mut_ptr(), vector);
        }
        for lane in 0..S::LANES {
            values[0][lane] = function(values.map(|values| values[lane]));
        }
        S::load(values[0].as_ptr())
    }
}

/// Work that can be done with any set of instructions.
pub(super) trait Kernel {
    /// What the work gives.
    type Output;

    /// Does the work.
    ///
    /// Implementations are `#[inline(always)]`, as is everything they call, so that the compiler sees the whole work
    /// in a function that may use the instructions.
    ///
    /// # Safety
    /// The machine has the instructions of `S`; further conditions are the implementation's.
    unsafe fn run<S: Simd>(self) -> Self::Output;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Instructions {
    /// AVX-512 with products of bf16.
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "aarch64")]
    Neon,
    #[allow(dead_code, reason = "64-bit ARM always has NEON")]
    Portable,
}

/// Whether an x86 processor with AVX-512 has the rest that [`Instructions::Avx512Bf16`] takes.
#[cfg(target_arch = "x86_64")]
fn has_bf16() -> bool {
    is_x86_feature_detected!("avx512bf16") && is_x86_feature_detected!("avx512bw")
}

/// Instructions that a test forces, by their place in [`available`]; 0 is none.
#[cfg(test)]
static FORCED: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);

/// All sets of instructions this machine has.
#[cfg(test)]
fn available() -> Vec<Instructions> {
    let mut all = vec![Instructions::Portable];
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            all.push(Instructions::Avx2);
        }
        if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("fma") {
            all.push(Instructions::Avx512);
        }
        if all.contains(&Instructions::Avx512) && has_bf16() {
            all.push(Instructions::Avx512Bf16);
        }
    }
    #[cfg(target_arch = "aarch64")]
    all.push(Instructions::Neon);
    all
}

/// Lets one test of this crate run kernels at a time, as the instructions are those of the whole process.
#[cfg(test)]
pub(super) fn alone() -> std::sync::MutexGuard<'static, ()> {
    static TURN: std::sync::Mutex<()> = std::sync::Mutex::new(());
    TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Does the work once with every set of instructions.
#[cfg(test)]
pub(super) fn with_every_set<T>(mut work: impl FnMut() -> T) -> Vec<T> {
    use std::sync::atomic::Ordering;
    let _turn = alone();
    let results = (1..=available().len())
        .map(|set| {
            FORCED.store(set, Ordering::SeqCst);
            work()
        })
        .collect();
    FORCED.store(0, Ordering::SeqCst);
    results
}

fn instructions() -> Instructions {
    static CHOSEN: OnceLock<Instructions> = OnceLock::new();
    #[cfg(test)]
    if let Some(forced) = FORCED.load(std::sync::atomic::Ordering::SeqCst).checked_sub(1) {
        return available()[forced];
    }
    *CHOSEN.get_or_init(|| {
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("fma") {
                return if has_bf16() { Instructions::Avx512Bf16 } else { Instructions::Avx512 };
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                return Instructions::Avx2;
            }
            Instructions::Portable
        }
        #[cfg(target_arch = "aarch64")]
        {
            Instructions::Neon
        }
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        {
            Instructions::Portable
        }
    })
}

/// Whether this machine multiplies pairs of bf16 by an instruction of its own.
pub(crate) fn multiplies_pairs() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        instructions() == Instructions::Avx512Bf16
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
    }
}

/// Values in one vector, and vectors in one panel, of the instructions that [`dispatch`] chooses.
pub(super) fn lanes_and_panel() -> (usize, usize) {
    struct Constants;
    impl Kernel for Constants {
        type Output = (usize, usize);
        #[inline(always)]
        unsafe fn run<S: Simd>(self) -> (usize, usize) {
            (S::LANES, S::PANEL)
        }
    }
    // SAFETY: reading constants has no conditions.
    unsafe { dispatch(Constants) }
}

/// Runs the kernel with the widest instructions of this machine.
///
/// Closures handed to other threads do not inherit the instructions: split the work first, dispatch in each part.
///
/// # Safety
/// As the kernel's `run` demands.
#[inline]
pub(super) unsafe fn dispatch<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the instructions were detected, the rest is the caller's promise.
    unsafe {
        match instructions() {
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx512Bf16 => x86::run_avx512_bf16(kernel),
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx512 => x86::run_avx512(kernel),
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx2 => x86::run_avx2(kernel),
            #[cfg(target_arch = "aarch64")]
            Instructions::Neon => arm::run_neon(kernel),
            Instructions::Portable => kernel.run::<Portable>(),
        }
    }
}

/// Plain arrays, which the compiler turns into whatever the target always has.
#[derive(Clone, Copy)]
pub(super) struct Portable;

macro_rules! lanewise {
    ($index:ident => $value:expr) => {{
        let mut vector = [0.0; 8];
        let mut $index = 0;
        while $index < 8 {
            vector[$index] = $value;
            $index += 1;
        }
        vector
    }};
}

impl Simd for Portable {
    const LANES: usize = 8;
    const PANEL: usize = 1;
    const SUMS: usize = 4;
    type Vector = [f32; 8];

    #[inline(always)]
    unsafe fn splat(value: f32) -> [f32; 8] {
        [value; 8]
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> [f32; 8] {
        // SAFETY: the caller promises 8 values; arrays of f32 are aligned like f32.
        unsafe { from.cast::<[f32; 8]>().read() }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, vector: [f32; 8]) {
        // SAFETY: as in `load`.
        unsafe { to.cast::<[f32; 8]>().write(vector) }
    }
    #[inline(always)]
    unsafe fn load_some(from: *const f32, count: usize) -> [f32; 8] {
        // SAFETY: only the promised `count` values are read.
        lanewise!(lane => if lane < count { unsafe { *from.add(lane) } } else { 0.0 })
    }
    #[inline(always)]
    unsafe fn store_some(to: *mut f32, vector: [f32; 8], count: usize) {
        for (lane, value) in vector.iter().enumerate().take(count) {
            // SAFETY: only the promised `count` values are written.
            unsafe { to.add(lane).write(*value) }
        }
    }
    #[inline(always)]
    unsafe fn multiply_add(a: [f32; 8], b: [f32; 8], c: [f32; 8]) -> [f32; 8] {
        lanewise!(lane => a[lane] * b[lane] + c[lane])
    }
    #[inline(always)]
    unsafe fn add(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        lanewise!(lane => a[lane] + b[lane])
    }
    #[inline(always)]
    unsafe fn subtract(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        lanewise!(lane => a[lane] - b[lane])
    }
    #[inline(always)]
    unsafe fn multiply(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        lanewise!(lane => a[lane] * b[lane])
    }
    #[inline(always)]
    unsafe fn max(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        lanewise!(lane => if a[lane] > b[lane] { a[lane] } else { b[lane] })
    }
    #[inline(always)]
    unsafe fn where_positive(condition: [f32; 8], value: [f32; 8]) -> [f32; 8] {
        lanewise!(lane => if condition[lane] > 0.0 { value[lane] } else { 0.0 })
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m256, __m256i, __m512, __m512bh, __m512i, _CMP_GT_OQ, _mm256_add_ps, _mm256_and_ps, _mm256_cmp_ps,
        _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_loadu_si256, _mm256_maskload_ps, _mm256_maskstore_ps, _mm256_max_ps,
        _mm256_mul_ps, _mm256_set1_ps, _mm256_setzero_ps, _mm256_storeu_ps, _mm256_sub_ps, _mm512_add_ps,
        _mm512_castsi512_ps, _mm512_cmp_ps_mask, _mm512_cvtne2ps_pbh, _mm512_dpbf16_ps, _mm512_fmadd_ps,
        _mm512_loadu_ps, _mm512_loadu_si512, _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps, _mm512_maskz_mov_ps,
        _mm512_max_ps, _mm512_mul_ps, _mm512_permutexvar_epi16, _mm512_set1_ps, _mm512_setzero_ps, _mm512_storeu_ps,
        _mm512_sub_ps,
    };
    use std::mem::transmute;

    use super::{Kernel, Simd, lane_by_lane, paired_neighbours};
    use crate::flex::pairs;

    /// # Safety
    /// As the kernel's `run` demands; the machine has the instructions.
    #[target_feature(enable = "avx512f,avx2,fma")]
    pub(super) unsafe fn run_avx512<K: Kernel>(kernel: K) -> K::Output {
        // SAFETY: passed on to the caller.
        unsafe { kernel.run::<Avx512<false>>() }
    }

    /// # Safety
    /// As the kernel's `run` demands; the machine has the instructions.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16,avx2,fma")]
    pub(super) unsafe fn run_avx512_bf16<K: Kernel>(kernel: K) -> K::Output {
        // SAFETY: passed on to the caller.
        unsafe { kernel.run::<Avx512<true>>() }
    }

    /// # Safety
    /// As the kernel's `run` demands; the machine has the instructions.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn run_avx2<K: Kernel>(kernel: K) -> K::Output {
        // SAFETY: passed on to the caller.
        unsafe { kernel.run::<Avx2>() }
    }

    /// The order that puts the first and the second half of 32 values in turns.
    static TURNS: [u16; 32] = {
        let mut turns = [0; 32];
        let mut lane = 0;
        while lane < 16 {
            turns[2 * lane] = lane as u16;
            turns[2 * lane + 1] = lane as u16 + 16;
            lane += 1;
        }
        turns
    };

    /// With instructions for pairs of bf16, or without.
    #[derive(Clone, Copy)]
    pub(super) struct Avx512<const BF16: bool>;

    // SAFETY of all blocks below: the trait's conditions are those of the intrinsics; pairs are 32 bits as f32 is.
    impl<const BF16: bool> Simd for Avx512<BF16> {
        const LANES: usize = 16;
        const PANEL: usize = 2;
        const SUMS: usize = 16;
        type Vector = __m512;

        #[inline(always)]
        unsafe fn splat(value: f32) -> __m512 {
            unsafe { _mm512_set1_ps(value) }
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> __m512 {
            unsafe { _mm512_loadu_ps(from) }
        }
        #[inline(always)]
        unsafe fn store(to: *mut f32, vector: __m512) {
            unsafe { _mm512_storeu_ps(to, vector) }
        }
        #[inline(always)]
        unsafe fn load_some(from: *const f32, count: usize) -> __m512 {
            unsafe { _mm512_maskz_loadu_ps(((1_u32 << count) - 1) as u16, from) }
        }
        #[inline(always)]
        unsafe fn store_some(to: *mut f32, vector: __m512, count: usize) {
            unsafe { _mm512_mask_storeu_ps(to, ((1_u32 << count) - 1) as u16, vector) }
        }
        #[inline(always)]
        unsafe fn multiply_add(a: __m512, b: __m512, c: __m512) -> __m512 {
            unsafe { _mm512_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        unsafe fn add(a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_add_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn subtract(a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_sub_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn multiply(a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_mul_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn max(a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_max_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn where_positive(condition: __m512, value: __m512) -> __m512 {
            unsafe {
                let positive = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(condition, _mm512_setzero_ps());
                _mm512_maskz_mov_ps(positive, value)
            }
        }
        #[inline(always)]
        unsafe fn add_products(a: __m512, b: __m512, c: __m512) -> __m512 {
            unsafe {
                if BF16 {
                    _mm512_dpbf16_ps(c, transmute::<__m512, __m512bh>(a), transmute::<__m512, __m512bh>(b))
                } else {
                    lane_by_lane::<Self>([a, b, c], |[a, b, c]| pairs::add_products(a, b, c))
                }
            }
        }
        #[inline(always)]
        unsafe fn pair(low: __m512, high: __m512) -> __m512 {
            unsafe {
                if BF16 {
                    // All of `low`, then all of `high`, put in turns.
                    let rounded = transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low));
                    let turns = _mm512_loadu_si512(TURNS.as_ptr().cast());
                    _mm512_castsi512_ps(_mm512_permutexvar_epi16(turns, rounded))
                } else {
                    lane_by_lane::<Self>([low, high, low], |[low, high, _]| pairs::pair(low, high))
                }
            }
        }
        #[inline(always)]
        unsafe fn pair_neighbours(first: __m512, second: __m512) -> __m512 {
            unsafe {
                if BF16 {
                    transmute::<__m512bh, __m512>(_mm512_cvtne2ps_pbh(second, first))
                } else {
                    paired_neighbours::<Self>(first, second)
                }
            }
        }
    }

    #[derive(Clone, Copy)]
    pub(super) struct Avx2;

    impl Avx2 {
        /// All bits of the first `count` lanes.
        #[inline(always)]
        unsafe fn mask(count: usize) -> __m256i {
            static BITS: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];
            // SAFETY: `count` is at most 8, so eight values lie behind the pointer.
            unsafe { _mm256_loadu_si256(BITS.as_ptr().add(8 - count).cast()) }
        }
    }

    // SAFETY of all blocks below: the trait's conditions are those of the intrinsics.
    impl Simd for Avx2 {
        const LANES: usize = 8;
        const PANEL: usize = 2;
        const SUMS: usize = 8;
        type Vector = __m256;

        #[inline(always)]
        unsafe fn splat(value: f32) -> __m256 {
            unsafe { _mm256_set1_ps(value) }
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> __m256 {
            unsafe { _mm256_loadu_ps(from) }
        }
        #[inline(always)]
        unsafe fn store(to: *mut f32, vector: __m256) {
            unsafe { _mm256_storeu_ps(to, vector) }
        }
        #[inline(always)]
        unsafe fn load_some(from: *const f32, count: usize) -> __m256 {
            unsafe { _mm256_maskload_ps(from, Self::mask(count)) }
        }
        #[inline(always)]
        unsafe fn store_some(to: *mut f32, vector: __m256, count: usize) {
            unsafe { _mm256_maskstore_ps(to, Self::mask(count), vector) }
        }
        #[inline(always)]
        unsafe fn multiply_add(a: __m256, b: __m256, c: __m256) -> __m256 {
            unsafe { _mm256_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        unsafe fn add(a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_add_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn subtract(a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_sub_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn multiply(a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_mul_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn max(a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_max_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn where_positive(condition: __m256, value: __m256) -> __m256 {
            unsafe { _mm256_and_ps(_mm256_cmp_ps::<_CMP_GT_OQ>(condition, _mm256_setzero_ps()), value) }
        }
    }
}

#[cfg(target_arch = "aarch64")]
mod arm {
    use std::arch::aarch64::{
        float32x4_t, vaddq_f32, vandq_u32, vcgtzq_f32, vdupq_n_f32, vfmaq_f32, vld1q_f32, vmaxnmq_f32, vmulq_f32,
        vreinterpretq_f32_u32, vreinterpretq_u32_f32, vst1q_f32, vsubq_f32,
    };

    use super::{Kernel, Simd};

    /// # Safety
    /// As the kernel's `run` demands.
    #[target_feature(enable = "neon")]
    pub(super) unsafe fn run_neon<K: Kernel>(kernel: K) -> K::Output {
        // SAFETY: passed on to the caller.
        unsafe { kernel.run::<Neon>() }
    }

    #[derive(Clone, Copy)]
    pub(super) struct Neon;

    // SAFETY of all blocks below: the trait's conditions are those of the intrinsics.
    impl Simd for Neon {
        const LANES: usize = 4;
        const PANEL: usize = 2;
        const SUMS: usize = 16;
        type Vector = float32x4_t;

        #[inline(always)]
        unsafe fn splat(value: f32) -> float32x4_t {
            unsafe { vdupq_n_f32(value) }
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> float32x4_t {
            unsafe { vld1q_f32(from) }
        }
        #[inline(always)]
        unsafe fn store(to: *mut f32, vector: float32x4_t) {
            unsafe { vst1q_f32(to, vector) }
        }
        #[inline(always)]
        unsafe fn load_some(from: *const f32, count: usize) -> float32x4_t {
            let mut values = [0.0; 4];
            for (lane, value) in values.iter_mut().enumerate().take(count) {
                // SAFETY: only the promised `count` values are read.
                *value = unsafe { *from.add(lane) };
            }
            unsafe { vld1q_f32(values.as_ptr()) }
        }
        #[inline(always)]
        unsafe fn store_some(to: *mut f32, vector: float32x4_t, count: usize) {
            let mut values = [0.0; 4];
            unsafe { vst1q_f32(values.as_mut_ptr(), vector) };
            for (lane, value) in values.iter().enumerate().take(count) {
                // SAFETY: only the promised `count` values are written.
                unsafe { to.add(lane).write(*value) }
            }
        }
        #[inline(always)]
        unsafe fn multiply_add(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
            unsafe { vfmaq_f32(c, a, b) }
        }
        #[inline(always)]
        unsafe fn add(a: float32x4_t, b: float32x4_t) -> float32x4_t {
            unsafe { vaddq_f32(a, b) }
        }
        #[inline(always)]
        unsafe fn subtract(a: float32x4_t, b: float32x4_t) -> float32x4_t {
            unsafe { vsubq_f32(a, b) }
        }
        #[inline(always)]
        unsafe fn multiply(a: float32x4_t, b: float32x4_t) -> float32x4_t {
            unsafe { vmulq_f32(a, b) }
        }
        #[inline(always)]
        unsafe fn max(a: float32x4_t, b: float32x4_t) -> float32x4_t {
            unsafe { vmaxnmq_f32(a, b) }
        }
        #[inline(always)]
        unsafe fn where_positive(condition: float32x4_t, value: float32x4_t) -> float32x4_t {
            unsafe { vreinterpretq_f32_u32(vandq_u32(vcgtzq_f32(condition), vreinterpretq_u32_f32(value))) }
        }
    }
}
