use std::path::{Path, PathBuf};

use anyhow::anyhow;
use clap::{Args, ValueEnum};
use patchdoor_record::{ResultTable, read_summary};
use patchdoor_report::{
    ExportForm, draw_run, export_table, run_table, table_text, write_run_page, write_sweep_page, write_table,
};

use crate::output::{Stop, print, say, terminal_width};

/// What is shown.
#[derive(Debug, Args)]
#[command(
    after_help = "Tables go to standard output. Figures, tables in other forms and a page of each, page.html, are \
                  written anew beside the results.\n\n\
                  Examples:\n  cargo xtask report runs/badnets-0e18207e\n  cargo xtask report runs/rates-ac261b75.sweep --export latex"
)]
pub struct ReportArguments {
    /// Folders of finished runs and sweeps; all below runs/ if none is given
    #[arg(value_name = "FOLDER")]
    pub folders: Vec<PathBuf>,

    /// Where results are, if no folder is given
    #[arg(long, value_name = "DIR", default_value = "runs")]
    pub out: PathBuf,

    /// Print the table of one run or sweep in another form, and write nothing
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
}

/// Prints one table in another form.
fn export(folders: &[PathBuf], form: Form) -> Result<(), Stop> {
    let [folder] = folders else {
        return Err(Stop::unusable(anyhow!("--export takes one run or sweep, not {}", folders.len())));
    };
    let table = match ResultTable::read(folder).map_err(Stop::unusable)? {
        Some(table) => Some(table),
        None if is_run(folder) => {
            let summary = read_summary(folder).map_err(Stop::unusable)?;
            ResultTable::of_runs(vec![(folder.clone(), summary)]).map_err(Stop::unusable)?
        }
        None => None,
    };
    let table = table.ok_or_else(|| no_results(folder))?;
    let form = match form {
        Form::Csv => ExportForm::Csv,
        Form::Json => ExportForm::Json,
        Form::Markdown => ExportForm::Markdown,
        Form::Latex => ExportForm::Latex,
    };
    print(&export_table(&table, form).map_err(|error| Stop::failed(anyhow!(error)))?)
}

fn no_results(folder: &Path) -> Stop {
    Stop::unusable(anyhow!("{} has neither summary.json nor table.json: no finished run", folder.display()))
}

/// Shows the tables of runs and sweeps, and writes what people look at beside their records.
///
/// # Errors
/// If a folder has no results, or they are not as they were written.
pub fn report(arguments: &ReportArguments) -> Result<(), Stop> {
    let folders = if arguments.folders.is_empty() { all_below(&arguments.out)? } else { arguments.folders.clone() };
    if let Some(form) = arguments.export {
        return export(&folders, form);
    }
    let mut runs = Vec::new();
    let mut tables = Vec::new();
    let mut pages = Vec::new();
    for folder in &folders {
        if let Some(table) = ResultTable::read(folder).map_err(Stop::unusable)? {
            write_table(folder, &table).map_err(Stop::failed)?;
            pages.push(write_sweep_page(folder, &table).map_err(Stop::failed)?);
            tables.push(table);
        } else if is_run(folder) {
            let summary = read_summary(folder).map_err(Stop::unusable)?;
            draw_run(folder, &summary).map_err(Stop::failed)?;
            pages.push(write_run_page(folder, &summary).map_err(Stop::failed)?);
            runs.push(summary);
        } else {
            return Err(no_results(folder));
        }
    }
    let width = terminal_width();
    if !runs.is_empty() {
        print(&run_table(&runs, width))?;
    }
    for (number, table) in tables.iter().enumerate() {
        if number > 0 || !runs.is_empty() {
            print("\n")?;
        }
        print(&table_text(table, width))?;
    }
    for folder in folders {
        say(&format!("results: {}", folder.display()));
    }
    for page in pages {
        say(&format!("page: {}", page.display()));
    }
    Ok(())
}

fn is_run(folder: &Path) -> bool {
    folder.join("summary.json").is_file()
}

/// Every finished run and sweep below a folder, sorted; what was moved aside is none.
fn all_below(out: &Path) -> Result<Vec<PathBuf>, Stop> {
    let entries = fs_err::read_dir(out).map_err(Stop::unusable)?;
    let mut folders =
        entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>().map_err(Stop::unusable)?;
    folders.retain(|folder| {
        let is_aside = folder.file_name().is_some_and(|name| name.to_string_lossy().contains(".old-"));
        !is_aside && (is_run(folder) || folder.join("table.json").is_file())
    });
    folders.sort();
    if folders.is_empty() {
        return Err(Stop::unusable(anyhow!("there is no finished run below {}", out.display())));
    }
    Ok(folders)
}
