use std::path::{Path, PathBuf};

use anyhow::anyhow;
use fs_err as fs;
use patchdoor_cli::{Stop, print, say};
use patchdoor_data::catalog::{CatalogEntry, entry};
use patchdoor_data::fetch::FetchError;
use patchdoor_data::presence::{DatasetState, status};
use patchdoor_data::{packed, verify};
use patchdoor_experiment::{ExportRequest, RunError, export_poisoned, fetch};
use patchdoor_plan::{Plan, PlanOptions};

use crate::arguments::{DataArguments, DataCommand, ExportArguments};
use crate::roots::data_roots;
use crate::run::{console, stop_for, unusable};
use crate::signals::stop_on_interrupt;

/// Lists, fetches and exports images.
pub(crate) fn data(arguments: &DataArguments) -> Result<(), Stop> {
    match &arguments.command {
        DataCommand::List { data } => list(data.as_ref()),
        DataCommand::Fetch { names, data } => fetch_all(names, data.as_ref()),
        DataCommand::Export(arguments) => export(arguments),
        DataCommand::Pack { name, to, images, data } => pack(name, to, *images, data.as_ref()),
        DataCommand::Unpack { file, data } => unpack(file, data.as_ref()),
    }
}

/// Says which data sets are there, verifies them by reading them whole, and says how to get the others.
fn list(data: Option<&PathBuf>) -> Result<(), Stop> {
    let roots = data_roots(data);
    let searched = roots.iter().map(|root| root.display().to_string()).collect::<Vec<_>>().join(", ");
    say(&format!("looking in {searched}"));
    let mut is_broken = false;
    for dataset in status(&roots) {
        let name = dataset.name;
        print(&format!("{name:<14} {}\n", dataset.title))?;
        let line = |text: String| print(&format!("{:<14} {text}\n", ""));
        match dataset.state {
            DatasetState::BuiltIn => line("built in".into())?,
            DatasetState::Missing => line(format!("missing: {}", dataset.how_to_get))?,
            DatasetState::Incomplete(folder, files) => {
                is_broken = true;
                let files = files.join(", ");
                line(format!("INCOMPLETE: {} lacks {files}; {}", folder.display(), dataset.how_to_get))?;
            }
            DatasetState::Present(folder) => match verify(name, &roots) {
                Ok(verified) => {
                    line(format!(
                        "verified: {} training and {} test images, {} classes, in {}",
                        verified.train_counts.iter().sum::<usize>(),
                        verified.test_counts.iter().sum::<usize>(),
                        verified.train_counts.len(),
                        folder.display(),
                    ))?;
                    line(format!("training images of each class: {}", range(&verified.train_counts)))?;
                    for note in verified.notes {
                        line(format!("note: {note}"))?;
                    }
                }
                Err(error) => {
                    is_broken = true;
                    line(format!("BROKEN: {error}"))?;
                }
            },
        }
    }
    if is_broken { Err(Stop::FailedQuietly) } else { Ok(()) }
}

/// `500`, or `150 to 2010`.
fn range(counts: &[usize]) -> String {
    let (fewest, most) = (counts.iter().min().unwrap_or(&0), counts.iter().max().unwrap_or(&0));
    if fewest == most { fewest.to_string() } else { format!("{fewest} to {most}") }
}

/// Downloads data sets by name.
fn fetch_all(names: &[String], data: Option<&PathBuf>) -> Result<(), Stop> {
    let mut entries: Vec<CatalogEntry> = Vec::new();
    for name in names {
        let found = entry(name).ok_or_else(|| {
            let known = status(&[]).iter().map(|dataset| dataset.name).collect::<Vec<_>>().join(", ");
            Stop::unusable(anyhow!("{name} is no data set to fetch; there are {known}"))
        });
        entries.push(found?);
    }
    let roots = data_roots(data);
    let stop = stop_on_interrupt()?;
    for entry in entries {
        match fetch(&entry, &roots[0], &stop, console()) {
            Ok(folder) => print(&format!("{} {}\n", entry.name, folder.display()))?,
            Err(FetchError::Interrupted) => {
                say("interrupted; the same command goes on from here");
                return Err(Stop::Interrupted);
            }
            Err(error) => return Err(Stop::failed(error)),
        }
    }
    Ok(())
}

/// Writes the poisoned images of an experiment for other tools.
fn export(arguments: &ExportArguments) -> Result<(), Stop> {
    let options = PlanOptions { overrides: arguments.overrides.clone(), ..PlanOptions::default() };
    let plan = Plan::read(&arguments.file, &options).map_err(|errors| unusable(&[errors]))?;
    let stop = stop_on_interrupt()?;
    let request = ExportRequest {
        seed: arguments.seed.unwrap_or(plan.config().seeds[0]),
        roots: &data_roots(arguments.images.data.as_ref()),
        offline: arguments.images.offline,
        format: arguments.format.into(),
        into: &arguments.to,
        stop: &stop,
        console: console(),
    };
    let exported = export_poisoned(&plan, &request).map_err(|error| match error {
        // The folder exists, or cannot hold these images.
        RunError::Poisoning(error) => Stop::unusable(error),
        error => stop_for(error),
    })?;
    print(&format!(
        "{}: {} training images of {}, {} of them poisoned; {} test images, {} triggered\n",
        arguments.to.display(),
        exported.training_images,
        exported.images.dataset,
        exported.poisoned_images,
        exported.test_images,
        exported.triggered_images,
    ))
}

/// Packs a data set without loss.
fn pack(name: &str, to: &Path, images: Option<usize>, data: Option<&PathBuf>) -> Result<(), Stop> {
    if to.exists() {
        return Err(Stop::unusable(anyhow!("{} exists already; it is never overwritten", to.display())));
    }
    let packed = packed::pack(name, &data_roots(data), images).map_err(Stop::unusable)?;
    let partial = to.with_extension("partial");
    let written = fs::write(&partial, &packed).and_then(|()| fs::rename(&partial, to));
    written.map_err(Stop::failed)?;
    print(&format!("{}: {:.1} MB\n", to.display(), packed.len() as f64 / 1e6))
}

/// Restores a packed data set.
fn unpack(file: &Path, data: Option<&PathBuf>) -> Result<(), Stop> {
    let (name, folder) = packed::unpack(file, &data_roots(data)[0]).map_err(Stop::unusable)?;
    print(&format!("{name} {}\n", folder.display()))
}
