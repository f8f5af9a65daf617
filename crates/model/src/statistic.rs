use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use burn::module::{
    AutodiffModule, Content, Module, ModuleDisplay, ModuleDisplayDefault, ModuleMapper, ModuleVisitor, Param, ParamId,
};
use burn::tensor::Tensor;
use burn::tensor::backend::{AutodiffBackend, Backend};

/// A running statistic of one number per channel: part of a module like a parameter, and set during a forward pass.
///
/// Burn's own `RunningState` averages what several threads set, which costs a division by one for every update; it also
/// shares its value among copies of a module. This one does neither. Records of both are alike.
#[derive(Debug)]
pub(crate) struct Statistic<B: Backend> {
    id: ParamId,
    value: Mutex<Tensor<B, 1>>,
}

impl<B: Backend> Statistic<B> {
    pub(crate) fn new(value: Tensor<B, 1>) -> Self {
        Self { id: ParamId::new(), value: Mutex::new(value) }
    }

    pub(crate) fn value(&self) -> Tensor<B, 1> {
        self.lock().clone()
    }

    pub(crate) fn set(&self, value: Tensor<B, 1>) {
        *self.lock() = value;
    }

    fn lock(&self) -> MutexGuard<'_, Tensor<B, 1>> {
        // A tensor is replaced as a whole, so a panic elsewhere leaves none half-changed.
        self.value.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn param(&self) -> Param<Tensor<B, 1>> {
        Param::initialized(self.id, self.value())
    }

    /// The same statistic with what comes of its value.
    fn with(self, change: impl FnOnce(Tensor<B, 1>) -> Tensor<B, 1>) -> Self {
        let value = self.value.into_inner().unwrap_or_else(PoisonError::into_inner);
        Self { id: self.id, value: Mutex::new(change(value)) }
    }
}

impl<B: Backend> Clone for Statistic<B> {
    fn clone(&self) -> Self {
        Self { id: self.id, value: Mutex::new(self.value()) }
    }
}

impl<B: Backend> fmt::Display for Statistic<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Statistic(id={})", self.id)
    }
}

impl<B: Backend> ModuleDisplayDefault for Statistic<B> {
    fn content(&self, content: Content) -> Option<Content> {
        content.add_formatted(&"Statistic".to_owned()).optional()
    }
}

impl<B: Backend> ModuleDisplay for Statistic<B> {}

impl<B: Backend> Module<B> for Statistic<B> {
    type Record = Param<Tensor<B, 1>>;

    fn visit<V: ModuleVisitor<B>>(&self, visitor: &mut V) {
        visitor.visit_float(&self.param());
    }

    fn map<M: ModuleMapper<B>>(self, mapper: &mut M) -> Self {
        let param = mapper.map_float(self.param());
        let (id, value, _) = param.consume();
        Self { id, value: Mutex::new(value) }
    }

    fn into_record(self) -> Self::Record {
        self.param()
    }

    fn load_record(self, record: Self::Record) -> Self {
        let device = self.value().device();
        Self { id: record.id, value: Mutex::new(record.val().to_device(&device)) }
    }

    fn to_device(self, device: &B::Device) -> Self {
        self.with(|value| value.to_device(device))
    }

    fn fork(self, device: &B::Device) -> Self {
        self.to_device(device)
    }

    fn collect_devices(&self, mut devices: Vec<B::Device>) -> Vec<B::Device> {
        let device = self.value().device();
        if !devices.contains(&device) {
            devices.push(device);
        }
        devices
    }
}

impl<B: AutodiffBackend> AutodiffModule<B> for Statistic<B> {
    type InnerModule = Statistic<B::InnerBackend>;

    fn valid(&self) -> Self::InnerModule {
        Statistic { id: self.id, value: Mutex::new(self.value().inner()) }
    }

    fn from_inner(module: Self::InnerModule) -> Self {
        let value = Tensor::from_inner(module.value());
        Self { id: module.id, value: Mutex::new(value) }
    }
}
