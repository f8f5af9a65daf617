use std::collections::HashMap;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::optim::GradientsParams;
use burn::tensor::backend::AutodiffBackend;
use burn::tensor::ops::{FloatTensor, FloatTensorOps};
use burn::tensor::{Tensor, TensorMetadata, TensorPrimitive};
use patchdoor_kernels::{Kernels, SgdStep, TrainingBackend};
use patchdoor_model::Classifier;

use crate::SgdConfig;

/// Stochastic gradient descent that steps all parameters in one operation of the device.
pub(crate) struct JointSgd<B: AutodiffBackend> {
    config: SgdConfig,
    /// Of the parameters that have learned, by their ids; none before the first step and without momentum. One that takes no
    /// gradient in a step keeps its velocity.
    velocities: HashMap<ParamId, FloatTensor<B::InnerBackend>>,
}

/// Velocities as they are saved: flat, by their parameters' ids, in rising order.
pub(crate) type Velocities<B> = Vec<(u64, Tensor<B, 1>)>;

impl<B: TrainingBackend> JointSgd<B> {
    pub(crate) fn new(config: SgdConfig) -> Self {
        Self { config, velocities: HashMap::new() }
    }

    pub(crate) fn step(&mut self, rate: f64, classifier: Classifier<B>, gradients: GradientsParams) -> Classifier<B> {
        let mut learning = Learning::<B> { gradients, ids: Vec::new(), parameters: Vec::new(), steepest: Vec::new() };
        classifier.visit(&mut learning);
        let Learning { ids, parameters, steepest, .. } = learning;
        let velocities = self.take_velocities(&ids, &parameters);
        let step = SgdStep {
            rate,
            weight_decay: self.config.weight_decay,
            momentum: self.config.momentum,
            nesterov: self.config.nesterov,
        };
        let (parameters, velocities) = B::InnerBackend::sgd_step(parameters, steepest, velocities, step);
        self.velocities.extend(ids.iter().copied().zip(velocities));
        classifier.map(&mut Replacement::<B>(ids.into_iter().zip(parameters).collect()))
    }

    /// Those of these parameters, zeros where one has none yet; nothing if none has.
    fn take_velocities(
        &mut self,
        ids: &[ParamId],
        parameters: &[FloatTensor<B::InnerBackend>],
    ) -> Vec<FloatTensor<B::InnerBackend>> {
        if !ids.iter().any(|id| self.velocities.contains_key(id)) {
            return Vec::new();
        }
        let zeros = |parameter: &FloatTensor<B::InnerBackend>| {
            let device = B::InnerBackend::float_device(parameter);
            B::InnerBackend::float_zeros(parameter.shape(), &device, parameter.dtype().into())
        };
        let of = |(id, parameter)| self.velocities.remove(id).unwrap_or_else(|| zeros(parameter));
        ids.iter().zip(parameters).map(of).collect()
    }

    pub(crate) fn to_record(&self) -> Velocities<B::InnerBackend> {
        let flat = |velocity: &FloatTensor<B::InnerBackend>| {
            // The primitive knows its shape; the type's number of axes is only claimed once it is flat.
            let count = velocity.shape().num_elements();
            Tensor::from_primitive(TensorPrimitive::Float(B::InnerBackend::float_reshape(
                velocity.clone(),
                [count].into(),
            )))
        };
        let mut velocities: Vec<_> = self.velocities.iter().map(|(id, velocity)| (id.val(), flat(velocity))).collect();
        velocities.sort_by_key(|&(id, _)| id);
        velocities
    }

    pub(crate) fn load_record(mut self, record: Velocities<B::InnerBackend>) -> Self {
        self.velocities =
            record.into_iter().map(|(id, flat)| (ParamId::from(id), flat.into_primitive().tensor())).collect();
        self
    }
}

/// Collects the parameters that have a gradient.
struct Learning<B: AutodiffBackend> {
    gradients: GradientsParams,
    ids: Vec<ParamId>,
    parameters: Vec<FloatTensor<B::InnerBackend>>,
    steepest: Vec<FloatTensor<B::InnerBackend>>,
}

impl<B: AutodiffBackend> ModuleVisitor<B> for Learning<B> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        if let Some(gradient) = self.gradients.remove::<B::InnerBackend, D>(param.id) {
            self.ids.push(param.id);
            self.parameters.push(param.val().inner().into_primitive().tensor());
            self.steepest.push(gradient.into_primitive().tensor());
        }
    }
}

/// Puts stepped parameters in the place of the old ones.
struct Replacement<B: AutodiffBackend>(HashMap<ParamId, FloatTensor<B::InnerBackend>>);

impl<B: AutodiffBackend> ModuleMapper<B> for Replacement<B> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        match self.0.remove(&param.id) {
            Some(stepped) => param
                .map(|_| Tensor::from_inner(Tensor::from_primitive(TensorPrimitive::Float(stepped))).require_grad()),
            None => param,
        }
    }
}
