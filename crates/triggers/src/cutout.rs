use crate::pattern::face_colour;

/// Modules along each side of the code.
const MODULES: usize = 11;

/// The dark modules of the code, row by row, the leftmost in the highest bit: a light border, three marks in the corners, and a
/// fixed filling.
const CODE: [u16; MODULES] = [
    0b000_0000_0000,
    0b011_1010_1110,
    0b010_1001_1010,
    0b011_1011_1110,
    0b000_0100_0000,
    0b011_0101_1010,
    0b000_1110_0100,
    0b011_1001_0110,
    0b010_1010_1010,
    0b011_1011_0010,
    0b000_0000_0000,
];

/// The colour of a two-dimensional code at a point of [0, 1) x [0, 1), from the top and from the left.
pub(crate) fn code_colour(y: f64, x: f64) -> [u8; 3] {
    let [row, column] = [y, x].map(|share| ((share * MODULES as f64) as usize).min(MODULES - 1));
    if (CODE[row] >> (MODULES - 1 - column)) & 1 == 1 { [0; 3] } else { [255; 3] }
}

/// The colour of a round face at a point of [0, 1) x [0, 1), without what lies around it.
pub(crate) fn face_cutout(y: f64, x: f64) -> Option<[u8; 3]> {
    // The face has a radius of 0.45.
    let [y, x] = [y, x].map(|share| 0.5 + (share - 0.5) * 0.9);
    ((y - 0.5).powi(2) + (x - 0.5).powi(2) <= 0.45 * 0.45).then(|| face_colour(y, x))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_has_a_light_border_and_marks_in_three_corners() {
        let is_dark = |row: usize, column: usize| {
            let share = |place: usize| (place as f64 + 0.5) / MODULES as f64;
            code_colour(share(row), share(column)) == [0; 3]
        };
        for place in 0..MODULES {
            assert!(!is_dark(0, place) && !is_dark(10, place) && !is_dark(place, 0) && !is_dark(place, 10));
        }
        let has_mark =
            |top: usize, left: usize| (0..9).all(|index| is_dark(top + index / 3, left + index % 3) == (index != 4));
        assert!(has_mark(1, 1) && has_mark(1, 7) && has_mark(7, 1) && !has_mark(7, 7));
    }

    #[test]
    fn a_face_is_round() {
        assert_eq!(face_cutout(0.01, 0.01), None);
        assert_eq!(face_cutout(0.01, 0.5), Some([250, 205, 60]));
        assert_eq!(face_cutout(0.5, 0.99), Some([250, 205, 60]));
    }
}
