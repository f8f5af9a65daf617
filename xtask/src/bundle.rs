use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, bail};
use clap::Args;
use flate2::Compression;
use flate2::GzBuilder;
use sha2::{Digest, Sha256};

use crate::run::{cargo, exit_code, root};

/// The script that starts the program on the other machine.
const START: &str = include_str!("start.sh");

/// What cubecl is to keep beside the program instead of below a folder with a Cargo.toml.
const CUBECL: &str = "# Kernels that were compiled and chosen on a machine like this one are kept here and used again.\n\
                      [compilation]\ncache = { file = \"cache\" }\n\n[autotune]\ncache = { file = \"cache\" }\n";

/// What `cargo xtask bundle` takes.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// What the program computes with
    #[arg(long, value_name = "BACKEND", default_value = "flex", value_parser = ["flex", "cuda"])]
    backend: String,

    /// Data sets to pack with it, without loss
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    data: Vec<String>,

    /// At most so many training images of each (CIFAR only) [default: all]
    #[arg(long, value_name = "N", requires = "data")]
    images: Option<usize>,

    /// Where images are looked for first; then in `PATCHDOOR_DATA`, then in data/
    #[arg(long, value_name = "DIR", requires = "data")]
    roots: Option<PathBuf>,

    /// In parts of at most this size, as in 60M
    #[arg(long, value_name = "SIZE", value_parser = size)]
    split: Option<u64>,

    /// Folder of compiled kernels to take along, if it is there
    #[arg(long, value_name = "DIR", default_value = "cache")]
    kernels: PathBuf,

    /// Take along, too, which kernels were found fastest; only what a GPU of the same kind measured is worth that
    #[arg(long)]
    autotune: bool,

    /// A program that is built already, instead of building one
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,

    /// Folder to make; it must not exist
    #[arg(long, value_name = "DIR", default_value = "bundle")]
    out: PathBuf,
}

/// Reads `60M`: a number of bytes, or of thousands (K), millions (M) or milliards (G) of them.
fn size(text: &str) -> Result<u64, String> {
    let (number, unit) = match text.char_indices().last() {
        Some((at, 'K')) => (&text[..at], 1000),
        Some((at, 'M')) => (&text[..at], 1_000_000),
        Some((at, 'G')) => (&text[..at], 1_000_000_000),
        _ => (text, 1),
    };
    let bytes = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
    match bytes {
        Some(bytes) if bytes >= 100_000 => Ok(bytes),
        _ => Err("a size of at least 100K, as in 60M".to_owned()),
    }
}

/// Writes everything that another machine needs to run experiments, without a network and without Rust.
pub(crate) fn bundle(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let out = &arguments.out;
    if out.exists() {
        let _ = writeln!(std::io::stderr(), "error: {} exists already; it is never overwritten", out.display());
        return Ok(ExitCode::from(2));
    }
    let program = match &arguments.program {
        Some(program) => program.clone(),
        None => match build(&arguments.backend)? {
            Ok(program) => program,
            Err(code) => return Ok(code),
        },
    };
    let unfinished = out.with_extension("partial");
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished)?;
    }
    fs::create_dir_all(&unfinished)?;
    let files = contents(arguments, &program, &unfinished)?;
    let mut written = match arguments.split {
        None => write_plain(&unfinished, &files)?,
        Some(most) => write_parts(&unfinished, &files, most)?,
    };
    write_file(&unfinished, "start.sh", START.as_bytes(), true)?;
    written.push(("start.sh".to_owned(), sum(START.as_bytes())));
    written.sort();
    let sums: Vec<String> = written.iter().map(|(name, sum)| format!("{sum}  {name}\n")).collect();
    write_file(&unfinished, "SHA256SUMS", sums.concat().as_bytes(), false)?;
    fs::rename(&unfinished, out).with_context(|| format!("cannot name the bundle {}", out.display()))?;
    let mut bytes = 0;
    for (name, _) in &written {
        let length = fs::metadata(out.join(name))?.len();
        bytes += length;
        if length > 1_000_000 {
            say(&format!("{:>7.1} MB  {name}", length as f64 / 1e6));
        }
    }
    say(&format!("{:>7.1} MB in all: {}", bytes as f64 / 1e6, out.display()));
    say("copy the folder, then there: sh start.sh doctor");
    Ok(ExitCode::SUCCESS)
}

/// A file of the bundle.
struct File {
    /// Its path in the bundle.
    name: String,
    contents: Vec<u8>,
    is_program: bool,
}

/// All files but the start script and the sums, sorted by name.
fn contents(arguments: &Arguments, program: &Path, scratch: &Path) -> anyhow::Result<Vec<File>> {
    let file = |name: &str, contents: Vec<u8>| File { name: name.to_owned(), contents, is_program: false };
    let mut files = vec![file("cubecl.toml", CUBECL.into())];
    say("compressing the program");
    files.push(File { is_program: true, ..file("patchdoor.gz", gzip(&stripped(program, scratch)?)?) });
    for folder in ["experiments", "benches/pytorch"] {
        collect(&root().join(folder), folder, &mut files)?;
    }
    for (name, path) in [("LICENSE-MIT", "LICENSE-MIT"), ("LICENSE-APACHE", "LICENSE-APACHE")] {
        if root().join(path).is_file() {
            files.push(file(name, fs::read(root().join(path))?));
        }
    }
    if arguments.kernels.is_dir() {
        say(&format!("taking along the kernels in {}", arguments.kernels.display()));
        let mut kernels = Vec::new();
        collect(&arguments.kernels, "cache", &mut kernels)?;
        kernels.retain(|file| arguments.autotune || !file.name.split('/').any(|part| part == "autotune"));
        files.append(&mut kernels);
    }
    for name in &arguments.data {
        say(&format!("packing {name}"));
        let packed = scratch.join("packed");
        let mut command = Command::new(program);
        command.args(["data", "pack", name, "--to"]).arg(&packed).stdout(Stdio::null());
        command.args(arguments.images.iter().flat_map(|images| ["--images".into(), images.to_string()]));
        command.args(arguments.roots.iter().flat_map(|roots| [OsString::from("--data"), roots.into()]));
        if !command.status().context("cannot start the program to pack images with")?.success() {
            bail!("the images of {name} cannot be packed");
        }
        files.push(file(&format!("images/{name}.packed"), fs::read(&packed)?));
        fs::remove_file(packed)?;
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(files)
}

/// Builds the program with the backend's feature; the exit code of cargo if that fails.
fn build(backend: &str) -> anyhow::Result<Result<PathBuf, ExitCode>> {
    let mut command = cargo();
    command.arg("build").arg("--manifest-path").arg(root().join("Cargo.toml"));
    command.args(["--release", "--package", "patchdoor-cli", "--bin", "patchdoor"]);
    if backend == "cuda" {
        command.args(["--features", "cuda"]);
    }
    let status = command.status().context("cannot start cargo")?;
    if !status.success() {
        return Ok(Err(exit_code(status.code())));
    }
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    Ok(Ok(target.join("release").join(format!("patchdoor{}", std::env::consts::EXE_SUFFIX))))
}

/// The program without its symbols, or with them where there is no `strip`.
fn stripped(program: &Path, scratch: &Path) -> anyhow::Result<Vec<u8>> {
    let to = scratch.join("stripped");
    let strip = Command::new("strip").arg("-o").arg(&to).arg(program).stderr(Stdio::null()).status();
    let contents = if strip.is_ok_and(|status| status.success()) {
        let contents = fs::read(&to)?;
        fs::remove_file(&to)?;
        contents
    } else {
        say("there is no `strip` that takes this program: it keeps its symbols");
        fs::read(program).with_context(|| format!("cannot read {}", program.display()))?
    };
    Ok(contents)
}

/// Compressed as `gzip -d` takes it, which every machine has; without name and time, so that the same bytes come out.
fn gzip(contents: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut encoder = GzBuilder::new().mtime(0).write(Vec::new(), Compression::best());
    encoder.write_all(contents)?;
    Ok(encoder.finish()?)
}

/// Adds all files below a folder under a name.
fn collect(folder: &Path, name: &str, files: &mut Vec<File>) -> anyhow::Result<()> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    for entry in entries {
        let path = entry?.path();
        let inner = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if inner == "__pycache__" {
            continue;
        }
        let name = format!("{name}/{inner}");
        if path.is_dir() {
            collect(&path, &name, files)?;
        } else {
            files.push(File { name, contents: fs::read(&path)?, is_program: false });
        }
    }
    Ok(())
}

fn sum(contents: &[u8]) -> String {
    Sha256::digest(contents).iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat()
}

/// Writes every file by itself; names and SHA-256.
fn write_plain(folder: &Path, files: &[File]) -> anyhow::Result<Vec<(String, String)>> {
    let mut written = Vec::new();
    for file in files {
        write_file(folder, &file.name, &file.contents, false)?;
        written.push((file.name.clone(), sum(&file.contents)));
    }
    Ok(written)
}

/// Writes one archive of all files, cut into parts; names and SHA-256 of these.
fn write_parts(folder: &Path, files: &[File], most: u64) -> anyhow::Result<Vec<(String, String)>> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut add = |name: &str, contents: &[u8]| -> anyhow::Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_size(contents.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        archive.append_data(&mut header, name, contents)?;
        Ok(())
    };
    let mut inner = Vec::new();
    for file in files {
        add(&file.name, &file.contents)?;
        inner.push(format!("{}  {}\n", sum(&file.contents), file.name));
    }
    add("SHA256SUMS.inner", inner.concat().as_bytes())?;
    let archive = archive.into_inner()?;
    let mut written = Vec::new();
    for (number, part) in archive.chunks(most as usize).enumerate() {
        let name = format!("bundle.tar.part-{number:03}");
        write_file(folder, &name, part, false)?;
        written.push((name, sum(part)));
    }
    let programs = files.iter().filter(|file| file.is_program).count();
    anyhow::ensure!(programs == 1, "a bundle has one program");
    Ok(written)
}

fn write_file(folder: &Path, name: &str, contents: &[u8], is_executable: bool) -> anyhow::Result<()> {
    let path = folder.join(name);
    fs::create_dir_all(path.parent().unwrap_or(folder))?;
    fs::write(&path, contents).with_context(|| format!("cannot write {}", path.display()))?;
    #[cfg(unix)]
    if is_executable {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    }
    #[cfg(not(unix))]
    let _ = is_executable;
    Ok(())
}

fn say(line: &str) {
    // Nobody is left to be told that nobody listens.
    let _ = writeln!(std::io::stderr(), "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        assert_eq!(size("60M"), Ok(60_000_000));
        assert_eq!(size("2G"), Ok(2_000_000_000));
        assert_eq!(size("123456"), Ok(123_456));
        for text in ["", "M", "60 M", "-1M", "3", "99999999999G"] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_gzip_has_no_name_and_no_time() {
        let zipped = gzip(b"abc").expect("in memory");
        assert_eq!(zipped, gzip(b"abc").expect("in memory"));
        assert_eq!(&zipped[..8], [0x1f, 0x8b, 8, 0, 0, 0, 0, 0]);
    }
}
