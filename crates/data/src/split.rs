//! Which images of a set to keep for what: validation splits and smaller sets, both true to the classes.

use rand::Rng;
use rand::seq::SliceRandom;

use crate::{ImageSet, stream};

/// Parts a set into images that are kept and images that are held out, `fraction` of every class; indices ascend.
///
/// Of all images together `fraction` is held out, rounded to the nearest, and of every class `fraction` of its own,
/// rounded down or up so that the sum is right: up where the remainder is largest, then in the lower class. Where the set
/// has groups, whole groups are held out until the class comes as near to that number as its groups allow, and a group of
/// several classes counts for the class of its first image.
///
/// # Panics
///
/// If `fraction` is not in [0, 1].
pub fn stratified(set: &ImageSet, fraction: f64, rng: &mut impl Rng) -> (Vec<usize>, Vec<usize>) {
    assert!((0.0..=1.0).contains(&fraction), "a held-out fraction is {fraction}, expected one in [0, 1]");
    let mut is_held_out = vec![false; set.len()];
    let by_class = units_by_class(set);
    let sizes: Vec<usize> = by_class.iter().map(|units| units.iter().map(Vec::len).sum()).collect();
    for (mut units, wanted) in by_class.into_iter().zip(apportioned(&sizes, fraction)) {
        units.shuffle(rng);
        let mut held_out = 0;
        for unit in &units {
            // A unit that overshoots is taken only if that brings us nearer.
            if held_out < wanted && unit.len() <= 2 * (wanted - held_out) {
                held_out += unit.len();
                for &index in unit {
                    is_held_out[index] = true;
                }
            }
        }
    }
    (0..set.len()).partition(|&index| !is_held_out[index])
}

/// Which images of a data set's training split one seed trains on, and which it holds out; indices ascend.
///
/// `fraction` is held out by [`stratified`] from `stream(seed, "validation")`. Of what is left and of what is held out,
/// `counts` images are drawn by [`stratified_subset`], from `"training-images"` and `"validation-images"`; all if not given.
///
/// # Panics
///
/// If `fraction` is not in [0, 1].
pub fn for_seed(
    train: &ImageSet,
    fraction: f64,
    counts: Option<(usize, usize)>,
    seed: u64,
) -> (Vec<usize>, Vec<usize>) {
    let (kept, held_out) = if fraction == 0.0 {
        ((0..train.len()).collect(), Vec::new())
    } else {
        stratified(train, fraction, &mut stream(seed, "validation"))
    };
    let Some((training, validation)) = counts else { return (kept, held_out) };
    let drawn = |of: &[usize], count, name| {
        let chosen = stratified_subset(&train.subset(of), count, &mut stream(seed, name));
        chosen.into_iter().map(|index| of[index]).collect()
    };
    (drawn(&kept, training, "training-images"), drawn(&held_out, validation, "validation-images"))
}

/// Draws `count` images with the classes in the set's proportions, indices ascending.
///
/// Subsets are nested: with a generator in the same state, a smaller count gives a part of what a larger count gives. A
/// count beyond the set's length gives the whole set.
pub fn stratified_subset(set: &ImageSet, count: usize, rng: &mut impl Rng) -> Vec<usize> {
    let mut by_class = vec![Vec::new(); set.class_count()];
    for (index, &label) in set.labels().iter().enumerate() {
        by_class[usize::from(label)].push(index);
    }
    // Each class is shuffled and spread evenly over [0, 1); cut anywhere, every class is cut at the same place. Classes
    // of one size meet at the same points, where a random order decides.
    let mut order = Vec::with_capacity(set.len());
    for indices in &mut by_class {
        indices.shuffle(rng);
        let size = indices.len() as f64;
        order.extend(
            indices.iter().enumerate().map(|(rank, &index)| ((rank as f64 + 0.5) / size, rng.next_u32(), index)),
        );
    }
    order.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)).then(a.2.cmp(&b.2)));
    let mut chosen: Vec<usize> = order.into_iter().take(count).map(|(_, _, index)| index).collect();
    chosen.sort_unstable();
    chosen
}

/// `fraction` of every size, in whole numbers whose sum is `fraction` of all, rounded (the method of largest remainders).
fn apportioned(sizes: &[usize], fraction: f64) -> Vec<usize> {
    let total = (fraction * sizes.iter().sum::<usize>() as f64).round() as usize;
    let exact: Vec<f64> = sizes.iter().map(|&size| fraction * size as f64).collect();
    let mut parts: Vec<usize> = exact.iter().map(|&part| part as usize).collect();
    let mut order: Vec<usize> = (0..sizes.len()).collect();
    order.sort_by(|&a, &b| exact[b].fract().total_cmp(&exact[a].fract()).then(a.cmp(&b)));
    let missing = total.saturating_sub(parts.iter().sum());
    for &class in order.iter().take(missing) {
        parts[class] += 1;
    }
    parts
}

/// For every class, its images parted into units that must stay together: single images, or groups.
fn units_by_class(set: &ImageSet) -> Vec<Vec<Vec<usize>>> {
    let mut by_class = vec![Vec::new(); set.class_count()];
    let Some(groups) = set.groups() else {
        for (index, &label) in set.labels().iter().enumerate() {
            by_class[usize::from(label)].push(vec![index]);
        }
        return by_class;
    };
    let mut indices: Vec<usize> = (0..set.len()).collect();
    indices.sort_by_key(|&index| (groups[index], index));
    for unit in indices.chunk_by(|&a, &b| groups[a] == groups[b]) {
        by_class[usize::from(set.label(unit[0]))].push(unit.to_vec());
    }
    by_class
}

#[cfg(test)]
mod tests {
    #[test]
    fn parts_sum_to_the_rounded_part_of_the_whole() {
        // A tenth of 24 + 24 + 12 is 6: 2.4, 2.4, 1.2 give 2 + 2 + 1, and the first remainder of 0.4 gets the sixth.
        assert_eq!(super::apportioned(&[24, 24, 12], 0.1), [3, 2, 1]);
        assert_eq!(super::apportioned(&[5000; 10], 0.1), [500; 10]);
        assert_eq!(super::apportioned(&[3, 4], 1.0), [3, 4]);
        assert_eq!(super::apportioned(&[3, 4], 0.0), [0, 0]);
    }

    use proptest::prelude::*;

    use super::*;
    use crate::image_set::tests::tiny;

    #[test]
    fn a_tenth_of_every_class_is_held_out() {
        // 40 images of class 0 and 20 of class 1.
        let labels: Vec<u8> = (0..60).map(|index| u8::from(index % 3 == 0)).collect();
        let set = tiny(&labels, 2);
        let (kept, held_out) = stratified(&set, 0.1, &mut stream(3, "validation"));
        assert_eq!(set.subset(&held_out).class_counts(), [4, 2]);
        assert_eq!(set.subset(&kept).class_counts(), [36, 18]);
        assert!(held_out.is_sorted() && kept.is_sorted());
        assert_eq!((kept, held_out), stratified(&set, 0.1, &mut stream(3, "validation")));
    }

    #[test]
    fn the_same_seed_holds_out_the_same_images() {
        // A change of these numbers changes every published result.
        let set = tiny(&(0..40).map(|index| index % 4).collect::<Vec<_>>(), 4);
        assert_eq!(stratified(&set, 0.1, &mut stream(0, "validation")).1, [12, 15, 17, 22]);
        assert_eq!(stratified_subset(&set, 4, &mut stream(0, "subset")), [1, 6, 7, 12]);
    }

    #[test]
    fn groups_stay_together_and_sizes_come_close() {
        // Class 0: ten groups of 5. Class 1: one group of 5, which cannot be halved; holding out 1 of 5 is nearer to 0.
        let labels: Vec<u8> = (0..55).map(|index| u8::from(index >= 50)).collect();
        let set = tiny(&labels, 2).with_groups((0..55).map(|index| index / 5).collect()).unwrap();
        let (kept, held_out) = stratified(&set, 0.2, &mut stream(0, "validation"));
        assert_eq!(set.subset(&held_out).class_counts(), [10, 0]);
        for &index in &held_out {
            assert!(kept.iter().all(|&other| other / 5 != index / 5), "group {} is torn apart", index / 5);
        }
    }

    proptest! {
        #[test]
        fn a_split_is_a_partition(labels in prop::collection::vec(0_u8..4, 0..80), fraction in 0.0..=1.0, seed: u64, grouped: bool) {
            let mut set = tiny(&labels, 4);
            if grouped {
                set = set.with_groups((0..labels.len() as u32).map(|index| index * 7 % 11).collect()).unwrap();
            }
            let (kept, held_out) = stratified(&set, fraction, &mut stream(seed, "validation"));
            let mut all = [kept, held_out.clone()].concat();
            all.sort_unstable();
            prop_assert_eq!(all, (0..labels.len()).collect::<Vec<_>>());
            if !grouped {
                // In all as exact as whole images can be; in each class less than one image off.
                prop_assert_eq!(held_out.len(), (fraction * labels.len() as f64).round() as usize);
                for (held, all) in set.subset(&held_out).class_counts().iter().zip(set.class_counts()) {
                    prop_assert!((*held as f64 - fraction * all as f64).abs() < 1.0);
                }
            }
        }

        #[test]
        fn subsets_are_nested_and_stratified(labels in prop::collection::vec(0_u8..4, 0..80), small in 0_usize..90, more in 0_usize..20, seed: u64) {
            let set = tiny(&labels, 4);
            let smaller = stratified_subset(&set, small, &mut stream(seed, "subset"));
            let larger = stratified_subset(&set, small + more, &mut stream(seed, "subset"));
            prop_assert_eq!(smaller.len(), small.min(set.len()));
            prop_assert!(smaller.is_sorted() && smaller.windows(2).all(|pair| pair[0] != pair[1]));
            prop_assert!(smaller.iter().all(|index| larger.contains(index)));
            for (drawn, all) in set.subset(&smaller).class_counts().iter().zip(set.class_counts()) {
                let expected = all as f64 * smaller.len() as f64 / set.len().max(1) as f64;
                prop_assert!((*drawn as f64 - expected).abs() <= 3.0, "{drawn} of {all}, expected {expected}");
            }
        }
    }
}
