use std::fmt::Write;

use super::record::StudyRecord;
use super::steps::{Step, Work};

/// What a study came to, for people.
pub(super) fn report(record: &StudyRecord, steps: &[Step], left_out: &[String]) -> String {
    let mut text = String::from("# Study at the authors' scale\n\n");
    let setting = |name: &str| record.settings.get(name).map_or("unknown", String::as_str);
    let tiny = if setting("tiny") == "true" { " A rehearsal: **its numbers mean nothing**." } else { "" };
    // Writing to a string cannot fail.
    let _ =
        writeln!(text, "On {} ({}), program {}.{tiny}\n", setting("backend"), setting("device"), setting("program"));
    if let Some(epochs) = record.epochs {
        let _ = writeln!(
            text,
            "Trainings of {epochs} epochs (the authors': {}), operands of products in {}.\n",
            super::steps::EPOCHS,
            setting("precision")
        );
    }
    text.push_str("| step | outcome | seconds | |\n| --- | --- | --- | --- |\n");
    for step in steps {
        let _ = match record.steps.get(&step.name) {
            Some(done) => {
                writeln!(text, "| {} | {} | {:.1} | {} |", step.title, done.outcome, done.seconds, cell(&done.what))
            }
            None => writeln!(text, "| {} | not begun | | |", step.title),
        };
    }
    speeds(&mut text, record, steps);
    for step in steps {
        let numbers = record.steps.get(&step.name).map(|step| &step.numbers).filter(|numbers| !numbers.is_empty());
        if let (Work::Training(_), Some(numbers)) = (&step.work, numbers) {
            let _ = writeln!(text, "\n## {}\n\n| | |\n| --- | --- |", step.title);
            for (name, value) in numbers {
                let _ = writeln!(text, "| {name} | {value:.4} |");
            }
        }
    }
    text.push_str("\n`logs/` has what each step said, `steps/` its document, `runs/` the records of the runs.\n");
    if !left_out.is_empty() {
        let _ = writeln!(text, "\nLeft out here for their size: {}.", left_out.join(", "));
    }
    text
}

/// Our images a second beside `PyTorch`'s.
fn speeds(text: &mut String, record: &StudyRecord, steps: &[Step]) {
    let speed = |name: &str| record.steps.get(name).and_then(|step| step.numbers.get("images/s").copied());
    let mut rows = String::new();
    for step in steps {
        let Work::Speed { widen, precision } = step.work else { continue };
        let Some(ours) = speed(&step.name) else { continue };
        let _ = writeln!(rows, "| {widen} | ours, {} | {ours:.1} | |", precision.name());
        for other in steps {
            if let Work::Pytorch { widen: same, form } = other.work
                && same == widen
                && (form.precision == precision.name() || (precision.is_full() && form.precision == "tf32"))
                && let Some(theirs) = speed(&other.name)
            {
                let how = if form.compiled { "compiled" } else { "eager" };
                let ratio = ours / theirs;
                let _ = writeln!(rows, "| {widen} | PyTorch, {}, {how} | {theirs:.1} | {ratio:.2} |", form.precision);
            }
        }
    }
    if !rows.is_empty() {
        text.push_str("\n## Training images a second, batch 128\n\n| widen | | images/s | ours to it |\n| --- | --- | --- | --- |\n");
        text.push_str(&rows);
    }
}

/// A text that does not break a table.
fn cell(text: &str) -> String {
    text.replace('|', "/").replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::study::record::StepRecord;
    use crate::study::steps::steps;

    #[test]
    fn a_report_says_what_ran_what_not_and_compares_speeds() {
        let steps = steps("flex", true);
        let settings = [
            ("backend", "flex"),
            ("device", "a processor"),
            ("precision", "f32"),
            ("program", "0.1"),
            ("tiny", "true"),
        ];
        let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).into_iter().collect();
        let step = |outcome: &str, what: &str, number: Option<f64>| StepRecord {
            outcome: outcome.into(),
            what: what.into(),
            seconds: 2.5,
            numbers: number.map(|number| ("images/s".to_owned(), number)).into_iter().collect::<BTreeMap<_, _>>(),
        };
        let done = [
            ("doctor", step("done", "", None)),
            ("speed-1", step("done", "", Some(900.0))),
            ("pytorch-1-f32-eager", step("done", "", Some(600.0))),
            ("fine-tuning", step("skipped", "needs 9 s | 3 s are left", None)),
        ];
        let record = StudyRecord {
            settings,
            epochs: Some(2),
            steps: done.map(|(name, step)| (name.to_owned(), step)).into_iter().collect(),
        };
        insta::assert_snapshot!(report(&record, &steps, &["a/weights.safetensors (20.0 MB)".into()]));
    }
}
