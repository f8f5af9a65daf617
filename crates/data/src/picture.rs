use std::io::Cursor;
use std::path::Path;

use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader};

use crate::jpeg::{self, End};
use crate::picture_error::{LARGEST, PictureError};
use crate::{DataError, Image, ImageShape, resize};

/// Endings of the files that are taken for pictures, in lower case. What a picture is, its first bytes say.
pub(crate) const ENDINGS: [&str; 15] =
    ["png", "jpg", "jpeg", "jpe", "jfif", "webp", "bmp", "dib", "tif", "tiff", "gif", "ppm", "pgm", "pbm", "pnm"];

/// The most memory a decoder may take for itself, in bytes.
const MEMORY: u64 = 1 << 30;

/// Reads a PNG, JPEG, WebP, BMP, TIFF, GIF or PNM file, whatever its ending, as an RGB image of `height` x `width`.
///
/// Pixels are those of Pillow's `Image.open(path).convert("RGB").resize((width, height), Image.BILINEAR)`: grey becomes three
/// equal channels, of 16 bits the upper 8 count, transparency is dropped, EXIF orientation and colour profiles are ignored,
/// and of an animation or a file of several pages the first picture is taken. JPEG and lossy WebP leave
/// decoders a freedom of rounding, a step or two of 255.
///
/// # Errors
///
/// [`DataError::Io`] if the file cannot be read, [`DataError::ImageFile`] if it is no picture, a part is missing, or
/// its header says that it has more than 89,478,485 pixels, which is found out before anything is decoded.
pub fn read_picture(path: &Path, height: usize, width: usize) -> Result<Image, DataError> {
    let file = fs_err::read(path)?;
    let unusable = |source| DataError::ImageFile { path: path.to_owned(), others: 0, source };
    let picture = decode(&file).map_err(unusable)?;
    let from = [picture.height() as usize, picture.width() as usize];
    let pixels = rgb(&picture).map_err(unusable)?;
    Image::new(ImageShape { height, width, channels: 3 }, resize::bilinear(&pixels, 3, from, [height, width]))
}

/// Reads such a file with its transparency and at its own size, as an image of four channels, the last of which is 255 where
/// the picture is opaque.
///
/// # Errors
///
/// Those of [`read_picture`].
pub fn read_with_alpha(path: &Path) -> Result<Image, DataError> {
    let file = fs_err::read(path)?;
    let picture =
        decode(&file).map_err(|source| DataError::ImageFile { path: path.to_owned(), others: 0, source })?.into_rgba8();
    let shape = ImageShape { height: picture.height() as usize, width: picture.width() as usize, channels: 4 };
    Image::new(shape, picture.into_raw())
}

/// Decodes a whole file.
fn decode(file: &[u8]) -> Result<DynamicImage, PictureError> {
    if file.is_empty() {
        return Err(PictureError::Empty);
    }
    let Ok(format) = image::guess_format(file) else {
        let begins = String::from_utf8_lossy(&file[..file.len().min(16)]).into_owned();
        return Err(PictureError::OtherFormat { begins: format!("{begins:?}") });
    };
    if format != ImageFormat::Jpeg {
        return decode_as(format, file);
    }
    match jpeg::end(file) {
        End::Marked => decode_as(format, file),
        End::Missing => Err(PictureError::BreaksOff),
        End::Open => {
            let (width, height) = size(decoder(format, file)?.as_ref())?;
            // A block of 8x8 takes 64 codes of at most three bits each where all of them are zeros; there are three colours.
            let tail = width.next_multiple_of(16) as usize * height.next_multiple_of(16) as usize * 3 * 3 / 8;
            let [first, others @ ..] = jpeg::continuations(file, tail);
            let picture = decode_as(format, &first)?;
            let is_whole = others.iter().all(|file| decode_as(format, file).is_ok_and(|other| other == picture));
            if is_whole { Ok(picture) } else { Err(PictureError::BreaksOff) }
        }
    }
}

fn decode_as(format: ImageFormat, file: &[u8]) -> Result<DynamicImage, PictureError> {
    let decoder = decoder(format, file)?;
    size(decoder.as_ref())?;
    Ok(DynamicImage::from_decoder(decoder)?)
}

/// What reads a header and, if asked, the picture.
fn decoder(format: ImageFormat, file: &[u8]) -> Result<Box<dyn ImageDecoder + '_>, PictureError> {
    let mut limits = image::Limits::default();
    limits.max_alloc = Some(MEMORY);
    let mut reader = ImageReader::with_format(Cursor::new(file), format);
    reader.limits(limits);
    Ok(Box::new(reader.into_decoder()?))
}

/// Width and height, unless there are too many pixels to decode, or none.
fn size(decoder: &dyn ImageDecoder) -> Result<(u32, u32), PictureError> {
    let (width, height) = decoder.dimensions();
    let is_usable = (1..=LARGEST).contains(&(u64::from(width) * u64::from(height)));
    is_usable.then_some((width, height)).ok_or(PictureError::Size { width, height })
}

/// The colours of a picture, height x width x channel, by Pillow's rules.
fn rgb(picture: &DynamicImage) -> Result<Vec<u8>, PictureError> {
    let upper = |value: u16| (value >> 8) as u8;
    Ok(match picture {
        DynamicImage::ImageRgb8(image) => image.as_raw().clone(),
        DynamicImage::ImageRgba8(image) => {
            image.pixels().flat_map(|pixel| [pixel.0[0], pixel.0[1], pixel.0[2]]).collect()
        }
        DynamicImage::ImageLuma8(image) => image.pixels().flat_map(|pixel| [pixel.0[0]; 3]).collect(),
        DynamicImage::ImageLumaA8(image) => image.pixels().flat_map(|pixel| [pixel.0[0]; 3]).collect(),
        DynamicImage::ImageLuma16(image) => image.pixels().flat_map(|pixel| [upper(pixel.0[0]); 3]).collect(),
        DynamicImage::ImageLumaA16(image) => image.pixels().flat_map(|pixel| [upper(pixel.0[0]); 3]).collect(),
        DynamicImage::ImageRgb16(image) => image.as_raw().iter().map(|&value| upper(value)).collect(),
        DynamicImage::ImageRgba16(image) => {
            image.pixels().flat_map(|pixel| [pixel.0[0], pixel.0[1], pixel.0[2]].map(upper)).collect()
        }
        _ => return Err(PictureError::Pixels { found: "floating-point numbers" }),
    })
}
