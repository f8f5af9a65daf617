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

    /// Lower and upper end of the 95 % confidence interval of the mean, by Student's t distribution with n - 1 degrees of
    /// freedom: mean ± t · s / √n. It may reach beyond what the number itself can be; `None` for one value.
    pub fn interval_95(&self) -> Option<(f64, f64)> {
        let deviation = self.standard_deviation?;
        let half = t_quantile_975(self.count - 1) * deviation / (self.count as f64).sqrt();
        Some((self.mean - half, self.mean + half))
    }
}

/// What a variable of Student's t distribution with so many degrees of freedom, at least 1, stays below with probability
/// 0.975.
fn t_quantile_975(degrees: usize) -> f64 {
    const TABLE: [f64; 10] =
        [12.706_205, 4.302_653, 3.182_446, 2.776_445, 2.570_582, 2.446_912, 2.364_624, 2.306_004, 2.262_157, 2.228_139];
    if let Some(&quantile) = TABLE.get(degrees.saturating_sub(1)) {
        return quantile;
    }
    // Cornish-Fisher expansion (Abramowitz and Stegun 1964, 26.7.5); from 11 degrees on it is right to five decimals.
    let z = 1.959_963_985_f64;
    let n = degrees as f64;
    let terms = [
        (z.powi(3) + z) / 4.0,
        (5.0 * z.powi(5) + 16.0 * z.powi(3) + 3.0 * z) / 96.0,
        (3.0 * z.powi(7) + 19.0 * z.powi(5) + 17.0 * z.powi(3) - 15.0 * z) / 384.0,
        (79.0 * z.powi(9) + 776.0 * z.powi(7) + 1482.0 * z.powi(5) - 1920.0 * z.powi(3) - 945.0 * z) / 92160.0,
    ];
    z + terms[0] / n + terms[1] / n.powi(2) + terms[2] / n.powi(3) + terms[3] / n.powi(4)
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
    fn the_confidence_interval_is_students() {
        // Mean 4, s = 2, n = 3: 4 ± 4.302653 * 2 / sqrt(3) = 4 ± 4.968275.
        let (low, high) =
            Summary::of(&[2.0, 4.0, 6.0]).and_then(|summary| summary.interval_95()).expect("three values");
        assert_abs_diff_eq!(low, -0.968_275, epsilon = 1e-5);
        assert_abs_diff_eq!(high, 8.968_275, epsilon = 1e-5);
        assert_eq!(Summary::of(&[1.0]).and_then(|summary| summary.interval_95()), None);
        // From printed tables of the distribution.
        for (degrees, quantile) in
            [(1, 12.706_205), (10, 2.228_139), (11, 2.200_985), (20, 2.085_963), (30, 2.042_272), (120, 1.979_930)]
        {
            assert_abs_diff_eq!(t_quantile_975(degrees), quantile, epsilon = 1e-5);
        }
    }

    #[test]
    fn one_value_has_no_spread() {
        assert_eq!(Summary::of(&[0.5]), Some(Summary { count: 1, mean: 0.5, standard_deviation: None }));
        assert_eq!(Summary::of(&[]), None);
    }
}
