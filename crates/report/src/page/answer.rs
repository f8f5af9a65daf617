use maud::{Markup, html};
use patchdoor_record::{COLLAPSE, DefenseSummary, RunSummary, Unit};

use super::numbers::mean_of;

/// By how much more than its clean twin a classifier must do what the attack wants for the words that follow.
const TOOK: f64 = 0.5;
const TOOK_IN_PART: f64 = 0.1;

/// Did the backdoor take, what did it cost, what helped: in one line.
pub(crate) fn answer(run: &RunSummary) -> Markup {
    html! { (sentence(run)) }
}

/// By what rule the answer speaks.
pub(crate) fn rule() -> String {
    format!(
        "\"Took\" is said where the attack success rate is at least {} points above that of the clean twin (above zero without \
         a twin), \"took in part\" from {} points on. It describes this run; it is no test.",
        Unit::Points.text(TOOK).trim_end_matches(".00"),
        Unit::Points.text(TOOK_IN_PART).trim_end_matches(".00")
    )
}

fn sentence(run: &RunSummary) -> String {
    let of = |name: &str| mean_of(&run.metrics, name);
    let Some(accuracy) = of("clean-accuracy") else { return "No seed finished: nothing is known.".into() };
    let share = |value: f64| format!("{} %", Unit::Share.text(value));
    if let Some(collapse) = collapse(run) {
        return collapse;
    }
    let Some(asr) = of("asr") else {
        return format!("No attack was measured; clean accuracy is {}.", share(accuracy));
    };
    let twin = of("clean-twin-asr");
    let lead = match asr - twin.unwrap_or(0.0) {
        above if above >= TOOK => "The backdoor took",
        above if above >= TOOK_IN_PART => "The backdoor took in part",
        _ => "The backdoor did not take",
    };
    let twin = twin.map(|twin| format!(", of its clean twin {}", share(twin))).unwrap_or_default();
    let target = run.target.as_ref().map(|target| format!(" for class {target}")).unwrap_or_default();
    let cost = match of("clean-accuracy-drop") {
        Some(drop) if drop >= 0.0 => {
            format!("Clean accuracy is {} points below its twin's, at {}.", Unit::Points.text(drop), share(accuracy))
        }
        Some(drop) => {
            format!("Clean accuracy is {} points above its twin's, at {}.", Unit::Points.text(-drop), share(accuracy))
        }
        None => format!("Clean accuracy is {}.", share(accuracy)),
    };
    format!("{lead}: its success rate{target} is {}{twin}. {cost}{}", share(asr), help(run, asr))
}

/// What is said instead where classifiers have collapsed to one class; a mean over such says nothing.
pub(crate) fn collapse(run: &RunSummary) -> Option<String> {
    let shares = run.seeds.iter().filter_map(|seed| seed.measurements()?.largest_class_share);
    let collapsed = shares.filter(|share| *share > COLLAPSE).count();
    let seeds = run.finished();
    (collapsed > 0).then(|| {
        format!(
            "The classifier has collapsed to one class with {collapsed} of {seeds} {}; means over such classifiers say nothing \
             about the attack.",
            if seeds == 1 { "seed" } else { "seeds" }
        )
    })
}

/// Which repair or training leaves the least of the attack; nothing where none was tried.
fn help(run: &RunSummary, asr: f64) -> String {
    let repairs = || run.defenses.iter().filter(|defense| defense.kind.gives_classifier());
    let tried = repairs().filter(|defense| defense.pruned_fraction.is_none()).count();
    if tried == 0 {
        return String::new();
    }
    let judged = |defense: &&DefenseSummary| defense.collapsed == 0;
    let least = repairs()
        .filter(judged)
        .filter_map(|defense| Some((defense, mean_of(&defense.metrics, "asr")?)))
        .min_by(|(_, a), (_, b)| a.total_cmp(b));
    match least {
        Some((best, left)) if left < asr => {
            let accuracy = mean_of(&best.metrics, "clean-accuracy");
            let accuracy = accuracy.map(|value| format!(" at a clean accuracy of {} %", Unit::Share.text(value)));
            let (left, accuracy) = (Unit::Share.text(left), accuracy.unwrap_or_default());
            match tried {
                1 => format!(" The one defense tried, \"{}\", leaves {left} %{accuracy}.", label(best)),
                _ => format!(" Of {tried} defenses, \"{}\" leaves the least: {left} %{accuracy}.", label(best)),
            }
        }
        _ if tried == 1 => " The one defense tried did not lower it.".into(),
        _ => format!(" Of {tried} defenses, none lowers it without collapse."),
    }
}

/// A defense, or one strength of a series.
pub(crate) fn label(defense: &DefenseSummary) -> String {
    match (&defense.pruned, defense.pruned_fraction) {
        (Some(pruned), Some(_)) => format!("{}, {pruned}", defense.title),
        (None, Some(share)) => format!("{}, {} % pruned", defense.title, Unit::Share.text(share)),
        (Some(pruned), None) => format!("{} ({pruned})", defense.title),
        (None, None) => defense.title.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run_table::tests::{run, seed};
    use patchdoor_metrics::Summary;
    use patchdoor_record::{DefenseKind, SeedOutcome};

    fn defended(title: &str, asr: f64, collapsed: usize) -> DefenseSummary {
        let of = |value: f64| Summary::of(&[value]).expect("one value");
        let metrics = [("asr".to_owned(), of(asr)), ("clean-accuracy".to_owned(), of(0.65))].into();
        let (name, title, data) = ("fine-tuning".into(), title.into(), "clean".into());
        DefenseSummary {
            name,
            title,
            kind: DefenseKind::Repair,
            data,
            pruned_fraction: None,
            pruned: None,
            collapsed,
            metrics,
        }
    }

    #[test]
    fn the_answer_says_what_it_cost_and_what_helped() {
        let mut run = run("badnets", vec![seed(0, 0.69, 0.96)]);
        run.target = Some("0 (airplane)".into());
        run.defenses = vec![defended("pruning", 0.0, 1), defended("fine-tuning", 0.08, 0), defended("other", 0.5, 0)];
        assert_eq!(
            sentence(&run),
            "The backdoor took: its success rate for class 0 (airplane) is 96.00 %, of its clean twin 2.00 %. Clean accuracy is \
             1.00 points below its twin's, at 69.00 %. Of 3 defenses, \"fine-tuning\" leaves the least: 8.00 % at a clean accuracy \
             of 65.00 %."
        );
        run.defenses = vec![defended("fine-tuning", 0.97, 0)];
        assert!(sentence(&run).ends_with("The one defense tried did not lower it."));
    }

    #[test]
    fn one_collapsed_seed_is_enough_to_say_so() {
        let mut collapsed = seed(1, 0.1, 1.0);
        if let SeedOutcome::Finished(measured) = &mut collapsed.outcome {
            measured.largest_class_share = Some(0.98);
        }
        let run = run("badnets", vec![seed(0, 0.69, 0.96), collapsed]);
        assert!(sentence(&run).starts_with("The classifier has collapsed to one class with 1 of 2 seeds;"));
    }

    #[test]
    fn what_the_twin_does_too_is_no_backdoor() {
        // The twin's rate is 0.02.
        let lead = |asr: f64| sentence(&run("badnets", vec![seed(0, 0.69, asr)])).split(':').next().unwrap().to_owned();
        assert_eq!(lead(0.51), "The backdoor took in part");
        assert_eq!(lead(0.11), "The backdoor did not take");
    }
}
