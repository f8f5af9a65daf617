use nalgebra::{DMatrix, DVector};
use patchdoor_metrics::{Estimate, threshold_for};
use serde::Serialize;

/// Penalties on squared weights that are tried, per network and standard deviation of a feature.
const PENALTIES: [f64; 5] = [0.01, 0.1, 1.0, 10.0, 100.0];

/// The share of the clean networks it learned from that a classifier may flag.
const FALSE_POSITIVE_RATE: f64 = 0.05;

/// Two-sided 95 % quantile of the normal distribution.
const NORMAL_QUANTILE: f64 = 1.96;

/// A network of which it is known whether it hides a backdoor.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sample {
    pub(super) features: Vec<f64>,
    /// The number of the attack; `None` if it is clean.
    pub(super) attack: Option<usize>,
    /// The seed it was trained with: networks of one seed have their initial weights in common.
    pub(super) seed: u64,
}

/// How well backdoored networks are told from clean ones, by classifiers that have seen neither their attack nor their seeds.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct HeldOut {
    /// Area under the receiver operating characteristic of each attack, as they are numbered.
    pub areas: Vec<Estimate>,
    /// Their mean.
    pub area: Estimate,
    /// Share of the backdoored networks that are flagged, where 5 % of the clean ones learned from are.
    pub true_positive_rate: Estimate,
    /// Share of the clean networks that are flagged there.
    pub false_positive_rate: Estimate,
}

/// A backdoored and a clean network scored by one classifier.
struct Pair {
    attack: usize,
    seeds: [u64; 2],
    /// 1 if the backdoored one scores more, 0 if less, 1/2 if as much.
    win: f64,
}

/// A network scored by a classifier that has not seen it.
struct Decision {
    is_backdoored: bool,
    seed: u64,
    is_flagged: bool,
}

/// Cross-validation, twice nested: for each attack and each of `folds` parts of the seeds, a linear classifier learns from the
/// networks of other attacks and other seeds, its penalty chosen among them in the same manner, and scores those held out. Only
/// scores of one classifier are compared. Intervals come from the jackknife over seeds, networks of one seed left out together.
///
/// # Errors
/// In words, if an attack or the clean networks have not at least one network in every part, or there are fewer than three attacks.
pub(super) fn held_out(samples: &[Sample], attacks: usize, folds: usize) -> Result<HeldOut, String> {
    let parts = Parts::of(samples, folds);
    if attacks < 3 {
        return Err(format!(
            "{attacks} attacks are there, expected 3 or more: one is held out, and among the rest one again"
        ));
    }
    let (mut pairs, mut decisions) = (Vec::new(), Vec::new());
    for attack in 0..attacks {
        for part in 0..folds {
            let (known, unknown) = parts.split(samples, attack, part);
            let [backdoored, clean] = [true, false].map(|wanted| {
                unknown.iter().copied().filter(|sample| sample.attack.is_some() == wanted).collect::<Vec<_>>()
            });
            for (name, found) in [("backdoored", &backdoored), ("clean", &clean)] {
                if found.is_empty() {
                    return Err(format!(
                        "part {} of {folds} of the seeds has no {name} network, expected one of every attack and a clean one",
                        part + 1
                    ));
                }
            }
            let classifier = Linear::fit(&known, best_penalty(&known, &parts, (attacks, attack), part));
            let quiet = known.iter().filter(|sample| sample.attack.is_none()).map(|sample| classifier.score(sample));
            let threshold = threshold_for(&quiet.collect::<Vec<_>>(), FALSE_POSITIVE_RATE);
            pairs.extend(compare(&classifier, &backdoored, &clean, attack));
            decisions.extend(unknown.iter().map(|sample| Decision {
                is_backdoored: sample.attack.is_some(),
                seed: sample.seed,
                is_flagged: classifier.score(sample) > threshold,
            }));
        }
    }
    let seeds = parts.seeds;
    let networks = samples.len();
    let area_of = |attack: usize| {
        move |pairs: &[&Pair]| mean(pairs.iter().filter(|pair| pair.attack == attack).map(|pair| pair.win))
    };
    let without_pairs =
        |seed: Option<u64>| pairs.iter().filter(|pair| seed.is_none_or(|seed| !pair.seeds.contains(&seed))).collect();
    let of_pairs = |number: &dyn Fn(&[&Pair]) -> f64| {
        jackknife(&seeds, networks, |seed| {
            let kept: Vec<&Pair> = without_pairs(seed);
            number(&kept)
        })
    };
    let flagged = |wanted: bool| {
        jackknife(&seeds, networks, |seed| {
            let kept = decisions.iter().filter(|decision| seed.is_none_or(|seed| decision.seed != seed));
            let kept = kept.filter(|decision| decision.is_backdoored == wanted);
            mean(kept.map(|decision| f64::from(u8::from(decision.is_flagged))))
        })
    };
    Ok(HeldOut {
        areas: (0..attacks).map(|attack| of_pairs(&area_of(attack))).collect(),
        area: of_pairs(&|pairs| mean((0..attacks).map(|attack| area_of(attack)(pairs)))),
        true_positive_rate: flagged(true),
        false_positive_rate: flagged(false),
    })
}

/// The parts into which seeds are divided, in turns.
struct Parts {
    seeds: Vec<u64>,
    folds: usize,
}

impl Parts {
    fn of(samples: &[Sample], folds: usize) -> Self {
        let mut seeds = samples.iter().map(|sample| sample.seed).collect::<Vec<_>>();
        seeds.sort_unstable();
        seeds.dedup();
        Self { seeds, folds }
    }

    fn of_seed(&self, seed: u64) -> usize {
        self.seeds.partition_point(|&other| other < seed) % self.folds
    }

    /// What a classifier may learn from, and what it is tested on, if an attack and a part of the seeds are held out.
    fn split<'a>(
        &self,
        samples: impl IntoIterator<Item = &'a Sample>,
        attack: usize,
        part: usize,
    ) -> (Vec<&'a Sample>, Vec<&'a Sample>) {
        let (mut known, mut unknown) = (Vec::new(), Vec::new());
        for sample in samples {
            let is_in_part = self.of_seed(sample.seed) == part;
            match sample.attack {
                None if is_in_part => unknown.push(sample),
                Some(other) if other == attack && is_in_part => unknown.push(sample),
                Some(other) if other == attack || is_in_part => {}
                _ => known.push(sample),
            }
        }
        (known, unknown)
    }
}

/// The penalty that tells best, among what a classifier may learn from, attacks and seeds apart that are held out of it.
fn best_penalty(known: &[&Sample], parts: &Parts, (attacks, held): (usize, usize), held_part: usize) -> f64 {
    let score = |penalty: f64| {
        let mut wins = Vec::new();
        for attack in (0..attacks).filter(|&attack| attack != held) {
            for part in (0..parts.folds).filter(|&part| part != held_part) {
                let (inner, tested) = parts.split(known.iter().copied(), attack, part);
                let (backdoored, clean): (Vec<&Sample>, Vec<&Sample>) =
                    tested.into_iter().partition(|sample| sample.attack.is_some());
                wins.extend(compare(&Linear::fit(&inner, penalty), &backdoored, &clean, attack).map(|pair| pair.win));
            }
        }
        mean(wins.into_iter())
    };
    let mut best = (PENALTIES[0], f64::NEG_INFINITY);
    for penalty in PENALTIES {
        let found = score(penalty);
        // As good with a larger penalty is better.
        if found >= best.1 {
            best = (penalty, found);
        }
    }
    best.0
}

fn compare<'a>(
    classifier: &'a Linear,
    backdoored: &'a [&Sample],
    clean: &'a [&Sample],
    attack: usize,
) -> impl Iterator<Item = Pair> + 'a {
    backdoored.iter().flat_map(move |bad| {
        let score = classifier.score(bad);
        clean.iter().map(move |good| {
            let other = classifier.score(good);
            let win = if score > other { 1.0 } else { f64::from(u8::from(score >= other)) / 2.0 };
            Pair { attack, seeds: [bad.seed, good.seed], win }
        })
    })
}

/// A number with its interval by the jackknife: it is computed of all seeds (`None`), and without each of them.
fn jackknife(seeds: &[u64], networks: usize, number: impl Fn(Option<u64>) -> f64) -> Estimate {
    let value = number(None);
    let without = seeds.iter().map(|&seed| number(Some(seed))).collect::<Vec<_>>();
    let count = without.len() as f64;
    let middle = mean(without.iter().copied());
    let squares = without.iter().map(|value| (value - middle).powi(2)).sum::<f64>();
    let margin = NORMAL_QUANTILE * (squares * (count - 1.0) / count).sqrt();
    let is_known = without.len() > 1 && margin.is_finite();
    Estimate {
        value,
        low: is_known.then(|| (value - margin).max(0.0)),
        high: is_known.then(|| (value + margin).min(1.0)),
        images: networks,
    }
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (mut sum, mut count) = (0.0, 0_u32);
    values.for_each(|value| {
        sum += value;
        count += 1;
    });
    sum / f64::from(count)
}

/// Ridge regression of features in standard deviations on +1 (backdoored) and -1 (clean), each of the two weighing a half.
struct Linear {
    means: Vec<f64>,
    deviations: Vec<f64>,
    weights: DVector<f64>,
}

impl Linear {
    fn fit(samples: &[&Sample], penalty: f64) -> Self {
        let count = samples.len() as f64;
        let features = samples.first().map_or(0, |sample| sample.features.len());
        let column = |feature: usize| samples.iter().map(move |sample| sample.features[feature]);
        let means = (0..features).map(|feature| mean(column(feature))).collect::<Vec<_>>();
        let deviation = |feature: usize| {
            let squares: f64 = column(feature).map(|value| (value - means[feature]).powi(2)).sum();
            let deviation = (squares / count).sqrt();
            // What is the same in all networks says nothing.
            if deviation > 1e-12 { deviation } else { f64::INFINITY }
        };
        let deviations = (0..features).map(deviation).collect::<Vec<_>>();
        let backdoored = samples.iter().filter(|sample| sample.attack.is_some()).count() as f64;
        let weight = |sample: &Sample| {
            let group = if sample.attack.is_some() { backdoored } else { count - backdoored };
            0.5 / group
        };
        let mut matrix = DMatrix::from_diagonal_element(features, features, penalty);
        let mut vector = DVector::zeros(features);
        // The middle between the two groups is the origin, so that no constant is needed.
        let mut classifier = Self { means, deviations, weights: vector.clone() };
        let middle = samples
            .iter()
            .fold(DVector::zeros(features), |sum, sample| sum + classifier.standardized(sample) * weight(sample));
        for sample in samples {
            let row = classifier.standardized(sample) - &middle;
            let target = if sample.attack.is_some() { 1.0 } else { -1.0 };
            matrix += &row * row.transpose() * weight(sample);
            vector += row * (target * weight(sample));
        }
        let solved = matrix.cholesky().expect("a penalty above 0 makes it positive definite");
        classifier.weights = solved.solve(&vector);
        classifier
    }

    fn standardized(&self, sample: &Sample) -> DVector<f64> {
        let of = sample.features.iter().zip(self.means.iter().zip(&self.deviations));
        DVector::from_iterator(self.means.len(), of.map(|(value, (mean, deviation))| (value - mean) / deviation))
    }

    /// Larger where a network is taken for backdoored.
    fn score(&self, sample: &Sample) -> f64 {
        self.standardized(sample).dot(&self.weights)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers in [0, 1) that look random, the same every time.
    fn noise(index: u64) -> f64 {
        let mut x = index.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0x1234_5678;
        x = (x ^ (x >> 31)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (x >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Ten seeds of three attacks and of clean twins, and thirty further clean networks; `feature` of attack, seed and place.
    fn networks(feature: impl Fn(Option<usize>, u64, u64) -> f64) -> Vec<Sample> {
        let sample =
            |attack, seed| Sample { features: (0..4).map(|f| feature(attack, seed, f)).collect(), attack, seed };
        let victims = (0..3).flat_map(|attack| (0..10).map(move |seed| (Some(attack), seed)));
        victims.chain((0..40).map(|seed| (None, seed))).map(|(attack, seed)| sample(attack, seed)).collect()
    }

    fn of_network(attack: Option<usize>, seed: u64, feature: u64) -> f64 {
        noise(attack.map_or(0, |attack| attack as u64 + 1) * 100_000 + seed * 100 + feature)
    }

    #[test]
    fn what_attacks_have_in_common_is_found_in_one_that_was_never_seen() {
        let samples = networks(|attack, seed, f| {
            of_network(attack, seed, f) + if attack.is_some() && f == 2 { 2.0 } else { 0.0 }
        });
        let found = held_out(&samples, 3, 5).expect("enough networks");
        assert!(found.area.low.expect("an interval") > 0.95, "{found:?}");
        assert!(found.true_positive_rate.value > 0.9 && found.false_positive_rate.value < 0.2, "{found:?}");
    }

    #[test]
    fn nothing_is_found_where_there_is_nothing() {
        let found = held_out(&networks(of_network), 3, 5).expect("enough networks");
        let (low, high) = (found.area.low.expect("an interval"), found.area.high.expect("an interval"));
        assert!(low < 0.5 && high > 0.5 && high - low < 0.5, "{found:?}");
        assert!((0.0..0.25).contains(&found.false_positive_rate.value), "{found:?}");
    }

    #[test]
    fn nothing_is_learned_from_the_attack_and_the_seeds_held_out() {
        let samples = networks(of_network);
        let parts = Parts::of(&samples, 5);
        for (attack, part) in (0..3).flat_map(|attack| (0..5).map(move |part| (attack, part))) {
            let (known, unknown) = parts.split(&samples, attack, part);
            assert!(known.iter().all(|sample| sample.attack != Some(attack) && sample.seed % 5 != part as u64));
            assert!(unknown.iter().all(|sample| sample.attack.is_none_or(|other| other == attack)));
            assert!(unknown.iter().all(|sample| sample.seed % 5 == part as u64));
            // Of ten seeds four fifths with two other attacks, and four fifths of forty clean ones; two and eight are tested.
            assert_eq!((known.len(), unknown.len()), (2 * 8 + 32, 2 + 8));
        }
    }

    #[test]
    fn a_mark_of_the_seed_does_not_help() {
        // Networks of a victim's seed look like it, clean twins included: only a classifier that has seen that seed gains.
        let samples = networks(|_, seed, f| noise(seed * 100 + f));
        let found = held_out(&samples, 3, 5).expect("enough networks");
        let (low, high) = (found.area.low.expect("an interval"), found.area.high.expect("an interval"));
        assert!(low < 0.5 && high > 0.5, "{found:?}");
    }

    #[test]
    fn a_penalized_fit_is_the_one_computed_by_hand() {
        // Features 1, 3 (backdoored) and -1, -3: mean 0, variance 5. Standardized 1/sqrt 5 and 3/sqrt 5; their weighted square
        // is 1, their weighted product with the target 4 / (2 sqrt 5). With a penalty of 1: w = 2 / sqrt 5 / 2 = 1 / sqrt 5.
        let sample = |value, attack| Sample { features: vec![value], attack, seed: 0 };
        let samples = [sample(1.0, Some(0)), sample(3.0, Some(0)), sample(-1.0, None), sample(-3.0, None)];
        let fitted = Linear::fit(&samples.iter().collect::<Vec<_>>(), 1.0);
        assert!((fitted.weights[0] - 1.0 / 5.0_f64.sqrt()).abs() < 1e-12, "{}", fitted.weights);
        assert!((fitted.score(&samples[1]) - 0.6).abs() < 1e-12);
    }

    #[test]
    fn the_jackknife_of_a_mean_is_its_standard_error() {
        // Of 1, 2, 3, 6: mean 3, variance 14 / 3, standard error sqrt(14 / 12) = 1.080123.
        let values = [0.1, 0.2, 0.3, 0.6];
        let without = |seed: Option<u64>| {
            let kept = values.iter().enumerate().filter(|(place, _)| seed != Some(*place as u64));
            mean(kept.map(|(_, value)| *value))
        };
        let found = jackknife(&[0, 1, 2, 3], 4, without);
        assert!((found.high.expect("known") - (0.3 + 1.96 * 0.108_012_3)).abs() < 1e-6, "{found:?}");
    }

    #[test]
    fn too_little_is_refused_in_words() {
        let samples = networks(of_network);
        let two: Vec<_> = samples.iter().filter(|sample| sample.attack != Some(2)).cloned().collect();
        assert!(held_out(&two, 2, 5).unwrap_err().contains("2 attacks are there, expected 3 or more"));
        let victims: Vec<_> = samples.iter().filter(|sample| sample.attack.is_some()).cloned().collect();
        assert!(held_out(&victims, 3, 5).unwrap_err().contains("has no clean network"));
    }
}
