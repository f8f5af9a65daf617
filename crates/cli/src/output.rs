use std::error::Error;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use patchdoor_report::DEFAULT_WIDTH;

/// Why the program ends before its work is done.
#[derive(Debug)]
pub enum Stop {
    /// The command line, a configuration, the machine or a folder is of no use.
    Unusable(anyhow::Error),
    /// Experiment files have problems.
    Config {
        /// What is wrong with each file, with the places.
        files: Vec<String>,
        /// How many problems that is in all.
        problems: usize,
    },
    /// A run failed.
    Failed(anyhow::Error),
    /// Everything that could be said has been said, and a run failed.
    FailedQuietly,
    /// Interrupted by the user.
    Interrupted,
    /// Nobody reads the output any more.
    ClosedPipe,
}

impl Stop {
    /// The exit code: 0 in peace, 1 where a run failed, 2 where nothing could be run, 130 where the user interrupted.
    pub fn code(&self) -> u8 {
        match self {
            Self::Unusable(_) | Self::Config { .. } => 2,
            Self::Failed(_) | Self::FailedQuietly => 1,
            Self::Interrupted => 130,
            Self::ClosedPipe => 0,
        }
    }

    /// For an error about what was asked for.
    pub fn unusable(error: impl Into<anyhow::Error>) -> Self {
        Self::Unusable(error.into())
    }

    /// For an error about what was done.
    pub fn failed(error: impl Into<anyhow::Error>) -> Self {
        Self::Failed(error.into())
    }
}

/// Writes to standard output; a closed pipe ends the program in peace.
///
/// # Errors
/// If nobody reads it any more, or it cannot be written.
pub fn print(text: &str) -> Result<(), Stop> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Stop::ClosedPipe),
        Err(error) => {
            let what = "cannot write to standard output; nothing else is lost, and the same command shows it again";
            Err(Stop::failed(anyhow::Error::from(error).context(what)))
        }
    }
}

/// Writes a line to standard error.
pub fn say(line: &str) {
    // Nobody is left to be told that nobody listens.
    let _ = writeln!(io::stderr(), "{line}");
}

/// Says why the program ends.
pub fn complain(stop: &Stop) {
    match stop {
        Stop::Unusable(error) | Stop::Failed(error) => say(&paint(&chain(error.as_ref()))),
        Stop::Config { files, problems } => {
            for errors in files {
                say(&paint(errors));
                say("");
            }
            say(&format!("{problems} {}; nothing was run", if *problems == 1 { "problem" } else { "problems" }));
        }
        Stop::FailedQuietly | Stop::Interrupted | Stop::ClosedPipe => {}
    }
}

/// An error and what caused it, a line each.
fn chain(error: &(dyn Error + 'static)) -> String {
    let causes = std::iter::successors(error.source(), |&error| error.source());
    let lines = std::iter::once(format!("error: {error}")).chain(causes.map(|cause| format!("  because: {cause}")));
    lines.collect::<Vec<_>>().join("\n")
}

/// Whether standard error is a terminal that understands escape sequences, to draw bars with.
pub fn is_smart_terminal() -> bool {
    io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Whether what goes to standard error is coloured: where a person reads it and does not mind.
pub fn has_colours() -> bool {
    is_smart_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Colours the word "error" where colours are wanted.
fn paint(text: &str) -> String {
    if !has_colours() {
        return text.to_owned();
    }
    let lines = text.lines().map(|line| match line.strip_prefix("error:") {
        Some(rest) => format!("\u{1b}[1;31merror:\u{1b}[0m\u{1b}[1m{rest}\u{1b}[0m"),
        None => line.to_owned(),
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Columns of the terminal that results go to; 80 without one.
pub fn terminal_width() -> usize {
    let stdout = io::stdout();
    let width = terminal_size::terminal_size_of(&stdout).filter(|_| stdout.is_terminal());
    width.map_or(DEFAULT_WIDTH, |(width, _)| usize::from(width.0).max(40))
}

/// The exit code of a program that ends so, after saying why.
pub fn exit_code(outcome: Result<(), Stop>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(stop) => {
            complain(&stop);
            ExitCode::from(stop.code())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_shown_with_its_causes() {
        let error = anyhow::anyhow!("no such disk").context("cannot write to runs");
        insta::assert_snapshot!(chain(error.as_ref()), @r"
        error: cannot write to runs
          because: no such disk
        ");
    }
}
