use burn::optim::adaptor::OptimizerAdaptor;
use burn::optim::decay::WeightDecayConfig;
use burn::optim::momentum::MomentumConfig;
use burn::optim::{Adam, GradientsParams, Optimizer as _, Sgd};
use burn::record::{BinBytesRecorder, FullPrecisionSettings, Recorder, RecorderError};
use burn::tensor::backend::AutodiffBackend;
use patchdoor_kernels::TrainingBackend;
use patchdoor_model::Classifier;

use crate::OptimizerConfig;
use crate::sgd::JointSgd;

/// An optimiser over a classifier: burn's, or one that steps all parameters at once on a device.
pub(crate) enum Optimizer<B: AutodiffBackend> {
    Sgd(OptimizerAdaptor<Sgd<B::InnerBackend>, Classifier<B>, B>),
    Adam(OptimizerAdaptor<Adam, Classifier<B>, B>),
    JointSgd(JointSgd<B>),
}

type Bytes = BinBytesRecorder<FullPrecisionSettings>;

impl<B: TrainingBackend> Optimizer<B> {
    pub(crate) fn new(config: &OptimizerConfig) -> Self {
        let decay = |rate: f64| (rate > 0.0).then(|| WeightDecayConfig::new(rate as f32));
        match config {
            OptimizerConfig::Sgd(sgd) if B::ON_DEVICE => Self::JointSgd(JointSgd::new(sgd.clone())),
            OptimizerConfig::Sgd(sgd) => {
                // Burn damps the gradient by 0.1 unless told otherwise.
                let momentum = (sgd.momentum > 0.0).then(|| {
                    MomentumConfig::new().with_momentum(sgd.momentum).with_dampening(0.0).with_nesterov(sgd.nesterov)
                });
                let config =
                    burn::optim::SgdConfig::new().with_momentum(momentum).with_weight_decay(decay(sgd.weight_decay));
                Self::Sgd(config.init())
            }
            OptimizerConfig::Adam(adam) => {
                let config = burn::optim::AdamConfig::new()
                    .with_beta_1(adam.beta1 as f32)
                    .with_beta_2(adam.beta2 as f32)
                    .with_epsilon(adam.epsilon as f32)
                    .with_weight_decay(decay(adam.weight_decay));
                Self::Adam(config.init())
            }
        }
    }

    pub(crate) fn step(&mut self, rate: f64, classifier: Classifier<B>, gradients: GradientsParams) -> Classifier<B> {
        match self {
            Self::Sgd(optimizer) => optimizer.step(rate, classifier, gradients),
            Self::Adam(optimizer) => optimizer.step(rate, classifier, gradients),
            Self::JointSgd(optimizer) => optimizer.step(rate, classifier, gradients),
        }
    }

    pub(crate) fn to_bytes(&self) -> Result<Vec<u8>, RecorderError> {
        let recorder = Bytes::new();
        match self {
            Self::Sgd(optimizer) => Recorder::<B>::record(&recorder, optimizer.to_record(), ()),
            Self::Adam(optimizer) => Recorder::<B>::record(&recorder, optimizer.to_record(), ()),
            Self::JointSgd(optimizer) => Recorder::<B::InnerBackend>::record(&recorder, optimizer.to_record(), ()),
        }
    }

    pub(crate) fn load_bytes(self, bytes: Vec<u8>, device: &B::Device) -> Result<Self, RecorderError> {
        let recorder = Bytes::new();
        Ok(match self {
            Self::Sgd(optimizer) => Self::Sgd(optimizer.load_record(Recorder::<B>::load(&recorder, bytes, device)?)),
            Self::Adam(optimizer) => Self::Adam(optimizer.load_record(Recorder::<B>::load(&recorder, bytes, device)?)),
            Self::JointSgd(optimizer) => {
                Self::JointSgd(optimizer.load_record(Recorder::<B::InnerBackend>::load(&recorder, bytes, device)?))
            }
        })
    }
}
