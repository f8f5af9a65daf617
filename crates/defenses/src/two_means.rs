use crate::principal::{centred, dot, mean_of, principal_axes};

/// A class split in two.
pub(crate) struct Split {
    /// `[example][component]`
    pub(crate) points: Vec<Vec<f64>>,
    /// Whether an example is in the smaller cluster.
    pub(crate) is_smaller: Vec<bool>,
    /// Centre of the larger and of the smaller cluster.
    pub(crate) centres: [Vec<f64>; 2],
}

impl Split {
    /// `None` if there are not two clusters.
    pub(crate) fn of(rows: &[&[f64]], components: usize) -> Option<Self> {
        let rows = centred(rows);
        let axes = principal_axes(&rows, components);
        let points: Vec<Vec<f64>> = rows.iter().map(|row| axes.iter().map(|axis| dot(row, axis)).collect()).collect();
        let mut is_second: Vec<bool> =
            points.iter().map(|point| point.first().is_some_and(|&first| first > 0.0)).collect();
        // Lloyd's steps end: each lowers the sum of squares, and there are finitely many splits.
        loop {
            let centres = [false, true].map(|side| {
                let members = points.iter().zip(&is_second).filter(|(_, second)| **second == side);
                mean_of(&members.map(|(point, _)| point.as_slice()).collect::<Vec<_>>())
            });
            if centres.iter().any(Vec::is_empty) {
                return None;
            }
            let nearer: Vec<bool> =
                points.iter().map(|point| distance(point, &centres[1]) < distance(point, &centres[0])).collect();
            if nearer == is_second {
                let second = is_second.iter().filter(|&&second| second).count();
                // Of two of one size the second is called the smaller.
                let is_turned = 2 * second > points.len();
                let is_smaller = is_second.into_iter().map(|second| second != is_turned).collect();
                let [first, second] = centres;
                let centres = if is_turned { [second, first] } else { [first, second] };
                return Some(Self { points, is_smaller, centres });
            }
            is_second = nearer;
        }
    }

    /// The smaller cluster's share of the class.
    pub(crate) fn share(&self) -> f64 {
        self.is_smaller.iter().filter(|&&smaller| smaller).count() as f64 / self.is_smaller.len() as f64
    }

    pub(crate) fn score(&self, place: usize) -> f64 {
        let [from_larger, from_smaller] = self.centres.each_ref().map(|centre| distance(&self.points[place], centre));
        (from_larger - from_smaller) / distance(&self.centres[0], &self.centres[1])
    }

    /// Mean over the examples of (b - a) / max(a, b), with a the mean distance to the others of its cluster and b that to the
    /// other cluster; 0 for one alone in its cluster (Rousseeuw 1987).
    pub(crate) fn silhouette(&self) -> f64 {
        let of = |place: usize| {
            let (mut sums, mut counts) = ([0.0, 0.0], [0usize, 0]);
            for other in (0..self.points.len()).filter(|&other| other != place) {
                let side = usize::from(self.is_smaller[other] != self.is_smaller[place]);
                sums[side] += distance(&self.points[place], &self.points[other]);
                counts[side] += 1;
            }
            if counts.contains(&0) {
                return 0.0;
            }
            let [own, other] = [0, 1].map(|side| sums[side] / counts[side] as f64);
            if own.max(other) > 0.0 { (other - own) / own.max(other) } else { 0.0 }
        };
        (0..self.points.len()).map(of).sum::<f64>() / self.points.len() as f64
    }
}

fn distance(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_of_two_groups_is_split_between_them() {
        // On a line: 0, 1, 2 and 12. Mean 15/4; centres 1 and 12 after one step.
        let rows = [[0.0], [1.0], [2.0], [12.0]];
        let split = Split::of(&rows.each_ref().map(<[f64; 1]>::as_slice), 10).expect("two groups");
        assert_eq!(split.is_smaller, [false, false, false, true]);
        assert!((split.share() - 0.25).abs() < 1e-12);
        // The point 12: 11 from the larger centre, 0 from its own, over 11. The point 2: (1 - 10) / 11.
        assert!((split.score(3) - 1.0).abs() < 1e-9 && (split.score(2) + 9.0 / 11.0).abs() < 1e-9);
        // 0: own (1 + 2) / 2, other 12: 10.5 / 12. 1: own 1, other 11: 10 / 11. 2: own 1.5, other 10: 8.5 / 10. 12: alone, 0.
        let expected = (10.5 / 12.0 + 10.0 / 11.0 + 0.85) / 4.0;
        assert!((split.silhouette() - expected).abs() < 1e-9);
    }

    #[test]
    fn a_class_without_two_different_examples_is_not_split() {
        assert!(Split::of(&[&[1.0, 2.0], &[1.0, 2.0]], 2).is_none());
        assert!(Split::of(&[&[1.0, 2.0]], 2).is_none() && Split::of(&[], 2).is_none());
    }
}
