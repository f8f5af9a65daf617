use std::path::Path;

use anyhow::anyhow;
use patchdoor_experiment::{Collected, ResultsError, collect_results, render_results};

use crate::arguments::ResultsArguments;
use crate::output::{Stop, print, say};

/// Collects results if asked to, then writes the page about them, or checks that it is written.
pub(crate) fn results(arguments: &ResultsArguments) -> Result<(), Stop> {
    if let Some(runs) = &arguments.collect {
        for collected in collect_results(runs, &arguments.results, arguments.force).map_err(stop_for)? {
            match collected {
                Collected::Written { path, seeds } => print(&format!("{}: {seeds} seeds\n", path.display()))?,
                Collected::Skipped { result, reason } => say(&format!("not taken: {result}: {reason}")),
            }
        }
    }
    let text = render_results(&arguments.claims, &arguments.results).map_err(stop_for)?;
    if std::fs::read_to_string(&arguments.page).is_ok_and(|page| page == text) {
        return print(&format!("{} is up to date\n", arguments.page.display()));
    }
    if arguments.check {
        let page = arguments.page.display();
        return Err(Stop::failed(anyhow!("{page} is not up to date; cargo xtask results writes it")));
    }
    write(&arguments.page, &text)?;
    print(&format!("{} written\n", arguments.page.display()))
}

/// Writes the page beside itself first, so that nobody sees half of it.
fn write(page: &Path, text: &str) -> Result<(), Stop> {
    let temporary = page.with_extension("md.tmp");
    fs_err::write(&temporary, text).and_then(|()| fs_err::rename(&temporary, page)).map_err(Stop::failed)
}

fn stop_for(error: ResultsError) -> Stop {
    Stop::unusable(error)
}
