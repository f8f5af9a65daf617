//! How many images a second a backend trains on.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use patchdoor_data::{AugmentationConfig, DatasetConfig, ShapesConfig, load, stream};
use patchdoor_kernels::TrainingBackend;
use patchdoor_model::{Classifier, ClassifierConfig, ModelError, PatchMoeConfig};
use patchdoor_plan::Precision;
use patchdoor_train::{
    ClassifierObserver, EpochRecord, Member, TrainingConfig, TrainingData, TrainingObserver, input_shape, train_group,
};
use serde::Serialize;

use crate::backend::{Backend, OnBackend};
use crate::error::RunError;
use crate::images::ImagesError;

/// What to time: the training of the paper's network.
#[derive(Clone, Copy, Debug)]
pub struct SpeedRequest {
    /// Its widen factor.
    pub widen_factor: usize,
    /// What the operands of products are rounded to.
    pub precision: Precision,
    /// Images of a step and seed.
    pub batch_size: usize,
    /// Seeds trained step by step together, as a group.
    pub seeds: usize,
    /// Steps of a timed stretch. The device is waited for at its end only.
    pub steps: usize,
    /// How long to go on, after the first stretch, which compiles and is not timed.
    pub time: Duration,
}

/// How fast it was.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Speed {
    /// The network's widen factor.
    pub widen_factor: usize,
    /// What operands of products were rounded to.
    pub precision: Precision,
    /// Images of a step and seed.
    pub batch_size: usize,
    /// Seeds trained together.
    pub seeds: usize,
    /// Images a second of all seeds: the median of the timed stretches.
    pub images_per_second: f64,
    /// Images a second of the slowest and of the fastest stretch.
    pub range: [f64; 2],
    /// Stretches that were timed.
    pub stretches: usize,
    /// Seconds of the first stretch, in which kernels are compiled and chosen.
    pub first_seconds: f64,
}

/// Times whole training steps, from pixels in memory to new weights, as an experiment takes them.
///
/// # Errors
/// If the network cannot be built or its loss is no number.
pub fn measure_speed(backend: &Backend, request: &SpeedRequest) -> Result<Speed, RunError> {
    backend.run_in(request.precision, *request)
}

impl OnBackend for SpeedRequest {
    type Output = Result<Speed, RunError>;

    fn run<B: TrainingBackend>(self, device: &B::Device) -> Self::Output {
        let shapes = ShapesConfig { train: (self.steps * self.batch_size).max(10), test: 10, seed: 0 };
        let mut images = load(&DatasetConfig::Shapes(shapes), &[]).map_err(ImagesError::from)?.train;
        images = images.subset(&(0..self.steps * self.batch_size).collect::<Vec<_>>());
        let config = PatchMoeConfig { widen_factor: self.widen_factor, ..PatchMoeConfig::default() };
        let config = ClassifierConfig::PatchMoe(config);
        let input = input_shape(images.shape());
        if let Some(problem) = config.network().validate(input, images.class_count()).into_iter().next() {
            return Err(RunError::Model(problem));
        }
        let seeds = 0..self.seeds.max(1) as u64;
        let classifiers = seeds
            .clone()
            .map(|seed| config.init::<B>(input, images.class_count(), &mut stream(seed, "weights"), device));
        let classifiers = classifiers.collect::<Result<Vec<_>, ModelError>>()?;
        let data = TrainingData { training: &images, validation: None, augmentation: &AugmentationConfig::default() };
        let training = TrainingConfig {
            epochs: 10_000,
            batch_size: self.batch_size,
            learning_rate: 0.01,
            ..TrainingConfig::default()
        };
        let mut clocks: Vec<_> = seeds.map(|_| Clock { time: self.time, began: None, records: Vec::new() }).collect();
        let members = classifiers.into_iter().zip(&mut clocks).zip(0..);
        let members = members.map(|((classifier, observer), seed)| Member {
            classifier,
            data,
            seed,
            checkpoints: None,
            observer,
        });
        train_group(members.collect(), &training, device)?;
        let clock = &clocks[0];
        let all = clocks.len() as f64;
        let mut rates: Vec<f64> = clock.records[1..].iter().map(|record| all * record.images_per_second).collect();
        rates.sort_by(f64::total_cmp);
        Ok(Speed {
            widen_factor: self.widen_factor,
            precision: self.precision,
            batch_size: self.batch_size,
            seeds: clocks.len(),
            images_per_second: rates[rates.len() / 2],
            range: [rates[0], rates[rates.len() - 1]],
            stretches: rates.len(),
            first_seconds: clock.records[0].seconds,
        })
    }
}

/// Stops when the time is over, after one timed stretch at least.
struct Clock {
    time: Duration,
    began: Option<Instant>,
    records: Vec<EpochRecord>,
}

impl TrainingObserver for Clock {
    fn epoch_done(&mut self, record: &EpochRecord) -> ControlFlow<()> {
        self.records.push(record.clone());
        let Some(began) = self.began else {
            self.began = Some(Instant::now());
            return ControlFlow::Continue(());
        };
        if began.elapsed() < self.time { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    }
}

impl<B: TrainingBackend> ClassifierObserver<B> for Clock {
    fn classifier_trained(&mut self, _classifier: &Classifier<B>, _record: &EpochRecord) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::BackendChoice;

    #[test]
    fn the_first_stretch_is_not_timed_and_one_at_least_is() {
        let backend = BackendChoice::Flex.resolve().expect("built");
        let request = SpeedRequest {
            widen_factor: 1,
            precision: Precision::F32,
            batch_size: 8,
            seeds: 2,
            steps: 2,
            time: Duration::ZERO,
        };
        let speed = measure_speed(&backend, &request).expect("it trains");
        assert_eq!((speed.stretches, speed.widen_factor, speed.batch_size, speed.seeds), (1, 1, 8, 2));
        assert!(speed.images_per_second > 0.0 && speed.first_seconds > 0.0);
        assert_eq!(speed.range.map(f64::to_bits), [speed.images_per_second.to_bits(); 2]);
        let request = SpeedRequest { widen_factor: 0, ..request };
        assert!(measure_speed(&backend, &request).is_err());
    }
}
