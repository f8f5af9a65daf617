use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What is said of a number, or of a difference of two, before it is measured.
///
/// It is judged by the 95 % confidence interval of a mean. A limit that the whole interval keeps holds, one that no part
/// of it keeps is contradicted, and in between nothing is decided; each of the two ends errs in at most 2.5 % of cases.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hypothesis {
    /// It is this or more.
    AtLeast(f64),
    /// It is this or less.
    AtMost(f64),
    /// It lies at least so far from zero, on either side.
    DiffersByAtLeast(f64),
    /// It lies nearer to zero than this: two one-sided tests (Schuirmann 1987), one at either end.
    EquivalentWithin(f64),
}

/// What an interval says of a [`Hypothesis`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// All of the interval agrees with it.
    Holds,
    /// None of it does.
    Contradicted,
    /// Some of it does.
    Undecided,
}

impl Hypothesis {
    /// The limit or margin.
    pub fn margin(self) -> f64 {
        match self {
            Self::AtLeast(margin)
            | Self::AtMost(margin)
            | Self::DiffersByAtLeast(margin)
            | Self::EquivalentWithin(margin) => margin,
        }
    }

    /// Why the margin cannot be one; `None` if it can.
    pub fn problem(self) -> Option<&'static str> {
        match self {
            _ if !self.margin().is_finite() => Some("expected a finite number"),
            Self::DiffersByAtLeast(margin) | Self::EquivalentWithin(margin) if margin <= 0.0 => {
                Some("expected a margin above 0")
            }
            _ => None,
        }
    }

    /// What an interval says of it.
    pub fn judge(self, (low, high): (f64, f64)) -> Judgement {
        let (holds, contradicted) = match self {
            Self::AtLeast(limit) => (low >= limit, high < limit),
            Self::AtMost(limit) => (high <= limit, low > limit),
            Self::DiffersByAtLeast(margin) => (low >= margin || high <= -margin, low > -margin && high < margin),
            Self::EquivalentWithin(margin) => (low > -margin && high < margin, low >= margin || high <= -margin),
        };
        match (holds, contradicted) {
            (true, _) => Judgement::Holds,
            (_, true) => Judgement::Contradicted,
            _ => Judgement::Undecided,
        }
    }
}

/// Differences of two numbers, taken seed by seed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PairedDifferences {
    /// Treatment minus control of each seed that both have.
    pub differences: BTreeMap<u64, f64>,
    /// Seeds that only the treatment has; nothing is said with them.
    pub only_treatment: Vec<u64>,
    /// Seeds that only the control has.
    pub only_control: Vec<u64>,
}

impl PairedDifferences {
    /// Pairs the values of two numbers by their seeds.
    pub fn of(treatment: &BTreeMap<u64, f64>, control: &BTreeMap<u64, f64>) -> Self {
        let without = |these: &BTreeMap<u64, f64>, others: &BTreeMap<u64, f64>| {
            these.keys().copied().filter(|seed| !others.contains_key(seed)).collect()
        };
        let pairs = treatment.iter().filter_map(|(&seed, value)| Some((seed, value - control.get(&seed)?)));
        Self {
            differences: pairs.collect(),
            only_treatment: without(treatment, control),
            only_control: without(control, treatment),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_hypothesis_holds_where_the_whole_interval_keeps_it() {
        use Hypothesis::{AtLeast, AtMost, DiffersByAtLeast, EquivalentWithin};
        use Judgement::{Contradicted, Holds, Undecided};
        let cases = [
            (AtLeast(0.1), (0.1, 0.3), Holds),
            (AtLeast(0.1), (0.05, 0.3), Undecided),
            (AtLeast(0.1), (-0.2, 0.09), Contradicted),
            (AtMost(0.05), (0.0, 0.05), Holds),
            (AtMost(0.05), (0.0, 0.06), Undecided),
            (AtMost(0.05), (0.06, 0.2), Contradicted),
            (DiffersByAtLeast(0.1), (0.1, 0.2), Holds),
            (DiffersByAtLeast(0.1), (-0.3, -0.1), Holds),
            (DiffersByAtLeast(0.1), (-0.3, 0.3), Undecided),
            (DiffersByAtLeast(0.1), (-0.09, 0.09), Contradicted),
            (EquivalentWithin(0.1), (-0.09, 0.09), Holds),
            // A null without a margin: the interval has zero in it, and much else.
            (EquivalentWithin(0.1), (-0.12, 0.09), Undecided),
            (EquivalentWithin(0.1), (-0.09, 0.12), Undecided),
            (EquivalentWithin(0.1), (-0.3, -0.1), Contradicted),
            (EquivalentWithin(0.1), (0.1, 0.3), Contradicted),
        ];
        for (hypothesis, interval, judgement) in cases {
            assert_eq!(hypothesis.judge(interval), judgement, "{hypothesis:?} {interval:?}");
        }
    }

    #[test]
    fn differences_are_those_of_seeds_that_both_have() {
        let treatment = [(0, 1.0), (1, 2.0), (3, 5.0)].into();
        let control = [(1, 0.5), (0, 0.25), (2, 9.0)].into();
        let paired = PairedDifferences::of(&treatment, &control);
        assert_eq!(paired.differences, [(0, 0.75), (1, 1.5)].into());
        assert_eq!((paired.only_treatment, paired.only_control), (vec![3], vec![2]));
    }

    #[test]
    fn a_margin_is_a_number_that_leaves_room() {
        assert!(Hypothesis::EquivalentWithin(0.0).problem().is_some());
        assert!(Hypothesis::DiffersByAtLeast(-0.1).problem().is_some());
        assert!(Hypothesis::AtMost(f64::NAN).problem().is_some());
        assert_eq!(Hypothesis::AtMost(-0.1).problem(), None);
    }

    proptest! {
        #[test]
        fn equivalence_and_difference_by_one_margin_never_hold_together(
            low in -1.0..1.0f64, width in 0.0..1.0f64, margin in 0.01..1.0f64,
        ) {
            let interval = (low, low + width);
            let same = Hypothesis::EquivalentWithin(margin).judge(interval);
            let differs = Hypothesis::DiffersByAtLeast(margin).judge(interval);
            prop_assert_eq!(same == Judgement::Holds, differs == Judgement::Contradicted);
            prop_assert_eq!(same == Judgement::Contradicted, differs == Judgement::Holds);
        }
    }
}
