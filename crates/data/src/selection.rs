use serde::{Deserialize, Serialize};

use crate::DataError;
use crate::error::invalid;

/// Which of the images that the label rule allows are poisoned.
///
/// In TOML `selection = "random"`, `"smallest-margin"` or `selection.by-class = { shares = [0.5, 0.25, 0.25] }`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Selection {
    /// Any, whatever they show.
    #[default]
    Random,
    /// So many of each class, and any within it.
    ByClass(ClassShares),
    /// Those that a clean classifier of the attacker's, a surrogate, is least sure of: with the smallest distance between its
    /// two largest logits.
    SmallestMargin,
}

/// How the poisoned images are shared out among the classes they truly are of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ClassShares {
    /// A number of 0 or more for each class in order, not all 0; their proportions count. Classes after the last have 0.
    pub shares: Vec<f64>,
}

impl Selection {
    /// Whether it is the default, which is not written down.
    pub fn is_random(&self) -> bool {
        *self == Self::Random
    }

    /// Whether every class must have as many images as it has to give.
    pub(crate) fn counts_in_classes(&self) -> bool {
        matches!(self, Self::ByClass(_))
    }

    /// Whether it asks a classifier of the attacker's.
    pub fn asks_surrogate(&self) -> bool {
        *self == Self::SmallestMargin
    }

    /// Checks every field against a data set of `classes` classes.
    pub(crate) fn validate(&self, classes: usize) -> Option<DataError> {
        const FIELD: &str = "selection.by-class.shares";
        let Self::ByClass(ClassShares { shares }) = self else { return None };
        if shares.len() > classes {
            return Some(invalid(
                FIELD,
                format!("{} numbers", shares.len()),
                format!("one for each of {classes} classes"),
            ));
        }
        let is_allowed = |share: &f64| *share >= 0.0 && share.is_finite();
        if let Some(share) = shares.iter().find(|share| !is_allowed(share)) {
            return Some(invalid(FIELD, format!("a list with {share}"), "numbers that are 0 or more"));
        }
        let is_empty = shares.iter().all(|share| *share == 0.0);
        is_empty.then(|| invalid(FIELD, "without a share", "at least one number above 0"))
    }

    /// How many of `count` images are of each class, or `None` where no class has a number.
    ///
    /// Images go one by one to the class whose share, divided by twice its images so far and one, is largest (Sainte-Laguë), so
    /// that a larger count takes none from a class.
    pub(crate) fn quotas(&self, count: usize) -> Option<Vec<usize>> {
        let Self::ByClass(ClassShares { shares }) = self else { return None };
        let mut quotas = vec![0_usize; shares.len()];
        let claim = |quotas: &[usize], class: usize| shares[class] / (2 * quotas[class] + 1) as f64;
        for _ in 0..count {
            // Of equal claims the first class's.
            let next = (0..shares.len()).rev().max_by(|&a, &b| claim(&quotas, a).total_cmp(&claim(&quotas, b)))?;
            quotas[next] += 1;
        }
        Some(quotas)
    }

    /// Checks that each class has as many images as it has to give.
    pub(crate) fn validate_among(&self, class_counts: &[usize], count: usize) -> Option<DataError> {
        let quotas = self.quotas(count)?;
        let short = (0..quotas.len()).find(|&class| quotas[class] > class_counts.get(class).copied().unwrap_or(0))?;
        let there = class_counts.get(short).copied().unwrap_or(0);
        let found = format!("a list by which {} of {count} poisoned images are of class {short}", quotas[short]);
        Some(invalid("selection.by-class.shares", found, format!("at most the {there} images of that class")))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn by_class(shares: &[f64]) -> Selection {
        Selection::ByClass(ClassShares { shares: shares.to_vec() })
    }

    #[test]
    fn quotas_are_in_proportion() {
        assert_eq!(by_class(&[0.5, 0.25, 0.25]).quotas(8).unwrap(), [4, 2, 2]);
        assert_eq!(by_class(&[0.0, 3.0]).quotas(5).unwrap(), [0, 5]);
        // 1, 1, 1 of 4: the odd one goes to the first class.
        assert_eq!(by_class(&[1.0; 3]).quotas(4).unwrap(), [2, 1, 1]);
        assert_eq!(Selection::Random.quotas(4), None);
    }

    #[test]
    fn problems_are_named() {
        let said = |shares: &[f64]| by_class(shares).validate(2).map(|problem| problem.to_string());
        assert_eq!(said(&[1.0, 0.0]), None);
        assert_eq!(
            said(&[1.0; 3]).unwrap(),
            "selection.by-class.shares is 3 numbers, expected one for each of 2 classes"
        );
        assert_eq!(
            said(&[-1.0]).unwrap(),
            "selection.by-class.shares is a list with -1, expected numbers that are 0 or more"
        );
        assert_eq!(
            said(&[0.0]).unwrap(),
            "selection.by-class.shares is without a share, expected at least one number above 0"
        );
        assert_eq!(
            by_class(&[0.0, 1.0]).validate_among(&[9, 3], 4).unwrap().to_string(),
            "selection.by-class.shares is a list by which 4 of 4 poisoned images are of class 1, \
             expected at most the 3 images of that class"
        );
    }

    proptest! {
        #[test]
        fn quotas_sum_to_the_count_and_only_grow_with_it(shares in prop::collection::vec(0.0..1.0, 1..6), count in 0_usize..60) {
            prop_assume!(shares.iter().sum::<f64>() > 0.0);
            let quotas = by_class(&shares).quotas(count).unwrap();
            prop_assert_eq!(quotas.iter().sum::<usize>(), count);
            let more = by_class(&shares).quotas(count + 1).unwrap();
            prop_assert!(quotas.iter().zip(&more).all(|(few, many)| few <= many));
            prop_assert!((0..shares.len()).all(|class| shares[class] > 0.0 || quotas[class] == 0));
        }
    }
}
