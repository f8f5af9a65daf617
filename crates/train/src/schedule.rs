use crate::{ScheduleConfig, TrainingConfig};

/// The learning rate of every step of a training.
#[derive(Clone, Debug)]
pub struct Schedule {
    peak: f64,
    shape: ScheduleConfig,
    steps_per_epoch: usize,
    steps: usize,
}

impl Schedule {
    /// A schedule for `steps_per_epoch` steps in each of the configured epochs.
    pub fn new(config: &TrainingConfig, steps_per_epoch: usize) -> Self {
        let steps = config.epochs * steps_per_epoch;
        Self { peak: config.learning_rate, shape: config.schedule.clone(), steps_per_epoch, steps }
    }

    /// Returns the learning rate of step `step`, counted from 0 over all epochs.
    pub fn rate(&self, step: usize) -> f64 {
        // From 0 at the first step to 1 at the last.
        let progress = |step: usize, of: usize| step as f64 / of.saturating_sub(1).max(1) as f64;
        let factor = match &self.shape {
            ScheduleConfig::Constant => 1.0,
            ScheduleConfig::Step(config) => {
                let epoch = step / self.steps_per_epoch.max(1);
                let passed = config.epochs.iter().filter(|&&at| at <= epoch).count();
                config.factor.powi(i32::try_from(passed).unwrap_or(i32::MAX))
            }
            ScheduleConfig::Cosine(config) => {
                let cosine = f64::midpoint(1.0, (std::f64::consts::PI * progress(step, self.steps)).cos());
                config.floor + (1.0 - config.floor) * cosine
            }
            ScheduleConfig::OneCycle(config) => {
                let rising = (config.warm_up * self.steps as f64).round() as usize;
                if step < rising {
                    config.start + (1.0 - config.start) * step as f64 / rising as f64
                } else {
                    // The step after the last would have rate 0.
                    1.0 - (step - rising) as f64 / (self.steps - rising).max(1) as f64
                }
            }
        };
        self.peak * factor
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CosineConfig, OneCycleConfig, StepConfig};

    fn rates(schedule: ScheduleConfig) -> Vec<f64> {
        let config = TrainingConfig { epochs: 4, learning_rate: 0.8, schedule, ..Default::default() };
        let schedule = Schedule::new(&config, 2);
        (0..8).map(|step| (schedule.rate(step) * 1e6).round() / 1e6).collect()
    }

    #[test]
    fn constant_stays_at_the_peak() {
        assert_eq!(rates(ScheduleConfig::Constant), [0.8; 8]);
    }

    #[test]
    fn steps_multiply_at_the_start_of_their_epochs() {
        let step = StepConfig { epochs: vec![1, 3], factor: 0.5 };
        assert_eq!(rates(ScheduleConfig::Step(step)), [0.8, 0.8, 0.4, 0.4, 0.4, 0.4, 0.2, 0.2]);
    }

    #[test]
    fn cosine_ends_at_its_floor() {
        let rates = rates(ScheduleConfig::Cosine(CosineConfig { floor: 0.5 }));
        assert_eq!((rates[0], rates[7]), (0.8, 0.4));
        assert!(rates.is_sorted_by(|a, b| a >= b));
    }

    #[test]
    fn one_cycle_rises_then_falls_towards_zero() {
        let rates = rates(ScheduleConfig::OneCycle(OneCycleConfig { warm_up: 0.25, start: 0.5 }));
        // Two of eight steps rise from 0.4; six fall from 0.8 in steps of 0.8 / 6.
        assert_eq!(rates, [0.4, 0.6, 0.8, 0.666_667, 0.533_333, 0.4, 0.266_667, 0.133_333]);
    }
}
