use std::io::Write;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use fs_err as fs;

/// All that is kept is smaller than this together.
const MOST: u64 = 16 << 20;

/// Room for the report and the record, which are written last.
const RESERVE: u64 = 1 << 20;

/// The longest file that is no weights.
const LONGEST: u64 = 512 << 10;

/// Copies what is worth keeping from the runs of a study: records, tables, summaries and logs first, then weights if they
/// fit, those of victims before others, with gzip where they only fit so; returns what was left out.
///
/// # Errors
/// If something cannot be copied.
pub(super) fn keep(runs: &Path, kept: &Path) -> anyhow::Result<Vec<String>> {
    let target = kept.join("runs");
    if target.exists() {
        fs::remove_dir_all(&target)?;
    }
    let mut size = total(kept) + RESERVE;
    let mut files = files_below(runs);
    files.retain(|file| !is_passing(file));
    files.sort_by_key(|file| (is_weights(file), !is_victim(file), length(file), file.clone()));
    let mut left_out = Vec::new();
    for file in files {
        let length = length(&file);
        let relative = file.strip_prefix(runs).unwrap_or(&file);
        let to = target.join(relative);
        let parent = to.parent().unwrap_or(&target);
        if is_weights(&file) || length <= LONGEST {
            if size + length < MOST {
                fs::create_dir_all(parent)?;
                fs::copy(&file, &to)?;
                size += length;
                continue;
            }
            let compressed = gzip(&file)?;
            if size + (compressed.len() as u64) < MOST {
                fs::create_dir_all(parent)?;
                fs::write(to.with_added_extension("gz"), &compressed)?;
                size += compressed.len() as u64;
                continue;
            }
        }
        left_out.push(format!("{} ({:.1} MB)", relative.display(), length as f64 / 1e6));
    }
    Ok(left_out)
}

/// Copies what a GPU found out about kernels, to be reused by the next bundle: `cache` below the folder that commands run
/// in, as a bundle's `cubecl.toml` says. The kernels themselves are larger, and can be compiled without a GPU.
///
/// # Errors
/// If something cannot be copied.
pub(super) fn keep_autotune(cache: &Path, kept: &Path) -> anyhow::Result<()> {
    const MOST_AUTOTUNE: u64 = 4 << 20;
    let mut size = 0;
    for file in files_below(cache) {
        let is_autotune = file.components().any(|part| part.as_os_str() == "autotune");
        size += if is_autotune { length(&file) } else { 0 };
        if is_autotune && size < MOST_AUTOTUNE {
            let to = kept.join("cache").join(file.strip_prefix(cache).unwrap_or(&file));
            fs::create_dir_all(to.parent().unwrap_or(kept))?;
            fs::copy(&file, to)?;
        }
    }
    Ok(())
}

/// Whether a file is only there to go on from.
fn is_passing(file: &Path) -> bool {
    file.components().any(|part| part.as_os_str() == "checkpoint") || file.extension().is_some_and(|end| end == "lock")
}

/// A file's bytes as gzip has them.
fn gzip(file: &Path) -> anyhow::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(&fs::read(file)?)?;
    Ok(encoder.finish()?)
}

/// Whether these are the weights of a seed's own classifier, not of its twin or a repaired one.
fn is_victim(file: &Path) -> bool {
    let parent = file.parent().and_then(Path::file_name).map(|name| name.to_string_lossy().starts_with("seed-"));
    is_weights(file) && parent == Some(true)
}

fn is_weights(file: &Path) -> bool {
    file.extension().is_some_and(|extension| extension == "safetensors")
}

fn length(file: &Path) -> u64 {
    file.metadata().map_or(0, |file| file.len())
}

fn total(folder: &Path) -> u64 {
    files_below(folder).iter().map(|file| length(file)).sum()
}

/// All files below a folder, sorted.
fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            files.extend(files_below(&path));
        } else {
            files.push(path);
        }
    }
    files.sort();
    files
}

/// Shortens a log to its end.
///
/// # Errors
/// If it cannot be read or written.
pub(super) fn shorten(log: &Path) -> anyhow::Result<()> {
    const LONGEST_LOG: usize = 200 << 10;
    let contents = fs::read(log)?;
    if contents.len() > LONGEST_LOG {
        let end = &contents[contents.len() - LONGEST_LOG..];
        fs::write(log, [b"[the beginning is left out]\n", end].concat())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn records_are_kept_before_weights_and_never_more_than_fits() {
        let folder = tempfile::tempdir().expect("a folder");
        let (runs, kept) = (folder.path().join("runs"), folder.path().join("keep"));
        let file = |name: &str, length: usize| {
            let path = runs.join(name);
            fs::create_dir_all(path.parent().expect("a folder")).expect("made");
            // Bytes that do not compress.
            let mut state = 1_u64;
            let noise = std::iter::repeat_with(|| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 56) as u8
            });
            fs::write(path, noise.take(length).collect::<Vec<_>>()).expect("written");
        };
        file("a/seed-0/weights.safetensors", 10 << 20);
        file("b/seed-0/weights.safetensors", 4 << 20);
        file("a/seed-0/defenses/0/weights.safetensors", 2 << 20);
        fs::create_dir_all(runs.join("c/seed-0")).expect("made");
        fs::write(runs.join("c/seed-0/weights.safetensors"), vec![7; 11 << 20]).expect("written");
        file("a/summary.json", 1000);
        file("a/big.csv", 600 << 10);
        file("a/seed-0/checkpoint/epoch-0001/classifier.bin", 1000);
        fs::create_dir_all(&kept).expect("made");
        fs::write(kept.join("log"), vec![7; 1000]).expect("written");
        let left_out = keep(&runs, &kept).expect("copied");
        assert!(kept.join("runs/a/summary.json").exists());
        assert!(kept.join("runs/b/seed-0/weights.safetensors").exists(), "victims come first");
        let mut unpacked = Vec::new();
        let compressed = fs::read(kept.join("runs/c/seed-0/weights.safetensors.gz")).expect("kept compressed");
        flate2::read::GzDecoder::new(&compressed[..]).read_to_end(&mut unpacked).expect("gzip");
        assert_eq!(unpacked, vec![7; 11 << 20]);
        assert!(!kept.join("runs/a/seed-0/checkpoint").exists());
        assert_eq!(left_out, ["a/big.csv (0.6 MB)", "a/seed-0/defenses/0/weights.safetensors (2.1 MB)"]);
        assert!(total(&kept) < MOST);
        // A second time the same is kept, not more.
        assert_eq!(keep(&runs, &kept).expect("copied"), left_out);
        let cache = folder.path().join("cache");
        for name in ["0.10/device/autotune/matmul.json.log", "ptx/kernels.json.log"] {
            fs::create_dir_all(cache.join(name).parent().expect("a folder")).expect("made");
            fs::write(cache.join(name), "x").expect("written");
        }
        keep_autotune(&cache, &kept).expect("copied");
        assert!(kept.join("cache/0.10/device/autotune/matmul.json.log").exists() && !kept.join("cache/ptx").exists());
        let log = kept.join("log");
        fs::write(&log, vec![b'x'; 300 << 10]).expect("written");
        shorten(&log).expect("shortened");
        assert!(length(&log) < 210 << 10);
    }
}
