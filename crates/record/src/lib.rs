//! What a run leaves on disk, and how it is read back.
//!
//! A run's folder explains itself: `config.toml` with every default written out, `environment.json`
//! with the build and the machine, `summary.json`, and per seed the results, the poisoned indices and
//! the weights. This crate has the types of those files, the folder itself and the checksums without
//! which nothing is read back. It knows no tensor library, no plan and no trigger, so that a program
//! that only looks at results is small; it knows the plain types of `patchdoor-metrics`.
//!
//! ```
//! use patchdoor_record::{MetricInfo, Unit, read_sealed, write_sealed};
//!
//! let folder = std::env::temp_dir().join(format!("patchdoor-record-{}", std::process::id()));
//! std::fs::create_dir_all(&folder)?;
//! let path = folder.join("result.json");
//! write_sealed(&path, b"{}")?;
//! assert_eq!(read_sealed(&path)?, b"{}");
//! // `sha256sum --check SHA256SUMS` says the same.
//! std::fs::write(&path, "[]")?;
//! assert!(read_sealed(&path).is_err());
//! # std::fs::remove_dir_all(&folder)?;
//!
//! // What a number is called, and in what it is counted, stands in one table.
//! let asr = MetricInfo::of("fine-pruning/asr").expect("a known number");
//! assert_eq!((asr.heading, asr.unit), ("ASR", Unit::Share));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod certification;
mod curve;
mod defense;
mod detection;
mod environment;
mod error;
mod evasion;
mod example;
mod files;
mod filtering;
mod inspection;
mod intervention;
mod inventory;
mod metric;
mod numbers;
mod own_weights;
mod point;
mod reach;
mod routing;
mod run_directory;
mod safe_training;
mod seal;
mod seed;
mod standing;
mod summary;
mod table;

pub use certification::{CertificationMeasurements, CertificationStanding, MaskedStanding};
pub use curve::{CURVES, CurvePoint};
pub use defense::{DefenseKind, DefenseMeasurements, DefenseOutcome, DefenseResult, SeriesRow};
pub use detection::{DetectionMeasurements, DetectorStanding, RatedPoint, VALIDATION_RATES};
pub use environment::{Build, Environment};
pub use error::RecordError;
pub use evasion::{EvasionMeasurements, EvasionStanding};
pub use example::{EXAMPLES, EXAMPLES_SHEET, Example, Examples};
pub use files::{move_aside, set_aside, write_whole};
pub use filtering::{FilterStanding, FilteringMeasurements, Retrained};
pub use inspection::{InspectionMeasurements, InspectorFindings};
pub use intervention::{
    AuditMeasurements, BlockedPairs, BlockingMaps, BlockingMeasurements, RoutedStanding, StandingBand, SwapMeasurements,
};
pub use inventory::{Content, Listed, RunState};
pub use metric::{Better, METRICS, MetricInfo, Unit, group_of, in_group};
pub use numbers::{INTERVENTION_NUMBERS, ROUTING_NUMBERS, RoutingNumber, SEED_NUMBERS, SeedNumber, named_numbers};
pub use own_weights::OwnWeightsResult;
pub use point::{MetricResult, PointResult};
pub use reach::Reach;
pub use routing::{AssociationNumbers, RoutingEpoch, RoutingMeasurements, RoutingNumbers, SetNumbers};
pub use run_directory::{Again, Opened, RunDirectory, RunDirectoryError, defense_folder, lock};
pub use safe_training::{SafeTrainingMeasurements, SafelyTrainedTwin};
pub use seal::{
    check_sealed, is_sealed, read_sealed, read_sealed_json, read_sealed_json_lines, seal, write_sealed,
    write_sealed_json, write_sealed_json_lines,
};
pub use seed::{
    ChosenCells, ClassMeasurements, Confusion, CraftedMeasurements, ImagesUsed, Measurements, SCHEMA, SeedOutcome,
    SeedResult, TwinMeasurements,
};
pub use standing::{COLLAPSE, DefenseStanding, Ratings};
pub use summary::{DefenseSummary, InterventionSummary, RoutingSummary, RunSummary, read_summary};
pub use table::{
    PointRuns, ResultTable, TABLE_SCHEMA, TableHead, UncleanBuild, commit_in_words, published_path, run_builds,
};
