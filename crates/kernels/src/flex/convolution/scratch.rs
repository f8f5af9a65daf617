use std::cell::RefCell;

thread_local! {
    /// Zero-padded images and packed maps of the work a thread is at.
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

pub(super) fn with_scratch<T>(length: usize, work: impl FnOnce(&mut [f32]) -> T) -> T {
    SCRATCH.with_borrow_mut(|scratch| {
        if scratch.len() < length {
            scratch.resize(length, 0.0);
        }
        work(&mut scratch[..length])
    })
}
