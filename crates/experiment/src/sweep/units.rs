use std::collections::BTreeSet;
use std::path::Path;

use patchdoor_plan::Sweep;
use patchdoor_record::{RunDirectory, read_summary};

use crate::backend::Backend;

/// One point with one seed: a run of its own.
#[derive(Clone, Debug)]
pub(crate) struct Unit {
    /// Index of the point; of the first one, if several are the same experiment.
    pub(crate) point: usize,
    pub(crate) seed: u64,
    /// Name of the run.
    pub(crate) run: String,
    pub(crate) state: UnitState,
}

/// How far one run of a sweep is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnitState {
    /// It has its results.
    Finished,
    /// It ended with a reason instead of results.
    Failed,
    /// It was begun and goes on from there.
    Begun,
    /// Nothing of it is there.
    Missing,
}

impl UnitState {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Finished => "done",
            Self::Failed => "failed",
            Self::Begun => "begun",
            Self::Missing => "to do",
        }
    }
}

/// Which runs of a sweep are computed.
#[derive(Clone, Copy, Debug, Default)]
pub struct SweepOptions {
    /// All of them, finished or not; what is there is moved aside.
    pub fresh: bool,
    /// Those too that failed before.
    pub retry_failed: bool,
}

impl SweepOptions {
    /// Whether a run that is so far is computed.
    pub(crate) fn computes(self, state: UnitState) -> bool {
        match state {
            UnitState::Finished => self.fresh,
            UnitState::Failed => self.fresh || self.retry_failed,
            UnitState::Begun | UnitState::Missing => true,
        }
    }
}

/// The runs of a sweep in their order: all points with the first seed, then all with the next.
pub(crate) fn units(sweep: &Sweep, backend: &Backend, out: &Path) -> Vec<Unit> {
    let mut units: Vec<Unit> = Vec::new();
    let mut names = BTreeSet::new();
    for &seed in sweep.seeds() {
        for (point, entry) in sweep.points().iter().enumerate() {
            let run = entry.plan().with_seed(seed).run_name(backend.name());
            if !names.insert(run.clone()) {
                continue;
            }
            let state = match RunDirectory::finished(out, &run).map(|folder| read_summary(&folder)) {
                Some(Ok(summary)) if summary.is_complete() => UnitState::Finished,
                Some(_) => UnitState::Failed,
                None if out.join(format!("{run}.partial")).exists() => UnitState::Begun,
                None => UnitState::Missing,
            };
            units.push(Unit { point, seed, run, state });
        }
    }
    units
}
