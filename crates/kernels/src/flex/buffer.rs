//! Memory for results, kept between calls.
//!
//! A training step asks for the same sizes again and again. Fresh pages cost the system more than writing them does
//! (every 4 KiB is zeroed and mapped at its first touch), so freed buffers wait here for their next use.

#![allow(unsafe_code, reason = "memory is handed out before it is written, and freed by hand")]

use std::alloc::{Layout as Memory, alloc, dealloc, handle_alloc_error};
use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::sync::{Mutex, PoisonError};

use burn_flex::{FlexTensor, Layout};
use burn_std::{AllocationController, AllocationProperty, Bytes, DType, Shape};

/// Two cache lines, as the adjacent-line prefetcher of x86 fetches pairs.
const ALIGNMENT: usize = 128;

/// Smaller buffers go straight to the allocator, which keeps those itself.
const SMALLEST_KEPT: usize = 32 << 10;

/// Values that are not written yet.
pub(super) struct Buffer {
    start: NonNull<u8>,
    /// Bytes of the allocation.
    capacity: usize,
    /// Values asked for.
    length: usize,
}

// SAFETY: a buffer owns its memory alone, like a `Vec`.
unsafe impl Send for Buffer {}
// SAFETY: as above; shared access only reads.
unsafe impl Sync for Buffer {}

/// Buffers that wait for their next use, smallest first, and what they hold together.
struct Kept {
    buffers: Vec<(usize, NonNull<u8>)>,
    bytes: usize,
    /// Bytes of all buffers in use.
    used: usize,
    /// The most that ever was in use.
    peak: usize,
}

// SAFETY: the pointers are owned by the list.
unsafe impl Send for Kept {}

static KEPT: Mutex<Kept> = Mutex::new(Kept { buffers: Vec::new(), bytes: 0, used: 0, peak: 0 });

impl Kept {
    /// Takes the smallest buffer of at least `bytes` that wastes no more than an eighth.
    fn take(&mut self, bytes: usize) -> Option<(usize, NonNull<u8>)> {
        let index = self.buffers.partition_point(|(capacity, _)| *capacity < bytes);
        let (capacity, _) = *self.buffers.get(index)?;
        (capacity <= bytes + bytes / 8).then(|| {
            self.bytes -= capacity;
            self.buffers.remove(index)
        })
    }
}

fn memory(capacity: usize) -> Memory {
    Memory::from_size_align(capacity, ALIGNMENT).expect("no tensor fills half the address space")
}

impl Buffer {
    /// Memory for `length` values.
    pub(super) fn new(length: usize) -> Self {
        let bytes = (length * size_of::<f32>()).next_multiple_of(ALIGNMENT).max(ALIGNMENT);
        if bytes >= SMALLEST_KEPT {
            let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((capacity, start)) = kept.take(bytes) {
                kept.used += capacity;
                kept.peak = kept.peak.max(kept.used);
                return Self { start, capacity, length };
            }
            kept.used += bytes;
            kept.peak = kept.peak.max(kept.used);
            // Waiting buffers that fit no request would add up: hold no more than a quarter above what was once needed.
            while kept.used + kept.bytes > kept.peak + kept.peak / 4 {
                let Some((capacity, start)) = kept.buffers.pop() else { break };
                kept.bytes -= capacity;
                // SAFETY: `start` was allocated with this layout and has no other owner.
                unsafe { dealloc(start.as_ptr(), memory(capacity)) };
            }
        }
        // SAFETY: the size is not zero.
        let start = unsafe { alloc(memory(bytes)) };
        let start = NonNull::new(start).unwrap_or_else(|| handle_alloc_error(memory(bytes)));
        Self { start, capacity: bytes, length }
    }

    /// The values, not necessarily written.
    pub(super) fn values(&mut self) -> &mut [MaybeUninit<f32>] {
        // SAFETY: the allocation has room for `length` values, is aligned, and borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr().cast(), self.length) }
    }

    /// Start of the values.
    pub(super) fn as_ptr(&self) -> *const f32 {
        self.start.as_ptr().cast()
    }

    /// The values as a slice.
    ///
    /// # Safety
    /// All values have been written.
    pub(super) unsafe fn written(&self) -> &[f32] {
        // SAFETY: the caller promises that the values were written.
        unsafe { std::slice::from_raw_parts(self.as_ptr(), self.length) }
    }

    /// The values as a tensor.
    ///
    /// # Safety
    /// All values have been written.
    ///
    /// # Panics
    /// If the shape does not have as many elements as the buffer has values.
    pub(super) unsafe fn into_tensor(self, shape: Shape) -> FlexTensor {
        assert_eq!(shape.num_elements(), self.length, "the kernel's result must have the promised shape");
        let length = self.length * size_of::<f32>();
        // SAFETY: the caller promises that the values were written.
        let bytes = unsafe { Bytes::from_controller(Box::new(self), length) };
        FlexTensor::new(bytes, Layout::contiguous(shape), DType::F32)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.capacity >= SMALLEST_KEPT {
            let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
            kept.used -= self.capacity;
            kept.bytes += self.capacity;
            let index = kept.buffers.partition_point(|(capacity, _)| *capacity < self.capacity);
            kept.buffers.insert(index, (self.capacity, self.start));
        } else {
            // SAFETY: `start` was allocated with this layout and has no other owner.
            unsafe { dealloc(self.start.as_ptr(), memory(self.capacity)) };
        }
    }
}

impl AllocationController for Buffer {
    fn alloc_align(&self) -> usize {
        ALIGNMENT
    }

    fn property(&self) -> AllocationProperty {
        AllocationProperty::Other
    }

    unsafe fn memory_mut(&mut self) -> &mut [MaybeUninit<u8>] {
        // SAFETY: the whole allocation belongs to this buffer.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr().cast(), self.capacity) }
    }

    fn memory(&self) -> &[MaybeUninit<u8>] {
        // SAFETY: the whole allocation belongs to this buffer.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().cast(), self.capacity) }
    }
}
