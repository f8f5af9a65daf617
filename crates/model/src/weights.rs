use std::collections::BTreeMap;
use std::path::Path;

use burn::module::{ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{DType, Tensor, TensorData, backend::Backend};
use fs_err as fs;
use rand::{SeedableRng, rngs::ChaCha8Rng};
use safetensors::tensor::{Dtype, SafeTensors};
use serde::Serialize;

use crate::description::told_apart;
use crate::{Classifier, ModelError, WeightsDescription};

/// Writes all parameters and running statistics to a safetensors file that says what they belong to.
///
/// Names are the paths of the fields, such as `trunk.stem.weight` or `experts.0.norm.running_mean`;
/// convolution weights are `[out, in, row, column]`, dense ones `[out, in]`, all as little-endian
/// `f32`. The same weights and description give the same bytes. The file appears under its name only when it is
/// complete.
///
/// # Errors
/// If the file cannot be written, or the description is of another structure or another number of classes.
pub fn save_weights<B: Backend>(
    classifier: &Classifier<B>,
    description: &WeightsDescription,
    path: &Path,
) -> Result<(), ModelError> {
    check_structure(classifier, description, path)?;
    let mut header = BTreeMap::new();
    let mut bytes = Vec::new();
    for (name, data) in named_tensors(classifier) {
        let data = data.convert_dtype(DType::F32);
        let start = bytes.len();
        bytes.extend_from_slice(data.as_bytes());
        let tensor = HeaderTensor { dtype: "F32", shape: data.shape.to_vec(), data_offsets: [start, bytes.len()] };
        header.insert(name, HeaderEntry::Tensor(tensor));
    }
    // `safetensors` writes metadata in the random order of a hash map, so that no two files would be alike.
    header.insert("__metadata__".to_owned(), HeaderEntry::Metadata(description.to_metadata(&bytes)));
    let header = header_bytes(&header);
    let partial = path.with_extension("partial");
    let mut file = fs::File::create(&partial)?;
    for part in [&(header.len() as u64).to_le_bytes()[..], &header, &bytes] {
        std::io::Write::write_all(&mut file, part)?;
    }
    file.sync_all()?;
    fs::rename(&partial, path)?;
    Ok(())
}

fn header_bytes(entries: &BTreeMap<String, HeaderEntry>) -> Vec<u8> {
    let mut header = serde_json::to_vec(entries).expect("numbers and text have no form that JSON lacks");
    // Readers that map the file into memory want tensors at multiples of eight bytes.
    header.resize(header.len().next_multiple_of(8), b' ');
    header
}

/// One entry of a safetensors header.
#[derive(Serialize)]
#[serde(untagged)]
enum HeaderEntry {
    Metadata(BTreeMap<String, String>),
    Tensor(HeaderTensor),
}

#[derive(Serialize)]
struct HeaderTensor {
    dtype: &'static str,
    shape: Vec<usize>,
    data_offsets: [usize; 2],
}

/// Returns the classifier with all parameters and running statistics from a file that
/// [`save_weights`] wrote, or any other with the same tensors.
///
/// # Errors
/// If the file cannot be read, is not safetensors, says that it holds another structure, was changed after it said
/// so, or does not hold exactly this classifier's parameters in their shapes.
pub fn load_weights<B: Backend>(classifier: Classifier<B>, path: &Path) -> Result<Classifier<B>, ModelError> {
    load_checked(classifier, path, &fs::read(path)?)
}

fn load_checked<B: Backend>(classifier: Classifier<B>, path: &Path, bytes: &[u8]) -> Result<Classifier<B>, ModelError> {
    if let Some(description) = WeightsDescription::of_file(path, bytes)? {
        check_structure(&classifier, &description, path)?;
    }
    load_tensors(classifier, path, bytes)
}

/// What a weights file says about itself; `None` if it says nothing, as those of other programs and older versions.
///
/// # Errors
/// If the file cannot be read, is not safetensors, or was changed after it was described.
pub fn read_description(path: &Path) -> Result<Option<WeightsDescription>, ModelError> {
    WeightsDescription::of_file(path, &fs::read(path)?)
}

/// Builds the classifier that a weights file describes.
///
/// # Errors
/// If the file does not describe itself, describes a classifier that cannot be, or cannot be loaded into it.
pub fn load_classifier<B: Backend>(
    path: &Path,
    device: &B::Device,
) -> Result<(Classifier<B>, WeightsDescription), ModelError> {
    let bytes = fs::read(path)?;
    let Some(description) = WeightsDescription::of_file(path, &bytes)? else {
        return Err(ModelError::Description { path: path.into(), reason: "does not say what it holds".into() });
    };
    let (input, classes) = (description.input, description.classes.len());
    // Whatever is drawn is replaced.
    let blank = description.config.init::<B>(input, classes, &mut ChaCha8Rng::seed_from_u64(0), device);
    let blank = blank.map_err(|problem| {
        let reason = format!("describes a classifier that cannot be: {problem}");
        ModelError::Description { path: path.into(), reason }
    })?;
    Ok((load_tensors(blank, path, &bytes)?, description))
}

/// Whether a classifier is of the structure that a file describes.
fn check_structure<B: Backend>(
    classifier: &Classifier<B>,
    description: &WeightsDescription,
    path: &Path,
) -> Result<(), ModelError> {
    let [found, expected] = [&description.config, &classifier.config()].map(|config| config.network().structure());
    let (found, expected) = if found == expected {
        let [found, expected] = [description.classes.len(), classifier.classes()];
        if found == expected {
            return Ok(());
        }
        (format!("{found} classes"), format!("{expected} classes"))
    } else {
        told_apart(&found, &expected)
    };
    Err(ModelError::OtherStructure { path: path.into(), found, expected })
}

fn load_tensors<B: Backend>(classifier: Classifier<B>, path: &Path, bytes: &[u8]) -> Result<Classifier<B>, ModelError> {
    let file = SafeTensors::deserialize(bytes).map_err(|source| ModelError::Format { path: path.into(), source })?;
    let mut found = BTreeMap::new();
    let expected = named_tensors(&classifier);
    let mut names = file.names();
    // The first unknown name is the same every time.
    names.sort_unstable();
    for name in names {
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

#[cfg(test)]
mod tests {
    use burn_flex::{Flex, FlexDevice};

    use super::*;
    use crate::{ClassifierConfig, InputShape, PatchMoeConfig, WideResNetConfig};

    const INPUT: InputShape = InputShape { height: 8, width: 8, channels: 1 };

    /// The smallest mixture of experts there is, and what it says of itself.
    fn small(change: impl FnOnce(&mut PatchMoeConfig)) -> (Classifier<Flex>, WeightsDescription) {
        let mut config = PatchMoeConfig {
            widen_factor: 1,
            experts: 1,
            patches_per_expert: 2,
            patch_channels: Some(1),
            expert_channels: Some(1),
            ..PatchMoeConfig::default()
        };
        change(&mut config);
        built(config.into(), 7)
    }

    fn built(config: ClassifierConfig, seed: u64) -> (Classifier<Flex>, WeightsDescription) {
        let classes = ["cat, \"tabby\"", "Straße"].map(str::to_owned).to_vec();
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let classifier = config.init::<Flex>(INPUT, classes.len(), &mut rng, &FlexDevice).expect("valid");
        (classifier, WeightsDescription { config, classes, input: INPUT })
    }

    /// A folder with a weights file.
    fn saved(
        classifier: &Classifier<Flex>,
        description: &WeightsDescription,
    ) -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("weights.safetensors");
        save_weights(classifier, description, &path).expect("the folder is writable");
        (folder, path)
    }

    /// A header of its own with the tensors of a file.
    fn with_header(bytes: &[u8], change: impl FnOnce(&mut serde_json::Map<String, serde_json::Value>)) -> Vec<u8> {
        let length = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
        let mut header = serde_json::from_slice(&bytes[8..8 + length]).expect("JSON");
        change(&mut header);
        let header = serde_json::to_vec(&header).expect("JSON");
        [&(header.len() as u64).to_le_bytes()[..], &header, &bytes[8 + length..]].concat()
    }

    #[test]
    fn weights_survive_the_disk_and_a_classifier_is_built_from_the_file_alone() {
        let dense = WideResNetConfig { widen_factor: 1, ..Default::default() }.into();
        for config in [small(|_| {}).1.config, dense] {
            let (classifier, description) = built(config, 7);
            let (_folder, path) = saved(&classifier, &description);
            let (blank, _) = built(description.config.clone(), 1);
            assert_ne!(named_tensors(&blank), named_tensors(&classifier));
            let loaded = load_weights(blank, &path).expect("the same configuration");
            assert_eq!(named_tensors(&loaded), named_tensors(&classifier));
            assert_eq!(read_description(&path).expect("readable"), Some(description.clone()));
            let (alone, said) = load_classifier::<Flex>(&path, &FlexDevice).expect("it describes itself");
            assert_eq!(
                (named_tensors(&alone), alone.config()),
                (named_tensors(&classifier), description.config.clone())
            );
            assert_eq!(said, description);
        }
    }

    #[test]
    fn the_header_says_in_plain_text_what_the_file_holds() {
        let (classifier, description) = small(|_| {});
        let (_folder, path) = saved(&classifier, &description);
        let bytes = fs::read(&path).expect("just written");
        let (length, header) = SafeTensors::read_metadata(&bytes).expect("safetensors");
        assert_eq!(length % 8, 0);
        let metadata = header.metadata().as_ref().expect("it describes itself");
        let said = |key: &str| metadata[key].as_str();
        assert_eq!(said("schema"), "1");
        assert_eq!(said("program"), concat!("patchdoor ", env!("CARGO_PKG_VERSION")));
        assert_eq!(said("pixel-range"), "[0, 1]");
        assert_eq!(said("image-shape"), r#"{"height":8,"width":8,"channels":1}"#);
        assert_eq!(said("classes"), r#"["cat, \"tabby\"","Straße"]"#);
        assert!(said("model").starts_with(r#"{"patch-moe":{"widen-factor":1,"experts":1,"#), "{}", said("model"));
        // The tensors themselves lie as `safetensors` would put them.
        let tensors: BTreeMap<String, TensorData> = named_tensors(&classifier);
        let views = tensors.iter().map(|(name, data)| {
            (name, safetensors::tensor::TensorView::new(Dtype::F32, data.shape.to_vec(), data.as_bytes()).expect("f32"))
        });
        let plain = safetensors::serialize(views, None).expect("valid");
        let without = with_header(&bytes, |header| drop(header.remove("__metadata__")));
        assert_eq!(SafeTensors::deserialize(&without).expect("valid").tensors().len(), tensors.len());
        assert!(plain.ends_with(&bytes[8 + length..]));
    }

    #[test]
    fn the_same_weights_give_the_same_bytes() {
        let (classifier, description) = small(|_| {});
        let (_folder, path) = saved(&classifier, &description);
        let bytes = fs::read(&path).expect("just written");
        for _ in 0..8 {
            save_weights(&classifier, &description, &path).expect("the folder is writable");
            assert_eq!(fs::read(&path).expect("just written"), bytes);
        }
    }

    #[test]
    fn another_structure_is_refused_and_the_error_says_both() {
        let (classifier, description) = small(|_| {});
        let (_folder, path) = saved(&classifier, &description);
        let refused = |change: fn(&mut PatchMoeConfig)| {
            let error = load_weights(small(change).0, &path).expect_err("another structure").to_string();
            error.replace(&path.display().to_string(), "FILE")
        };
        // Neither shows in the shape of any tensor.
        assert_eq!(
            refused(|config| config.patches_per_expert = 3),
            "FILE belongs to patch-moe with patches-per-expert = 2; this classifier is patch-moe with patches-per-expert = 3"
        );
        assert_eq!(
            refused(|config| config.expert_form = crate::ExpertForm::Gathered),
            "FILE belongs to patch-moe with expert-form = \"masked\"; this classifier is patch-moe with expert-form = \"gathered\""
        );
        let dense = built(WideResNetConfig { widen_factor: 2, ..Default::default() }.into(), 0).0;
        let error = load_weights(dense, &path).expect_err("another network").to_string();
        assert!(
            error.ends_with("patch-moe with widen-factor = 1; this classifier is wide-resnet with widen-factor = 2")
        );
        // What only matters at the start or in training is no part of the structure.
        let (other, _) = small(|config| {
            config.gate_init_std = 0.5;
            config.batch_norm.momentum = 0.5;
            config.initializer = crate::Initializer::HeNormal;
        });
        assert!(load_weights(other, &path).is_ok());
        // Nor can a classifier be saved under a false description.
        let (_, false_description) = small(|config| config.experts = 2);
        let error = save_weights(&classifier, &false_description, &path).expect_err("one expert");
        assert!(matches!(error, ModelError::OtherStructure { .. }), "{error}");
        let one_class = WeightsDescription { classes: vec!["cat".into()], ..description };
        let error = save_weights(&classifier, &one_class, &path).expect_err("two classes").to_string();
        assert!(error.ends_with("belongs to 1 classes; this classifier is 2 classes"), "{error}");
    }

    #[test]
    fn files_that_say_nothing_are_read_by_their_tensors() {
        let (classifier, description) = small(|_| {});
        let (_folder, path) = saved(&classifier, &description);
        let bytes = fs::read(&path).expect("just written");
        let plain = with_header(&bytes, |header| drop(header.remove("__metadata__")));
        let foreign = with_header(&bytes, |header| {
            header.insert("__metadata__".into(), serde_json::json!({"format": "pt"}));
        });
        for bytes in [plain, foreign] {
            fs::write(&path, bytes).expect("writable");
            let loaded = load_weights(built(description.config.clone(), 1).0, &path).expect("all tensors are there");
            assert_eq!(named_tensors(&loaded), named_tensors(&classifier));
            assert_eq!(read_description(&path).expect("readable"), None);
            let error = load_classifier::<Flex>(&path, &FlexDevice).expect_err("nobody says what it is").to_string();
            assert!(error.ends_with("weights.safetensors does not say what it holds"), "{error}");
            let more = load_weights(small(|config| config.experts = 2).0, &path).expect_err("the file has one expert");
            assert!(matches!(more, ModelError::MissingParameter { .. }), "{more}");
            let wider = load_weights(small(|config| config.widen_factor = 2).0, &path).expect_err("the file is thin");
            assert!(matches!(wider, ModelError::ParameterMismatch { .. }), "{wider}");
        }
        let extended = with_header(&bytes, |header| {
            header.remove("__metadata__");
            header.insert("more".into(), serde_json::json!({"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}));
        });
        fs::write(&path, extended).expect("writable");
        let error = load_weights(classifier, &path).expect_err("there is one too many");
        assert!(matches!(error, ModelError::UnknownParameter { .. }), "{error}");
    }

    #[test]
    fn a_later_schema_and_changed_tensors_are_refused() {
        let (classifier, description) = small(|_| {});
        let (_folder, path) = saved(&classifier, &description);
        let bytes = fs::read(&path).expect("just written");
        let later = with_header(&bytes, |header| header["__metadata__"]["schema"] = "2".into());
        let mut changed = bytes.clone();
        *changed.last_mut().expect("not empty") ^= 1;
        let claimed =
            with_header(&bytes, |header| header["__metadata__"]["classes"] = r#"["dog, \"tabby\"","Straße"]"#.into());
        let cut =
            with_header(&bytes, |header| drop(header["__metadata__"].as_object_mut().map(|all| all.remove("sha256"))));
        for (bytes, said) in
            [(later, "has schema 2"), (changed, "has sha256"), (claimed, "has sha256"), (cut, "has no sha256")]
        {
            fs::write(&path, bytes).expect("writable");
            let errors = [
                load_weights(classifier.clone(), &path).expect_err("it is not as it was").to_string(),
                load_classifier::<Flex>(&path, &FlexDevice).expect_err("it is not as it was").to_string(),
                read_description(&path).expect_err("it is not as it was").to_string(),
            ];
            for error in errors {
                assert!(error.contains(&format!("weights.safetensors {said}")), "{error}");
            }
        }
    }

    #[test]
    fn a_file_cut_anywhere_is_an_error_that_names_it() {
        let (classifier, description) = small(|_| {});
        let (_folder, path) = saved(&classifier, &description);
        let bytes = fs::read(&path).expect("just written");
        for length in 0..bytes.len() {
            let error = load_checked(classifier.clone(), &path, &bytes[..length]).expect_err("it is cut").to_string();
            assert!(error.contains("weights.safetensors is not a whole safetensors file"), "{length} bytes: {error}");
        }
        for length in [0, 7, 8, 100, bytes.len() / 2, bytes.len() - 1] {
            fs::write(&path, &bytes[..length]).expect("writable");
            for error in [
                load_weights(classifier.clone(), &path).expect_err("it is cut"),
                load_classifier::<Flex>(&path, &FlexDevice).expect_err("it is cut"),
                read_description(&path).expect_err("it is cut"),
            ] {
                assert!(matches!(error, ModelError::Format { .. }), "{length} bytes: {error}");
            }
        }
    }

    #[test]
    fn a_flipped_bit_in_the_header_is_an_error_or_changes_no_tensor() {
        let (classifier, description) = small(|_| {});
        let (_folder, path) = saved(&classifier, &description);
        let mut bytes = fs::read(&path).expect("just written");
        let expected = named_tensors(&classifier);
        let header = 8 + u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
        let mut refused = 0;
        // Two bits of each byte, other ones in the next.
        for (byte, bit) in (0..header).flat_map(|byte| [(byte, byte % 8), (byte, (byte + 3) % 8)]) {
            bytes[byte] ^= 1 << bit;
            match load_checked(classifier.clone(), &path, &bytes) {
                Ok(loaded) => assert_eq!(named_tensors(&loaded), expected, "bit {bit} of byte {byte}"),
                Err(error) => {
                    refused += 1;
                    assert!(error.to_string().contains("weights.safetensors"), "bit {bit} of byte {byte}: {error}");
                }
            }
            bytes[byte] ^= 1 << bit;
        }
        // Blanks, the name `__metadata__` and what looks like another program's metadata are all that can pass.
        assert!(refused * 100 > header * 2 * 95, "{refused} of {} were noticed", header * 2);
    }
}
