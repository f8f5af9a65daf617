use std::path::Path;

use crate::error::invalid;
use crate::folder::read_pictures;
use crate::listing::Listing;
use crate::{DataError, ImageSet, ImageShape};

/// Pictures of which nobody says what they show.
#[derive(Debug)]
pub struct LoosePictures {
    /// Their paths below the folder, with `/` between the parts, in the order of the images.
    pub names: Vec<String>,
    /// Their pixels; every label is 0, of a class called `unknown`.
    pub images: ImageSet,
    /// What is to be known about them: files that are not read.
    pub notes: Vec<String>,
}

/// Reads every picture of a folder and of the folders in it, in the order of their names, as images of a shape.
///
/// A picture of another size is resized, as [`read_picture`](crate::read_picture) does; for one channel the grey value is
/// (299 R + 587 G + 114 B) / 1000, rounded (ITU-R BT.601, as Pillow converts).
///
/// # Errors
/// If the folder cannot be read, holds no picture or a broken one, or images of that shape have neither one nor three
/// channels.
pub fn read_loose_pictures(directory: &Path, shape: ImageShape) -> Result<LoosePictures, DataError> {
    if shape.channels != 1 && shape.channels != 3 {
        return Err(invalid("channels", shape.channels, "1 or 3, to read pictures as"));
    }
    let listing = Listing::of_loose(directory)?;
    let notes = listing.not_read().into_iter().collect();
    let paths = listing.pictures.into_iter().map(|(path, _)| path).collect::<Vec<_>>();
    let name = |path: &std::path::PathBuf| {
        let below = path.strip_prefix(directory).unwrap_or(path);
        below.iter().map(|part| part.to_string_lossy()).collect::<Vec<_>>().join("/")
    };
    let names = paths.iter().map(name).collect::<Vec<_>>();
    let mut pixels = read_pictures(&paths, [shape.height, shape.width])?;
    if shape.channels == 1 {
        pixels = pixels.chunks_exact(3).map(grey).collect();
    }
    let images = ImageSet::new(shape, pixels, vec![0; names.len()], vec!["unknown".to_owned()])?;
    Ok(LoosePictures { names, images, notes })
}

fn grey(pixel: &[u8]) -> u8 {
    let sum = pixel.iter().zip([299u32, 587, 114]).map(|(&value, weight)| u32::from(value) * weight).sum::<u32>();
    ((sum + 500) / 1000) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(path: &Path, color: [u8; 3]) {
        fs_err::create_dir_all(path.parent().unwrap()).unwrap();
        image::RgbImage::from_pixel(4, 4, image::Rgb(color)).save(path).unwrap();
    }

    #[test]
    fn pictures_come_in_the_order_of_their_names_in_colour_or_in_grey() {
        let folder = tempfile::tempdir().unwrap();
        picture(&folder.path().join("b.png"), [1, 2, 3]);
        picture(&folder.path().join("a/z.png"), [200, 100, 50]);
        fs_err::write(folder.path().join("notes.txt"), "no picture").unwrap();
        let shape = ImageShape { height: 4, width: 4, channels: 3 };
        let read = read_loose_pictures(folder.path(), shape).unwrap();
        assert_eq!(read.names, ["b.png", "a/z.png"]);
        assert_eq!(read.images.image(0).pixel(1, 1), [1, 2, 3]);
        assert_eq!(read.notes.len(), 1);
        let read = read_loose_pictures(folder.path(), ImageShape { channels: 1, ..shape }).unwrap();
        // (299 * 200 + 587 * 100 + 114 * 50) / 1000 = 124.2, and 1.8 for the other.
        assert_eq!((read.images.pixels(1)[0], read.images.pixels(0)[0]), (124, 2));
    }

    #[test]
    fn a_folder_without_pictures_and_a_broken_picture_are_errors_that_name_them() {
        let folder = tempfile::tempdir().unwrap();
        let shape = ImageShape { height: 4, width: 4, channels: 3 };
        let said = read_loose_pictures(folder.path(), shape).unwrap_err().to_string();
        assert!(said.contains("no images"), "{said}");
        fs_err::write(folder.path().join("broken.png"), "no picture").unwrap();
        let said = read_loose_pictures(folder.path(), shape).unwrap_err().to_string();
        assert!(said.contains("broken.png"), "{said}");
    }
}
