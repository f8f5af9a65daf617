use std::collections::BTreeMap;
use std::path::Path;

use burn::module::{ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{DType, Tensor, TensorData, backend::Backend};
use fs_err as fs;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use crate::{Classifier, ModelError};

/// Writes all parameters and running statistics to a safetensors file.
///
/// Names are the paths of the fields, such as `trunk.stem.weight` or `experts.0.norm.running_mean`;
/// convolution weights are `[out, in, row, column]`, dense ones `[out, in]`, all as little-endian
/// `f32`. The file appears under its name only when it is complete.
///
/// # Errors
/// If the file cannot be written.
pub fn save_weights<B: Backend>(classifier: &Classifier<B>, path: &Path) -> Result<(), ModelError> {
    let tensors: BTreeMap<String, TensorData> =
        named_tensors(classifier).into_iter().map(|(name, data)| (name, data.convert_dtype(DType::F32))).collect();
    let views = tensors
        .iter()
        .map(|(name, data)| Ok((name, TensorView::new(Dtype::F32, data.shape.to_vec(), data.as_bytes())?)))
        .collect::<Result<Vec<_>, _>>();
    let bytes =
        views.and_then(|views| safetensors::serialize(views, None)).map_err(|source| format_error(path, source))?;
    let partial = path.with_extension("partial");
    let mut file = fs::File::create(&partial)?;
    std::io::Write::write_all(&mut file, &bytes)?;
    file.sync_all()?;
    fs::rename(&partial, path)?;
    Ok(())
}

/// Returns the classifier with all parameters and running statistics from a file that
/// [`save_weights`] wrote.
///
/// # Errors
/// If the file cannot be read, is not safetensors, or does not hold exactly this classifier's
/// parameters in their shapes.
pub fn load_weights<B: Backend>(classifier: Classifier<B>, path: &Path) -> Result<Classifier<B>, ModelError> {
    let bytes = fs::read(path)?;
    let file = SafeTensors::deserialize(&bytes).map_err(|source| format_error(path, source))?;
    let mut found = BTreeMap::new();
    let expected = named_tensors(&classifier);
    for name in file.names() {
        if !expected.contains_key(name) {
            return Err(ModelError::UnknownParameter { path: path.into(), name: name.to_owned() });
        }
    }
    for (name, expected) in expected {
        let Ok(view) = file.tensor(&name) else {
            return Err(ModelError::MissingParameter { path: path.into(), name });
        };
        if view.dtype() != Dtype::F32 || view.shape() != &expected.shape[..] {
            let found = format!("{:?} {:?}", view.dtype(), view.shape());
            let expected = format!("F32 {:?}", &expected.shape[..]);
            return Err(ModelError::ParameterMismatch { path: path.into(), name, found, expected });
        }
        let values = view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        found.insert(name, TensorData::new::<f32, _>(values, view.shape().to_vec()));
    }
    Ok(with_tensors(classifier, found))
}

impl<B: Backend> Classifier<B> {
    /// Whether every parameter and running statistic is a finite number.
    ///
    /// A classifier with NaN weights predicts the lowest class for everything, which looks like a
    /// perfect attack on class 0.
    pub fn is_finite(&self) -> bool {
        named_tensors(self).values().all(|data| data.iter::<f32>().all(f32::is_finite))
    }
}

/// All parameters and running statistics by name.
pub(crate) fn named_tensors<B: Backend>(classifier: &Classifier<B>) -> BTreeMap<String, TensorData> {
    let mut collector = Collector { path: Vec::new(), tensors: BTreeMap::new() };
    classifier.visit_network(&mut collector);
    collector.tensors
}

/// Replaces the named tensors, which must have the shapes they replace; others stay.
pub(crate) fn with_tensors<B: Backend>(
    classifier: Classifier<B>,
    tensors: BTreeMap<String, TensorData>,
) -> Classifier<B> {
    classifier.map_network(&mut Replacer { path: Vec::new(), tensors })
}

fn format_error(path: &Path, source: safetensors::SafeTensorError) -> ModelError {
    ModelError::Format { path: path.into(), source }
}

struct Collector {
    path: Vec<String>,
    tensors: BTreeMap<String, TensorData>,
}

impl<B: Backend> ModuleVisitor<B> for Collector {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        self.tensors.insert(self.path.join("."), param.val().into_data());
    }
}

struct Replacer {
    path: Vec<String>,
    tensors: BTreeMap<String, TensorData>,
}

impl<B: Backend> ModuleMapper<B> for Replacer {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let Some(data) = self.tensors.remove(&self.path.join(".")) else {
            return param;
        };
        let (id, old, mapper) = param.consume();
        let dtype = data.dtype;
        let mut new = Tensor::from_data(data, (&old.device(), dtype));
        assert_eq!(new.shape(), old.shape(), "a replaced tensor keeps its shape");
        if old.is_require_grad() {
            new = new.require_grad();
        }
        Param::from_mapped_value(id, new, mapper)
    }
}
