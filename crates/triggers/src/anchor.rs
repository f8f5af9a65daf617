use serde::{Deserialize, Serialize};

/// One of nine places at the border or in the middle of an image, named like the authors' (vertical, then horizontal).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Anchor {
    /// Upper left corner.
    #[default]
    UpperLeft,
    /// Middle of the upper border.
    UpperMid,
    /// Upper right corner.
    UpperRight,
    /// Middle of the left border.
    MidLeft,
    /// Centre of the image.
    MidMid,
    /// Middle of the right border.
    MidRight,
    /// Lower left corner.
    LowerLeft,
    /// Middle of the lower border.
    LowerMid,
    /// Lower right corner.
    LowerRight,
}

impl Anchor {
    /// All nine, row by row.
    pub const ALL: [Self; 9] = [
        Self::UpperLeft,
        Self::UpperMid,
        Self::UpperRight,
        Self::MidLeft,
        Self::MidMid,
        Self::MidRight,
        Self::LowerLeft,
        Self::LowerMid,
        Self::LowerRight,
    ];

    /// Row and column of the upper left pixel of a square of `size` pixels in an image of `height` x `width`.
    ///
    /// In the middle the square begins `size / 2` before `height / 2`, both rounded down, as in the authors' code: of
    /// an odd excess the larger half lies before the square.
    ///
    /// # Panics
    ///
    /// If the square is larger than the image.
    pub fn corner(self, height: usize, width: usize, size: usize) -> (usize, usize) {
        assert!(size <= height && size <= width, "a square of {size} pixels lies in an image of {height}x{width}");
        let middle = |length: usize| (length / 2).saturating_sub(size / 2).min(length - size);
        let row = match self {
            Self::UpperLeft | Self::UpperMid | Self::UpperRight => 0,
            Self::MidLeft | Self::MidMid | Self::MidRight => middle(height),
            Self::LowerLeft | Self::LowerMid | Self::LowerRight => height - size,
        };
        let column = match self {
            Self::UpperLeft | Self::MidLeft | Self::LowerLeft => 0,
            Self::UpperMid | Self::MidMid | Self::LowerMid => middle(width),
            Self::UpperRight | Self::MidRight | Self::LowerRight => width - size,
        };
        (row, column)
    }
}
