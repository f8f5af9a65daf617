//! How sure a few noisy timings make us that one program is slower than another.

/// Chance that the true ratio lies outside the interval, on both sides together.
const DOUBT: f64 = 0.05;

/// Fewest rounds for which an interval of that doubt exists: with 5, even the least and the greatest ratio enclose the true
/// one with a doubt of 2/32 only.
pub(crate) const FEWEST_ROUNDS: usize = 6;

/// Where the true ratio lies, as far as the rounds tell.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Interval {
    /// Lower end.
    pub(crate) low: f64,
    /// The best guess, between the ends.
    pub(crate) middle: f64,
    /// Upper end.
    pub(crate) high: f64,
}

impl Interval {
    /// The interval of the ratio of times, new to old, from one pair per round; none from fewer than [`FEWEST_ROUNDS`].
    ///
    /// The logarithm of each round's ratio is the true one plus noise that is as likely positive as negative: both
    /// programs take turns, so what disturbs the machine disturbs either alike. For such values the Hodges-Lehmann
    /// estimate (median of all pairwise means) and the interval of Wilcoxon's signed rank test are exact, whatever the
    /// noise, and a single disturbed round does not move them far (Hollander and Wolfe 1999, section 3.3).
    pub(crate) fn of(pairs: &[[f64; 2]]) -> Option<Self> {
        if pairs.len() < FEWEST_ROUNDS {
            return None;
        }
        let logarithms: Vec<f64> = pairs.iter().map(|[old, new]| (new / old).ln()).collect();
        let mut means: Vec<f64> = Vec::new();
        for (index, first) in logarithms.iter().enumerate() {
            means.extend(logarithms[index..].iter().map(|second| f64::midpoint(*first, *second)));
        }
        means.sort_by(f64::total_cmp);
        let cut = cut(pairs.len());
        Some(Self { low: means[cut].exp(), middle: median(&means).exp(), high: means[means.len() - 1 - cut].exp() })
    }
}

/// The middle of sorted values.
pub(crate) fn median(sorted: &[f64]) -> f64 {
    let half = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[half] } else { f64::midpoint(sorted[half - 1], sorted[half]) }
}

/// How many pairwise means to leave out at either end: the greatest rank sum that is reached or undercut with a chance of
/// at most half the doubt, if each of the ranks 1 to `rounds` counts with a chance of one half.
fn cut(rounds: usize) -> usize {
    let sums = rounds * (rounds + 1) / 2;
    // chances[s]: the chance that the ranks counted so far add up to s.
    let mut chances = vec![0.0; sums + 1];
    chances[0] = 1.0;
    for rank in 1..=rounds {
        for sum in (0..=sums).rev() {
            let with_rank = if sum >= rank { chances[sum - rank] } else { 0.0 };
            chances[sum] = f64::midpoint(chances[sum], with_rank);
        }
    }
    let mut cumulated = 0.0;
    let within = chances.iter().take_while(|&&chance| {
        cumulated += chance;
        cumulated <= DOUBT / 2.0
    });
    within.count().saturating_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Times as a shared machine gives them: the true time, a little noise, and now and then twice as long.
    struct Machine(u64);

    impl Machine {
        fn uniform(&mut self) -> f64 {
            // Knuth's 64-bit linear congruential generator; its upper bits are good enough here.
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 11) as f64 / (1_u64 << 53) as f64
        }

        fn time(&mut self, seconds: f64) -> f64 {
            let disturbed = if self.uniform() < 0.15 { 1.0 + self.uniform() } else { 1.0 };
            seconds * (1.0 + 0.05 * self.uniform()) * disturbed
        }

        fn rounds(&mut self, count: usize, slowdown: f64) -> Vec<[f64; 2]> {
            (0..count).map(|_| [self.time(0.1), self.time(0.1 * slowdown)]).collect()
        }
    }

    #[test]
    fn cuts_are_those_of_the_published_tables() {
        // Critical values of the signed rank test at a two-sided 5 % (Wilcoxon 1945; any table has them).
        for (rounds, expected) in [(6, 0), (7, 2), (8, 3), (9, 5), (10, 8), (12, 13), (15, 25), (20, 52)] {
            assert_eq!(cut(rounds), expected, "{rounds} rounds");
        }
    }

    #[test]
    fn six_rounds_are_enclosed_by_their_least_and_greatest_ratio() {
        let pairs = [[1.0, 1.0], [1.0, 1.1], [2.0, 2.4], [1.0, 1.3], [1.0, 1.4], [1.0, 1.5]];
        let interval = Interval::of(&pairs).unwrap();
        assert!((interval.low - 1.0).abs() < 1e-12 && (interval.high - 1.5).abs() < 1e-12, "{interval:?}");
        assert!((1.2..1.3).contains(&interval.middle), "{interval:?}");
    }

    #[test]
    fn too_few_rounds_say_nothing() {
        assert_eq!(Interval::of(&[[1.0, 2.0]; 5]), None);
    }

    #[test]
    fn swapping_the_programs_inverts_the_interval() {
        let pairs = Machine(1).rounds(9, 1.2);
        let swapped: Vec<[f64; 2]> = pairs.iter().map(|&[old, new]| [new, old]).collect();
        let (one, other) = (Interval::of(&pairs).unwrap(), Interval::of(&swapped).unwrap());
        assert!((one.low * other.high - 1.0).abs() < 1e-12 && (one.middle * other.middle - 1.0).abs() < 1e-12);
    }

    #[test]
    fn one_disturbed_round_in_eight_moves_little() {
        let mut pairs = vec![[1.0, 1.3]; 8];
        pairs[3] = [1.0, 40.0];
        let interval = Interval::of(&pairs).unwrap();
        assert!((interval.low - 1.3).abs() < 1e-12 && (interval.middle - 1.3).abs() < 1e-12, "{interval:?}");
    }

    #[test]
    fn a_slowdown_of_a_half_is_found_and_none_is_not_made_up() {
        // With every seventh timing disturbed, twelve rounds find about nine slowdowns in ten.
        let mut machine = Machine(7);
        let over = |machine: &mut Machine, slowdown| {
            let pairs = machine.rounds(12, slowdown);
            Interval::of(&pairs).unwrap().low > 1.15
        };
        let found = (0..200).filter(|_| over(&mut machine, 1.5)).count();
        let made_up = (0..200).filter(|_| over(&mut machine, 1.0)).count();
        assert!(found >= 170, "{found} of 200 slowdowns found");
        assert_eq!(made_up, 0, "slowdowns that are not there");
    }

    #[test]
    fn the_interval_holds_the_true_ratio_as_often_as_promised() {
        let mut machine = Machine(3);
        let holds = |machine: &mut Machine| {
            let interval = Interval::of(&machine.rounds(8, 1.25)).unwrap();
            (interval.low..=interval.high).contains(&1.25)
        };
        let held = (0..2000).filter(|_| holds(&mut machine)).count();
        assert!(held >= 1880, "{held} of 2000; 1900 were promised");
    }
}
