//! What a machine offers, and what is asked of it in vain.

use patchdoor_tests::{Bench, json_of, runner};

#[test]
fn the_doctor_finds_what_is_there_and_says_what_each_lack_means() {
    let bench = Bench::new();
    let finished = bench.run(&["doctor"]).expect(0);
    for name in ["backends", "GPU", "driver", "NVRTC", "CUDA headers", "SIMD", "memory", "disk", "shapes", "cifar10"] {
        assert!(finished.out().contains(name), "no {name} in\n{}", finished.out());
    }
    assert!(finished.out().contains("cargo xtask data fetch cifar10"), "{}", finished.out());
    assert_eq!(bench.entries(), [] as [&str; 0], "looking changes nothing");

    let file = bench.path().join("doctor.json");
    let printed = bench.run(&["doctor", "--json", "--backend", "flex"]).expect(0);
    std::fs::write(&file, printed.out()).expect("writable");
    let document = json_of(&file);
    let findings = document["findings"].as_array().expect("a list");
    assert!(findings.iter().all(|finding| finding["there"] == true || finding["means"].is_string()), "{document}");
    assert!(document["backend"].as_str().is_some_and(|backend| backend.starts_with("flex (")));
}

#[test]
fn headers_are_looked_for_where_cuda_path_says() {
    let bench = Bench::new();
    let mut command = bench.command(&["doctor", "--json", "--backend", "flex"]);
    let output = command.env("CUDA_PATH", bench.path().join("cuda")).output().expect("it starts");
    let found = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(found.contains("/cuda\""), "the folder searched is named:\n{found}");
    std::fs::create_dir_all(bench.path().join("cuda/include")).expect("made");
    bench.file("cuda/include/cuda_runtime.h", "");
    let mut command = bench.command(&["doctor", "--json", "--backend", "flex"]);
    let output = command.env("CUDA_PATH", bench.path().join("cuda")).output().expect("it starts");
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).expect("one document");
    let findings = document["findings"].as_array().expect("a list");
    assert!(findings.iter().any(|finding| finding["name"] == "CUDA headers" && finding["there"] == true), "{document}");
}

/// A program with the feature `cuda`, which takes too long to compile for every test run: the one that
/// `PATCHDOOR_CUDA_PROGRAM` names, or else the usual one, which has no CUDA.
fn cuda_program() -> Option<std::path::PathBuf> {
    std::env::var_os("PATCHDOOR_CUDA_PROGRAM").map(Into::into)
}

#[test]
fn cuda_without_a_gpu_is_one_clear_error_before_anything_is_written() {
    let bench = Bench::new();
    bench.file("small.toml", patchdoor_tests::SMALL);
    let program = cuda_program();
    let has_cuda = program.is_some();
    if has_cuda && std::path::Path::new("/dev/nvidia0").exists() {
        return;
    }
    for arguments in [&["doctor", "--backend", "cuda"][..], &["run", "small.toml", "--backend", "cuda"]] {
        let mut command = std::process::Command::new(program.as_deref().unwrap_or(runner()));
        let output = command.args(arguments).current_dir(bench.path()).output().expect("it starts");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert_eq!(said.matches("error:").count(), 1, "{said}");
        assert!(!said.contains("panicked"), "{said}");
        let expected = if has_cuda { "--backend cuda needs an NVIDIA GPU" } else { "this build has no cuda backend" };
        assert!(said.contains(expected), "{said}");
        assert_eq!(bench.entries(), ["small.toml"], "nothing is written");
    }
}

#[test]
#[allow(clippy::print_stderr, reason = "a test says that it skips")]
fn auto_falls_back_to_the_cpu_and_says_so_once() {
    let Some(program) = cuda_program().filter(|_| !std::path::Path::new("/dev/nvidia0").exists()) else {
        eprintln!("skipped: PATCHDOOR_CUDA_PROGRAM names no program with CUDA, or there is a GPU");
        return;
    };
    let bench = Bench::new();
    bench.file("small.toml", patchdoor_tests::SMALL);
    let mut command = std::process::Command::new(program);
    let output = command.args(["run", "small.toml"]).current_dir(bench.path()).output().expect("it starts");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    assert_eq!(said.matches("no usable NVIDIA GPU").count(), 1, "{said}");
    assert!(said.contains("computing on the CPU with flex") && !said.contains("panicked"), "{said}");
}
