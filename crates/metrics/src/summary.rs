use serde::{Deserialize, Serialize};

/// Mean and spread of one number over seeds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Summary {
    /// How many values.
    pub count: usize,
    /// Their mean.
    pub mean: f64,
    /// Their sample standard deviation (n - 1 below the root); `None` for one value.
    pub standard_deviation: Option<f64>,
}

impl Summary {
    /// Summarizes `values`; `None` without any.
    pub fn of(values: &[f64]) -> Option<Self> {
        let count = values.len();
        if count == 0 {
            return None;
        }
        let mean = values.iter().sum::<f64>() / count as f64;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        let standard_deviation = (count > 1).then(|| (squares / (count - 1) as f64).sqrt());
        Some(Self { count, mean, standard_deviation })
    }
}

#[cfg(test)]
mod tests {
    use approx::assert_abs_diff_eq;

    use super::*;

    #[test]
    fn standard_deviation_is_the_sample_one() {
        // Mean 4; squares 4 + 0 + 4 = 8 over 2: sqrt(4) = 2.
        let summary = Summary::of(&[2.0, 4.0, 6.0]).expect("three values");
        assert_abs_diff_eq!(summary.mean, 4.0);
        assert_abs_diff_eq!(summary.standard_deviation.expect("more than one value"), 2.0);
    }

    #[test]
    fn one_value_has_no_spread() {
        assert_eq!(Summary::of(&[0.5]), Some(Summary { count: 1, mean: 0.5, standard_deviation: None }));
        assert_eq!(Summary::of(&[]), None);
    }
}
