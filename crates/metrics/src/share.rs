/// What a product of floating-point numbers may lie below or above the whole number that it stands for.
const SLACK: f64 = 1e-9;

/// So many of `count` things as this share comes to, rounded down as decimal numbers are: 0.29 of 100 are 29, though their product
/// is 28.999999999999996 in floating point. Shares below zero are none.
#[must_use]
pub fn share_down(share: f64, count: usize) -> usize {
    (share * count as f64 + SLACK).floor() as usize
}

/// The same, rounded up: 0.07 of 100 are 7, though their product is 7.000000000000001.
#[must_use]
pub fn share_up(share: f64, count: usize) -> usize {
    (share * count as f64 - SLACK).ceil() as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_rounded_as_decimal_numbers_are() {
        assert_eq!([share_down(0.29, 100), share_up(0.29, 100)], [29, 29]);
        assert_eq!([share_down(0.07, 100), share_up(0.07, 100)], [7, 7]);
        assert_eq!([share_down(0.1, 16), share_up(0.1, 16)], [1, 2]);
        assert_eq!([share_down(0.0, 10), share_up(0.0, 10), share_down(-0.5, 10)], [0, 0, 0]);
    }

    #[test]
    fn a_share_in_thousandths_is_that_of_whole_numbers() {
        for (thousandths, count) in (0..=1000).flat_map(|thousandths| (0..=500).map(move |count| (thousandths, count)))
        {
            let share = thousandths as f64 / 1000.0;
            assert_eq!(share_down(share, count), thousandths * count / 1000, "{share} of {count}");
            assert_eq!(share_up(share, count), (thousandths * count).div_ceil(1000), "{share} of {count}");
        }
    }
}
