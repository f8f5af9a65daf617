use anyhow::anyhow;
use patchdoor_cli::{Stop, print};
use patchdoor_experiment::diagnose;

use crate::arguments::DoctorArguments;
use crate::roots::data_roots;

/// Says what the machine offers; fails only where the backend asked for cannot be used.
pub(crate) fn doctor(arguments: &DoctorArguments) -> Result<(), Stop> {
    let diagnosis = diagnose(arguments.backend, &data_roots(arguments.data.as_ref()), &arguments.out);
    let text = if arguments.json {
        serde_json::to_string_pretty(&diagnosis).map_err(Stop::failed)?
    } else {
        diagnosis.lines().join("\n")
    };
    print(&format!("{text}\n"))?;
    match diagnosis.problem {
        None => Ok(()),
        Some(problem) => Err(Stop::unusable(anyhow!(problem))),
    }
}
