use patchdoor_cli::{Stop, print};
use patchdoor_experiment::{SheetRequest, draw_triggers};

use crate::arguments::{Changes, TriggersArguments};
use crate::roots::data_roots;
use crate::run::{console, read_experiments, stop_for};
use crate::signals::stop_on_interrupt;

/// Draws the triggers of every file, and says what each row shows.
pub(crate) fn triggers(arguments: &TriggersArguments) -> Result<(), Stop> {
    let changes = Changes { seeds: None, overrides: arguments.overrides.clone(), quick: false };
    let experiments = read_experiments(&arguments.files, &changes)?;
    let roots = data_roots(arguments.source.data.as_ref());
    let stop = stop_on_interrupt()?;
    let request = SheetRequest {
        images: arguments.images.into(),
        roots: &roots,
        offline: arguments.source.offline,
        into: &arguments.out,
        stop: &stop,
        console: console(),
    };
    for experiment in &experiments {
        for sheet in draw_triggers(experiment, &request).map_err(stop_for)? {
            print(&format!("{}\n", sheet.path.display()))?;
            for row in sheet.rows {
                print(&format!("  {row}\n"))?;
            }
        }
    }
    Ok(())
}
