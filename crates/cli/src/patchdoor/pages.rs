use std::io;
use std::path::Path;

use patchdoor_experiment::Reporter;
use patchdoor_record::{ResultTable, RunSummary};
use patchdoor_report::{draw_run, write_table};

/// Makes the figures and tables of what runs leave.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pages;

impl Reporter for Pages {
    fn run_ends(&self, folder: &Path, summary: &RunSummary) -> io::Result<()> {
        draw_run(folder, summary).map_err(io::Error::other)
    }

    fn table_written(&self, folder: &Path, table: &ResultTable) -> io::Result<()> {
        write_table(folder, table)
    }
}
