use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use anyhow::anyhow;
use patchdoor_data::catalog::{CatalogEntry, catalog, entry};
use patchdoor_data::{DataError, DatasetConfig, load};
use patchdoor_experiment::{Console, fetch};
use serde::Deserialize;
use serde::de::IntoDeserializer;
use serde::de::value::{Error as ValueError, StrDeserializer};

use crate::arguments::{DataArguments, DataCommand, ExportArguments};
use crate::output::{Stop, data_roots, print, say};
use crate::run::stop_on_interrupt;

/// Lists, fetches and exports images.
pub(crate) fn data(arguments: &DataArguments) -> Result<(), Stop> {
    match &arguments.command {
        DataCommand::List { data } => list(data.as_ref()),
        DataCommand::Fetch { names, data } => fetch_all(names, data.as_ref()),
        DataCommand::Export(export) => self::export(export),
    }
}

/// Reads every data set that is there, which verifies it, and says how to get the others.
fn list(data: Option<&PathBuf>) -> Result<(), Stop> {
    let roots = data_roots(data);
    let searched = roots.iter().map(|root| root.display().to_string()).collect::<Vec<_>>().join(", ");
    say(&format!("looking in {searched}"));
    let mut broken = false;
    for entry in catalog() {
        let config = config_of(entry.name);
        match load(&config, &roots) {
            Ok(dataset) => {
                let counts = dataset.train.class_counts();
                let (fewest, most) = (counts.iter().min().unwrap_or(&0), counts.iter().max().unwrap_or(&0));
                let per_class = if fewest == most { fewest.to_string() } else { format!("{fewest} to {most}") };
                let location = dataset.location.unwrap_or_default();
                print(&format!(
                    "{:<14} ok       {} + {} images of {}, {} classes of {per_class}, in {}\n",
                    entry.name,
                    dataset.train.len(),
                    dataset.test.len(),
                    dataset.train.shape(),
                    counts.len(),
                    location.display(),
                ))?;
                for note in dataset.notes {
                    print(&format!("{:<14}          note: {note}\n", ""))?;
                }
            }
            Err(DataError::Missing { .. }) => {
                print(&format!("{:<14} missing  {}\n", entry.name, entry.how_to_get()))?;
            }
            Err(error) => {
                broken = true;
                print(&format!("{:<14} BROKEN   {error}\n", entry.name))?;
            }
        }
    }
    print(&format!("{:<14} ok       built in, drawn by the program\n", "shapes"))?;
    if broken { Err(Stop::FailedQuietly) } else { Ok(()) }
}

fn config_of(name: &str) -> DatasetConfig {
    let name: StrDeserializer<'_, ValueError> = name.into_deserializer();
    DatasetConfig::deserialize(name).expect("the catalog's names are those of configurations")
}

/// Downloads data sets by name.
fn fetch_all(names: &[String], data: Option<&PathBuf>) -> Result<(), Stop> {
    let mut entries: Vec<CatalogEntry> = Vec::new();
    for name in names {
        let known = catalog().iter().map(|entry| entry.name).collect::<Vec<_>>().join(", ");
        entries
            .push(entry(name).ok_or_else(|| Stop::unusable(anyhow!("{name} is not a data set; there are {known}")))?);
    }
    let roots = data_roots(data);
    let stop = stop_on_interrupt()?;
    for entry in entries {
        match fetch(&entry, &roots[0], &stop, Console::new()) {
            Ok(folder) => print(&format!("{} {}\n", entry.name, folder.display()))?,
            Err(patchdoor_data::fetch::FetchError::Interrupted) => {
                say("interrupted; the same command goes on from here");
                return Err(Stop::Interrupted);
            }
            Err(error) => return Err(Stop::failed(error)),
        }
    }
    Ok(())
}

fn export(_arguments: &ExportArguments) -> Result<(), Stop> {
    let _: AtomicBool;
    Err(Stop::unusable(anyhow!("pending")))
}
