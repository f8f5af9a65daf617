//! Pictures become the pixels that Pillow makes of them, and a file that breaks off is never a picture.
//!
//! `data/make.py` wrote the files of `data/pictures` and, with Pillow, the pixels in `data/pictures.tsv`.

use std::path::{Path, PathBuf};

use patchdoor_data::{DataError, PictureError, read_picture};
use rayon::prelude::*;

/// What decoders may differ by where a format leaves rounding to them: JPEG's cosine transform and the interpolation of its
/// colours.
const JPEG_ROUNDING: u8 = 3;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/pictures")
}

fn names() -> Vec<String> {
    let entries = std::fs::read_dir(folder()).unwrap();
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Why a file is no picture.
fn reason(path: &Path) -> PictureError {
    match read_picture(path, 8, 8).unwrap_err() {
        DataError::ImageFile { source, .. } => source,
        error => panic!("{error}"),
    }
}

/// A file with this content, of a name that says nothing.
fn written(content: &[u8]) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), content).unwrap();
    file
}

#[test]
fn every_format_gives_the_pixels_of_pillow() {
    let table = std::fs::read_to_string(folder().with_file_name("pictures.tsv")).unwrap();
    let mut compared = 0;
    for (name, pixels) in table.lines().map(|line| line.split_once('\t').unwrap()) {
        let expected: Vec<u8> =
            (0..pixels.len() / 2).map(|at| u8::from_str_radix(&pixels[2 * at..2 * at + 2], 16).unwrap()).collect();
        let found = read_picture(&folder().join(name), 8, 8).unwrap();
        let allowed = if name.contains("jp") { JPEG_ROUNDING } else { 0 };
        let distance = found.pixels().iter().zip(&expected).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
        assert!(distance <= allowed, "{name}: {distance} from Pillow's");
        compared += 1;
    }
    assert_eq!(compared, names().len());
}

#[test]
fn no_file_that_is_cut_anywhere_gives_other_pixels_than_the_whole() {
    names().par_iter().for_each(|name| {
        let file = std::fs::read(folder().join(name)).unwrap();
        let whole = read_picture(&folder().join(name), 19, 23).unwrap();
        // Some of a long file's cuts are as telling as all.
        for length in (0..file.len()).step_by(if file.len() > 900 { 7 } else { 1 }).chain(file.len() - 20..file.len()) {
            let cut = written(&file[..length]);
            if let Ok(image) = read_picture(cut.path(), 19, 23) {
                assert!(
                    image == whole,
                    "{name}, of which {length} of {} bytes are there, is another picture",
                    file.len()
                );
            }
        }
    });
}

#[test]
fn a_photograph_needs_its_data_and_not_its_end() {
    for name in ["full-colour.jpg", "half-colour.jpg", "progressive.jpg", "restarts.jpg", "grey.jpg", "cmyk.jpg"] {
        let file = std::fs::read(folder().join(name)).unwrap();
        let whole = read_picture(&folder().join(name), 19, 23).unwrap();
        assert_eq!(file[file.len() - 2..], [0xff, 0xd9]);
        // Without its end, with half of it, and with something after it.
        let open = &file[..file.len() - 2];
        for content in [open.to_vec(), [open, &[0xff]].concat(), [&file[..], &[0; 100], b"trailing"].concat()] {
            assert_eq!(read_picture(written(&content).path(), 19, 23).unwrap(), whole, "{name}");
        }
        // Half, alone and laid out in zeros as some downloads are.
        let half = &file[..open.len() - 40];
        for content in [half.to_vec(), [half, &[0; 42]].concat(), [half, &[0; 5000]].concat()] {
            assert!(matches!(reason(written(&content).path()), PictureError::BreaksOff), "{name}");
        }
    }
}

#[test]
fn why_a_file_is_no_picture_is_said_once_on_one_line() {
    let png = std::fs::read(folder().join("rgb.png")).unwrap();
    let mut damaged = png.clone();
    damaged[60] ^= 1;
    for (content, expected) in [
        (&b""[..], "the file is empty"),
        (
            b"<!DOCTYPE html><html>",
            "it begins with \"<!DOCTYPE html><\", which no PNG, JPEG, WebP, BMP, TIFF, GIF or PNM file does",
        ),
        (&png[..png.len() / 2], "the file breaks off: part of the picture is missing"),
        (&png[..20], "the file breaks off: part of the picture is missing"),
        (b"\xff\xd8\xff", "the file breaks off: part of the picture is missing"),
        (&damaged, "Format error decoding Png: "),
    ] {
        let reason = reason(written(content).path());
        assert!(reason.to_string().starts_with(expected), "{reason}");
        assert!(!reason.to_string().contains('\n'), "{reason}");
        assert!(std::error::Error::source(&reason).is_none(), "{reason} has another cause");
    }
}

#[test]
fn a_huge_picture_is_refused_for_what_its_header_says() {
    // Headers alone: what they announce is not there, so that anything decoded would fail otherwise.
    let png = {
        let mut header = b"IHDR".to_vec();
        header.extend([12000_u32.to_be_bytes(), 12000_u32.to_be_bytes()].concat());
        header.extend([8, 2, 0, 0, 0]);
        let mut file = b"\x89PNG\r\n\x1a\n\0\0\0\x0d".to_vec();
        file.extend(&header);
        let mut sum = flate2::Crc::new();
        sum.update(&header);
        file.extend(sum.sum().to_be_bytes());
        // The decoder reads as far as the first data.
        file.extend(b"\0\0\0\0IDAT\x35\xaf\x06\x1e");
        file
    };
    let mut bmp = std::fs::read(folder().join("rgb.bmp")).unwrap();
    bmp[18..26].copy_from_slice(&[12000_u32.to_le_bytes(), 12000_u32.to_le_bytes()].concat());
    let mut gif = std::fs::read(folder().join("rgb.gif")).unwrap();
    gif[6..10].copy_from_slice(&[12000_u16.to_le_bytes(), 12000_u16.to_le_bytes()].concat());
    let mut jpeg = std::fs::read(folder().join("grey.jpg")).unwrap();
    let frame = jpeg.windows(2).position(|bytes| bytes == [0xff, 0xc0]).unwrap();
    jpeg[frame + 5..frame + 9].copy_from_slice(&[12000_u16.to_be_bytes(), 12000_u16.to_be_bytes()].concat());
    for file in [png, bmp, gif, jpeg, b"P6\n12000 12000\n255\n".to_vec()] {
        let reason = reason(written(&file).path());
        assert_eq!(reason.to_string(), "its header says 12000x12000 pixels, expected 1 to 89478485 in all");
    }
}

#[test]
fn a_damaged_picture_is_read_or_refused() {
    names().par_iter().for_each(|name| {
        let file = std::fs::read(folder().join(name)).unwrap();
        for at in (0..file.len()).step_by(if file.len() > 900 { 11 } else { 2 }) {
            for change in [0x01, 0xff] {
                let mut damaged = file.clone();
                damaged[at] ^= change;
                // Whatever comes of it, the reader comes back.
                match read_picture(written(&damaged).path(), 4, 4) {
                    Ok(image) => assert_eq!(image.pixels().len(), 48),
                    Err(error) => assert!(matches!(error, DataError::ImageFile { .. }), "{name}: {error}"),
                }
            }
        }
    });
}
