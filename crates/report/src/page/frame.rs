use std::path::{Path, PathBuf};

use maud::{DOCTYPE, Markup, PreEscaped, html};
use patchdoor_record::{RecordError, write_whole};

/// Name of the page in the folder of its run or sweep.
pub const PAGE: &str = "page.html";

/// Name of the page about all runs and sweeps in their folder.
pub const OVERVIEW: &str = "overview.html";

/// Name of the page that has every attack beside every defense, in the folder of their runs.
pub const BOARD: &str = "board.html";

/// What a page may load: nothing but what stands in it.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:";

/// A part of a page under its heading.
pub(crate) struct Section {
    /// Its name in links.
    pub(crate) anchor: &'static str,
    pub(crate) heading: &'static str,
    pub(crate) content: Markup,
}

/// A whole page.
pub(crate) struct Page {
    pub(crate) title: String,
    /// The answer in one line, below the title.
    pub(crate) answer: Markup,
    /// What nobody may miss.
    pub(crate) warnings: Vec<String>,
    pub(crate) sections: Vec<Section>,
}

impl Page {
    /// Writes the page to a folder under its name and returns its path.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(crate) fn write(&self, folder: &Path) -> Result<PathBuf, RecordError> {
        let path = folder.join(PAGE);
        self.write_to(&path)?;
        Ok(path)
    }

    /// Writes the page to a file.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(crate) fn write_to(&self, path: &Path) -> Result<(), RecordError> {
        Ok(write_whole(path, self.markup().into_string().as_bytes())?)
    }

    pub(crate) fn markup(&self) -> Markup {
        html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    meta name="color-scheme" content="light dark";
                    meta http-equiv="Content-Security-Policy" content=(POLICY);
                    title { (self.title) " - Patchdoor" }
                    link rel="icon" href="data:,";
                    style { (PreEscaped(super::chart::STYLE)) }
                }
                body {
                    a.skip href="#content" { "To the content" }
                    header {
                        h1 { (self.title) }
                        nav aria-label="Sections" {
                            ul {
                                @for section in &self.sections {
                                    li { a href={ "#" (section.anchor) } { (section.heading) } }
                                }
                            }
                        }
                    }
                    main #content {
                        p.answer { (self.answer) }
                        @if !self.warnings.is_empty() {
                            aside.warnings aria-labelledby="warnings" {
                                h2 #warnings { "Before you believe these numbers" }
                                ul { @for warning in &self.warnings { li { (warning) } } }
                            }
                        }
                        @for section in &self.sections {
                            section aria-labelledby=(section.anchor) {
                                h2 id=(section.anchor) { (section.heading) }
                                (section.content)
                            }
                        }
                    }
                    footer { p { "Made by Patchdoor from the records beside this file; nothing in it was typed by hand." } }
                    script { (PreEscaped(include_str!("page.js"))) }
                }
            }
        }
    }
}
