//! The programs of Patchdoor, and what they share.
//!
//! `patchdoor` runs experiments. `patchdoor-report` only looks at what they left: it needs no tensor library and is built
//! without the feature `run` in seconds. Both print results to standard output and everything else to standard error.

mod clean;
mod compare;
mod experiments;
mod list;
mod networks;
mod output;
mod report;
mod results;

pub use clean::{CleanArguments, clean};
pub use compare::{CompareArguments, compare};
pub use experiments::all_experiments;
pub use list::{ListArguments, list};
pub use networks::{NetworksArguments, networks};
pub use output::{Stop, complain, exit_code, has_colours, is_smart_terminal, print, say, terminal_width};
pub use report::{ReportArguments, report};
pub use results::{ResultsArguments, results};
