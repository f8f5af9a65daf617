use patchdoor_cli::{Stop, print};
use patchdoor_experiment::{SheetRequest, draw_triggers};

use crate::arguments::{Changes, TriggersArguments};
use crate::roots::data_roots;
use crate::run::{console, read_experiments, stop_for};
use crate::signals::stop_on_interrupt;

/// Draws the triggers of all files, and says what each row shows and how much it differs from the originals.
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
    for sheet in draw_triggers(&experiments, &request).map_err(stop_for)? {
        print(&format!("{}\n", sheet.path.display()))?;
        for row in sheet.rows {
            print(&format!("  {row}\n"))?;
        }
    }
    Ok(())
}
