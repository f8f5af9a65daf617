/// How often each expert of a network selects each patch, in untouched images of each class.
#[derive(Clone, Copy, Debug)]
pub struct SelectionMaps<'a> {
    /// Rows and columns of patches.
    pub grid: [usize; 2],
    /// Number of experts.
    pub experts: usize,
    /// Share of a class's images in which an expert selects a patch, `[class, expert, patch]`; NaN in a class without images.
    pub frequencies: &'a [f64],
    /// Mean intersection over union of what two experts select in an image, `[expert, expert]`.
    pub similarity: &'a [f64],
}

/// What the routers of one network select in untouched images, in a few numbers by which networks can be compared.
///
/// No number depends on the order of experts, nor on that of classes: experts of two networks have nothing to do with each
/// other, and which class is the target of a backdoor is not known.
#[derive(Clone, Debug, PartialEq)]
pub struct RoutingProfile([f64; RoutingProfile::NAMES.len()]);

impl RoutingProfile {
    /// What its numbers are called, in their order.
    ///
    /// - `load-entropy`, its `lowest` and `highest`: entropy of the load over patches over its largest possible value, of all
    ///   experts together and of the most and least concentrated one.
    /// - `busiest-patch`: the largest share of images in which an expert selects one patch; `idlest-patch`: the smallest mean
    ///   over experts of that share.
    /// - `lone-patch`: by how much a patch is selected more than the mean of its neighbours, by one expert, at most.
    /// - `class-distance`, its `largest` and `outlier`: share of an expert's selections that lie elsewhere in images of one class than
    ///   in those of the others, mean over experts, then over classes; the class in which it is largest, and how many scaled median
    ///   absolute deviations (1.4826 of them are a standard deviation) it lies above the median class.
    /// - `class-patch`: by how much an expert selects a patch more often in one class than in the others, at most.
    /// - `similarity`, its `largest` and `smallest`: intersection over union of two experts' selections, over pairs.
    pub const NAMES: [&'static str; 13] = [
        "load-entropy",
        "load-entropy-lowest",
        "load-entropy-highest",
        "busiest-patch",
        "idlest-patch",
        "lone-patch",
        "class-distance",
        "class-distance-largest",
        "class-distance-outlier",
        "class-patch",
        "similarity",
        "similarity-largest",
        "similarity-smallest",
    ];

    /// Of a network; classes weigh the same. `None` with fewer than two experts or two classes with images, or without patches.
    ///
    /// # Panics
    /// If the maps have not the lengths that grid and experts ask for.
    pub fn of(maps: &SelectionMaps<'_>) -> Option<Self> {
        let SelectionMaps { grid: [rows, columns], experts, frequencies, similarity } = *maps;
        let patches = rows * columns;
        if experts < 2 || patches < 2 {
            return None;
        }
        assert!(frequencies.len().is_multiple_of(experts * patches), "maps are [class, expert, patch]");
        assert_eq!(similarity.len(), experts * experts, "similarities are [expert, expert]");
        let classes = frequencies.chunks_exact(experts * patches).filter(|class| class.iter().all(|f| f.is_finite()));
        let classes = classes.map(|class| class.chunks_exact(patches).collect()).collect::<Vec<Vec<&[f64]>>>();
        if classes.len() < 2 {
            return None;
        }
        let loads = (0..experts).map(|expert| mean_of(classes.iter().map(|class| class[expert]))).collect::<Vec<_>>();
        let everyone = mean_of(loads.iter().map(Vec::as_slice));
        let entropies = loads.iter().map(|load| evenness(load)).collect::<Vec<_>>();

        // The others of a class: mean * classes = its own + others * (classes - 1).
        let count = classes.len() as f64;
        let excess = |own: f64, mean: f64| (own - mean) * count / (count - 1.0);
        let mut class_patch = 0.0_f64;
        let distances = classes.iter().map(|class| {
            let of_expert = class.iter().zip(&loads).map(|(own, load)| {
                let selected: f64 = load.iter().sum();
                let excesses = own.iter().zip(load).map(|(&own, &mean)| excess(own, mean));
                let largest = excesses.clone().fold(0.0, f64::max);
                class_patch = class_patch.max(largest);
                excesses.map(f64::abs).sum::<f64>() / 2.0 / selected
            });
            of_expert.sum::<f64>() / experts as f64
        });
        let distances = distances.collect::<Vec<_>>();
        let pairs = (0..experts).flat_map(|a| (0..a).map(move |b| similarity[a * experts + b])).collect::<Vec<_>>();
        let (smallest, largest) = (|of: &[f64]| of.iter().copied().fold(f64::INFINITY, f64::min), largest_of);
        Some(Self([
            evenness(&everyone),
            smallest(&entropies),
            largest(&entropies),
            largest(&loads.concat()),
            smallest(&everyone),
            largest(&loads.iter().map(|load| lone_patch(load, rows, columns)).collect::<Vec<_>>()),
            distances.iter().sum::<f64>() / count,
            largest(&distances),
            outlier(&distances),
            class_patch,
            pairs.iter().sum::<f64>() / pairs.len() as f64,
            largest(&pairs),
            smallest(&pairs),
        ]))
    }

    /// Its numbers, as [`NAMES`](Self::NAMES) calls them.
    pub fn values(&self) -> &[f64] {
        &self.0
    }
}

fn largest_of(of: &[f64]) -> f64 {
    of.iter().copied().fold(f64::NEG_INFINITY, f64::max)
}

fn mean_of<'a>(maps: impl ExactSizeIterator<Item = &'a [f64]>) -> Vec<f64> {
    let count = maps.len() as f64;
    let mut mean = Vec::new();
    for map in maps {
        mean.resize(map.len(), 0.0);
        mean.iter_mut().zip(map).for_each(|(sum, value)| *sum += value / count);
    }
    mean
}

/// Entropy of a load over that of an even one; 0 where there is no load.
fn evenness(load: &[f64]) -> f64 {
    let all: f64 = load.iter().sum();
    let shares = load.iter().map(|part| part / all).filter(|share| *share > 0.0);
    -shares.map(|share| share * share.ln()).sum::<f64>() / (load.len() as f64).ln()
}

/// By how much the most conspicuous patch exceeds the mean of its up to eight neighbours.
fn lone_patch(load: &[f64], rows: usize, columns: usize) -> f64 {
    let excess = |row: usize, column: usize| {
        let near = |at: usize, of: usize| at.saturating_sub(1)..(at + 2).min(of);
        let around = near(row, rows).flat_map(|r| near(column, columns).map(move |c| (r, c)));
        let around = around.filter(|&at| at != (row, column)).map(|(r, c)| load[r * columns + c]).collect::<Vec<_>>();
        load[row * columns + column] - around.iter().sum::<f64>() / around.len() as f64
    };
    largest_of(&(0..rows * columns).map(|patch| excess(patch / columns, patch % columns)).collect::<Vec<_>>())
}

/// How far the largest value lies above the median, in scaled median absolute deviations; 0 if all deviate by nothing.
fn outlier(values: &[f64]) -> f64 {
    let middle = median(values);
    let deviation = 1.4826 * median(&values.iter().map(|value| (value - middle).abs()).collect::<Vec<_>>());
    if deviation > 0.0 { (largest_of(values) - middle) / deviation } else { 0.0 }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let half = sorted.len() / 2;
    if sorted.len().is_multiple_of(2) { f64::midpoint(sorted[half - 1], sorted[half]) } else { sorted[half] }
}

#[cfg(test)]
mod tests {
    use approx::assert_abs_diff_eq;

    use super::*;

    fn number(profile: &RoutingProfile, name: &str) -> f64 {
        let place = RoutingProfile::NAMES.iter().position(|other| *other == name).expect("a name");
        profile.values()[place]
    }

    /// Two experts of one patch each on 1x4 patches, three classes with images and one without. The first always takes patch 0;
    /// the second takes patch 1 in two classes, and in the third patch 3.
    fn example() -> Vec<f64> {
        let [zero, one, three] = [0, 1, 3].map(|at| [0, 1, 2, 3].map(|patch| f64::from(u8::from(patch == at))));
        let mut maps = [zero, one, zero, one].concat();
        maps.extend([f64::NAN; 8]);
        maps.extend([zero, three].concat());
        maps
    }

    fn profile(frequencies: &[f64], similarity: &[f64], experts: usize) -> RoutingProfile {
        let maps = SelectionMaps { grid: [1, 4], experts, frequencies, similarity };
        RoutingProfile::of(&maps).expect("enough of everything")
    }

    #[test]
    fn its_numbers_are_those_computed_by_hand() {
        let profile = profile(&example(), &[1.0, 0.25, 0.25, 1.0], 2);
        // Loads: (1, 0, 0, 0), which is no entropy, and (0, 2/3, 0, 1/3): (2/3 ln 3/2 + 1/3 ln 3) / ln 4 = 0.636514 / 1.386294.
        assert_abs_diff_eq!(number(&profile, "load-entropy-lowest"), 0.0, epsilon = 1e-12);
        assert_abs_diff_eq!(number(&profile, "load-entropy-highest"), 0.459_148, epsilon = 1e-6);
        // Both: (1/2, 1/3, 0, 1/6): (0.346574 + 0.366204 + 0.298627) / 1.386294.
        assert_abs_diff_eq!(number(&profile, "load-entropy"), 0.729_574, epsilon = 1e-6);
        assert_abs_diff_eq!(number(&profile, "busiest-patch"), 1.0, epsilon = 1e-12);
        assert_abs_diff_eq!(number(&profile, "idlest-patch"), 0.0, epsilon = 1e-12);
        // Patch 0 of the first expert has one neighbour, which it never takes.
        assert_abs_diff_eq!(number(&profile, "lone-patch"), 1.0, epsilon = 1e-12);
        // Second expert: the third class lies wholly elsewhere, the other two differ from the rest in a half. First: nowhere.
        assert_abs_diff_eq!(number(&profile, "class-distance-largest"), 0.5, epsilon = 1e-12);
        assert_abs_diff_eq!(number(&profile, "class-distance"), (0.25 + 0.25 + 0.5) / 3.0, epsilon = 1e-12);
        // Two of three do not deviate from the median at all.
        assert_abs_diff_eq!(number(&profile, "class-distance-outlier"), 0.0, epsilon = 1e-12);
        assert_abs_diff_eq!(number(&profile, "class-patch"), 1.0, epsilon = 1e-12);
        for name in ["similarity", "similarity-largest", "similarity-smallest"] {
            assert_abs_diff_eq!(number(&profile, name), 0.25, epsilon = 1e-12);
        }
    }

    #[test]
    fn neither_the_order_of_experts_nor_that_of_classes_matters() {
        let maps: Vec<f64> = (0..5 * 3 * 4).map(|i| f64::from((i * 37 + i * i * 11) % 23 + 1) / 24.0).collect();
        let similarity = [1.0, 0.1, 0.2, 0.1, 1.0, 0.4, 0.2, 0.4, 1.0];
        let expected = profile(&maps, &similarity, 3);
        // Classes backwards, experts as 2, 0, 1.
        let order = [2, 0, 1];
        let mut moved = Vec::new();
        for class in maps.chunks_exact(12).rev() {
            moved.extend(order.into_iter().flat_map(|expert| &class[expert * 4..][..4]));
        }
        let similarity = order.map(|a| order.map(|b| similarity[a * 3 + b])).concat();
        let found = profile(&moved, &similarity, 3);
        for (found, expected) in found.values().iter().zip(expected.values()) {
            assert_abs_diff_eq!(found, expected, epsilon = 1e-9);
        }
    }

    #[test]
    fn one_class_that_stands_out_is_an_outlier() {
        // A median of 0.2, deviations 0.02, 0.01, 0, 0.01, 0.3: their median is 0.01.
        assert_abs_diff_eq!(outlier(&[0.18, 0.19, 0.2, 0.21, 0.5]), 0.3 / 0.014_826, epsilon = 1e-9);
    }

    #[test]
    fn a_single_expert_or_class_has_no_profile() {
        let of = |experts, frequencies: &[f64], similarity: &[f64]| {
            RoutingProfile::of(&SelectionMaps { grid: [1, 2], experts, frequencies, similarity })
        };
        assert_eq!(of(1, &[1.0, 0.0, 0.0, 1.0], &[1.0]), None);
        assert_eq!(of(2, &[1.0, 0.0, 0.0, 1.0], &[1.0, 0.0, 0.0, 1.0]), None);
        assert_eq!(of(2, &[1.0, 0.0, 0.0, 1.0, f64::NAN, 0.0, 0.0, 1.0], &[1.0, 0.0, 0.0, 1.0]), None);
    }
}
