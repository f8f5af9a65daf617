use std::path::Path;

use image::{ImageError, ImageFormat, Rgb, RgbImage};
use patchdoor_data::{Image, ImageSet, ImageShape, Trigger, stream};

use crate::TriggerError;

/// By how much differences are multiplied before they are clipped to 255.
const AMPLIFICATION: u16 = 10;

/// The colour between pictures.
const BACKGROUND: Rgb<u8> = Rgb([128, 128, 128]);

/// Images beside what triggers make of them.
///
/// One row per trigger, in the order given; in it, for each image, the original, the triggered image, and ten times the
/// absolute difference, clipped to 255. A triggered image is the one on which the attack's success is measured.
///
/// ```
/// use patchdoor_data::{DatasetConfig, ShapesConfig, load};
/// use patchdoor_triggers::{ContactSheet, TriggerConfig};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let shapes = load(&DatasetConfig::Shapes(ShapesConfig { train: 10, test: 10, seed: 0 }), &[])?;
/// let images = shapes.test.subset(&[0, 1]);
/// let square = TriggerConfig::default().build(images.shape())?;
/// let sheet = ContactSheet::draw(&images, &[("square", square.as_ref())], 4, 0);
/// assert_eq!(sheet.names(), ["square"]);
/// // Twice three pictures of 32 pixels drawn 4 times as large, and gaps of 4 pixels (8 between images).
/// assert_eq!(sheet.picture().dimensions(), (6 * 128 + 7 * 4 + 4, 128 + 2 * 4));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct ContactSheet {
    picture: RgbImage,
    names: Vec<String>,
}

impl ContactSheet {
    /// Draws the sheet with pixels as squares of `scale` x `scale`; what a trigger draws for each image comes from the
    /// streams of `seed` that [`trigger_test_images`](patchdoor_data::trigger_test_images) takes.
    ///
    /// # Panics
    ///
    /// If `scale` is 0 or a trigger was built for images of another shape.
    pub fn draw(images: &ImageSet, triggers: &[(&str, &dyn Trigger)], scale: usize, seed: u64) -> Self {
        let of_trigger = |(name, trigger): &(&str, &dyn Trigger)| {
            let pairs = (0..images.len()).map(|index| {
                let image = images.image(index);
                let mut rng = stream(seed, &format!("trigger/test/{}", images.origin(index)));
                let triggered = trigger.stamp_for_class(&image, images.label(index), &mut rng);
                [image, triggered]
            });
            ((*name).to_owned(), pairs.collect())
        };
        Self::of_pairs(images.shape(), triggers.iter().map(of_trigger).collect(), scale)
    }

    /// Draws rows of images, each beside what was made of it, under the names of the rows; as [`Self::draw`].
    ///
    /// # Panics
    ///
    /// If `scale` is 0 or an image has another shape.
    pub fn of_pairs(shape: ImageShape, rows: Vec<(String, Vec<[Image; 2]>)>, scale: usize) -> Self {
        assert!(scale > 0, "a pixel is drawn at least one pixel large");
        let gap = scale;
        let (height, width) = (shape.height * scale, shape.width * scale);
        // Between images the gap is twice as wide as within the three pictures of one.
        let left = |image: usize, part: usize| gap + image * (3 * width + 4 * gap) + part * (width + gap);
        let top = |row: usize| gap + row * (height + gap);
        let images = rows.iter().map(|(_, pairs)| pairs.len()).max().unwrap_or(0);
        let full_width = images * (3 * width + 4 * gap);
        let mut picture = RgbImage::from_pixel(full_width.max(gap) as u32, top(rows.len()) as u32, BACKGROUND);
        let mut names = Vec::new();
        for (row, (name, pairs)) in rows.into_iter().enumerate() {
            for (index, [image, changed]) in pairs.iter().enumerate() {
                let difference = difference(image, changed);
                for (part, image) in [image, changed, &difference].into_iter().enumerate() {
                    assert_eq!(image.shape(), shape, "all images of a sheet have one shape");
                    paint(&mut picture, image, (top(row), left(index, part)), scale);
                }
            }
            names.push(name);
        }
        Self { picture, names }
    }

    /// The sheet.
    pub fn picture(&self) -> &RgbImage {
        &self.picture
    }

    /// The triggers' names, from the top row down.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Writes the sheet as a PNG file, under a temporary name first.
    ///
    /// # Errors
    ///
    /// [`TriggerError::Exists`] if the file is there already, [`TriggerError::Sheet`] or [`TriggerError::Io`] if it
    /// cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), TriggerError> {
        if path.exists() {
            return Err(TriggerError::Exists { path: path.to_owned() });
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let temporary = path.with_file_name(format!(".{name}.partial"));
        let bytes = self.png().map_err(|source| TriggerError::Sheet { path: path.to_owned(), source })?;
        fs_err::write(&temporary, bytes)?;
        Ok(fs_err::rename(&temporary, path)?)
    }

    /// The sheet as a PNG file has it.
    ///
    /// # Errors
    ///
    /// If it cannot be encoded.
    pub fn png(&self) -> Result<Vec<u8>, ImageError> {
        let mut bytes = std::io::Cursor::new(Vec::new());
        self.picture.write_to(&mut bytes, ImageFormat::Png)?;
        Ok(bytes.into_inner())
    }
}

fn difference(original: &Image, triggered: &Image) -> Image {
    let pairs = original.pixels().iter().zip(triggered.pixels());
    let pixels = pairs.map(|(a, b)| (u16::from(a.abs_diff(*b)) * AMPLIFICATION).min(255) as u8).collect();
    Image::new(original.shape(), pixels).expect("two images of one shape")
}

fn paint(picture: &mut RgbImage, image: &Image, (top, left): (usize, usize), scale: usize) {
    let shape = image.shape();
    for row in 0..shape.height * scale {
        for column in 0..shape.width * scale {
            let pixel = image.pixel(row / scale, column / scale);
            // Grey images have one channel for all three.
            let colour = [0, 1, 2].map(|channel| pixel[channel.min(pixel.len() - 1)]);
            picture.put_pixel((left + column) as u32, (top + row) as u32, Rgb(colour));
        }
    }
}

#[cfg(test)]
mod tests {
    use patchdoor_data::ImageShape;

    use super::*;
    use crate::{SquareConfig, TriggerConfig};

    fn sheet() -> ContactSheet {
        // Two grey images of 2x3 pixels, 100 and 200 all over.
        let shape = ImageShape { height: 2, width: 3, channels: 1 };
        let pixels = [[100; 6], [200; 6]].concat();
        let images = ImageSet::new(shape, pixels, vec![0, 0], vec!["class".to_owned()]).unwrap();
        let build = |value| {
            TriggerConfig::Square(SquareConfig { size: 1, value, ..SquareConfig::default() }).build(shape).unwrap()
        };
        ContactSheet::draw(&images, &[("a", build(105).as_ref()), ("b", build(0).as_ref())], 2, 0)
    }

    #[test]
    fn a_row_has_original_triggered_and_difference_of_each_image() {
        let sheet = sheet();
        assert_eq!(sheet.names(), ["a", "b"]);
        // Per image 3 pictures of 6 columns, 2 gaps of 2 between them and 2 on both sides; rows of 4 with gaps of 2.
        assert_eq!(sheet.picture().dimensions(), (2 * 26, 2 + 2 * 6));
        let at = |column: u32, row: u32| sheet.picture().get_pixel(column, row).0;
        assert_eq!([at(0, 0), at(8, 2), at(51, 13)], [[128; 3]; 3]);
        // Trigger a on the first image: 100, 105, ten times 5; a pixel is two wide.
        assert_eq!(
            [at(2, 2), at(10, 2), at(11, 3), at(18, 2), at(19, 3)],
            [[100; 3], [105; 3], [105; 3], [50; 3], [50; 3]]
        );
        assert_eq!([at(12, 2), at(20, 2)], [[100; 3], [0; 3]]);
        // Trigger b on the second image: 200, 0, ten times 200 clipped.
        assert_eq!([at(28, 8), at(36, 8), at(44, 8)], [[200; 3], [0; 3], [255; 3]]);
    }

    #[test]
    fn a_sheet_is_saved_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sheet.png");
        sheet().save(&path).unwrap();
        assert_eq!(image::open(&path).unwrap().to_rgb8(), *sheet().picture());
        let error = sheet().save(&path).unwrap_err().to_string();
        assert!(error.ends_with("sheet.png exists already; it is never overwritten"), "{error}");
        assert_eq!(fs_err::read_dir(directory.path()).unwrap().count(), 1);
    }
}
