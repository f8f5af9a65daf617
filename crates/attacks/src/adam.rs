/// Adam (Kingma and Ba 2015, arXiv:1412.6980) over a list of numbers, with its usual constants 0.9, 0.999 and 1e-8.
pub(crate) struct Adam {
    rate: f64,
    first: Vec<f64>,
    second: Vec<f64>,
    steps: i32,
}

impl Adam {
    pub(crate) fn new(rate: f64, length: usize) -> Self {
        Self { rate, first: vec![0.0; length], second: vec![0.0; length], steps: 0 }
    }

    /// Moves the values down the gradient.
    pub(crate) fn step(&mut self, values: &mut [f64], gradient: &[f64]) {
        self.steps += 1;
        let (first, second) = (1.0 - 0.9_f64.powi(self.steps), 1.0 - 0.999_f64.powi(self.steps));
        for (index, (value, gradient)) in values.iter_mut().zip(gradient).enumerate() {
            self.first[index] = 0.9 * self.first[index] + 0.1 * gradient;
            self.second[index] = 0.999 * self.second[index] + 0.001 * gradient * gradient;
            *value -= self.rate * (self.first[index] / first) / ((self.second[index] / second).sqrt() + 1e-8);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_step_has_the_length_of_the_rate_and_the_second_is_as_worked_out() {
        let mut values = [1.0, 1.0];
        let mut adam = Adam::new(0.1, 2);
        adam.step(&mut values, &[2.0, -0.5]);
        assert!((values[0] - 0.9).abs() < 1e-8 && (values[1] - 1.1).abs() < 1e-8, "{values:?}");
        // Second gradient 0: moments 0.9 * 0.2 = 0.18 and 0.999 * 0.004 = 0.003996, corrected 0.18 / 0.19 = 0.947368 and
        // 0.003996 / 0.001999 = 1.998999, whose root is 1.413860: a step of 0.1 * 0.670058.
        adam.step(&mut values, &[0.0, 0.0]);
        assert!((values[0] - (0.9 - 0.067_006)).abs() < 1e-6, "{values:?}");
    }
}
