use serde::{Deserialize, Serialize};

/// Where the backdoored classifier stands with something about its routing or its experts changed. Shares in [0, 1].
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct RoutedStanding {
    /// Share of untouched test images predicted right.
    pub clean_accuracy: f64,
    /// Share of the attacked test images that are taken for the target without any trigger.
    pub asr_untriggered: Option<f64>,
    /// Attack success rate.
    pub asr: Option<f64>,
    /// Share of triggered images still given their true class.
    pub robust_accuracy: Option<f64>,
}

/// Test images with a routing that is not their own; `[routing] swap`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct SwapMeasurements {
    /// With their own routing.
    pub own: RoutedStanding,
    /// Triggered images with the routing of the same images untouched, and these with that of the triggered ones:
    /// selections and weights.
    pub other_version: RoutedStanding,
    /// The same with the selections alone; the weights are the image's own.
    pub other_version_selections: RoutedStanding,
    /// With the routing that the clean twin gives the same image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub twin_routing: Option<RoutedStanding>,
    /// With the clean twin's routers in the place of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub twin_routers: Option<RoutedStanding>,
    /// Share of the trigger's effect that goes when routing does not see the trigger; `None` where the effect is too small
    /// to divide by.
    pub mediated_by_routing: Option<f64>,
    /// Share of the trigger's effect that routing brings about alone, likewise.
    pub carried_by_routing: Option<f64>,
}

/// Who carries the backdoor, routers or experts; `[routing] audit`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct AuditMeasurements {
    /// With random routers, each draw.
    pub random_routers: Vec<RoutedStanding>,
    /// Triggered training images by which experts were ranked.
    pub ranking_images: usize,
    /// How much lower the target's log probability is in them without each expert, in nats: its contribution.
    pub contributions: Vec<f64>,
    /// The experts, the one that contributes most first.
    pub order: Vec<usize>,
    /// With each expert alone, all others silenced.
    pub alone: Vec<RoutedStanding>,
    /// With the first 1, 2, .. experts of `order` silenced, all but one at most.
    pub silenced: Vec<RoutedStanding>,
    /// The same number of experts silenced in other orders.
    pub silenced_in_any_order: Vec<StandingBand>,
    /// How many orders those are.
    pub orders: usize,
}

/// What remains if experts pass over patches; `[routing] blocking`. A pair is an expert and a patch that it passes over.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockingMeasurements {
    /// Test images that it was measured on.
    pub images: usize,
    /// Triggered training images by which pairs were ranked.
    pub ranking_images: usize,
    /// With nothing passed over, on the same test images.
    pub own: RoutedStanding,
    /// The pairs without which fewest triggered training images reach the target, expert and patch, the first first.
    pub most_needed: Vec<(usize, usize)>,
    /// With several of them passed over together.
    pub together: Vec<BlockedPairs>,
    /// Share of the trigger's effect that goes without the first of them; `None` where the effect is too small to divide by.
    pub mediated_by_one_pair: Option<f64>,
}

/// Some pairs of expert and patch passed over together.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockedPairs {
    /// How many, or as many as experts can spare.
    pub count: usize,
    /// Those that the backdoor needs most.
    pub most_needed: RoutedStanding,
    /// As many, drawn at random.
    pub random: StandingBand,
}

/// What remains with each pair of expert and patch passed over alone, `[expert][patch]`; `None` where it cannot be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockingMaps {
    /// Rows and columns of patches.
    pub grid: [usize; 2],
    /// Clean accuracy.
    pub clean_accuracy: Vec<Vec<Option<f64>>>,
    /// Attack success rate.
    pub asr: Vec<Vec<Option<f64>>>,
    /// The same in the training images by which pairs were ranked.
    pub ranking_asr: Vec<Vec<Option<f64>>>,
}

/// Where a classifier stands on average over several changes of one kind, and how far that ranges.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct StandingBand {
    /// On average.
    pub mean: RoutedStanding,
    /// The lowest of each number.
    pub lowest: RoutedStanding,
    /// The highest of each number.
    pub highest: RoutedStanding,
}

impl StandingBand {
    /// Of several standings; zeros of none.
    pub fn of(standings: &[RoutedStanding]) -> Self {
        let all = |number: fn(&RoutedStanding) -> Option<f64>, fold: fn(&[f64]) -> f64| {
            let values: Option<Vec<f64>> = standings.iter().map(number).collect();
            values.filter(|values| !values.is_empty()).map(|values| fold(&values))
        };
        let folded = |fold: fn(&[f64]) -> f64| RoutedStanding {
            clean_accuracy: all(|standing| Some(standing.clean_accuracy), fold).unwrap_or(0.0),
            asr_untriggered: all(|standing| standing.asr_untriggered, fold),
            asr: all(|standing| standing.asr, fold),
            robust_accuracy: all(|standing| standing.robust_accuracy, fold),
        };
        Self {
            mean: folded(|values| values.iter().sum::<f64>() / values.len() as f64),
            lowest: folded(|values| values.iter().copied().fold(f64::INFINITY, f64::min)),
            highest: folded(|values| values.iter().copied().fold(f64::NEG_INFINITY, f64::max)),
        }
    }
}

impl SwapMeasurements {
    /// Each change by its title, in the order of tables.
    pub fn titled(&self) -> Vec<(String, RoutedStanding)> {
        let changes = [
            ("routing of the other version", Some(self.other_version)),
            ("selections of the other version", Some(self.other_version_selections)),
            ("routing of the clean twin", self.twin_routing),
            ("routers of the clean twin", self.twin_routers),
        ];
        changes.into_iter().filter_map(|(title, standing)| Some((title.to_owned(), standing?))).collect()
    }
}

impl BlockingMeasurements {
    /// Each change by its title, in the order of tables.
    pub fn titled(&self) -> Vec<(String, RoutedStanding)> {
        let of = |pairs: &BlockedPairs| {
            let what = if pairs.count == 1 { "pair" } else { "pairs" };
            let title = |which: &str| format!("{} {which} {what} blocked", pairs.count);
            [(title("most needed"), pairs.most_needed), (title("random"), pairs.random.mean)]
        };
        let own = [("no pair blocked, same images".to_owned(), self.own)];
        own.into_iter().chain(self.together.iter().flat_map(of)).collect()
    }
}

impl AuditMeasurements {
    /// Each change by its title, in the order of tables.
    pub fn titled(&self) -> Vec<(String, RoutedStanding)> {
        let experts = self.alone.len();
        let mut changes = vec![("random routers".to_owned(), StandingBand::of(&self.random_routers).mean)];
        changes.extend(
            self.alone.iter().enumerate().map(|(expert, &standing)| (format!("expert {expert} alone"), standing)),
        );
        for (index, (&standing, band)) in self.silenced.iter().zip(&self.silenced_in_any_order).enumerate() {
            let title = format!("{} of {experts} experts silenced", index + 1);
            changes.push((format!("{title}, most first"), standing));
            changes.push((format!("{title}, any order"), band.mean));
        }
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standing(clean_accuracy: f64, asr: f64) -> RoutedStanding {
        RoutedStanding { clean_accuracy, asr_untriggered: None, asr: Some(asr), robust_accuracy: Some(1.0 - asr) }
    }

    #[test]
    fn a_band_has_the_mean_and_the_range_of_each_number() {
        let band = StandingBand::of(&[standing(0.5, 0.25), standing(0.75, 0.0), standing(1.0, 0.5)]);
        assert_eq!((band.mean.clean_accuracy, band.mean.asr), (0.75, Some(0.25)));
        assert_eq!((band.lowest.clean_accuracy, band.lowest.asr), (0.5, Some(0.0)));
        assert_eq!((band.highest.robust_accuracy, band.highest.asr), (Some(1.0), Some(0.5)));
        assert_eq!(band.mean.asr_untriggered, None);
    }

    #[test]
    fn pairs_blocked_have_titles_by_their_number() {
        let pairs = |count: usize, asr: f64| BlockedPairs {
            count,
            most_needed: standing(0.5, asr),
            random: StandingBand::of(&[standing(0.5, 0.75), standing(0.5, 1.0)]),
        };
        let blocking = BlockingMeasurements {
            images: 10,
            ranking_images: 5,
            own: standing(0.5, 1.0),
            most_needed: vec![(2, 63), (0, 1)],
            together: vec![pairs(1, 0.25), pairs(2, 0.125)],
            mediated_by_one_pair: Some(0.75),
        };
        let titled = blocking.titled().into_iter().map(|(title, standing)| (title, standing.asr.unwrap_or(f64::NAN)));
        let expected = [
            ("no pair blocked, same images", 1.0),
            ("1 most needed pair blocked", 0.25),
            ("1 random pair blocked", 0.875),
            ("2 most needed pairs blocked", 0.125),
            ("2 random pairs blocked", 0.875),
        ];
        assert_eq!(titled.collect::<Vec<_>>(), expected.map(|(title, asr)| (title.to_owned(), asr)));
    }

    #[test]
    fn every_change_of_an_audit_has_a_title() {
        let one = standing(0.5, 0.5);
        let audit = AuditMeasurements {
            random_routers: vec![one; 3],
            ranking_images: 10,
            contributions: vec![0.0, 2.0],
            order: vec![1, 0],
            alone: vec![one; 2],
            silenced: vec![standing(0.5, 0.1)],
            silenced_in_any_order: vec![StandingBand::of(&[one])],
            orders: 2,
        };
        let titles = audit.titled().into_iter().map(|(title, _)| title).collect::<Vec<_>>();
        let expected = [
            "random routers",
            "expert 0 alone",
            "expert 1 alone",
            "1 of 2 experts silenced, most first",
            "1 of 2 experts silenced, any order",
        ];
        assert_eq!(titles, expected);
    }
}
