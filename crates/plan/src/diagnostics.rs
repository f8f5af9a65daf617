use std::fmt;
use std::path::{Path, PathBuf};

/// Where in a file or on the command line something stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    /// The file as the user named it, or `--set`.
    pub origin: String,
    /// Line, counted from 1.
    pub line: usize,
    /// Column in characters, counted from 1.
    pub column: usize,
    /// The whole line.
    pub text: String,
    /// How many characters the thing is wide, at least 1.
    pub width: usize,
}

/// One problem with an experiment, and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// Dotted path of the field; empty if the problem is with the whole file.
    pub field: String,
    /// What was found and what is allowed, in one line.
    pub message: String,
    /// Where it stands, if anywhere.
    pub position: Option<Position>,
    /// What to do about it.
    pub help: Option<String>,
}

impl Diagnostic {
    /// A problem with a whole file.
    pub fn about_file(path: &Path, message: impl fmt::Display) -> Self {
        Self { field: String::new(), message: format!("{}: {message}", path.display()), position: None, help: None }
    }
}

/// Shows a problem as compilers do: message, place, the line itself.
impl fmt::Display for Diagnostic {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "error: {}", self.message)?;
        let margin = self.position.as_ref().map_or(1, |position| position.line.to_string().len());
        if let Some(Position { origin, line, column, text, width }) = &self.position {
            write!(formatter, "\n{:margin$}--> {origin}:{line}:{column}", "")?;
            if !text.trim().is_empty() {
                // A tab stays a tab so that the marks stand below what they mark.
                let indent: String =
                    text.chars().take(column - 1).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
                write!(formatter, "\n{:margin$} |", "")?;
                write!(formatter, "\n{line} | {text}")?;
                write!(formatter, "\n{:margin$} | {indent}{}", "", "^".repeat(*width))?;
            }
        }
        if let Some(help) = &self.help {
            write!(formatter, "\n{:margin$} = help: {help}", "")?;
        }
        Ok(())
    }
}

/// Every problem found with an experiment.
#[derive(Clone, Debug)]
pub struct ConfigErrors {
    /// The experiment file.
    pub path: PathBuf,
    /// The problems, in the order of the file.
    pub diagnostics: Vec<Diagnostic>,
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, diagnostic) in self.diagnostics.iter().enumerate() {
            if number > 0 {
                formatter.write_str("\n\n")?;
            }
            write!(formatter, "{diagnostic}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

/// Orders problems as they stand in the file, those of overrides last.
pub(crate) fn sort_by_place(diagnostics: &mut [Diagnostic]) {
    diagnostics.sort_by_key(|diagnostic| {
        let position = diagnostic.position.as_ref();
        position.map(|position| (position.origin == "--set", position.line, position.column))
    });
}

/// The allowed word nearest to a mistyped one, if any is near enough to be what was meant.
///
/// `-` and `_` count as the same letter, as do capitals and small ones; neighbours that changed places are one mistake.
pub(crate) fn nearest<'a>(word: &str, allowed: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let plain = |word: &str| word.to_lowercase().replace('_', "-");
    allowed
        .into_iter()
        .map(|candidate| (strsim::osa_distance(&plain(word), &plain(candidate)), candidate))
        .filter(|(distance, candidate)| *distance <= 1 + word.len().max(candidate.len()) / 4)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_typo_finds_its_word_and_nonsense_finds_none() {
        let allowed = ["rate", "count-rule", "target-class", "label-rule"];
        assert_eq!(nearest("rat", allowed), Some("rate"));
        assert_eq!(nearest("target_class", allowed), Some("target-class"));
        assert_eq!(nearest("traget-class", allowed), Some("target-class"));
        assert_eq!(nearest("zebra-crossing", allowed), None);
    }

    #[test]
    fn the_marks_stand_below_what_they_mark() {
        let diagnostic = Diagnostic {
            field: "poisoning.rate".into(),
            message: "poisoning.rate is 1.7, expected a fraction in [0, 1]".into(),
            position: Some(Position {
                origin: "experiments/badnets.toml".into(),
                line: 12,
                column: 8,
                text: "rate = 1.7".into(),
                width: 3,
            }),
            help: Some("two percent is 0.02".into()),
        };
        insta::assert_snapshot!(diagnostic, @r"
        error: poisoning.rate is 1.7, expected a fraction in [0, 1]
          --> experiments/badnets.toml:12:8
           |
        12 | rate = 1.7
           |        ^^^
           = help: two percent is 0.02
        ");
    }
}
