use std::cell::Cell;
use std::sync::{Mutex, MutexGuard, PoisonError};

static TURN: Mutex<()> = Mutex::new(());

thread_local! {
    static DIFFERENTIATES: Cell<bool> = const { Cell::new(false) };
}

/// This thread's turn, until it is dropped.
struct Turn {
    _held: MutexGuard<'static, ()>,
}

impl Turn {
    fn wait() -> Self {
        assert!(!DIFFERENTIATES.get(), "a pass differentiates within another one of the same thread");
        // The lock guards no value that a panic could leave half-changed.
        let turn = Self { _held: TURN.lock().unwrap_or_else(PoisonError::into_inner) };
        DIFFERENTIATES.set(true);
        turn
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        DIFFERENTIATES.set(false);
    }
}

/// Runs a pass, forward and backward, while no other thread of the process runs one.
///
/// Burn 0.21 loses gradients when two threads differentiate at once (tracel-ai/burn issue 5573). At its end every
/// `backward` looks through the graphs of the whole process and frees each whose tensors are all gone. So is, for a
/// moment, a graph that another thread is building, between an operation's taking its input and its being recorded: the
/// step before it is freed, and the parameters behind it end without a gradient and without an error. Threads that share
/// a parameter also merge their graphs, and may wait for each other for ever. Making a leaf, dropping tensors and passes
/// without gradients disturb nobody.
///
/// So the whole pass belongs in here: the forward operations, `backward`, and taking the gradients out. What needs no
/// graph stays outside, so that other threads get their turn: loading images, a step of the optimiser, evaluation,
/// writing. The operations of this crate panic where they would record a step outside of it.
///
/// The pass must wait for nothing that another thread does in a pass of its own. In particular, passes of several tasks
/// of one rayon pool may wait for each other for ever, as a thread that waits for a part of one task begins another: start
/// trainings that run side by side on threads of their own, such as those of [`std::thread::scope`].
///
/// # Panics
/// If called within another pass of the same thread. A pass that panics ends its turn, and others go on.
pub fn differentiate<T>(pass: impl FnOnce() -> T) -> T {
    let _turn = Turn::wait();
    pass()
}

/// Makes a pass outside of [`differentiate`] fail, instead of losing gradients now and then.
pub(crate) fn assert_differentiating() {
    assert!(
        DIFFERENTIATES.get(),
        "a pass that keeps gradients must run in patchdoor_kernels::differentiate, forward and backward"
    );
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;
    use std::time::Duration;

    use super::*;

    #[test]
    fn one_pass_runs_at_a_time() {
        let (running, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..10 {
                        differentiate(|| {
                            most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                            thread::sleep(Duration::from_micros(200));
                            running.fetch_sub(1, Ordering::SeqCst);
                        });
                    }
                });
            }
        });
        assert_eq!(most.into_inner(), 1);
    }

    #[test]
    fn a_pass_that_panics_ends_its_turn() {
        for _ in 0..2 {
            let pass = thread::spawn(|| differentiate(|| panic!("a pass fails")));
            assert!(pass.join().is_err());
        }
        let within = std::panic::catch_unwind(|| differentiate(|| panic!("a pass fails")));
        assert!(within.is_err());
        assert_eq!(differentiate(|| 1), 1);
    }

    #[test]
    #[should_panic(expected = "within another one of the same thread")]
    fn a_pass_within_a_pass_panics_instead_of_waiting_for_itself() {
        differentiate(|| differentiate(|| ()));
    }
}
