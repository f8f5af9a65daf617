use std::collections::BTreeMap;

use burn::module::{ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::tensor::{Tensor, TensorData, backend::Backend};
use rand::Rng;
use serde::{Deserialize, Serialize};

use crate::Classifier;
use crate::init::draw_normal;
use crate::weights::{named_tensors, with_tensors};

/// A part of a classifier that learns or is frozen as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// All layers before the routers and experts; of the dense baseline, all before its last normalization.
    Trunk,
    /// The kernels that score patches.
    Router,
    /// The experts, their normalizations included.
    Experts,
    /// The last normalization and the dense layer.
    Head,
}

impl Part {
    /// Its name, as a configuration writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Trunk => "trunk",
            Self::Router => "router",
            Self::Experts => "experts",
            Self::Head => "head",
        }
    }

    /// The part that a parameter or running statistic belongs to, by its path, such as `experts.0.conv.weight`: what lies
    /// below a `router` or below `experts`, wherever they are, and below a `norm` or `head` of the network itself.
    pub fn of(path: &str) -> Self {
        let has = |name: &str| path.split('.').any(|part| part == name);
        match path.split('.').next() {
            _ if has("router") => Self::Router,
            _ if has("experts") => Self::Experts,
            Some("norm" | "head") => Self::Head,
            _ => Self::Trunk,
        }
    }
}

impl<B: Backend> Classifier<B> {
    /// All parameters and running statistics by their paths, such as `head.weight`.
    pub fn tensors(&self) -> BTreeMap<String, TensorData> {
        named_tensors(self)
    }

    /// The ids of all parameters and running statistics by their paths: what gradients are kept under.
    pub fn parameter_ids(&self) -> BTreeMap<String, ParamId> {
        let mut names = Ids { path: Vec::new(), found: BTreeMap::new() };
        self.visit_network(&mut names);
        names.found
    }

    /// One parameter, flat, on the graph that the classifier's passes are on; `None` if there is none of this path.
    ///
    /// # Shapes
    /// - output: `[number]`, in the order of [`Self::tensors`]
    pub fn parameter(&self, path: &str) -> Option<Tensor<B, 1>> {
        let mut finder = Finder { path: Vec::new(), wanted: path, found: None };
        self.visit_network(&mut finder);
        finder.found
    }

    /// Replaces the named tensors; others stay, and names it does not have are passed over.
    ///
    /// # Panics
    /// If a tensor has another shape than the one it replaces.
    #[must_use]
    pub fn with_tensors(self, tensors: BTreeMap<String, TensorData>) -> Self {
        with_tensors(self, tensors)
    }

    /// Lets only the given parts learn; routers that are frozen by the configuration never do.
    ///
    /// Parameters of the others take no gradient; their normalizations use and keep the running statistics, in training
    /// as in inference. [`Self::thaw`] undoes it.
    #[must_use]
    pub fn freeze_all_but(self, parts: &[Part]) -> Self {
        let mut frozen = self.map_gradients(|part| parts.contains(&part));
        for (part, momentum) in frozen.momentums() {
            if !parts.contains(&part) {
                *momentum = 0.0;
            }
        }
        frozen
    }

    /// Lets all parts learn that ever do; `momentum` is the share of the batch in every running statistic.
    #[must_use]
    pub fn thaw(self, momentum: f64) -> Self {
        let mut thawed = self.map_gradients(|_| true);
        for (_, own) in thawed.momentums() {
            *own = momentum;
        }
        thawed
    }

    fn map_gradients(self, learns: impl Fn(Part) -> bool) -> Self {
        let ever = self.config().network().learning_parts();
        self.map_network(&mut GradientSwitch { path: Vec::new(), learns: |part| ever.contains(&part) && learns(part) })
    }

    /// Draws the routers' kernels anew, normal with this standard deviation; a classifier without routers stays as it is.
    #[must_use]
    pub fn redraw_router(self, standard_deviation: f64, rng: &mut impl Rng) -> Self {
        let mut tensors = self.tensors();
        tensors.retain(|path, _| Part::of(path) == Part::Router);
        for kernels in tensors.values_mut() {
            let drawn = draw_normal(standard_deviation, kernels.num_elements(), rng);
            *kernels = TensorData::new(drawn, kernels.shape.clone()).convert_dtype(kernels.dtype);
        }
        self.with_tensors(tensors)
    }
}

/// Collects ids by their paths.
struct Ids {
    path: Vec<String>,
    found: BTreeMap<String, ParamId>,
}

impl<B: Backend> ModuleVisitor<B> for Ids {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        self.found.insert(self.path.join("."), param.id);
    }
}

/// Finds a parameter by its path.
struct Finder<'a, B: Backend> {
    path: Vec<String>,
    wanted: &'a str,
    found: Option<Tensor<B, 1>>,
}

impl<B: Backend> ModuleVisitor<B> for Finder<'_, B> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        if self.path.join(".") == self.wanted {
            self.found = Some(param.val().reshape([param.shape().num_elements()]));
        }
    }
}

/// Switches gradients of parameters, not of running statistics.
struct GradientSwitch<F> {
    path: Vec<String>,
    learns: F,
}

impl<B: Backend, F: Fn(Part) -> bool> ModuleMapper<B> for GradientSwitch<F> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        if self.path.last().is_some_and(|name| name.starts_with("running_")) {
            return param;
        }
        let learns = (self.learns)(Part::of(&self.path.join(".")));
        param.set_require_grad(learns)
    }
}
