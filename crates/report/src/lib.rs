//! What people look at: tables, pages and figures, made from records alone.
//!
//! Everything here reads what `patchdoor-record` describes and knows no tensor library, no plan and no image, so that
//! looking at results compiles in seconds. Nothing is computed that a run has not measured, save means over seeds.
//!
//! ```
//! use patchdoor_record::RunSummary;
//! use patchdoor_report::{DEFAULT_WIDTH, run_table};
//!
//! let run = RunSummary { run: "badnets-12345678".into(), backend: "flex".into(), ..RunSummary::default() };
//! assert!(run_table(&[run], DEFAULT_WIDTH).contains("badnets-12345678"));
//! ```

mod claim_figure;
mod claims;
mod collect;
mod compare;
mod compare_sweeps;
mod config;
mod draw;
mod events;
mod export;
mod figures;
mod history;
mod lookup;
mod maps;
mod networks;
mod own_weights_table;
mod page;
#[cfg(feature = "parquet")]
mod parquet_table;
mod result_file;
mod routing_table;
mod run_table;
mod sweep_table;
mod text;
mod verdict;

pub use claims::{RenderedResults, render_results};
pub use collect::{Collected, collect_results};
pub use compare::{ComparedRun, Comparison, ConfigDifference, Difference, MetricComparison};
pub use compare_sweeps::{ComparedPoint, ComparedSweep, LonePoint, SweepComparison};
pub use draw::draw_run;
pub use events::write_events;
pub use export::{ExportForm, export_table};
pub use networks::{AttackNetworks, HeldOut, NetworkSeparation, NetworksError};
pub use own_weights_table::own_weights_table;
pub use page::{BOARD, OVERVIEW, PAGE, write_board, write_overview, write_run_page, write_sweep_page};
#[cfg(feature = "parquet")]
pub use parquet_table::write_parquet;
pub use result_file::ResultsError;
pub use run_table::run_table;
pub use sweep_table::{table_csv, table_markdown, table_text, write_table};
pub use text::DEFAULT_WIDTH;
