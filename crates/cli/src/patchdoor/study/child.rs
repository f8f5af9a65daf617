use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long a child may take to save its work after it was asked to end.
const GRACE: Duration = Duration::from_secs(8);

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// By itself, with this exit code if it has one.
    Code(Option<i32>),
    /// Its time was over.
    TimedOut,
    /// The user interrupted the study.
    Interrupted,
}

/// Runs a tied child until it ends, its time is over or the study is interrupted; writes what it says to the files for its
/// standard output and error.
///
/// The child watches its standard input: a line there asks it to end after its epoch, the end of it ends the child. So it
/// ends too when this process is killed.
///
/// # Errors
/// If the program cannot be started or the files not be written.
pub(super) fn run(
    command: &mut Command,
    limit: Duration,
    stop: &AtomicBool,
    [output, errors]: [&Path; 2],
) -> io::Result<Ending> {
    command.stdin(Stdio::piped()).stdout(File::create(output)?).stderr(File::create(errors)?);
    let begun = Instant::now();
    let mut child = Guard(command.spawn()?);
    let mut asked: Option<(Ending, Instant)> = None;
    let grace = GRACE.min(limit / 3);
    loop {
        if let Some(status) = child.0.try_wait()? {
            // One that was done before it listened is done.
            return Ok(match asked {
                Some((ending, _)) if !status.success() => ending,
                _ => Ending::Code(status.code()),
            });
        }
        match asked {
            None => {
                let interrupted = stop.load(Ordering::Relaxed);
                // Early enough for the limit to hold even if the child does not listen.
                if interrupted || begun.elapsed() + grace >= limit {
                    let ending = if interrupted { Ending::Interrupted } else { Ending::TimedOut };
                    asked = Some((ending, Instant::now()));
                    if let Some(input) = child.0.stdin.as_mut() {
                        // A child that no longer listens is about to end.
                        let _ = input.write_all(b"\n").and_then(|()| input.flush());
                    }
                }
            }
            Some((ending, at)) if at.elapsed() >= grace => return Ok(ending),
            Some(_) => {}
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Kills the child when it is let go, unless it has ended.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        if !matches!(self.0.try_wait(), Ok(Some(_))) {
            // What cannot be killed has ended.
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    fn run_shell(script: &str, limit: f64, stop: bool) -> (Ending, Duration) {
        let folder = tempfile::tempdir().expect("a folder");
        let [output, errors] = ["out", "err"].map(|name| folder.path().join(name));
        let mut command = Command::new("sh");
        let begun = Instant::now();
        let stop = AtomicBool::new(stop);
        let ending = run(command.args(["-c", script]), Duration::from_secs_f64(limit), &stop, [&output, &errors]);
        (ending.expect("sh starts"), begun.elapsed())
    }

    #[test]
    fn a_child_ends_by_itself_in_time_or_is_ended() {
        assert_eq!(run_shell("exit 3", 60.0, false).0, Ending::Code(Some(3)));
        // It listens: a line on its input ends it before its limit.
        let (ending, time) = run_shell("read line; exit 130", 0.9, false);
        assert_eq!(ending, Ending::TimedOut);
        assert!(time < Duration::from_secs(2), "{time:?}");
        // It does not listen, and is killed at its limit.
        let (ending, time) = run_shell("sleep 100", 0.6, false);
        assert_eq!(ending, Ending::TimedOut);
        assert!(time < Duration::from_secs(20), "{time:?}");
        // What was done when its time was over is done.
        assert_eq!(run_shell("read line; exit 0", 0.3, false).0, Ending::Code(Some(0)));
        assert_eq!(run_shell("read line; exit 130", 60.0, true).0, Ending::Interrupted);
    }
}
