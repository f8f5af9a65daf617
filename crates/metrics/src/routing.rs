//! What routers select: how often, what of it carries a trigger, what it depends on.
//!
//! Patches of one image are not independent of each other, images are. Every interval here therefore takes the image as
//! its unit: a statistic is computed in each image, or split into what each image contributes to it, and the interval is
//! value ± 1.96 standard errors over images.

use serde::{Deserialize, Serialize};

/// Quantile of the normal distribution that leaves 2.5 % on either side.
const NORMAL_QUANTILE: f64 = 1.96;

/// Which patches each expert selected in each image.
#[derive(Clone, Copy, Debug)]
pub struct RoutingDecisions<'a> {
    experts: usize,
    patches_per_expert: usize,
    patches: usize,
    indices: &'a [u16],
}

impl<'a> RoutingDecisions<'a> {
    /// Wraps the numbers of the selected patches, `[image, expert, patches_per_expert]`, each expert's in rising order,
    /// all below `patches`.
    ///
    /// # Panics
    /// If there is no expert, an expert selects nothing, the numbers fill no whole number of images, do not rise or name
    /// a patch that is not there.
    pub fn new(experts: usize, patches_per_expert: usize, patches: usize, indices: &'a [u16]) -> Self {
        let each = experts * patches_per_expert;
        assert!(each > 0 && indices.len().is_multiple_of(each), "decisions are [image, expert, patches_per_expert]");
        let holds = |selected: &[u16]| {
            selected.is_sorted_by(|a, b| a < b) && selected.last().is_some_and(|&last| usize::from(last) < patches)
        };
        assert!(indices.chunks_exact(patches_per_expert).all(holds), "selections rise and lie below {patches}");
        Self { experts, patches_per_expert, patches, indices }
    }

    /// Number of images.
    pub fn images(&self) -> usize {
        self.indices.len() / (self.experts * self.patches_per_expert)
    }

    /// Number of experts.
    pub fn experts(&self) -> usize {
        self.experts
    }

    /// How many patches each expert selects.
    pub fn patches_per_expert(&self) -> usize {
        self.patches_per_expert
    }

    /// How many patches there are to select from.
    pub fn patches(&self) -> usize {
        self.patches
    }

    /// The patches one expert selected in one image, in rising order.
    ///
    /// # Panics
    /// If there is no such image or expert.
    pub fn of(&self, image: usize, expert: usize) -> &'a [u16] {
        assert!(expert < self.experts, "expert {expert} of {}", self.experts);
        let start = (image * self.experts + expert) * self.patches_per_expert;
        &self.indices[start..start + self.patches_per_expert]
    }

    /// Share of all patches that an expert selects: how likely it takes a given patch by chance.
    pub fn chance(&self) -> f64 {
        self.patches_per_expert as f64 / self.patches as f64
    }

    fn per_image(&self, mut value: impl FnMut(usize, &[u16]) -> f64) -> PerImage {
        let selections = self.indices.chunks_exact(self.patches_per_expert).enumerate();
        let values = selections.map(|(number, selected)| value(number / self.experts, selected)).collect();
        PerImage { experts: self.experts, values }
    }
}

/// A number with its 95 % confidence interval over images.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Estimate {
    /// The number.
    pub value: f64,
    /// Value minus 1.96 standard errors; `None` from a single image.
    pub low: Option<f64>,
    /// Value plus 1.96 standard errors; `None` from a single image.
    pub high: Option<f64>,
    /// Images it was computed from.
    pub images: usize,
}

impl Estimate {
    /// The mean of one value per image; `None` without any.
    pub fn mean(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let values: Vec<f64> = values.into_iter().collect();
        let images = values.len();
        if images == 0 {
            return None;
        }
        let mean = values.iter().sum::<f64>() / images as f64;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        Some(Self::with_squares(mean, squares / (images as f64).powi(2), images))
    }

    /// `squares`: sum over images of the square of what each adds to the value beyond its expectation.
    fn with_squares(value: f64, squares: f64, images: usize) -> Self {
        let margin = (images > 1)
            .then(|| NORMAL_QUANTILE * (squares * images as f64 / (images - 1) as f64).sqrt())
            .filter(|margin| margin.is_finite());
        Self { value, low: margin.map(|margin| value - margin), high: margin.map(|margin| value + margin), images }
    }
}

/// A number for each expert in each image, where it is defined.
#[derive(Clone, Debug, PartialEq)]
pub struct PerImage {
    experts: usize,
    /// `[image, expert]`, NaN where not defined.
    values: Vec<f64>,
}

impl PerImage {
    /// The number of one expert in one image; `None` where it is not defined.
    ///
    /// # Panics
    /// If there is no such image or expert.
    pub fn get(&self, image: usize, expert: usize) -> Option<f64> {
        assert!(expert < self.experts, "expert {expert} of {}", self.experts);
        Some(self.values[image * self.experts + expert]).filter(|value| !value.is_nan())
    }

    /// The mean of each expert over all images, `[expert]`; empty if it is defined for none of them.
    pub fn by_expert(&self) -> Vec<f64> {
        let means = (0..self.experts).map(|expert| Some(self.mean(Some(expert), |_| true)?.value));
        means.collect::<Option<Vec<_>>>().unwrap_or_default()
    }

    /// The mean over the wanted images, of one expert, or of the average over experts within each image.
    pub fn mean(&self, expert: Option<usize>, is_wanted: impl Fn(usize) -> bool) -> Option<Estimate> {
        let images = self.values.chunks_exact(self.experts).enumerate().filter(|&(image, _)| is_wanted(image));
        // 0 / 0 is NaN: not defined.
        let average = |values: &[f64]| defined(values).sum::<f64>() / defined(values).count() as f64;
        let of_image = |values: &[f64]| expert.map_or_else(|| average(values), |expert| values[expert]);
        Estimate::mean(images.map(|(_, values)| of_image(values)).filter(|value| !value.is_nan()))
    }
}

/// How far the numbers of experts lie from what chance gives. A mean of them may hide it: an expert that seeks what another
/// avoids leaves it at chance.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Departure {
    /// Mean of the distances over experts.
    pub mean: f64,
    /// The largest of them.
    pub largest: f64,
}

impl Departure {
    /// Of one number for each expert; `None` without experts.
    ///
    /// A distance is never below zero, so noise alone lifts it: by about 0.8 standard errors of an expert's number.
    pub fn of(experts: &[f64], chance: f64) -> Option<Self> {
        let distances = experts.iter().map(|value| (value - chance).abs());
        let largest = distances.clone().reduce(f64::max)?;
        Some(Self { mean: distances.sum::<f64>() / experts.len() as f64, largest })
    }
}

fn defined(values: &[f64]) -> impl Iterator<Item = f64> + '_ {
    values.iter().copied().filter(|value| !value.is_nan())
}

/// How often each expert selected each patch in the images of each class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SelectionCounts {
    experts: usize,
    patches: usize,
    /// `[class]`
    images: Vec<usize>,
    /// `[class, expert, patch]`
    counts: Vec<u32>,
}

impl SelectionCounts {
    /// Counts; `labels` holds the class of each image.
    ///
    /// # Panics
    /// If there is not one label below `classes` for each image.
    pub fn count(decisions: &RoutingDecisions<'_>, labels: &[u8], classes: usize) -> Self {
        assert_eq!(labels.len(), decisions.images(), "one label per image");
        let (experts, patches) = (decisions.experts, decisions.patches);
        let mut images = vec![0; classes];
        let mut counts = vec![0; classes * experts * patches];
        for (image, &label) in labels.iter().enumerate() {
            let class = usize::from(label);
            images[class] += 1;
            for expert in 0..experts {
                let row = &mut counts[(class * experts + expert) * patches..][..patches];
                for &patch in decisions.of(image, expert) {
                    row[usize::from(patch)] += 1;
                }
            }
        }
        Self { experts, patches, images, counts }
    }

    /// Number of images of each class.
    pub fn images(&self) -> &[usize] {
        &self.images
    }

    /// Share of the images of a class, or of all classes, in which an expert selected each patch, `[patch]`; they sum to
    /// `patches_per_expert`. `None` without images.
    ///
    /// # Panics
    /// If there is no such class or expert.
    pub fn frequencies(&self, class: Option<usize>, expert: usize) -> Option<Vec<f64>> {
        assert!(expert < self.experts, "expert {expert} of {}", self.experts);
        let classes = class.map_or(0..self.images.len(), |class| class..class + 1);
        let images: usize = self.images[classes.clone()].iter().sum();
        let mut sums = vec![0.0; self.patches];
        for class in classes {
            let row = &self.counts[(class * self.experts + expert) * self.patches..][..self.patches];
            sums.iter_mut().zip(row).for_each(|(sum, &count)| *sum += f64::from(count));
        }
        (images > 0).then(|| sums.into_iter().map(|sum| sum / images as f64).collect())
    }

    /// How often one expert, or any of them, selected each patch, over all classes, `[patch]`.
    pub fn load(&self, expert: Option<usize>) -> Vec<u64> {
        let mut load = vec![0; self.patches];
        for (row, counts) in self.counts.chunks_exact(self.patches).enumerate() {
            if expert.is_none_or(|expert| row % self.experts == expert) {
                load.iter_mut().zip(counts).for_each(|(sum, &count)| *sum += u64::from(count));
            }
        }
        load
    }
}

/// Entropy of a load over the logarithm of its length: 1 if it is spread evenly, 0 if one place bears all of it. `None`
/// if there is no load or a single place.
///
/// An expert that always takes the same `l` of `n` patches has ln l / ln n.
pub fn load_entropy(load: &[u64]) -> Option<f64> {
    let total: u64 = load.iter().sum();
    if total == 0 || load.len() < 2 {
        return None;
    }
    let shares = load.iter().filter(|&&part| part > 0).map(|&part| part as f64 / total as f64);
    Some(-shares.map(|share| share * share.ln()).sum::<f64>() / (load.len() as f64).ln())
}

/// Share of the marked patches of an image that an expert selected; not defined in an image without marked patches.
///
/// By chance it is [`RoutingDecisions::chance`]. `is_marked` is `[image, patch]`.
///
/// # Panics
/// If there is not one mark for each patch of each image.
pub fn capture(decisions: &RoutingDecisions<'_>, is_marked: &[bool]) -> PerImage {
    assert_eq!(is_marked.len(), decisions.images() * decisions.patches, "one mark per patch");
    let marked: Vec<usize> =
        is_marked.chunks_exact(decisions.patches).map(|marks| marks.iter().filter(|&&mark| mark).count()).collect();
    decisions.per_image(|image, selected| {
        let marks = &is_marked[image * decisions.patches..][..decisions.patches];
        let caught = selected.iter().filter(|&&patch| marks[usize::from(patch)]).count();
        // 0 / 0 is NaN: not defined.
        caught as f64 / marked[image] as f64
    })
}

/// Share of the marked patches of an image that at least one expert selected; `is_marked` is `[image, patch]`. The result
/// has one column.
///
/// If experts chose independently and by chance, it would be 1 - (1 - chance) ^ experts.
///
/// # Panics
/// If there is not one mark for each patch of each image.
pub fn capture_by_any(decisions: &RoutingDecisions<'_>, is_marked: &[bool]) -> PerImage {
    assert_eq!(is_marked.len(), decisions.images() * decisions.patches, "one mark per patch");
    let images = is_marked.chunks_exact(decisions.patches).enumerate();
    let mut is_taken = vec![false; decisions.patches];
    let values = images.map(|(image, marks)| {
        is_taken.fill(false);
        for expert in 0..decisions.experts {
            decisions.of(image, expert).iter().for_each(|&patch| is_taken[usize::from(patch)] = true);
        }
        let marked = marks.iter().filter(|&&mark| mark).count();
        let caught = marks.iter().zip(&is_taken).filter(|&(&mark, &taken)| mark && taken).count();
        caught as f64 / marked as f64
    });
    PerImage { experts: 1, values: values.collect() }
}

/// Intersection over union of what each expert selected in two versions of each image, or under two routers.
///
/// # Panics
/// If the two differ in images or experts.
pub fn overlap(first: &RoutingDecisions<'_>, second: &RoutingDecisions<'_>) -> PerImage {
    assert_eq!((first.images(), first.experts), (second.images(), second.experts), "decisions about the same images");
    let mut experts = (0..first.experts).cycle();
    first.per_image(|image, selected| {
        let expert = experts.next().expect("a cycle of experts does not end");
        intersection_over_union(selected, second.of(image, expert))
    })
}

/// Intersection over union of what two experts selected in each image.
///
/// # Panics
/// If there is no such expert.
pub fn expert_similarity(decisions: &RoutingDecisions<'_>, first: usize, second: usize) -> Vec<f64> {
    let images = 0..decisions.images();
    images.map(|image| intersection_over_union(decisions.of(image, first), decisions.of(image, second))).collect()
}

/// What [`overlap`] and [`expert_similarity`] are on average if `selected` of `patches` are drawn twice, independently and
/// evenly: the overlap then follows the hypergeometric distribution.
///
/// # Panics
/// If `selected` is 0 or above `patches`.
pub fn chance_overlap(selected: usize, patches: usize) -> f64 {
    assert!((1..=patches).contains(&selected), "{selected} of {patches} patches");
    // Chance of k common patches, from that of k - 1, each up to one constant factor; the largest is kept near 1.
    let fewest = (2 * selected).saturating_sub(patches);
    let (l, n) = (selected as f64, patches as f64);
    let mut logarithm = 0.0f64;
    let mut logarithms = vec![0.0f64];
    for common in fewest + 1..=selected {
        let k = common as f64;
        logarithm += ((l - k + 1.0).powi(2) / (k * (n - 2.0 * l + k))).ln();
        logarithms.push(logarithm);
    }
    let largest = logarithms.iter().copied().fold(f64::MIN, f64::max);
    let (mut sum, mut total) = (0.0, 0.0);
    for (common, logarithm) in (fewest..=selected).zip(logarithms) {
        let weight = (logarithm - largest).exp();
        sum += weight * common as f64 / (2 * selected - common) as f64;
        total += weight;
    }
    sum / total
}

/// Of two rising lists.
fn intersection_over_union(first: &[u16], second: &[u16]) -> f64 {
    let (mut a, mut b, mut common) = (0, 0, 0);
    while a < first.len() && b < second.len() {
        let (x, y) = (first[a], second[b]);
        common += usize::from(x == y);
        a += usize::from(x <= y);
        b += usize::from(y <= x);
    }
    common as f64 / (first.len() + second.len() - common) as f64
}

/// A score of every patch of every image, with its ranks.
#[derive(Clone, Debug)]
pub struct PatchScores {
    patches: usize,
    /// `[image, patch]`
    values: Vec<f32>,
    /// Rank of each score within its image, from 1, ties sharing their middle; `[image, patch]`.
    ranks: Vec<f32>,
    /// Positions in `values`, from the lowest score to the highest.
    order: Vec<u32>,
}

impl PatchScores {
    /// Ranks scores, `[image, patch]`.
    ///
    /// # Panics
    /// If the scores fill no whole number of images, there are 2^32 or more, or one is NaN.
    pub fn new(patches: usize, values: Vec<f32>) -> Self {
        assert!(patches > 0 && values.len().is_multiple_of(patches), "scores are [image, patch]");
        assert!(values.iter().all(|value| !value.is_nan()), "scores are not NaN");
        let all = u32::try_from(values.len()).expect("there are fewer than 2^32 scores");
        let mut ranks = vec![0.0; values.len()];
        let mut places: Vec<usize> = Vec::with_capacity(patches);
        for (row, ranks) in values.chunks_exact(patches).zip(ranks.chunks_exact_mut(patches)) {
            places.clear();
            places.extend(0..patches);
            places.sort_unstable_by(|&a, &b| row[a].total_cmp(&row[b]));
            let mut below = 0;
            for tied in places.chunk_by(|&a, &b| same(row[a], row[b])) {
                let middle = below as f32 + (tied.len() + 1) as f32 / 2.0;
                for &place in tied {
                    ranks[place] = middle;
                }
                below += tied.len();
            }
        }
        let mut order: Vec<u32> = (0..all).collect();
        order.sort_unstable_by(|&a, &b| values[a as usize].total_cmp(&values[b as usize]));
        Self { patches, values, ranks, order }
    }

    fn check(&self, decisions: &RoutingDecisions<'_>) {
        let found = (self.patches, self.values.len());
        assert_eq!(found, (decisions.patches, decisions.patches * decisions.images()), "one score per patch and image");
    }
}

/// Whether two numbers are equal; minus zero and zero are.
fn same(a: f32, b: f32) -> bool {
    a.partial_cmp(&b).is_some_and(std::cmp::Ordering::is_eq)
}

/// Area under the ROC curve of a score for selection within each image: the chance that a selected patch scores above one
/// of the same image that is not selected, ties counting half. Not defined if an expert selects all patches.
///
/// Brightness of the image as a whole cannot enter it. Without any relation its mean is 0.5.
///
/// # Panics
/// If there is not one score for each patch of each image.
pub fn area_within_images(decisions: &RoutingDecisions<'_>, scores: &PatchScores) -> PerImage {
    scores.check(decisions);
    let (l, n) = (decisions.patches_per_expert as f64, decisions.patches as f64);
    decisions.per_image(|image, selected| {
        let ranks = &scores.ranks[image * scores.patches..][..scores.patches];
        let sum: f64 = selected.iter().map(|&patch| f64::from(ranks[usize::from(patch)])).sum();
        // Mann-Whitney; 0 / 0 is NaN: not defined.
        (sum - l * (l + 1.0) / 2.0) / (l * (n - l))
    })
}

/// Point-biserial correlation of a score with selection within each image: Pearson's, with selection as 1 and 0. Not
/// defined if an expert selects all patches or all scores of the image are equal.
///
/// # Panics
/// If there is not one score for each patch of each image.
pub fn correlation_within_images(decisions: &RoutingDecisions<'_>, scores: &PatchScores) -> PerImage {
    scores.check(decisions);
    let n = decisions.patches as f64;
    let moments: Vec<(f64, f64)> = scores
        .values
        .chunks_exact(scores.patches)
        .map(|row| {
            let mean = row.iter().map(|&value| f64::from(value)).sum::<f64>() / n;
            let squares = row.iter().map(|&value| (f64::from(value) - mean).powi(2)).sum::<f64>();
            (mean, (squares / n).sqrt())
        })
        .collect();
    let share = decisions.chance();
    let spread = (share * (1.0 - share)).sqrt();
    decisions.per_image(|image, selected| {
        let (mean, deviation) = moments[image];
        let row = &scores.values[image * scores.patches..][..scores.patches];
        let above: f64 = selected.iter().map(|&patch| f64::from(row[usize::from(patch)]) - mean).sum();
        let correlation = above / n / (deviation * spread);
        if correlation.is_finite() { correlation.clamp(-1.0, 1.0) } else { f64::NAN }
    })
}

/// The area under the ROC curve over all patches of all images together, for each expert and, last, for their average.
#[derive(Clone, Debug, PartialEq)]
pub struct PooledAreas {
    /// Of each expert.
    pub experts: Vec<Estimate>,
    /// The average over experts.
    pub average: Estimate,
}

/// Area under the ROC curve of a score for selection over the patches of all images together: the chance that a selected
/// patch of any image scores above a patch of any image that is not selected, ties counting half. `None` without images or
/// if experts select all patches.
///
/// The interval takes the image as its unit (Obuchowski 1997, "Nonparametric analysis of clustered ROC curve data",
/// Biometrics 53): patch by patch, it would be far too narrow.
///
/// # Panics
/// If there is not one score for each patch of each image.
pub fn pooled_areas(decisions: &RoutingDecisions<'_>, scores: &PatchScores) -> Option<PooledAreas> {
    scores.check(decisions);
    let images = decisions.images();
    if images == 0 || decisions.patches_per_expert == decisions.patches {
        return None;
    }
    let positives = (images * decisions.patches_per_expert) as f64;
    let negatives = (images * (decisions.patches - decisions.patches_per_expert)) as f64;
    let mut experts = Vec::new();
    let mut average = vec![0.0; images];
    let mut is_selected = vec![false; scores.values.len()];
    for expert in 0..decisions.experts {
        is_selected.fill(false);
        for image in 0..images {
            for &patch in decisions.of(image, expert) {
                is_selected[image * scores.patches + usize::from(patch)] = true;
            }
        }
        // Of each image: the shares of negatives below its positives, and of positives above its negatives.
        let (mut below, mut above) = (vec![0.0; images], vec![0.0; images]);
        let (mut positives_before, mut negatives_before) = (0.0, 0.0);
        for tied in scores.order.chunk_by(|&a, &b| same(scores.values[a as usize], scores.values[b as usize])) {
            let selected = tied.iter().filter(|&&place| is_selected[place as usize]).count() as f64;
            let others = tied.len() as f64 - selected;
            let negatives_below = (negatives_before + others / 2.0) / negatives;
            let positives_above = (positives - positives_before - selected / 2.0) / positives;
            for &place in tied {
                let image = place as usize / scores.patches;
                if is_selected[place as usize] {
                    below[image] += negatives_below;
                } else {
                    above[image] += positives_above;
                }
            }
            positives_before += selected;
            negatives_before += others;
        }
        let area = below.iter().sum::<f64>() / positives;
        // Every image has the same number of positives and of negatives, so each is expected to add the same.
        let contribution =
            |image: usize| below[image] / positives + above[image] / negatives - 2.0 * area / images as f64;
        let mut squares = 0.0;
        for (image, sum) in average.iter_mut().enumerate() {
            squares += contribution(image).powi(2);
            *sum += contribution(image) / decisions.experts as f64;
        }
        experts.push(Estimate::with_squares(area, squares, images));
    }
    let area = experts.iter().map(|expert| expert.value).sum::<f64>() / decisions.experts as f64;
    let squares = average.iter().map(|contribution| contribution.powi(2)).sum();
    Some(PooledAreas { experts, average: Estimate::with_squares(area, squares, images) })
}

#[cfg(test)]
mod tests {
    use approx::assert_abs_diff_eq;
    use proptest::prelude::*;

    use super::*;
    use crate::area_under_roc;

    /// Two images, two experts, two of four patches each.
    const TWO: [u16; 8] = [0, 1, 1, 2, 0, 3, 2, 3];

    fn two() -> RoutingDecisions<'static> {
        RoutingDecisions::new(2, 2, 4, &TWO)
    }

    #[test]
    fn experts_of_opposite_sign_depart_from_chance_though_their_mean_does_not() {
        // Of four patches with scores 1 to 4, expert 0 takes the upper two, expert 1 the lower two: areas 1 and 0.
        let decisions = RoutingDecisions::new(2, 2, 4, &[2, 3, 0, 1]);
        let areas = area_within_images(&decisions, &PatchScores::new(4, vec![1.0, 2.0, 3.0, 4.0]));
        assert_eq!(areas.mean(None, |_| true).map(|mean| mean.value), Some(0.5));
        assert_eq!(areas.by_expert(), [1.0, 0.0]);
        assert_eq!(Departure::of(&areas.by_expert(), 0.5), Some(Departure { mean: 0.5, largest: 0.5 }));
        // |0.6 - 0.5| and |0.45 - 0.5|: mean 0.075.
        let departure = Departure::of(&[0.6, 0.45], 0.5).expect("two experts");
        assert!((departure.mean - 0.075).abs() < 1e-12 && (departure.largest - 0.1).abs() < 1e-12, "{departure:?}");
        assert_eq!(Departure::of(&[], 0.5), None);
    }

    #[test]
    fn frequencies_are_shares_of_the_images_of_a_class() {
        let counts = SelectionCounts::count(&two(), &[0, 2], 3);
        assert_eq!(counts.frequencies(Some(0), 0), Some(vec![1.0, 1.0, 0.0, 0.0]));
        assert_eq!(counts.frequencies(Some(2), 1), Some(vec![0.0, 0.0, 1.0, 1.0]));
        assert_eq!(counts.frequencies(None, 0), Some(vec![1.0, 0.5, 0.0, 0.5]));
        assert_eq!(counts.frequencies(Some(1), 0), None, "class 1 has no images");
        assert_eq!(counts.load(Some(1)), [0, 1, 2, 1]);
        assert_eq!(counts.load(None), [2, 2, 2, 2]);
        assert_eq!(counts.images(), [1, 0, 1]);
    }

    #[test]
    fn capture_is_the_share_of_marked_patches_selected() {
        // Image 0 marks patches 0 and 3: expert 0 selects 0 of them, expert 1 none. Image 1 marks nothing.
        let marks = [true, false, false, true, false, false, false, false];
        let found = capture(&two(), &marks);
        assert_eq!((found.get(0, 0), found.get(0, 1), found.get(1, 0)), (Some(0.5), Some(0.0), None));
        let mean = found.mean(None, |_| true).expect("one image has marks");
        assert_eq!((mean.value, mean.low, mean.images), (0.25, None, 1));
        // Together the experts take 0, 1 and 2.
        assert_eq!(capture_by_any(&two(), &marks).get(0, 0), Some(0.5));
        assert_abs_diff_eq!(two().chance(), 0.5);
    }

    #[test]
    fn an_interval_is_the_mean_and_1_96_standard_errors_over_images() {
        // 0, 0, 1, 1: mean 1/2, sample variance 4 * 1/4 / 3 = 1/3, standard error sqrt(1/3 / 4) = 0.288675.
        let estimate = Estimate::mean([0.0, 0.0, 1.0, 1.0]).expect("four values");
        assert_abs_diff_eq!(estimate.value, 0.5);
        assert_abs_diff_eq!(estimate.low.expect("four images"), 0.5 - 1.96 * 0.288_675, epsilon = 1e-6);
        assert_abs_diff_eq!(estimate.high.expect("four images"), 0.5 + 1.96 * 0.288_675, epsilon = 1e-6);
        assert_eq!(Estimate::mean([]), None);
    }

    #[test]
    fn overlap_and_similarity_are_intersection_over_union() {
        let triggered = [0, 1, 0, 3, 1, 2, 2, 3];
        let found = overlap(&two(), &RoutingDecisions::new(2, 2, 4, &triggered));
        // Expert 0: {0,1} and {0,1}; {0,3} and {1,2}. Expert 1: {1,2} and {0,3}; {2,3} and {2,3}.
        assert_eq!([0, 1].map(|image| found.get(image, 0)), [Some(1.0), Some(0.0)]);
        assert_eq!([0, 1].map(|image| found.get(image, 1)), [Some(0.0), Some(1.0)]);
        // Image 0: {0,1} and {1,2}; image 1: {0,3} and {2,3}: one of three each.
        assert_eq!(expert_similarity(&two(), 0, 1), [1.0 / 3.0, 1.0 / 3.0]);
    }

    #[test]
    fn two_drawn_pairs_of_four_overlap_by_a_third_and_more_on_average() {
        // Of 6 pairs, 1 shares none with a given pair, 4 share one (1/3), 1 shares both (1): (4/3 + 1) / 6 = 7/18.
        assert_abs_diff_eq!(chance_overlap(2, 4), 7.0 / 18.0, epsilon = 1e-12);
        // Three of four share two (1/2) in 3 of 4 cases, three (1) in 1: 5/8.
        assert_abs_diff_eq!(chance_overlap(3, 4), 5.0 / 8.0, epsilon = 1e-12);
        assert_abs_diff_eq!(chance_overlap(4, 4), 1.0);
        let (large, ratio) = (chance_overlap(2048, 8192), 0.25 / (2.0 - 0.25));
        assert_abs_diff_eq!(large, ratio, epsilon = 1e-3);
    }

    #[test]
    fn entropy_is_one_for_an_even_load_and_counts_places_without_any() {
        assert_abs_diff_eq!(load_entropy(&[5, 5, 5, 5]).expect("a load"), 1.0, epsilon = 1e-12);
        assert_abs_diff_eq!(load_entropy(&[8, 0, 8, 0]).expect("a load"), 0.5, epsilon = 1e-12);
        assert_abs_diff_eq!(load_entropy(&[3, 0]).expect("a load"), 0.0);
        assert_eq!(load_entropy(&[0, 0]), None);
    }

    #[test]
    fn area_within_an_image_counts_won_pairs() {
        let scores = PatchScores::new(4, vec![4.0, 3.0, 2.0, 1.0, 7.0, 7.0, 7.0, 9.0]);
        let found = area_within_images(&two(), &scores);
        // Image 0, expert 0 takes the two highest: all 4 pairs. Expert 1 takes 3 and 2 against 4 and 1: 2 of 4.
        assert_eq!((found.get(0, 0), found.get(0, 1)), (Some(1.0), Some(0.5)));
        // Image 1, expert 0 takes 7 and 9 against 7 and 7: 1/2 + 1/2 + 1 + 1 of 4.
        assert_eq!(found.get(1, 0), Some(0.75));
        let all = [0, 1, 2, 3];
        let all = RoutingDecisions::new(1, 4, 4, &all);
        assert_eq!(area_within_images(&all, &PatchScores::new(4, vec![1.0; 4])).get(0, 0), None);
    }

    #[test]
    fn correlation_is_pearsons_with_selection_as_one_and_zero() {
        let scores = PatchScores::new(4, vec![4.0, 3.0, 2.0, 1.0, 5.0, 5.0, 5.0, 5.0]);
        let found = correlation_within_images(&two(), &scores);
        // x = 4 3 2 1, y = 1 1 0 0: covariance (1.5 + 0.5) / 4 = 0.5; deviations sqrt(1.25) and 0.5.
        assert_abs_diff_eq!(found.get(0, 0).expect("scores differ"), 0.5 / (1.25f64.sqrt() * 0.5), epsilon = 1e-9);
        assert_abs_diff_eq!(found.get(0, 1).expect("scores differ"), 0.0, epsilon = 1e-9);
        assert_eq!(found.get(1, 0), None, "equal scores correlate with nothing");
    }

    #[test]
    fn pooled_area_has_the_clustered_interval() {
        // One expert takes one of two patches in each of two images. Image 0: selected 3, other 1. Image 1: selected 2,
        // other 4. Pairs: 3>1, 3<4, 2>1, 2<4: 1/2.
        let selected = [0, 0];
        let decisions = RoutingDecisions::new(1, 1, 2, &selected);
        let found = pooled_areas(&decisions, &PatchScores::new(2, vec![3.0, 1.0, 2.0, 4.0])).expect("two images");
        assert_abs_diff_eq!(found.average.value, 0.5);
        // Shares of negatives below: 1/2, 1/2; of positives above: 1 (of the 1), 0 (of the 4). Contributions:
        // (1/2 - 1/2) / 2 + (1 - 1/2) / 2 = 1/4 and -1/4; variance 2/1 * (1/16 + 1/16) = 1/4.
        assert_abs_diff_eq!(found.average.high.expect("two images"), 0.5 + 1.96 * 0.5, epsilon = 1e-12);
        assert_eq!(found.experts, [found.average]);
    }

    #[test]
    #[should_panic(expected = "selections rise")]
    fn decisions_that_name_a_missing_patch_are_refused() {
        RoutingDecisions::new(1, 2, 4, &[1, 4]);
    }

    /// Selections of one image: experts, patches each, patches, and for every expert a rising choice.
    fn any_decisions() -> impl Strategy<Value = (usize, usize, usize, Vec<u16>, Vec<f32>)> {
        (1usize..4, 1usize..5, 1usize..6, 2usize..5)
            .prop_flat_map(|(experts, selected, others, images)| {
                let patches = selected + others;
                let choice = Just((0..patches as u16).collect::<Vec<_>>()).prop_shuffle();
                let scores = prop::collection::vec(0u8..5, images * patches);
                (Just((experts, selected, patches)), prop::collection::vec(choice, images * experts), scores)
            })
            .prop_map(|((experts, selected, patches), choices, scores)| {
                let pick = |mut choice: Vec<u16>| {
                    choice.truncate(selected);
                    choice.sort_unstable();
                    choice
                };
                let indices = choices.into_iter().flat_map(pick).collect();
                (experts, selected, patches, indices, scores.into_iter().map(f32::from).collect())
            })
    }

    proptest! {
        #[test]
        fn areas_agree_with_the_plain_definition((experts, selected, patches, indices, values) in any_decisions()) {
            let decisions = RoutingDecisions::new(experts, selected, patches, &indices);
            let scores = PatchScores::new(patches, values.clone());
            let within = area_within_images(&decisions, &scores);
            let pooled = pooled_areas(&decisions, &scores).expect("some patches are not selected");
            let values: Vec<f64> = values.into_iter().map(f64::from).collect();
            for expert in 0..experts {
                let mut is_selected = vec![false; values.len()];
                for image in 0..decisions.images() {
                    let row = &mut is_selected[image * patches..][..patches];
                    decisions.of(image, expert).iter().for_each(|&patch| row[usize::from(patch)] = true);
                    let plain = area_under_roc(&values[image * patches..][..patches], row).expect("both kinds");
                    prop_assert!((within.get(image, expert).expect("both kinds") - plain).abs() < 1e-6);
                }
                let plain = area_under_roc(&values, &is_selected).expect("both kinds");
                prop_assert!((pooled.experts[expert].value - plain).abs() < 1e-9);
            }
        }

        #[test]
        fn frequencies_sum_to_the_patches_of_an_expert((experts, selected, patches, indices, _) in any_decisions()) {
            let decisions = RoutingDecisions::new(experts, selected, patches, &indices);
            let counts = SelectionCounts::count(&decisions, &vec![0; decisions.images()], 1);
            for expert in 0..experts {
                let sum: f64 = counts.frequencies(Some(0), expert).expect("there are images").iter().sum();
                prop_assert!((sum - selected as f64).abs() < 1e-9);
            }
        }
    }
}
