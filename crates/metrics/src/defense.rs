use serde::{Deserialize, Serialize};

/// Where a classifier stands before or after a defense; every field a share in [0, 1].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Standing {
    /// Clean accuracy.
    pub clean_accuracy: f64,
    /// Attack success rate.
    pub attack_success_rate: f64,
    /// Robust accuracy.
    pub robust_accuracy: f64,
}

/// Defense effectiveness rating (DER), in [0, 1]; 0.5 means that nothing happened.
///
/// (max(0, fall of ASR) - max(0, fall of CA) + 1) / 2 (Zhu et al. 2023, arXiv:2304.12298, as
/// `BackdoorBench` reports it).
pub fn defense_effectiveness_rating(before: &Standing, after: &Standing) -> f64 {
    let gain = (before.attack_success_rate - after.attack_success_rate).max(0.0);
    f64::midpoint(gain - clean_loss(before, after), 1.0)
}

/// Robust improvement rating (RIR), in [0, 1]; 0.5 means that nothing happened.
///
/// (max(0, rise of RA) - max(0, fall of CA) + 1) / 2, as `BackdoorBench` reports it.
pub fn robust_improvement_rating(before: &Standing, after: &Standing) -> f64 {
    let gain = (after.robust_accuracy - before.robust_accuracy).max(0.0);
    f64::midpoint(gain - clean_loss(before, after), 1.0)
}

fn clean_loss(before: &Standing, after: &Standing) -> f64 {
    (before.clean_accuracy - after.clean_accuracy).max(0.0)
}

#[cfg(test)]
mod tests {
    use approx::assert_abs_diff_eq;

    use super::*;

    /// `BackdoorBench`'s board: `BadNets` at 10 %, then fine-tuning.
    const BEFORE: Standing = Standing { clean_accuracy: 0.9132, attack_success_rate: 0.9503, robust_accuracy: 0.0467 };
    const AFTER: Standing = Standing { clean_accuracy: 0.8996, attack_success_rate: 0.0148, robust_accuracy: 0.8939 };

    #[test]
    fn ratings_match_the_published_board() {
        // DER = (0.9355 - 0.0136 + 1) / 2 = 0.96095; the board's 0.96098 was computed before rounding
        // its inputs to two decimals of a percent, which moves it by at most 1e-4.
        assert_abs_diff_eq!(defense_effectiveness_rating(&BEFORE, &AFTER), 0.96098, epsilon = 1e-4);
        assert_abs_diff_eq!(robust_improvement_rating(&BEFORE, &AFTER), 0.91681, epsilon = 1e-4);
    }

    #[test]
    fn nothing_happened_is_one_half() {
        assert_abs_diff_eq!(defense_effectiveness_rating(&BEFORE, &BEFORE), 0.5);
        assert_abs_diff_eq!(robust_improvement_rating(&BEFORE, &BEFORE), 0.5);
    }

    #[test]
    fn a_better_clean_accuracy_earns_nothing() {
        let after = Standing { clean_accuracy: 0.99, ..BEFORE };
        assert_abs_diff_eq!(defense_effectiveness_rating(&BEFORE, &after), 0.5);
    }
}
