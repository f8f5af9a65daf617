use std::io;
use std::path::Path;

use patchdoor_experiment::Reporter;
use patchdoor_record::{ResultTable, RunSummary};
use patchdoor_report::{draw_run, write_run_page, write_sweep_page, write_table};

/// Makes the figures, tables and pages of what runs leave.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pages;

impl Reporter for Pages {
    fn run_ends(&self, folder: &Path, summary: &RunSummary) -> io::Result<()> {
        draw_run(folder, summary).map_err(io::Error::other)?;
        write_run_page(folder, summary).map(drop).map_err(io::Error::other)
    }

    fn table_written(&self, folder: &Path, table: &ResultTable) -> io::Result<()> {
        write_table(folder, table)?;
        write_sweep_page(folder, table).map(drop).map_err(io::Error::other)
    }
}
