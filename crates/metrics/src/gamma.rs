/// A Gamma distribution over positive numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gamma {
    /// Its shape, above 0.
    pub shape: f64,
    /// Its scale, above 0; the mean is shape times scale.
    pub scale: f64,
}

impl Gamma {
    /// The one under which positive values are most likely; `None` with fewer than two values, one that is not positive, or
    /// values that are all the same.
    pub fn fitted(values: &[f64]) -> Option<Self> {
        let count = values.len() as f64;
        if values.len() < 2 || !values.iter().all(|&value| value > 0.0 && value.is_finite()) {
            return None;
        }
        let mean = values.iter().sum::<f64>() / count;
        // ln shape - digamma(shape) is this where the likelihood is largest; it falls from infinity to 0.
        let gap = mean.ln() - values.iter().map(|value| value.ln()).sum::<f64>() / count;
        if gap < 1e-12 {
            return None;
        }
        let (mut low, mut high) = (1e-8_f64, 1e13_f64);
        for _ in 0..200 {
            let middle = (low * high).sqrt();
            if middle.ln() - digamma(middle) > gap { low = middle } else { high = middle }
        }
        let shape = (low * high).sqrt();
        Some(Self { shape, scale: mean / shape })
    }

    /// The chance of a value of at most this.
    pub fn cumulative(&self, value: f64) -> f64 {
        if value <= 0.0 { 0.0 } else { lower_regularized(self.shape, value / self.scale) }
    }
}

/// The logarithm of the gamma function, by Lanczos' series with g = 7 and nine terms (Press et al. 2007, section 6.1); right to
/// fourteen digits for positive numbers.
fn ln_gamma(x: f64) -> f64 {
    const TERMS: [f64; 8] = [
        676.520_368_121_885_1,
        -1_259.139_216_722_402_8,
        771.323_428_777_653_1,
        -176.615_029_162_140_6,
        12.507_343_278_686_905,
        -0.138_571_095_265_720_12,
        9.984_369_578_019_572e-6,
        1.505_632_735_149_311_6e-7,
    ];
    if x < 0.5 {
        // The reflection formula.
        return (std::f64::consts::PI / (std::f64::consts::PI * x).sin()).ln() - ln_gamma(1.0 - x);
    }
    let x = x - 1.0;
    let series = TERMS.iter().zip(1_u8..).map(|(term, k)| term / (x + f64::from(k))).sum::<f64>();
    let base = x + 7.5;
    0.5 * (2.0 * std::f64::consts::PI).ln() + (x + 0.5) * base.ln() - base + (0.999_999_999_999_809_9 + series).ln()
}

/// The derivative of [`ln_gamma`]: carried to 6 and more by its recurrence, then by its asymptotic series (Abramowitz and Stegun
/// 1964, 6.3.18).
fn digamma(x: f64) -> f64 {
    let (mut x, mut carried) = (x, 0.0);
    while x < 6.0 {
        carried -= 1.0 / x;
        x += 1.0;
    }
    let square = 1.0 / (x * x);
    let series = square * (1.0 / 12.0 - square * (1.0 / 120.0 - square * (1.0 / 252.0 - square / 240.0)));
    carried + x.ln() - 0.5 / x - series
}

/// P(a, x), the share of the gamma function's integral below x: by its series below a + 1, else by the continued fraction of the
/// rest (Press et al. 2007, section 6.2).
fn lower_regularized(shape: f64, value: f64) -> f64 {
    const STEPS: usize = 100_000;
    let front = (shape * value.ln() - value - ln_gamma(shape)).exp();
    if value < shape + 1.0 {
        let (mut term, mut sum) = (1.0 / shape, 1.0 / shape);
        for step in 1..STEPS {
            term *= value / (shape + step as f64);
            sum += term;
            if term < sum * 1e-16 {
                break;
            }
        }
        return (front * sum).clamp(0.0, 1.0);
    }
    // Lentz's method.
    let mut partial = value + 1.0 - shape;
    let (mut above, mut below) = (1e300, 1.0 / partial);
    let mut fraction = below;
    for step in 1..STEPS {
        let numerator = -(step as f64) * (step as f64 - shape);
        partial += 2.0;
        below = 1.0 / (numerator * below + partial);
        above = partial + numerator / above;
        fraction *= below * above;
        if (below * above - 1.0).abs() < 1e-15 {
            break;
        }
    }
    (1.0 - front * fraction).clamp(0.0, 1.0)
}

#[cfg(test)]
mod tests {
    use approx::assert_abs_diff_eq;

    use super::*;

    #[test]
    fn the_distribution_is_that_of_the_tables() {
        // Shape 1 is the exponential distribution.
        let exponential = Gamma { shape: 1.0, scale: 2.0 };
        for value in [0.1, 1.0, 5.0, 30.0] {
            assert_abs_diff_eq!(exponential.cumulative(value), 1.0 - (-value / 2.0_f64).exp(), epsilon = 1e-13);
        }
        // Shape n / 2 and scale 2 is chi squared; 95 % of ten degrees lie below 18.307038, of one below 3.841459.
        assert_abs_diff_eq!(Gamma { shape: 5.0, scale: 2.0 }.cumulative(18.307_038), 0.95, epsilon = 1e-7);
        assert_abs_diff_eq!(Gamma { shape: 0.5, scale: 2.0 }.cumulative(3.841_459), 0.95, epsilon = 1e-7);
        assert_abs_diff_eq!(Gamma { shape: 3.0, scale: 1.0 }.cumulative(0.0), 0.0);
    }

    #[test]
    fn the_functions_behind_it_have_their_known_values() {
        assert_abs_diff_eq!(ln_gamma(5.0), 24.0_f64.ln(), epsilon = 1e-13);
        assert_abs_diff_eq!(ln_gamma(0.25), 3.625_609_908_221_908_f64.ln(), epsilon = 1e-13);
        // Minus Euler's constant, and that minus 2 ln 2.
        assert_abs_diff_eq!(digamma(1.0), -0.577_215_664_901_532_9, epsilon = 1e-9);
        assert_abs_diff_eq!(digamma(0.5), -1.963_510_026_021_423_5, epsilon = 1e-9);
    }

    #[test]
    fn the_fit_is_where_the_likelihood_is_largest() {
        let values = [1.0, 2.0, 3.0, 7.0];
        let fitted = Gamma::fitted(&values).expect("positive values");
        assert_abs_diff_eq!(fitted.shape * fitted.scale, 3.25, epsilon = 1e-9);
        let likelihood = |of: Gamma| {
            let term =
                |x: &f64| (of.shape - 1.0) * x.ln() - x / of.scale - ln_gamma(of.shape) - of.shape * of.scale.ln();
            values.iter().map(term).sum::<f64>()
        };
        let best = likelihood(fitted);
        for factor in [0.98, 1.02] {
            assert!(likelihood(Gamma { shape: fitted.shape * factor, ..fitted }) < best);
            assert!(likelihood(Gamma { scale: fitted.scale * factor, ..fitted }) < best);
        }
        assert_eq!(Gamma::fitted(&[1.0]), None);
        assert_eq!(Gamma::fitted(&[1.0, -1.0]), None);
        assert_eq!(Gamma::fitted(&[2.0, 2.0]), None);
    }
}
