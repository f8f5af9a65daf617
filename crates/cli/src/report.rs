#![allow(clippy::doc_markdown, reason = "the comments are the help text, which is read as it is")]

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::anyhow;
use clap::{Args, ValueEnum};
use patchdoor_record::{Content, Listed, RecordError, ResultTable, RunState, RunSummary, read_summary};
#[cfg(feature = "parquet")]
use patchdoor_report::write_parquet;
use patchdoor_report::{
    ExportForm, draw_run, export_table, run_table, table_text, write_board, write_events, write_overview,
    write_run_page, write_sweep_page, write_table,
};

use crate::output::{Stop, print, say, terminal_width};

/// What is shown.
#[derive(Debug, Args)]
#[command(
    after_help = "Tables go to standard output. Figures, tables in other forms and a page of each, page.html, are \
                  written anew beside the results; of a folder of runs also overview.html, a page about all of them, and \
                  board.html, every attack beside every defense.\n\n\
                  Exit codes: 0 done, 1 something in a folder of runs is damaged and was left out, 2 unusable folder.\n\n\
                  Examples:\n  cargo xtask report runs\n  cargo xtask report runs/rates-ac261b75.sweep --export latex"
)]
pub struct ReportArguments {
    /// Finished runs and sweeps, or folders with several of them; runs/ if none is given
    #[arg(value_name = "FOLDER")]
    pub folders: Vec<PathBuf>,

    /// Where results are, if no folder is given
    #[arg(long, value_name = "DIR", default_value = "runs")]
    pub out: PathBuf,

    /// Print the table of one run or sweep in another form and write nothing; parquet and tensorboard write files instead
    #[arg(long, value_enum, value_name = "FORM")]
    pub export: Option<Form>,
}

/// A form to print a table in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Form {
    /// A line for each number, shares in [0, 1]
    Csv,
    /// Everything, with the value of each seed
    Json,
    /// Tables for a document
    Markdown,
    /// Tables for a paper, with the package booktabs
    Latex,
    /// A row for each number of each seed, in table.parquet in the folder of each run and sweep
    Parquet,
    /// The training of each seed by epoch, for TensorBoard: an event file in the seed's folder
    Tensorboard,
}

/// Prints one table in another form.
fn export(folders: &[PathBuf], form: ExportForm) -> Result<(), Stop> {
    let [folder] = folders else {
        return Err(Stop::unusable(anyhow!("--export takes one run or sweep, not {}", folders.len())));
    };
    let listed = Listed::of(folder.clone());
    let listed = listed.ok_or_else(|| Stop::unusable(anyhow!("{} is no run or sweep", folder.display())))?;
    if let Content::Nothing(reason) = &listed.content {
        return Err(Stop::unusable(anyhow!("{}: {reason}", folder.display())));
    }
    let table = table_of(listed)?.ok_or_else(|| Stop::unusable(anyhow!("{} has no numbers", folder.display())))?;
    print(&export_table(&table, form).map_err(|error| Stop::failed(anyhow!(error)))?)
}

/// The table of a sweep, or of a run as one point; `None` if it has neither.
fn table_of(listed: Listed) -> Result<Option<ResultTable>, Stop> {
    match listed.content {
        Content::Sweep(table) => Ok(Some(*table)),
        Content::Run(run) => ResultTable::of_runs(vec![(listed.path, *run)]).map_err(Stop::unusable),
        Content::Nothing(_) => Ok(None),
    }
}

/// The runs and sweeps that folders are or hold; says of which nothing is there.
fn all_in(folders: &[PathBuf]) -> Vec<Listed> {
    let of = |folder: &PathBuf| Listed::of(folder.clone()).map_or_else(|| Listed::below(folder), |one| vec![one]);
    let mut all = folders.iter().flat_map(of).collect::<Vec<_>>();
    all.retain(|listed| {
        if let Content::Nothing(reason) = &listed.content {
            say(&format!("left out: {}: {reason}", listed.path.display()));
        }
        !matches!(listed.content, Content::Nothing(_))
    });
    all
}

/// Writes the tables of runs and sweeps, and of all in folders, as Parquet, and prints their paths.
#[cfg(feature = "parquet")]
fn export_parquet(folders: &[PathBuf]) -> Result<(), Stop> {
    let all = all_in(folders);
    if all.is_empty() {
        return Err(Stop::unusable(anyhow!("there is no finished run")));
    }
    for listed in all {
        let folder = listed.path.clone();
        let Some(table) = table_of(listed)? else { continue };
        let path = write_parquet(&folder, &table).map_err(|error| Stop::failed(anyhow!(error)))?;
        print(&format!("{}\n", path.display()))?;
    }
    Ok(())
}

#[cfg(not(feature = "parquet"))]
fn export_parquet(_folders: &[PathBuf]) -> Result<(), Stop> {
    let what = "this program was built without the feature `parquet`; cargo xtask report builds it with it";
    Err(Stop::unusable(anyhow!(what)))
}

/// Writes the event files of runs, of those behind the points of sweeps, and of all runs in folders, and prints their paths.
fn export_events(folders: &[PathBuf]) -> Result<(), Stop> {
    // A run of a sweep may stand beside it in the same folder.
    let mut runs = BTreeMap::new();
    for listed in all_in(folders) {
        match listed.content {
            Content::Run(run) => {
                runs.insert(listed.path, *run);
            }
            Content::Sweep(table) => {
                let of_points = table.points.iter().flat_map(|point| point.runs.values());
                let beside = of_points.map(|run| listed.path.with_file_name(run));
                for path in beside.filter(|run| run.join("summary.json").is_file()) {
                    let run = read_summary(&path).map_err(Stop::unusable)?;
                    runs.insert(path, run);
                }
            }
            Content::Nothing(_) => {}
        }
    }
    let mut is_empty = true;
    for (folder, run) in &runs {
        for path in write_events(folder, run).map_err(Stop::failed)? {
            print(&format!("{}\n", path.display()))?;
            is_empty = false;
        }
    }
    if is_empty {
        return Err(Stop::unusable(anyhow!("there is no finished run whose training is on record")));
    }
    say("tensorboard --logdir shows them, with the folder of runs or one of its runs");
    Ok(())
}

/// Shows the tables of runs and sweeps, and writes what people look at beside their records.
///
/// # Errors
/// If a folder has no results, or they are not as they were written.
pub fn report(arguments: &ReportArguments) -> Result<(), Stop> {
    let out = std::slice::from_ref(&arguments.out);
    let folders = if arguments.folders.is_empty() { out } else { arguments.folders.as_slice() };
    match arguments.export {
        None => {}
        Some(Form::Csv) => return export(folders, ExportForm::Csv),
        Some(Form::Json) => return export(folders, ExportForm::Json),
        Some(Form::Markdown) => return export(folders, ExportForm::Markdown),
        Some(Form::Latex) => return export(folders, ExportForm::Latex),
        Some(Form::Parquet) => return export_parquet(folders),
        Some(Form::Tensorboard) => return export_events(folders),
    }
    let mut shown = Shown::default();
    let mut overviews = Vec::new();
    for folder in folders {
        match Listed::of(folder.clone()) {
            Some(Listed { content: Content::Nothing(reason), .. }) => {
                return Err(Stop::unusable(anyhow!("{}: {reason}", folder.display())));
            }
            Some(listed) => shown.add(&listed).map_err(Stop::unusable)?,
            None => overviews.push((folder, shown.add_all(folder)?)),
        }
    }
    shown.print()?;
    let mut is_damaged = false;
    for (folder, listed) in overviews {
        for damaged in listed.iter().filter(|listed| listed.state == RunState::Damaged) {
            let Content::Nothing(reason) = &damaged.content else { continue };
            say(&format!("left out: {}: {reason}", damaged.path.display()));
            is_damaged = true;
        }
        let page = write_overview(folder, &listed).map_err(Stop::failed)?;
        say(&format!("overview: {}", page.display()));
        let page = write_board(folder, &listed).map_err(Stop::failed)?;
        say(&format!("board: {}", page.display()));
    }
    if is_damaged { Err(Stop::FailedQuietly) } else { Ok(()) }
}

/// What a report shows.
#[derive(Default)]
struct Shown {
    folders: Vec<PathBuf>,
    runs: Vec<RunSummary>,
    tables: Vec<ResultTable>,
    pages: Vec<PathBuf>,
}

impl Shown {
    /// Adds a run or a sweep, and writes what people look at beside its records.
    fn add(&mut self, listed: &Listed) -> Result<(), RecordError> {
        let folder = &listed.path;
        match &listed.content {
            Content::Run(summary) => {
                draw_run(folder, summary)?;
                self.pages.push(write_run_page(folder, summary)?);
                self.runs.push(summary.as_ref().clone());
            }
            Content::Sweep(table) => {
                write_table(folder, table)?;
                self.pages.push(write_sweep_page(folder, table)?);
                self.tables.push(table.as_ref().clone());
            }
            Content::Nothing(_) => return Ok(()),
        }
        self.folders.push(folder.clone());
        Ok(())
    }

    /// Adds every run and sweep of a folder, and returns them; what was moved aside is none, and what turns out to be damaged
    /// comes back as that.
    fn add_all(&mut self, out: &Path) -> Result<Vec<Listed>, Stop> {
        let mut all = Listed::below(out);
        all.retain(|listed| !listed.is_set_aside());
        if all.is_empty() {
            return Err(Stop::unusable(anyhow!("{} is no run or sweep, and there is none in it", out.display())));
        }
        let mut listed = Vec::new();
        for one in all {
            listed.push(match self.add(&one) {
                Ok(()) => one,
                // A record that is gone is damage; a page that cannot be written is none.
                Err(RecordError::Io(error)) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(Stop::failed(error));
                }
                Err(error) => one.damaged(&error),
            });
        }
        Ok(listed)
    }

    /// Prints the tables, and says where everything lies.
    fn print(&self) -> Result<(), Stop> {
        let width = terminal_width();
        if !self.runs.is_empty() {
            print(&run_table(&self.runs, width))?;
        }
        for (number, table) in self.tables.iter().enumerate() {
            if number > 0 || !self.runs.is_empty() {
                print("\n")?;
            }
            print(&table_text(table, width))?;
        }
        for folder in &self.folders {
            say(&format!("results: {}", folder.display()));
        }
        for page in &self.pages {
            say(&format!("page: {}", page.display()));
        }
        Ok(())
    }
}
