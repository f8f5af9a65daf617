use std::collections::BTreeMap;

use patchdoor_metrics::{Hypothesis, Judgement, PairedDifferences, Summary};
use patchdoor_record::{UncleanBuild, Unit};
use serde::Deserialize;

use crate::lookup::{Found, Missing, Results};

/// A hypothesis about one number, or about the difference of two, written down before the runs.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Test {
    /// What would be so if it holds.
    pub(crate) says: String,
    /// The number, as `result/point/number`.
    pub(crate) treatment: String,
    /// What is taken off it, seed by seed; without one, the number stands for itself.
    pub(crate) control: Option<String>,
    /// A difference that the one of treatment and control has to exceed: it is taken off it, seed by seed.
    pub(crate) beyond: Option<Beyond>,
    /// What the number or the mean difference has to be.
    pub(crate) holds_if: Hypothesis,
    /// Seeds below which nothing is decided, at least 2.
    pub(crate) seeds: usize,
    /// Whether the verdict of the claim depends on it; one that does not is there to be seen.
    #[serde(default = "yes")]
    pub(crate) decides: bool,
}

/// A treatment and its control elsewhere, such as in another network.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Beyond {
    pub(crate) treatment: String,
    pub(crate) control: String,
}

fn yes() -> bool {
    true
}

/// What was measured for a test, and what follows.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Outcome {
    /// `None` as long as a result is missing.
    pub(crate) measured: Option<Measured>,
    pub(crate) standing: Standing,
}

/// The numbers of a test.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Measured {
    /// In what they are counted.
    pub(crate) unit: Unit,
    /// Of each seed that counts.
    pub(crate) values: BTreeMap<u64, f64>,
    /// Mean and spread of them.
    pub(crate) summary: Summary,
    /// Seeds that only the treatment, only the control has.
    pub(crate) unpaired: [Vec<u64>; 2],
}

/// What follows from a test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// A result is still to come.
    NotMeasured,
    /// It has fewer seeds than it needs.
    TooFewSeeds,
    /// Its numbers are not fit to decide: they do not come from one clean build, or of classifiers that answer with one class; why.
    Unclean(&'static str),
    /// It is decided, or not, by its interval.
    Judged(Judgement),
}

impl Standing {
    pub(crate) fn words(&self, seeds: usize) -> String {
        match self {
            Self::NotMeasured => "not yet measured".into(),
            Self::TooFewSeeds => format!("undecided: fewer than {seeds} seeds"),
            Self::Unclean(why) => format!("undecided: {why}"),
            Self::Judged(Judgement::Holds) => "holds".into(),
            Self::Judged(Judgement::Contradicted) => "contradicted".into(),
            Self::Judged(Judgement::Undecided) => "undecided".into(),
        }
    }
}

impl Test {
    /// Looks the numbers up and judges them, or says what is wrong with the test.
    pub(crate) fn judge(&self, results: &Results) -> Result<Outcome, String> {
        if let Some(problem) = self.holds_if.problem() {
            return Err(format!("{:?} has the margin {}, {problem}", self.says, self.holds_if.margin()));
        }
        if self.seeds < 2 {
            return Err(format!("{:?} needs {} seeds, expected 2 or more", self.says, self.seeds));
        }
        let find = |path: &str| match results.find(path) {
            Ok(found) => Ok(Some(found)),
            Err(Missing::Result(_)) => Ok(None),
            Err(Missing::Number(reason)) => Err(reason),
        };
        if self.beyond.is_some() && self.control.is_none() {
            return Err(format!("{:?} has `beyond` and no control, expected both or none", self.says));
        }
        // A misspelt number is wrong whether or not the other results are there yet.
        let found = self.paths().into_iter().map(find).collect::<Result<Vec<_>, _>>()?;
        let Some(found) = found.into_iter().collect::<Option<Vec<_>>>() else { return Ok(Outcome::NOT_MEASURED) };
        self.measure(&found)
    }

    /// The numbers that it looks at: treatment, control, and the same elsewhere, as far as it has them.
    fn paths(&self) -> Vec<&str> {
        let beyond = self.beyond.iter().flat_map(|beyond| [&beyond.treatment, &beyond.control]);
        [&self.treatment].into_iter().chain(&self.control).chain(beyond).map(String::as_str).collect()
    }

    fn measure(&self, found: &[Found<'_>]) -> Result<Outcome, String> {
        let unit = found[0].metric.unit();
        if found.iter().any(|other| other.metric.unit() != unit) {
            return Err(format!("{} are counted differently", self.paths().join(" and ")));
        }
        let difference = |treatment: &Found<'_>, control: &Found<'_>| {
            PairedDifferences::of(&treatment.metric.values, &control.metric.values)
        };
        let (unit, paired) = match found {
            [only] => {
                let values = only.metric.values.clone();
                (unit, PairedDifferences { differences: values, only_treatment: Vec::new(), only_control: Vec::new() })
            }
            [treatment, control] => (unit.of_difference(), difference(treatment, control)),
            [treatment, control, there, control_there] => {
                let [here, there] = [difference(treatment, control), difference(there, control_there)];
                (unit.of_difference(), PairedDifferences::of(&here.differences, &there.differences))
            }
            _ => unreachable!("one, two or four numbers"),
        };
        let (values, unpaired) = (paired.differences, [paired.only_treatment, paired.only_control]);
        let Some(summary) = Summary::of(&values.values().copied().collect::<Vec<_>>()) else {
            return Err(format!("{} have no seed in common", self.paths().join(" and ")));
        };
        if found.iter().any(|found| found.point.collapse_in_words(&found.metric.name).is_some()) {
            let measured = Some(Measured { unit, values, summary, unpaired });
            return Ok(Outcome { measured, standing: Standing::Unclean("collapse to one class") });
        }
        let standing = match (one_build(found), summary.interval_95()) {
            (Err(why), _) => Standing::Unclean(why),
            (Ok(()), Some(interval)) if summary.count >= self.seeds => Standing::Judged(self.holds_if.judge(interval)),
            (Ok(()), _) => Standing::TooFewSeeds,
        };
        Ok(Outcome { measured: Some(Measured { unit, values, summary, unpaired }), standing })
    }

    /// What it has to be, in words; `unit` is that of the number or the difference, if that is known.
    pub(crate) fn condition(&self, unit: Option<Unit>) -> String {
        let (words, margin) = match self.holds_if {
            Hypothesis::AtLeast(margin) => ("at least ", margin),
            Hypothesis::AtMost(margin) => ("at most ", margin),
            Hypothesis::DiffersByAtLeast(margin) => ("off zero by at least ", margin),
            Hypothesis::EquivalentWithin(margin) => ("within ±", margin),
        };
        let number = self.treatment.rsplit('/').next().unwrap_or(&self.treatment);
        let known = patchdoor_record::MetricInfo::unit_of(number);
        let unit = unit.unwrap_or(if self.control.is_some() { known.of_difference() } else { known });
        format!("{words}{}{}", unit.text(margin), unit.suffix())
    }
}

impl Outcome {
    const NOT_MEASURED: Self = Self { measured: None, standing: Standing::NotMeasured };
}

impl Measured {
    /// Mean and interval with their unit, `+15.56 points [-4.92, 36.04]`; a difference has its sign.
    pub(crate) fn text(&self, is_difference: bool) -> String {
        let sign = if is_difference && self.summary.mean > 0.0 { "+" } else { "" };
        let mean = format!("{sign}{}{}", self.unit.text(self.summary.mean), self.unit.suffix());
        match self.summary.interval_95() {
            None => mean,
            // Judged is the interval as it is, so shown is that too, even where it reaches beyond what a share can be.
            Some((low, high)) => format!("{mean} [{}, {}]", self.unit.text(low), self.unit.text(high)),
        }
    }

    /// `seed: value` of each seed.
    pub(crate) fn per_seed(&self) -> String {
        let of = |(seed, value): (&u64, &f64)| format!("{seed}: {}", self.unit.text(*value));
        self.values.iter().map(of).collect::<Vec<_>>().join("; ")
    }
}

/// Whether all numbers come from the same clean build, or why not.
fn one_build(found: &[Found<'_>]) -> Result<(), &'static str> {
    let builds = found.iter().map(|found| found.table.clean_build().map_err(UncleanBuild::name));
    let builds = builds.collect::<Result<Vec<_>, _>>()?;
    if builds.windows(2).all(|pair| pair[0] == pair[1]) { Ok(()) } else { Err(UncleanBuild::Mixed.name()) }
}

/// Whether a claim holds, as far as its tests can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Confirmed,
    Refuted,
    Undecided,
    Open,
}

impl Verdict {
    /// The rule: refuted if a deciding test is contradicted, confirmed if all of them hold, undecided otherwise; open as
    /// long as nothing is measured.
    pub(crate) fn of<'a>(tests: impl IntoIterator<Item = (&'a Test, &'a Outcome)>) -> Self {
        let tests = tests.into_iter().collect::<Vec<_>>();
        if tests.iter().all(|(_, outcome)| outcome.measured.is_none()) {
            return Self::Open;
        }
        let deciding = tests.iter().filter(|(test, _)| test.decides).map(|(_, outcome)| &outcome.standing);
        let deciding = deciding.collect::<Vec<_>>();
        if deciding.iter().any(|standing| **standing == Standing::Judged(Judgement::Contradicted)) {
            Self::Refuted
        } else if !deciding.is_empty()
            && deciding.iter().all(|standing| **standing == Standing::Judged(Judgement::Holds))
        {
            Self::Confirmed
        } else {
            Self::Undecided
        }
    }

    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Confirmed => "confirmed",
            Self::Refuted => "refuted",
            Self::Undecided => "undecided",
            Self::Open => "open",
        }
    }
}

#[cfg(test)]
mod tests {
    use patchdoor_record::ResultTable;

    use super::*;
    use crate::sweep_table::example_table;

    fn results(change: impl FnOnce(&mut ResultTable)) -> Results {
        let mut table = example_table();
        change(&mut table);
        Results { tables: [("rates".to_owned(), table)].into() }
    }

    fn test(treatment: &str, control: Option<&str>, holds_if: Hypothesis) -> Test {
        let control = control.map(str::to_owned);
        Test { says: "-".into(), treatment: treatment.into(), control, beyond: None, holds_if, seeds: 2, decides: true }
    }

    const ASR: &str = "rates/0.001, four cells/asr";
    const PRUNED: &str = "rates/0.001, four cells/fine-pruning/asr";

    #[test]
    fn differences_are_paired_by_seed() {
        let outcome = test(PRUNED, Some(ASR), Hypothesis::AtMost(5.0)).judge(&results(|_| ())).unwrap();
        let measured = outcome.measured.unwrap();
        assert_eq!(measured.values, [(0, -0.4), (1, -0.75)].into());
        assert_eq!(measured.per_seed(), "0: -40.00; 1: -75.00");
        // s = 0.35 / sqrt(2), 12.7062 s / sqrt(2) = 2.2236.
        assert_eq!(measured.text(true), "-57.50 points [-279.86, 164.86]");
        assert_eq!(outcome.standing, Standing::Judged(Judgement::Holds));
        let with_one_more = results(|table| {
            let pruned = table.points[0].metrics.iter_mut().find(|metric| metric.name == "fine-pruning/asr").unwrap();
            pruned.values.insert(7, 0.0);
        });
        let outcome = test(PRUNED, Some(ASR), Hypothesis::AtMost(5.0)).judge(&with_one_more).unwrap();
        let measured = outcome.measured.unwrap();
        assert_eq!((measured.values.len(), measured.unpaired), (2, [vec![7], vec![]]));
    }

    #[test]
    fn a_difference_elsewhere_is_taken_off_seed_by_seed() {
        let beyond = |treatment: &str, control: &str| {
            let beyond = Some(Beyond { treatment: treatment.into(), control: control.into() });
            Test { beyond, ..test(PRUNED, Some(ASR), Hypothesis::AtMost(5.0)) }
        };
        let values = |test: &Test| test.judge(&results(|_| ())).unwrap().measured.unwrap().values;
        assert_eq!(values(&beyond(PRUNED, ASR)), [(0, 0.0), (1, 0.0)].into());
        // -0.4 and -0.75 minus 0.4 and 0.75.
        assert_eq!(values(&beyond(ASR, PRUNED)), [(0, -0.8), (1, -1.5)].into());
        assert_eq!(beyond("later/asr", ASR).judge(&results(|_| ())), Ok(Outcome::NOT_MEASURED));
        let alone = Test { control: None, ..beyond(PRUNED, ASR) };
        assert!(alone.judge(&results(|_| ())).unwrap_err().contains("no control, expected both or none"));
    }

    #[test]
    fn few_seeds_and_unclean_builds_decide_nothing() {
        let standing = |test: &Test, results: &Results| test.judge(results).unwrap().standing;
        let sure = test(ASR, None, Hypothesis::AtLeast(0.0));
        assert_eq!(standing(&sure, &results(|_| ())), Standing::Judged(Judgement::Holds));
        let three = Test { seeds: 3, ..sure.clone() };
        assert_eq!(standing(&three, &results(|_| ())), Standing::TooFewSeeds);
        // One seed has no interval, whatever is asked.
        let alone = test("rates/0.01, a | b/asr", None, Hypothesis::AtLeast(0.0));
        assert_eq!(standing(&alone, &results(|_| ())), Standing::TooFewSeeds);
        for (commits, why) in
            [(vec!["a", "b"], "mixed builds"), (vec!["a (changed)"], "changed source"), (vec![], "unknown build")]
        {
            let results = results(|table| table.commits = commits.into_iter().map(str::to_owned).collect());
            assert_eq!(standing(&sure, &results), Standing::Unclean(why));
        }
        let mut two = results(|_| ());
        two.tables.insert("other".into(), ResultTable { commits: vec!["another".into()], ..example_table() });
        let control = test(ASR, Some("other/0.001, four cells/asr"), Hypothesis::EquivalentWithin(0.1));
        assert_eq!(standing(&control, &two), Standing::Unclean("mixed builds"));
    }

    #[test]
    fn a_collapse_decides_nothing() {
        // Half of all images in one class, or more, whatever the ASR then is.
        let collapsed = results(|table| {
            let share = [(0, 0.97), (1, 0.2)].into();
            let share = patchdoor_record::MetricResult::of("fine-pruning/largest-class-share", share).unwrap();
            table.points[0].metrics.push(share);
        });
        let sure = test(PRUNED, Some(ASR), Hypothesis::AtMost(5.0));
        assert_eq!(sure.judge(&results(|_| ())).unwrap().standing, Standing::Judged(Judgement::Holds));
        assert_eq!(sure.judge(&collapsed).unwrap().standing, Standing::Unclean("collapse to one class"));
    }

    #[test]
    fn a_result_to_come_is_not_measured_and_a_misspelt_number_is_an_error() {
        let judge = |treatment: &str, control: Option<&str>| {
            test(treatment, control, Hypothesis::AtLeast(0.0)).judge(&results(|_| ()))
        };
        assert_eq!(judge("later/asr", None), Ok(Outcome::NOT_MEASURED));
        assert_eq!(judge(ASR, Some("later/asr")), Ok(Outcome::NOT_MEASURED));
        for (treatment, control, found) in [
            ("rates/0.001, four cells/ars", None, "did you mean \"asr\""),
            ("rates/0.001, five cells/asr", None, "did you mean \"0.001, four cells\""),
            ("later/asr", Some("rates/0.001, four cells/ars"), "did you mean \"asr\""),
            (ASR, Some("rates/0.001, four cells/fine-pruning/seconds"), "counted differently"),
        ] {
            let problem = judge(treatment, control).unwrap_err();
            assert!(problem.contains(found), "{problem}");
        }
        let none = test(ASR, None, Hypothesis::EquivalentWithin(0.0)).judge(&results(|_| ())).unwrap_err();
        assert!(none.contains("margin 0"), "{none}");
        let one = Test { seeds: 1, ..test(ASR, None, Hypothesis::AtLeast(0.0)) }.judge(&results(|_| ()));
        assert!(one.unwrap_err().contains("2 or more"));
    }

    #[test]
    fn a_verdict_follows_from_the_deciding_tests() {
        let any = Some(Measured {
            unit: Unit::Share,
            values: [(0, 0.5)].into(),
            summary: Summary { count: 1, mean: 0.5, standard_deviation: None },
            unpaired: [vec![], vec![]],
        });
        let of = |standings: &[(bool, Standing)]| {
            let tests = standings.iter().map(|(decides, standing)| {
                let measured = if *standing == Standing::NotMeasured { None } else { any.clone() };
                let test = Test { decides: *decides, ..test(ASR, None, Hypothesis::AtLeast(0.0)) };
                (test, Outcome { measured, standing: standing.clone() })
            });
            let tests = tests.collect::<Vec<_>>();
            Verdict::of(tests.iter().map(|(test, outcome)| (test, outcome)))
        };
        let holds = || Standing::Judged(Judgement::Holds);
        let contradicted = || Standing::Judged(Judgement::Contradicted);
        let undecided = || Standing::Judged(Judgement::Undecided);
        assert_eq!(of(&[]), Verdict::Open);
        assert_eq!(of(&[(true, Standing::NotMeasured)]), Verdict::Open);
        assert_eq!(of(&[(true, holds()), (true, holds())]), Verdict::Confirmed);
        assert_eq!(of(&[(true, holds()), (true, undecided())]), Verdict::Undecided);
        assert_eq!(of(&[(true, undecided()), (true, contradicted())]), Verdict::Refuted);
        assert_eq!(of(&[(true, holds()), (true, Standing::TooFewSeeds)]), Verdict::Undecided);
        assert_eq!(of(&[(true, holds()), (true, Standing::Unclean("mixed builds"))]), Verdict::Undecided);
        // What does not decide is seen and no more, but something has been measured.
        assert_eq!(of(&[(true, holds()), (false, contradicted())]), Verdict::Confirmed);
        assert_eq!(of(&[(true, Standing::NotMeasured), (false, holds())]), Verdict::Undecided);
        assert_eq!(of(&[(false, holds())]), Verdict::Undecided);
    }
}
