use serde::{Deserialize, Serialize};

/// What was measured of an inspector of classifiers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct InspectionMeasurements {
    /// The classes that the attacker wants images to be taken for; all of them where each is taken for the next.
    pub targets: Vec<usize>,
    /// What it says of the backdoored classifier.
    #[serde(flatten)]
    pub victim: InspectorFindings,
    /// What it says of the clean twin, if the experiment asks for it: whatever it flags there is a false alarm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clean_twin: Option<InspectorFindings>,
    /// Seconds that the inspection took, the twin's apart.
    pub seconds: f64,
}

/// What an inspector says of a classifier.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct InspectorFindings {
    /// A score for each class, higher where it is more likely a target.
    pub scores: Vec<f64>,
    /// The classes flagged as targets.
    pub flagged: Vec<usize>,
}

impl InspectorFindings {
    /// Of scores and decisions for each class.
    pub fn of(scores: Vec<f64>, is_flagged: &[bool]) -> Self {
        let flagged = (0..is_flagged.len()).filter(|&class| is_flagged[class]).collect();
        Self { scores, flagged }
    }
}

impl InspectionMeasurements {
    /// Share of the targets that are flagged; `None` without targets.
    pub(crate) fn targets_flagged(&self) -> Option<f64> {
        let flagged = self.targets.iter().filter(|target| self.victim.flagged.contains(target)).count();
        (!self.targets.is_empty()).then(|| flagged as f64 / self.targets.len() as f64)
    }

    /// Classes flagged that are no targets.
    pub(crate) fn wrongly_flagged(&self) -> usize {
        self.victim.flagged.iter().filter(|class| !self.targets.contains(class)).count()
    }

    /// The best place that a target has among the classes by their scores, from 1; classes with the same score stand before it.
    pub(crate) fn target_rank(&self) -> Option<usize> {
        let scores = &self.victim.scores;
        let rank = |&target: &usize| {
            let above = (0..scores.len()).filter(|&class| class != target && scores[class] >= scores[target]);
            above.count() + 1
        };
        self.targets.iter().filter(|target| **target < scores.len()).map(rank).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_and_others_are_told_apart() {
        let findings = InspectorFindings::of(vec![1.0, 4.0, 3.0, 2.0], &[false, true, true, false]);
        let measured = InspectionMeasurements { targets: vec![2], victim: findings, clean_twin: None, seconds: 1.0 };
        assert_eq!((measured.targets_flagged(), measured.wrongly_flagged()), (Some(1.0), 1));
        assert_eq!(measured.target_rank(), Some(2));
        let none = InspectionMeasurements { targets: Vec::new(), ..measured };
        assert_eq!((none.targets_flagged(), none.wrongly_flagged(), none.target_rank()), (None, 2, None));
    }
}
