//! Pages in HTML of one run, one sweep or all of a folder, each a single file that needs nothing else.

mod answer;
mod board;
mod chart;
mod confusion;
mod curves;
mod defended;
mod defenses;
mod entry;
mod examples;
mod frame;
mod map_sheet;
mod numbers;
mod overview;
mod provenance;
mod routing;
mod routing_steps;
mod run_page;
mod settings;
mod sheet;
mod sweep_page;
mod table;
mod warnings;

pub use board::write_board;
pub(crate) use chart::{Axis, Chart, Look, Point, Series};
pub use frame::{BOARD, OVERVIEW, PAGE};
pub use overview::write_overview;
pub use run_page::write_run_page;
pub use sweep_page::write_sweep_page;
