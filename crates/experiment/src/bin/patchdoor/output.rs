use std::error::Error;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;

use patchdoor_experiment::ConfigErrors;

/// Why the program ends before its work is done.
#[derive(Debug)]
pub(crate) enum Stop {
    /// The command line, a configuration, the machine or a folder is of no use.
    Unusable(anyhow::Error),
    /// Experiment files have problems.
    Config(Vec<ConfigErrors>),
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
    pub(crate) fn code(&self) -> u8 {
        match self {
            Self::Unusable(_) | Self::Config(_) => 2,
            Self::Failed(_) | Self::FailedQuietly => 1,
            Self::Interrupted => 130,
            Self::ClosedPipe => 0,
        }
    }

    pub(crate) fn unusable(error: impl Into<anyhow::Error>) -> Self {
        Self::Unusable(error.into())
    }

    pub(crate) fn failed(error: impl Into<anyhow::Error>) -> Self {
        Self::Failed(error.into())
    }
}

/// Writes to standard output; a closed pipe ends the program in peace.
pub(crate) fn print(text: &str) -> Result<(), Stop> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Stop::ClosedPipe),
        Err(error) => Err(Stop::failed(error)),
    }
}

/// Writes a line to standard error.
pub(crate) fn say(line: &str) {
    // Nobody is left to be told that nobody listens.
    let _ = writeln!(io::stderr(), "{line}");
}

/// Says why the program ends.
pub(crate) fn complain(stop: &Stop) {
    match stop {
        Stop::Unusable(error) | Stop::Failed(error) => say(&paint(&chain(error.as_ref()))),
        Stop::Config(files) => {
            for errors in files {
                say(&paint(&errors.to_string()));
                say("");
            }
            let count = files.iter().map(|errors| errors.diagnostics.len()).sum::<usize>();
            say(&format!("{count} {}; nothing was run", if count == 1 { "problem" } else { "problems" }));
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

/// Colours the word "error" where a person reads it and does not mind.
fn paint(text: &str) -> String {
    let colour = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    if !colour {
        return text.to_owned();
    }
    let lines = text.lines().map(|line| match line.strip_prefix("error:") {
        Some(rest) => format!("\u{1b}[1;31merror:\u{1b}[0m\u{1b}[1m{rest}\u{1b}[0m"),
        None => line.to_owned(),
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Where images are looked for: the given folder, then the environment's, then `data/`.
pub(crate) fn data_roots(given: Option<&PathBuf>) -> Vec<PathBuf> {
    let environment = std::env::var_os("PATCHDOOR_DATA").filter(|value| !value.is_empty()).map(PathBuf::from);
    let mut roots = given.cloned().into_iter().chain(environment).collect::<Vec<_>>();
    roots.push(PathBuf::from("data"));
    roots
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
