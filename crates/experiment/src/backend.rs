//! The only place that names concrete backends and devices.

use clap::ValueEnum;
use patchdoor_kernels::TrainingBackend;
use patchdoor_plan::{ConfigErrors, Plan, Precision};

/// Something that runs on whatever backend was chosen.
pub(crate) trait OnBackend: Send {
    /// What comes of it.
    type Output: Send;

    /// Runs on a backend's device.
    fn run<B: TrainingBackend>(self, device: &B::Device) -> Self::Output;
}

/// What the user asks to compute with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum BackendChoice {
    /// CUDA if this build has it and a GPU is there, else the CPU
    #[default]
    Auto,
    /// An NVIDIA GPU
    Cuda,
    /// The CPU, fast
    Flex,
    /// The CPU, slow, for checks only
    Ndarray,
    /// What CUDA runs, on a Vulkan driver: for tests, so no help text names it
    #[cfg(feature = "vulkan")]
    #[value(hide = true)]
    Vulkan,
}

/// A backend that is compiled in and has a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    kind: Kind,
    device: String,
    fallback: Option<String>,
    /// Whether it may compute without instructions what it has none for.
    emulates: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    #[cfg(feature = "flex")]
    Flex,
    #[cfg(feature = "ndarray")]
    Ndarray,
    #[cfg(feature = "cuda")]
    Cuda,
    #[cfg(feature = "vulkan")]
    Vulkan,
}

/// Why a backend cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// It is not part of this build.
    #[error(
        "this build has no {name} backend (it has {available}); cargo xtask run --backend {name} builds it, \
         or: cargo build --release -p patchdoor-cli --features {name}"
    )]
    NotBuilt {
        /// The backend asked for.
        name: &'static str,
        /// The backends there are.
        available: String,
    },
    /// There is no GPU to use.
    #[error("--backend cuda needs an NVIDIA GPU: {reason}; --backend flex computes on the CPU")]
    NoGpu {
        /// What is missing.
        reason: String,
    },
    /// It rounds nothing, or to something else.
    #[error("--precision {precision} cannot be computed with {name}, only {allowed}")]
    NoRounding {
        /// What operands were to be rounded to.
        precision: &'static str,
        /// The backend.
        name: &'static str,
        /// What it computes in, and how to have more.
        allowed: String,
    },
}

impl BackendChoice {
    /// Finds the backend to use and makes sure that it has a device, before any of it is touched.
    ///
    /// # Errors
    /// If it is not compiled in, or there is no GPU for it.
    pub fn resolve(self) -> Result<Backend, BackendError> {
        match self {
            Self::Auto if !cfg!(feature = "cuda") => Self::Flex.resolve().or_else(|_| Self::Ndarray.resolve()),
            Self::Auto => Self::Cuda.resolve().or_else(|error| {
                let backend = Self::Flex.resolve().or_else(|_| Self::Ndarray.resolve());
                backend.map(|backend| backend.instead_of_cuda(&error))
            }),
            #[cfg(feature = "cuda")]
            Self::Cuda => gpu().map(|device| Backend::new(Kind::Cuda, device)),
            #[cfg(feature = "flex")]
            Self::Flex => Ok(Backend::new(Kind::Flex, processor())),
            #[cfg(feature = "ndarray")]
            Self::Ndarray => Ok(Backend::new(Kind::Ndarray, processor())),
            #[cfg(feature = "vulkan")]
            Self::Vulkan => Ok(Backend::new(Kind::Vulkan, "the first Vulkan device".into())),
            #[allow(unreachable_patterns, reason = "reachable unless every backend is compiled in")]
            missing => Err(BackendError::NotBuilt {
                name: match missing {
                    Self::Auto | Self::Flex => "flex",
                    Self::Cuda => "cuda",
                    Self::Ndarray => "ndarray",
                    #[cfg(feature = "vulkan")]
                    Self::Vulkan => "vulkan",
                },
                available: built_in().join(", "),
            }),
        }
    }
}

impl Backend {
    #[allow(dead_code, reason = "unused in a build without any backend")]
    fn new(kind: Kind, device: String) -> Self {
        Self { kind, device, fallback: None, emulates: false }
    }

    /// The same backend, taken because there is no GPU to use.
    fn instead_of_cuda(mut self, error: &BackendError) -> Self {
        let reason = match error {
            BackendError::NoGpu { reason } => reason.clone(),
            error => error.to_string(),
        };
        self.fallback = Some(format!("no usable NVIDIA GPU ({reason}): computing on the CPU with {}", self.name()));
        self
    }

    /// Why this backend was taken and not the one a user would rather have, if so; one line.
    pub fn fallback(&self) -> Option<&str> {
        self.fallback.as_deref()
    }

    /// The backend's name, as on the command line.
    pub fn name(&self) -> &'static str {
        match self.kind {
            #[cfg(feature = "flex")]
            Kind::Flex => "flex",
            #[cfg(feature = "ndarray")]
            Kind::Ndarray => "ndarray",
            #[cfg(feature = "cuda")]
            Kind::Cuda => "cuda",
            #[cfg(feature = "vulkan")]
            Kind::Vulkan => "vulkan",
        }
    }

    /// The same backend, which also computes slowly what this processor has no instructions for: products of bf16, to
    /// the same bits.
    #[must_use]
    pub fn emulating(self, emulates: bool) -> Self {
        Self { emulates, ..self }
    }

    /// Checks that it can compute as a plan asks.
    ///
    /// # Errors
    /// If the plan rounds operands to what this backend does not.
    pub fn check(&self, plan: &Plan) -> Result<(), ConfigErrors> {
        let precision = plan.config().precision;
        match self.allowed(precision) {
            Ok(()) => Ok(()),
            Err(allowed) => Err(plan.problem("precision", &format!("{:?}", precision.name()), &allowed)),
        }
    }

    /// Checks that it can round operands so.
    ///
    /// # Errors
    /// If operands are to be rounded to what this backend does not.
    pub fn check_precision(&self, precision: Precision) -> Result<(), BackendError> {
        self.allowed(precision).map_err(|allowed| BackendError::NoRounding {
            precision: precision.name(),
            name: self.name(),
            allowed,
        })
    }

    /// Whether it can round operands so, or what it can do instead.
    fn allowed(&self, precision: Precision) -> Result<(), String> {
        let (rounds, has_instructions) = match self.kind {
            #[cfg(feature = "flex")]
            Kind::Flex => (true, patchdoor_kernels::multiplies_bf16()),
            #[cfg(feature = "ndarray")]
            Kind::Ndarray => (false, false),
            #[allow(unreachable_patterns, reason = "reachable in builds for devices")]
            _ => return Ok(()),
        };
        let gpu = "a GPU has tf32 and bf16 too (--backend cuda)";
        match precision {
            Precision::F32 => Ok(()),
            Precision::Bf16 if rounds && (has_instructions || self.emulates) => Ok(()),
            Precision::Bf16 if rounds => Err(format!(
                "\"f32\" on a processor without AVX512-BF16; --emulate-bf16 computes the same numbers far more slowly, \
                 and {gpu}"
            )),
            Precision::Tf32 if rounds => Err(format!("\"f32\" or \"bf16\" on the CPU; {gpu}")),
            Precision::Tf32 | Precision::Bf16 => Err(format!("\"f32\" on {}; {gpu}", self.name())),
        }
    }

    /// The device in words.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// Runs something on this backend, as a plan asks to compute from now on.
    pub(crate) fn run_plan<T: OnBackend>(&self, plan: &Plan, task: T) -> T::Output {
        self.run_in(plan.config().precision, task)
    }

    /// Runs something on this backend, with operands rounded so from now on where it rounds any.
    pub(crate) fn run_in<T: OnBackend>(&self, precision: Precision, task: T) -> T::Output {
        match precision {
            Precision::F32 => patchdoor_kernels::Precision::F32,
            Precision::Tf32 => patchdoor_kernels::Precision::Tf32,
            Precision::Bf16 => patchdoor_kernels::Precision::Bf16,
        }
        .choose();
        self.run(task)
    }

    /// Runs something on this backend.
    pub(crate) fn run<T: OnBackend>(&self, task: T) -> T::Output {
        match self.kind {
            #[cfg(feature = "flex")]
            // On the pool's own threads, so that no operation has to wake them up.
            Kind::Flex => {
                rayon::scope(|_| task.run::<burn::backend::Autodiff<burn_flex::Flex>>(&burn_flex::FlexDevice))
            }
            #[cfg(feature = "ndarray")]
            Kind::Ndarray => {
                task.run::<burn::backend::Autodiff<burn_ndarray::NdArray>>(&burn_ndarray::NdArrayDevice::Cpu)
            }
            #[cfg(feature = "cuda")]
            Kind::Cuda => task.run::<burn::backend::Autodiff<burn_cuda::Cuda>>(&burn_cuda::CudaDevice { index: 0 }),
            #[cfg(feature = "vulkan")]
            Kind::Vulkan => {
                let device = patchdoor_kernels::VulkanDevice::default();
                task.run::<burn::backend::Autodiff<patchdoor_kernels::Vulkan>>(&device)
            }
        }
    }
}

/// Threads that compute: as many as the machine offers, unless `RAYON_NUM_THREADS` says otherwise.
pub(crate) fn threads() -> usize {
    rayon::current_num_threads()
}

/// Names of the backends in this build.
pub fn built_in() -> Vec<&'static str> {
    let all =
        [("flex", cfg!(feature = "flex")), ("ndarray", cfg!(feature = "ndarray")), ("cuda", cfg!(feature = "cuda"))];
    all.into_iter().filter(|(_, there)| *there).map(|(name, _)| name).collect()
}

/// The first GPU's name, if everything is there that computing on it takes.
#[cfg(feature = "cuda")]
fn gpu() -> Result<String, BackendError> {
    crate::gpu::look().map(|gpu| gpu.name).map_err(|reason| BackendError::NoGpu { reason })
}

/// The processor's name and its number of threads.
pub(crate) fn processor() -> String {
    let threads = threads();
    let cores = if threads == 1 { "1 thread".into() } else { format!("{threads} threads") };
    let information = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = information
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .and_then(|rest| rest.split_once(':'))
        .map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.trim().to_owned());
    format!("{name}, {cores}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_falls_back_says_why_and_on_what() {
        let backend = Backend::new(BackendChoice::Auto.resolve().expect("the CPU").kind, "a processor".into());
        assert_eq!(backend.fallback(), None);
        let error = BackendError::NoGpu { reason: "the driver sees no device".into() };
        let backend = backend.instead_of_cuda(&error);
        let expected =
            format!("no usable NVIDIA GPU (the driver sees no device): computing on the CPU with {}", backend.name());
        assert_eq!(backend.fallback(), Some(expected.as_str()));
    }

    #[test]
    fn only_auto_falls_back_and_only_where_the_build_has_cuda() {
        let fallback = |choice: BackendChoice| choice.resolve().ok().and_then(|backend| backend.fallback);
        assert_eq!(fallback(BackendChoice::Flex), None);
        let auto = BackendChoice::Auto.resolve().expect("the CPU at least");
        assert_eq!(auto.fallback().is_some(), cfg!(feature = "cuda") && auto.name() != "cuda");
    }

    #[test]
    fn a_cpu_rounds_to_bf16_where_it_has_instructions_or_may_do_without() {
        let backend = BackendChoice::Flex.resolve().expect("built");
        assert!(backend.check_precision(Precision::F32).is_ok());
        let error = backend.check_precision(Precision::Tf32).expect_err("a GPU's alone");
        assert_eq!(
            error.to_string(),
            "--precision tf32 cannot be computed with flex, only \"f32\" or \"bf16\" on the CPU; a GPU has tf32 and \
             bf16 too (--backend cuda)"
        );
        let has_instructions = patchdoor_kernels::multiplies_bf16();
        assert_eq!(backend.check_precision(Precision::Bf16).is_ok(), has_instructions);
        assert!(backend.emulating(true).check_precision(Precision::Bf16).is_ok());
    }

    #[test]
    fn a_backend_outside_the_build_is_an_error_that_names_the_feature() {
        for (choice, name) in
            [(BackendChoice::Cuda, "cuda"), (BackendChoice::Ndarray, "ndarray"), (BackendChoice::Flex, "flex")]
        {
            match choice.resolve() {
                Ok(backend) => assert_eq!(backend.name(), name),
                Err(BackendError::NotBuilt { .. }) => assert!(!built_in().contains(&name)),
                Err(BackendError::NoGpu { .. }) => assert_eq!(name, "cuda"),
                Err(error @ BackendError::NoRounding { .. }) => panic!("nothing was to be rounded: {error}"),
            }
        }
    }
}
