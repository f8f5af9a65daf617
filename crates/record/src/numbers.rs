use patchdoor_metrics::{Departure, Estimate};

use crate::standing::Defended;
use crate::{
    DefenseOutcome, DefenseResult, DetectionMeasurements, FilteringMeasurements, InspectionMeasurements, Measurements,
    RoutedStanding, RoutingMeasurements, RoutingNumbers, SafeTrainingMeasurements, SwapMeasurements, in_group,
};

/// A number of a seed: its name in [`METRICS`](crate::METRICS), and where it stands in what was measured.
pub type SeedNumber = (&'static str, fn(&Measurements) -> Option<f64>);

/// The numbers of the attack itself.
pub const SEED_NUMBERS: [SeedNumber; 42] = [
    ("clean-accuracy", |m| Some(m.clean_accuracy)),
    ("clean-twin-accuracy", |m| m.clean_twin.as_ref().map(|twin| twin.clean_accuracy)),
    ("clean-accuracy-drop", |m| m.clean_accuracy_drop),
    ("asr", |m| m.asr),
    ("asr-all-classes", |m| m.asr_all_classes),
    ("clean-twin-asr", |m| m.clean_twin.as_ref().and_then(|twin| twin.asr)),
    ("trigger-false-positive-rate", |m| m.trigger_false_positive_rate),
    ("robust-accuracy", |m| m.robust_accuracy),
    (LARGEST_CLASS, |m| m.largest_class_share),
    ("asr-untriggered", |m| swap(m)?.own.asr_untriggered),
    ("mediated-by-routing", |m| swap(m)?.mediated_by_routing),
    ("carried-by-routing", |m| swap(m)?.carried_by_routing),
    ("mediated-by-one-pair", |m| m.routing.as_ref()?.blocking.as_ref()?.mediated_by_one_pair),
    ("fgsm-accuracy", |m| Some(m.evasion?.victim.fgsm_accuracy)),
    ("clean-twin-fgsm-accuracy", |m| Some(m.evasion?.clean_twin?.fgsm_accuracy)),
    ("pgd-accuracy", |m| Some(m.evasion?.victim.pgd_accuracy)),
    ("clean-twin-pgd-accuracy", |m| Some(m.evasion?.clean_twin?.pgd_accuracy)),
    ("pgd-router-accuracy", |m| m.evasion?.victim.pgd_router_accuracy),
    ("clean-twin-pgd-router-accuracy", |m| m.evasion?.clean_twin?.pgd_router_accuracy),
    ("pgd-fixed-routing-accuracy", |m| m.evasion?.victim.pgd_fixed_routing_accuracy),
    ("clean-twin-pgd-fixed-routing-accuracy", |m| m.evasion?.clean_twin?.pgd_fixed_routing_accuracy),
    ("masked-accuracy", |m| Some(m.certification?.victim.routing?.accuracy)),
    ("clean-twin-masked-accuracy", |m| Some(m.certification?.clean_twin?.routing?.accuracy)),
    ("certified-accuracy", |m| Some(m.certification?.victim.routing?.certified_accuracy)),
    ("clean-twin-certified-accuracy", |m| Some(m.certification?.clean_twin?.routing?.certified_accuracy)),
    ("masked-asr", |m| m.certification?.victim.routing?.asr),
    ("clean-twin-masked-asr", |m| m.certification?.clean_twin?.routing?.asr),
    ("pixel-masked-accuracy", |m| Some(m.certification?.victim.pixels?.accuracy)),
    ("clean-twin-pixel-masked-accuracy", |m| Some(m.certification?.clean_twin?.pixels?.accuracy)),
    ("pixel-certified-accuracy", |m| Some(m.certification?.victim.pixels?.certified_accuracy)),
    ("clean-twin-pixel-certified-accuracy", |m| Some(m.certification?.clean_twin?.pixels?.certified_accuracy)),
    ("pixel-masked-asr", |m| m.certification?.victim.pixels?.asr),
    ("clean-twin-pixel-masked-asr", |m| m.certification?.clean_twin?.pixels?.asr),
    ("pixels-changed", |m| Some(m.reach?.pixels)),
    ("cells-touched", |m| Some(m.reach?.cells)),
    ("patches-reached", |m| Some(m.reach?.patches)),
    ("psnr", |m| m.stealth?.psnr),
    ("ssim", |m| m.stealth?.ssim),
    ("largest-change", |m| Some(m.stealth?.largest_change)),
    ("distance", |m| Some(m.stealth?.distance)),
    ("changed-pixels", |m| Some(m.stealth?.changed_pixels)),
    ("frequency-distance", |m| Some(m.stealth?.frequency_distance)),
];

fn swap(measurements: &Measurements) -> Option<&SwapMeasurements> {
    measurements.routing.as_ref()?.swap.as_ref()
}

/// A number that a change of routing or experts is judged by: its name, and where it stands in what was measured with it.
type InterventionNumber = (&'static str, fn(&RoutedStanding) -> Option<f64>);

/// The numbers of a change of routing or experts.
pub const INTERVENTION_NUMBERS: [InterventionNumber; 4] = [
    ("clean-accuracy", |standing| Some(standing.clean_accuracy)),
    ("asr", |standing| standing.asr),
    ("robust-accuracy", |standing| standing.robust_accuracy),
    ("asr-untriggered", |standing| standing.asr_untriggered),
];

/// The share by which a collapse is known.
pub(crate) const LARGEST_CLASS: &str = "largest-class-share";

/// A number that defenses are judged by: its name, and where it stands in what was measured after one.
type DefenseNumber = (&'static str, fn(&Defended) -> Option<f64>);

/// The numbers of a defense, besides its time.
const DEFENSE_NUMBERS: [DefenseNumber; 9] = [
    ("clean-accuracy", |d| Some(d.after.clean_accuracy)),
    ("clean-twin-accuracy", |d| d.clean_twin.map(|twin| twin.clean_accuracy)),
    ("asr", |d| d.after.asr),
    ("clean-twin-asr", |d| d.clean_twin.and_then(|twin| twin.asr)),
    ("robust-accuracy", |d| d.after.robust_accuracy),
    (LARGEST_CLASS, |d| d.after.largest_class_share),
    ("clean-twin-largest-class-share", |d| d.clean_twin.and_then(|twin| twin.largest_class_share)),
    ("defense-effectiveness", |d| d.ratings.defense_effectiveness),
    ("robust-improvement", |d| d.ratings.robust_improvement),
];

/// A number that detectors are judged by: its name, and where it stands in what was measured.
type DetectionNumber = (&'static str, fn(&DetectionMeasurements) -> Option<f64>);

/// The numbers of a detector, besides its time.
const DETECTION_NUMBERS: [DetectionNumber; 11] = [
    ("detection-auc", |d| value(d.victim.auc)),
    ("detection-auc-successful", |d| value(d.victim.auc_successful)),
    ("clean-twin-detection-auc", |d| value(d.clean_twin.as_ref()?.auc)),
    ("tpr-at-1", |d| value(d.victim.at_rate(0.01)?.true_positive_rate)),
    ("fpr-at-1", |d| value(d.victim.at_rate(0.01)?.false_positive_rate)),
    ("tpr-at-5", |d| value(d.victim.at_rate(0.05)?.true_positive_rate)),
    ("fpr-at-5", |d| value(d.victim.at_rate(0.05)?.false_positive_rate)),
    ("tpr-at-10", |d| value(d.victim.at_rate(0.1)?.true_positive_rate)),
    ("fpr-at-10", |d| value(d.victim.at_rate(0.1)?.false_positive_rate)),
    ("true-positive-rate", |d| value(d.victim.own_threshold.true_positive_rate)),
    ("false-positive-rate", |d| value(d.victim.own_threshold.false_positive_rate)),
];

/// A number that filters are judged by: its name, and where it stands in what was measured.
type FilteringNumber = (&'static str, fn(&FilteringMeasurements) -> Option<f64>);

/// The numbers of a filter, besides its time; accuracy and rates are those of a classifier trained on what is left.
const FILTERING_NUMBERS: [FilteringNumber; 9] = [
    ("detection-auc", |f| value(f.victim.auc)),
    ("true-positive-rate", |f| value(f.victim.true_positive_rate)),
    ("false-positive-rate", |f| value(f.victim.false_positive_rate)),
    ("clean-twin-false-positive-rate", |f| value(f.clean_twin?.false_positive_rate)),
    ("clean-accuracy", |f| Some(f.retrained?.after.clean_accuracy)),
    ("asr", |f| f.retrained?.after.asr),
    ("robust-accuracy", |f| f.retrained?.after.robust_accuracy),
    ("defense-effectiveness", |f| f.retrained?.ratings.defense_effectiveness),
    ("robust-improvement", |f| f.retrained?.ratings.robust_improvement),
];

/// A number that inspectors are judged by: its name, and where it stands in what was measured.
type InspectionNumber = (&'static str, fn(&InspectionMeasurements) -> Option<f64>);

/// The numbers of an inspector, besides its time.
const INSPECTION_NUMBERS: [InspectionNumber; 4] = [
    ("targets-flagged", InspectionMeasurements::targets_flagged),
    ("target-rank", |i| i.target_rank().map(|rank| rank as f64)),
    ("wrongly-flagged", |i| Some(i.wrongly_flagged() as f64)),
    ("clean-twin-flagged", |i| i.clean_twin.as_ref().map(|twin| twin.flagged.len() as f64)),
];

/// A number that the isolation of a training is judged by: its name, and where it stands in what was measured.
type IsolationNumber = (&'static str, fn(&SafeTrainingMeasurements) -> Option<f64>);

/// The numbers of a training besides those of every defended classifier.
const ISOLATION_NUMBERS: [IsolationNumber; 5] = [
    ("detection-auc", |t| value(t.isolation.auc)),
    ("true-positive-rate", |t| value(t.isolation.true_positive_rate)),
    ("false-positive-rate", |t| value(t.isolation.false_positive_rate)),
    ("clean-twin-false-positive-rate", |t| value(t.clean_twin?.isolation.false_positive_rate)),
    ("precision", SafeTrainingMeasurements::precision),
];

/// The time of a defense.
const SECONDS: &str = "seconds";

/// The most memory that the program held meanwhile.
const PEAK_MEMORY: &str = "peak-memory";

const MEBIBYTE: f64 = (1 << 20) as f64;

/// A number of what routers select: its name, where it stands, and what it would be without any relation.
pub type RoutingNumber = (&'static str, fn(&RoutingNumbers) -> Option<f64>, fn(&RoutingMeasurements) -> Option<f64>);

fn value(estimate: Option<Estimate>) -> Option<f64> {
    estimate.map(|estimate| estimate.value)
}

/// Of areas under ROC curves, whose chance is one half.
fn departure(experts: &[f64]) -> Option<Departure> {
    Departure::of(experts, 0.5)
}

fn mean_departure(experts: &[f64]) -> Option<f64> {
    departure(experts).map(|departure| departure.mean)
}

fn largest_departure(experts: &[f64]) -> Option<f64> {
    departure(experts).map(|departure| departure.largest)
}

/// A number that each expert has: its name, and where all of them stand.
type ExpertNumber = (&'static str, fn(&RoutingNumbers) -> &[f64]);

/// The numbers of single experts, which files for programs have: `routing, expert 0/expert-auc-intensity`.
const EXPERT_NUMBERS: [ExpertNumber; 6] = [
    ("expert-auc-intensity", |n| &n.clean.intensity.auc_by_expert),
    ("expert-auc-intensity-adjusted", |n| &n.clean.intensity.auc_adjusted_by_expert),
    ("expert-auc-variance", |n| &n.clean.variance.auc_by_expert),
    ("expert-auc-variance-adjusted", |n| &n.clean.variance.auc_adjusted_by_expert),
    ("expert-auc-gradient", |n| &n.clean.gradient.auc_by_expert),
    ("expert-auc-gradient-adjusted", |n| &n.clean.gradient.auc_adjusted_by_expert),
];

/// The numbers of the routing table, in its order.
pub const ROUTING_NUMBERS: [RoutingNumber; 31] = [
    ("trigger-capture", |n| value(n.trigger_capture), |m| Some(m.chance_capture)),
    ("trigger-capture-untouched", |n| value(n.trigger_capture_untouched), |m| Some(m.chance_capture)),
    ("trigger-capture-receptive-field", |n| value(n.trigger_capture_receptive_field), |m| Some(m.chance_capture)),
    ("trigger-capture-any", |n| value(n.trigger_capture_any), |m| Some(m.chance_capture_any)),
    ("auc-intensity", |n| value(n.clean.intensity.auc), |_| Some(0.5)),
    ("auc-intensity-adjusted", |n| value(n.clean.intensity.auc_adjusted), |_| Some(0.5)),
    ("auc-intensity-triggered", |n| value(n.triggered.intensity.auc), |_| Some(0.5)),
    ("auc-intensity-departure", |n| mean_departure(&n.clean.intensity.auc_by_expert), |_| Some(0.0)),
    ("auc-intensity-departure-max", |n| largest_departure(&n.clean.intensity.auc_by_expert), |_| Some(0.0)),
    ("auc-intensity-adjusted-departure", |n| mean_departure(&n.clean.intensity.auc_adjusted_by_expert), |_| Some(0.0)),
    (
        "auc-intensity-adjusted-departure-max",
        |n| largest_departure(&n.clean.intensity.auc_adjusted_by_expert),
        |_| Some(0.0),
    ),
    ("auc-variance", |n| value(n.clean.variance.auc), |_| Some(0.5)),
    ("auc-variance-adjusted", |n| value(n.clean.variance.auc_adjusted), |_| Some(0.5)),
    ("auc-variance-triggered", |n| value(n.triggered.variance.auc), |_| Some(0.5)),
    ("auc-variance-departure", |n| mean_departure(&n.clean.variance.auc_by_expert), |_| Some(0.0)),
    ("auc-variance-departure-max", |n| largest_departure(&n.clean.variance.auc_by_expert), |_| Some(0.0)),
    ("auc-variance-adjusted-departure", |n| mean_departure(&n.clean.variance.auc_adjusted_by_expert), |_| Some(0.0)),
    (
        "auc-variance-adjusted-departure-max",
        |n| largest_departure(&n.clean.variance.auc_adjusted_by_expert),
        |_| Some(0.0),
    ),
    ("auc-gradient", |n| value(n.clean.gradient.auc), |_| Some(0.5)),
    ("auc-gradient-adjusted", |n| value(n.clean.gradient.auc_adjusted), |_| Some(0.5)),
    ("auc-gradient-triggered", |n| value(n.triggered.gradient.auc), |_| Some(0.5)),
    ("auc-gradient-departure", |n| mean_departure(&n.clean.gradient.auc_by_expert), |_| Some(0.0)),
    ("auc-gradient-departure-max", |n| largest_departure(&n.clean.gradient.auc_by_expert), |_| Some(0.0)),
    ("auc-gradient-adjusted-departure", |n| mean_departure(&n.clean.gradient.auc_adjusted_by_expert), |_| Some(0.0)),
    (
        "auc-gradient-adjusted-departure-max",
        |n| largest_departure(&n.clean.gradient.auc_adjusted_by_expert),
        |_| Some(0.0),
    ),
    ("correlation-intensity", |n| value(n.clean.intensity.correlation), |_| Some(0.0)),
    ("overlap", |n| value(n.overlap), |m| Some(m.chance_overlap)),
    ("load-entropy", |n| n.clean.load_entropy, |_| Some(1.0)),
    ("load-entropy-triggered", |n| n.triggered.load_entropy, |_| Some(1.0)),
    ("expert-similarity", |n| value(n.clean.expert_similarity), |m| Some(m.chance_overlap)),
    ("expert-similarity-triggered", |n| value(n.triggered.expert_similarity), |m| Some(m.chance_overlap)),
];

/// Numbers whose chance is a column of its own in tables of sweeps, because it depends on the experiment.
const CHANCES: [&str; 3] = ["trigger-capture", "trigger-capture-any", "overlap"];

/// Every number of a seed by its name in tables of sweeps, in their order; `group/name` for what belongs together.
pub fn named_numbers(measurements: &Measurements) -> Vec<(String, f64)> {
    let own = SEED_NUMBERS.iter().filter_map(|(name, of)| Some(((*name).to_owned(), of(measurements)?)));
    let mut numbers = own.collect::<Vec<_>>();
    for (title, defense) in measurements.titled_defenses() {
        numbers.extend(of_result(defense).into_iter().map(|(name, value)| (in_group(&title, name), value)));
        for row in defense.measurements().iter().flat_map(|measured| &measured.series) {
            let group = format!("{title}, {}", row.pruned_in_words());
            numbers.extend(of_repair(&row.defended()).into_iter().map(|(name, value)| (in_group(&group, name), value)));
        }
    }
    numbers.extend(measurements.routing.iter().flat_map(|routing| of_routing(routing)));
    let changes = measurements.routing.iter().flat_map(|routing| routing.interventions());
    numbers.extend(changes.flat_map(|(title, standing)| {
        let of = |(name, of): &InterventionNumber| Some((format!("{title}/{name}"), of(&standing)?));
        INTERVENTION_NUMBERS.iter().filter_map(of).collect::<Vec<_>>()
    }));
    numbers
}

/// Every number of a defense as a whole, its time last.
pub(crate) fn of_result(result: &DefenseResult) -> Vec<(&'static str, f64)> {
    let mut numbers = match &result.outcome {
        DefenseOutcome::Finished(measured) => of_repair(&measured.defended()),
        DefenseOutcome::Detected(measured) => {
            DETECTION_NUMBERS.iter().filter_map(|(name, of)| Some((*name, of(measured)?))).collect()
        }
        DefenseOutcome::Filtered(measured) => {
            FILTERING_NUMBERS.iter().filter_map(|(name, of)| Some((*name, of(measured)?))).collect()
        }
        DefenseOutcome::Inspected(measured) => {
            INSPECTION_NUMBERS.iter().filter_map(|(name, of)| Some((*name, of(measured)?))).collect()
        }
        DefenseOutcome::Trained(measured) => {
            let isolation = ISOLATION_NUMBERS.iter().filter_map(|(name, of)| Some((*name, of(measured)?)));
            of_repair(&measured.defended()).into_iter().chain(isolation).collect()
        }
        DefenseOutcome::Failed { .. } => Vec::new(),
    };
    numbers.extend(result.seconds().map(|seconds| (SECONDS, seconds)));
    if result.failure().is_none() {
        numbers.extend(result.peak_memory.map(|bytes| (PEAK_MEMORY, bytes as f64 / MEBIBYTE)));
    }
    numbers
}

/// Every number of a defended classifier, such as one strength of a series.
pub(crate) fn of_repair(defended: &Defended) -> Vec<(&'static str, f64)> {
    DEFENSE_NUMBERS.iter().filter_map(|(name, of)| Some((*name, of(defended)?))).collect()
}

fn of_routing(measured: &RoutingMeasurements) -> Vec<(String, f64)> {
    let of = |group: &str, numbers: &RoutingNumbers| {
        let values = ROUTING_NUMBERS.iter().filter_map(|(name, of, _)| Some((format!("{group}/{name}"), of(numbers)?)));
        let each = EXPERT_NUMBERS.iter().flat_map(|(name, of)| {
            let experts = of(numbers).iter().enumerate();
            experts.map(move |(expert, &value)| (format!("{group}, expert {expert}/{name}"), value))
        });
        values.chain(each).collect::<Vec<_>>()
    };
    let mut numbers = of("routing", &measured.victim);
    numbers.extend(measured.clean_twin.iter().flat_map(|twin| of("routing, clean twin", twin)));
    let chances = ROUTING_NUMBERS.iter().filter(|(name, _, _)| CHANCES.contains(name));
    numbers.extend(
        chances.filter_map(|(name, _, chance)| Some((format!("routing, by chance/{name}"), chance(measured)?))),
    );
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DefenseKind, METRICS};

    const COSTS: [&str; 2] = [SECONDS, PEAK_MEMORY];

    #[test]
    fn the_columns_of_every_kind_of_defense_are_numbers_of_it() {
        let names = |kind| match kind {
            DefenseKind::Repair => DEFENSE_NUMBERS.iter().map(|(name, _)| *name).chain(COSTS).collect::<Vec<_>>(),
            DefenseKind::Detector => DETECTION_NUMBERS.iter().map(|(name, _)| *name).chain(COSTS).collect(),
            DefenseKind::Filter => FILTERING_NUMBERS.iter().map(|(name, _)| *name).chain(COSTS).collect(),
            DefenseKind::Inspector => INSPECTION_NUMBERS.iter().map(|(name, _)| *name).chain(COSTS).collect(),
            DefenseKind::Training => {
                let isolation = ISOLATION_NUMBERS.iter().map(|(name, _)| *name);
                DEFENSE_NUMBERS.iter().map(|(name, _)| *name).chain(isolation).chain(COSTS).collect()
            }
        };
        for kind in DefenseKind::ALL {
            assert!(kind.columns().iter().all(|column| names(kind).contains(column)), "{kind:?}");
        }
    }

    #[test]
    fn every_number_that_is_taken_is_in_the_table_of_metrics_and_no_other() {
        let seed = SEED_NUMBERS.iter().map(|(name, _)| *name);
        let defense = DEFENSE_NUMBERS.iter().map(|(name, _)| *name).chain(COSTS);
        let defense = defense.chain(DETECTION_NUMBERS.iter().map(|(name, _)| *name));
        let defense = defense.chain(FILTERING_NUMBERS.iter().map(|(name, _)| *name));
        let defense = defense.chain(INSPECTION_NUMBERS.iter().map(|(name, _)| *name));
        let defense = defense.chain(ISOLATION_NUMBERS.iter().map(|(name, _)| *name));
        let routing = ROUTING_NUMBERS.iter().map(|(name, _, _)| *name);
        let experts = EXPERT_NUMBERS.iter().map(|(name, _)| *name);
        let taken =
            seed.chain(defense).chain(routing).chain(experts).chain([crate::point::POISONED]).collect::<Vec<_>>();
        for name in &taken {
            assert!(METRICS.iter().any(|metric| metric.name == *name), "{name} is not in the table");
        }
        for metric in &METRICS {
            assert!(taken.contains(&metric.name), "nobody takes {}", metric.name);
        }
    }
}
