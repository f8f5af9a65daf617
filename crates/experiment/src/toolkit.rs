//! Where CUDA's headers and its run-time compiler are looked for.
//!
//! burn compiles every kernel when it is first needed: it asks the loader for NVRTC, and hands NVRTC one folder of headers
//! (`cubecl-cuda` 0.10, `install::cuda_path`). This module looks in the same places in the same order, and beyond them, so
//! that a lack can be explained before anything panics.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// What a search depends on: the environment's variables and the file system.
#[derive(Clone, Copy)]
pub(crate) struct Surroundings<'a> {
    pub(crate) variable: &'a dyn Fn(&str) -> Option<OsString>,
    /// `/`, but for tests.
    pub(crate) root: &'a Path,
}

/// What came of a search.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Search {
    /// Where burn will find it.
    pub(crate) found: Option<PathBuf>,
    /// Where it lies but burn does not look.
    pub(crate) elsewhere: Option<PathBuf>,
    /// Where burn looks, in order.
    pub(crate) looked_in: Vec<PathBuf>,
}

/// A header that every kernel of ours includes.
const HEADER: &str = "include/cuda_runtime.h";

impl Surroundings<'_> {
    /// What burn and the loader will see. They read the environment themselves, so this has to.
    pub(crate) fn of_this_process() -> Self {
        Self { variable: &|name| std::env::var_os(name), root: Path::new("/") }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    fn folders(&self, variable: &str) -> Vec<PathBuf> {
        let value = (self.variable)(variable).unwrap_or_default();
        std::env::split_paths(&value).filter(|path| !path.as_os_str().is_empty()).collect()
    }

    /// Looks for the folder that holds `include/cuda_runtime.h`.
    pub(crate) fn headers(&self) -> Search {
        // `CUDA_PATH` counts even if nothing is there; then the first of these folders that exists does.
        let installed = [self.at("usr/local/cuda"), self.at("opt/cuda")];
        let mut looked_in: Vec<PathBuf> = match (self.variable)("CUDA_PATH") {
            Some(path) => vec![PathBuf::from(path)],
            None => installed.into_iter().collect(),
        };
        if (self.variable)("CUDA_PATH").is_none() && self.at("usr/bin/nvcc").exists() {
            looked_in.push(self.at("usr"));
        }
        let chosen = match (self.variable)("CUDA_PATH") {
            Some(_) => looked_in.first(),
            None => looked_in.iter().find(|folder| folder.exists()),
        };
        let found = chosen.filter(|folder| folder.join(HEADER).is_file()).cloned();
        let elsewhere = match found {
            Some(_) => None,
            None => self.elsewhere().into_iter().find(|folder| folder.join(HEADER).is_file()),
        };
        Search { found, elsewhere, looked_in }
    }

    /// Looks for NVRTC's library as the loader would.
    pub(crate) fn nvrtc(&self) -> Search {
        let mut looked_in = self.folders("LD_LIBRARY_PATH");
        let machine = std::env::consts::ARCH;
        looked_in.extend([
            self.at(&format!("lib/{machine}-linux-gnu")),
            self.at(&format!("usr/lib/{machine}-linux-gnu")),
            self.at("lib64"),
            self.at("usr/lib64"),
            self.at("lib"),
            self.at("usr/lib"),
        ]);
        let cache = self.at("etc/ld.so.cache");
        let found = looked_in.iter().find_map(|folder| library_in(folder)).or_else(|| cached(&cache));
        looked_in.push(cache);
        let elsewhere = match found {
            Some(_) => None,
            None => self
                .elsewhere()
                .iter()
                .flat_map(|folder| [folder.join("lib64"), folder.join("lib")])
                .find_map(|folder| library_in(&folder)),
        };
        Search { found, elsewhere, looked_in }
    }

    /// Folders that hold `include` and `lib` of CUDA where burn does not look by itself: other versions, and what Python's
    /// packages bring along, `PyTorch`'s among them.
    fn elsewhere(&self) -> Vec<PathBuf> {
        let mut folders = Vec::new();
        for variable in ["CUDA_HOME", "CUDA_ROOT"] {
            folders.extend((self.variable)(variable).map(PathBuf::from));
        }
        folders.extend([self.at("usr/local/cuda"), self.at("opt/cuda")]);
        let versions = entries(&self.at("usr/local"));
        folders.extend(versions.into_iter().filter(|path| name_of(path).starts_with("cuda-")));
        let mut pythons = vec![self.at("usr/local/lib"), self.at("usr/lib"), self.at("opt/conda/lib")];
        for variable in ["VIRTUAL_ENV", "CONDA_PREFIX"] {
            pythons.extend((self.variable)(variable).map(|path| PathBuf::from(path).join("lib")));
        }
        pythons.extend((self.variable)("HOME").map(|path| PathBuf::from(path).join(".local/lib")));
        for python in pythons.iter().flat_map(|folder| entries(folder)) {
            if !name_of(&python).starts_with("python") {
                continue;
            }
            for packages in ["site-packages", "dist-packages"] {
                // `nvidia/cu13`, and for CUDA 12 `nvidia/cuda_nvrtc` and `nvidia/cuda_runtime`.
                folders.extend(entries(&python.join(packages).join("nvidia")));
            }
        }
        folders
    }
}

/// What is in a folder, sorted; nothing if it cannot be read.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// NVRTC's library in a folder: `libnvrtc.so`, or with a version.
fn library_in(folder: &Path) -> Option<PathBuf> {
    entries(folder).into_iter().find(|path| name_of(path).starts_with("libnvrtc.so"))
}

/// NVRTC's library in the loader's cache, whose names end with a zero byte.
fn cached(cache: &Path) -> Option<PathBuf> {
    let contents = std::fs::read(cache).ok()?;
    contents
        .split(|&byte| byte == 0)
        .filter_map(|name| std::str::from_utf8(name).ok())
        .find(|name| name.starts_with('/') && name.contains("/libnvrtc.so"))
        .map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(path: &Path) {
        fs_err::create_dir_all(path.parent().expect("a folder")).expect("made");
        fs_err::write(path, "").expect("written");
    }

    #[test]
    fn headers_are_found_where_burn_looks_and_elsewhere() {
        let folder = tempfile::tempdir().expect("a folder");
        let root = folder.path();
        let none = |_: &str| None;
        let surroundings = Surroundings { variable: &none, root };
        let search = surroundings.headers();
        assert_eq!((search.found, search.elsewhere), (None, None));
        assert_eq!(search.looked_in, [root.join("usr/local/cuda"), root.join("opt/cuda")]);

        let package = root.join("usr/lib/python3.12/site-packages/nvidia/cu13");
        touch(&package.join("include/cuda_runtime.h"));
        assert_eq!(surroundings.headers().elsewhere, Some(package));
        touch(&root.join("opt/cuda/include/cuda_runtime.h"));
        assert_eq!(surroundings.headers().found, Some(root.join("opt/cuda")));
        // The first folder that exists counts, headers or not: that is what burn does.
        fs_err::create_dir_all(root.join("usr/local/cuda")).expect("made");
        assert_eq!(surroundings.headers().found, None);
        assert_eq!(surroundings.headers().elsewhere, Some(root.join("opt/cuda")));

        let given = |name: &str| (name == "CUDA_PATH").then(|| root.join("none").into_os_string());
        let search = Surroundings { variable: &given, root }.headers();
        assert_eq!((search.found, search.looked_in), (None, vec![root.join("none")]));
    }

    #[test]
    fn nvrtc_is_found_where_the_loader_looks_and_elsewhere() {
        let folder = tempfile::tempdir().expect("a folder");
        let root = folder.path();
        let none = |_: &str| None;
        let surroundings = Surroundings { variable: &none, root };
        assert_eq!(surroundings.nvrtc().found, None);
        let package = root.join("usr/local/lib/python3.11/dist-packages/nvidia/cuda_nvrtc/lib/libnvrtc.so.12");
        touch(&package);
        assert_eq!(surroundings.nvrtc().elsewhere, Some(package));
        touch(&root.join("etc/x"));
        fs_err::write(
            root.join("etc/ld.so.cache"),
            b"glibc-ld\0\x01libnvrtc.so.13\0/opt/x/libnvrtc.so.13\0".as_slice(),
        )
        .expect("written");
        assert_eq!(surroundings.nvrtc().found, Some("/opt/x/libnvrtc.so.13".into()));
        touch(&root.join("own/libnvrtc.so"));
        let given = |name: &str| (name == "LD_LIBRARY_PATH").then(|| root.join("own").into_os_string());
        let search = Surroundings { variable: &given, root }.nvrtc();
        assert_eq!(search.found, Some(root.join("own/libnvrtc.so")));
        assert_eq!(search.elsewhere, None);
        assert_eq!(search.looked_in[0], root.join("own"));
    }
}
