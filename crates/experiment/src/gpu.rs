//! The GPU, looked at without computing on it.

use std::panic::{self, UnwindSafe};

use cudarc::driver::CudaContext;

use crate::toolkit::Surroundings;

/// The first GPU.
#[derive(Clone, Debug)]
pub(crate) struct Gpu {
    pub(crate) name: String,
    /// Bytes.
    pub(crate) memory: usize,
    /// Major and minor number, as in 9.0.
    pub(crate) compute_capability: (i32, i32),
}

/// The first GPU, or what keeps us from computing on it. Burn itself panics in a thread of its own where the driver, NVRTC
/// or its headers are missing, so this asks first.
pub(crate) fn look() -> Result<Gpu, String> {
    let gpu = driver_and_device()?;
    nvrtc()?;
    let headers = Surroundings::of_this_process().headers();
    if cfg!(target_os = "linux") && headers.found.is_none() {
        let places = headers.looked_in.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ");
        let hint = headers
            .elsewhere
            .map_or_else(String::new, |path| format!("; they are in {0}: set CUDA_PATH={0}", path.display()));
        return Err(format!("the CUDA headers (include/cuda_runtime.h) are in none of {places}{hint}"));
    }
    Ok(gpu)
}

/// The first GPU, if there is a driver for it.
pub(crate) fn driver_and_device() -> Result<Gpu, String> {
    let says = |error: cudarc::driver::DriverError| format!("the driver says {error:?}");
    let count =
        quietly(CudaContext::device_count).ok_or("its driver library (libcuda) is not installed")?.map_err(says)?;
    if count == 0 {
        return Err("the driver sees no device".into());
    }
    let context = CudaContext::new(0).map_err(says)?;
    Ok(Gpu {
        name: context.name().unwrap_or_else(|_| "NVIDIA GPU".into()),
        memory: context.total_mem().unwrap_or(0),
        compute_capability: context.compute_capability().unwrap_or_default(),
    })
}

/// Whether NVRTC, which compiles every kernel, loads and compiles.
pub(crate) fn nvrtc() -> Result<(), String> {
    match quietly(|| cudarc::nvrtc::compile_ptx("extern \"C\" __global__ void probe() {}")) {
        Some(Ok(_)) => Ok(()),
        Some(Err(error)) => Err(format!("NVRTC, which compiles its kernels, fails: {error}")),
        None => Err("NVRTC (libnvrtc), which compiles its kernels, is not found by the loader; LD_LIBRARY_PATH names \
                     folders to look in"
            .into()),
    }
}

/// What a function returns, nothing if it panics, as cudarc does where a library is missing (its own test for that is an
/// unsafe function).
fn quietly<T>(function: impl FnOnce() -> T + UnwindSafe) -> Option<T> {
    let hook = panic::take_hook();
    panic::set_hook(Box::new(|_| {}));
    let outcome = panic::catch_unwind(function);
    panic::set_hook(hook);
    outcome.ok()
}
