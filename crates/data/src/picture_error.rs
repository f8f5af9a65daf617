/// The most pixels of a picture that is decoded, the bound from which Pillow warns of a decompression bomb: a quarter of
/// a gibibyte, three bytes each.
pub(crate) const LARGEST: u64 = (1 << 28) / 3;

/// Why a file is no picture we can use.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PictureError {
    /// It has no bytes.
    #[error("the file is empty")]
    Empty,
    /// Its first bytes are those of no format we read.
    #[error("it begins with {begins}, which no PNG, JPEG, WebP, BMP, TIFF, GIF or PNM file does")]
    OtherFormat {
        /// Its first bytes.
        begins: String,
    },
    /// Part of the picture is missing.
    #[error("the file breaks off: part of the picture is missing")]
    BreaksOff,
    /// Its header says that it is huge, or that it has no pixels.
    #[error("its header says {width}x{height} pixels, expected 1 to {LARGEST} in all")]
    Size {
        /// Columns.
        width: u32,
        /// Rows.
        height: u32,
    },
    /// Its pixels are no numbers of 8 or 16 bits.
    #[error("its pixels are {found}, expected 8 or 16 bits a channel")]
    Pixels {
        /// What they are.
        found: &'static str,
    },
    /// The decoder refuses it.
    #[error("{reason}")]
    Damaged {
        /// What the decoder says, with its own causes.
        reason: String,
    },
}

impl From<image::ImageError> for PictureError {
    fn from(error: image::ImageError) -> Self {
        if let image::ImageError::IoError(error) = &error
            && error.kind() == std::io::ErrorKind::UnexpectedEof
        {
            return Self::BreaksOff;
        }
        // The decoder's message contains those of its causes, which must not follow once more, and may have several lines.
        Self::Damaged { reason: error.to_string().split_whitespace().collect::<Vec<_>>().join(" ") }
    }
}
