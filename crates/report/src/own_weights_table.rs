use patchdoor_record::{DefenseOutcome, DefenseResult, OwnWeightsResult};

use crate::text::{Row, align};

/// What the defenses of weights came to as one aligned table: for each what was measured before and after, how many images it
/// flags, or its statistic of every class.
///
/// No line is wider than `width`, the columns of the terminal.
pub fn own_weights_table(result: &OwnWeightsResult, width: usize) -> String {
    let mut text = String::new();
    let of = |wanted: fn(&DefenseOutcome) -> bool| {
        result.defenses.iter().filter(move |defense| wanted(&defense.outcome)).collect::<Vec<_>>()
    };
    let repairs = of(|outcome| matches!(outcome, DefenseOutcome::Finished(_)));
    if !repairs.is_empty() {
        text.push_str(&repair_table(result, &repairs, width));
    }
    let detectors = of(|outcome| matches!(outcome, DefenseOutcome::Detected(_)));
    if !detectors.is_empty() {
        text.push_str(&detector_table(result, &detectors, width));
    }
    for inspector in of(|outcome| matches!(outcome, DefenseOutcome::Inspected(_))) {
        text.push_str(&inspector_table(result, inspector, width));
    }
    for defense in &result.defenses {
        if let Some(reason) = defense.failure() {
            text.extend([&defense.title, " failed: ", reason, "\n"]);
        }
    }
    text
}

fn percent(share: Option<f64>) -> String {
    share.map_or_else(|| "-".into(), |share| format!("{:.1}", 100.0 * share))
}

fn seconds(defense: &DefenseResult) -> String {
    defense.seconds().map_or_else(|| "-".into(), |seconds| format!("{seconds:.1}"))
}

fn owned(cells: &[&str]) -> Vec<String> {
    cells.iter().map(|&cell| cell.to_owned()).collect()
}

fn repair_table(result: &OwnWeightsResult, repairs: &[&DefenseResult], width: usize) -> String {
    let attacked = result.knows_trigger;
    let mut header = owned(&["in percent", "clean accuracy", "change"]);
    if attacked {
        header.push("attack success".into());
    }
    header.push("seconds".into());
    let line = |name: &str, standing: patchdoor_record::DefenseStanding, change: String, seconds: String| {
        let mut cells = vec![name.to_owned(), percent(Some(standing.clean_accuracy)), change];
        if attacked {
            cells.push(percent(standing.asr));
        }
        cells.push(seconds);
        Row::Cells(cells)
    };
    let mut rows = vec![line("undefended", result.before, String::new(), String::new())];
    for defense in repairs {
        let Some(measured) = defense.measurements() else { continue };
        let change = 100.0 * (measured.after.clean_accuracy - measured.before.clean_accuracy);
        rows.push(line(&defense.title, measured.after, format!("{change:+.1}"), seconds(defense)));
    }
    align(&header, &rows, width)
}

fn detector_table(result: &OwnWeightsResult, detectors: &[&DefenseResult], width: usize) -> String {
    let attacked = result.knows_trigger;
    let mut header = owned(&["detector", "threshold", "flags of untouched, %"]);
    if attacked {
        header.extend(owned(&["of triggered, %", "AUC"]));
    }
    header.push("seconds".into());
    let rows = detectors.iter().filter_map(|defense| {
        let DefenseOutcome::Detected(measured) = &defense.outcome else { return None };
        let point = &measured.victim.own_threshold;
        let rate = |rate: &Option<patchdoor_metrics::Estimate>| percent(rate.as_ref().map(|rate| rate.value));
        let threshold = point.threshold.map_or_else(|| "-".into(), |threshold| format!("{threshold:.4}"));
        let mut cells = vec![defense.title.clone(), threshold, rate(&point.false_positive_rate)];
        if attacked {
            let auc = measured.victim.auc.as_ref();
            cells.push(rate(&point.true_positive_rate));
            cells.push(auc.map_or_else(|| "-".into(), |auc| format!("{:.3}", auc.value)));
        }
        cells.push(seconds(defense));
        Some(Row::Cells(cells))
    });
    align(&header, &rows.collect::<Vec<_>>(), width)
}

fn inspector_table(result: &OwnWeightsResult, inspector: &DefenseResult, width: usize) -> String {
    let DefenseOutcome::Inspected(measured) = &inspector.outcome else { return String::new() };
    let header = vec![inspector.title.clone(), "statistic".into(), String::new()];
    let rows = measured.victim.scores.iter().enumerate().map(|(class, score)| {
        let name = result.classes.get(class).map_or_else(String::new, |name| format!(" {name}"));
        let mut said = if measured.victim.flagged.contains(&class) { "flagged".to_owned() } else { String::new() };
        if measured.targets.contains(&class) {
            said.push_str(if said.is_empty() { "the target" } else { ", the target" });
        }
        Row::Cells(vec![format!("class {class}{name}"), format!("{score:.4}"), said])
    });
    let mut rows = rows.collect::<Vec<_>>();
    rows.push(Row::Title(match measured.victim.flagged.len() {
        0 => "no class is flagged".to_owned(),
        1 => "1 class is flagged".to_owned(),
        flagged => format!("{flagged} classes are flagged"),
    }));
    align(&header, &rows, width)
}

#[cfg(test)]
mod tests {
    use patchdoor_record::{DefenseStanding, ImagesUsed, InspectionMeasurements, InspectorFindings, SCHEMA};

    use super::*;

    fn result(outcome: DefenseOutcome) -> OwnWeightsResult {
        OwnWeightsResult {
            schema: SCHEMA,
            command: "inspect".into(),
            run: "mine".into(),
            weights: "w.safetensors".into(),
            weights_sha256: String::new(),
            defense_file: "a.toml".into(),
            images: ImagesUsed { dataset: "shapes".into(), substitution: None },
            seed: 0,
            test_images: 10,
            knows_trigger: false,
            notes: Vec::new(),
            classes: vec!["disc".into(), "ring".into()],
            backend: "flex".into(),
            device: "a processor".into(),
            before: DefenseStanding {
                clean_accuracy: 0.5,
                asr: None,
                robust_accuracy: None,
                largest_class_share: None,
            },
            defenses: vec![DefenseResult {
                schema: SCHEMA,
                name: "mm-bd".into(),
                title: "mm-bd".into(),
                data: "clean".into(),
                clean_images: 5,
                contaminated_images: 0,
                validation_images: 1,
                peak_memory: None,
                outcome,
            }],
        }
    }

    #[test]
    fn every_class_has_its_statistic_and_a_flagged_one_says_so() {
        let victim = InspectorFindings::of(vec![1.5, 2.25], &[false, true]);
        let measured = InspectionMeasurements { targets: Vec::new(), victim, clean_twin: None, seconds: 1.0 };
        insta::assert_snapshot!(own_weights_table(&result(DefenseOutcome::Inspected(Box::new(measured))), 80));
    }

    #[test]
    fn a_failure_has_its_reason() {
        let failed = result(DefenseOutcome::Failed { reason: "no loss".into() });
        assert_eq!(own_weights_table(&failed, 80), "mm-bd failed: no loss\n");
        assert!(!failed.is_complete());
    }
}
