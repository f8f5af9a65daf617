/// What a number of the results is called, in what it is counted, and which way is better.
///
/// This is the only place that knows: tables, pages and claims ask here. Numbers that belong together share a group, as
/// in `fine-pruning/asr`; the table has the part after the slash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MetricInfo {
    /// Its name in files of results.
    pub name: &'static str,
    /// What it is called at the head of a column.
    pub heading: &'static str,
    /// What it is called in a list; indented where it belongs to the number above it.
    pub label: &'static str,
    /// In what it is counted.
    pub unit: Unit,
    /// Which way is better for those who use the classifier; `None` where neither is.
    pub better: Option<Better>,
    /// Whether tables for people show it; files for programs always do.
    pub is_shown: bool,
}

/// In what a number is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// A share in [0, 1], shown in percent.
    Share,
    /// A difference of two shares, in [-1, 1], shown in percentage points.
    Points,
    /// A number in [0, 1] that is no share of anything, shown as it is.
    Index,
    /// A number in [-1, 1], shown as it is.
    Coefficient,
    /// A whole number of images, on average over seeds perhaps none.
    Images,
    /// Things other than images, counted on average over images.
    Count,
    /// A number of 0 or more that has no end, shown as it is.
    Size,
    /// Wall-clock time.
    Seconds,
    /// Main memory.
    Mebibytes,
}

/// Which way a number is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    /// The higher the better.
    Higher,
    /// The lower the better.
    Lower,
}

impl Unit {
    /// Whether it is shown multiplied by 100.
    pub fn is_percent(self) -> bool {
        matches!(self, Self::Share | Self::Points)
    }

    /// Whether it is what a computation cost, and says nothing of its outcome.
    pub fn is_cost(self) -> bool {
        matches!(self, Self::Seconds | Self::Mebibytes)
    }

    /// In one word, for programs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Share => "share",
            Self::Points => "points",
            Self::Index => "index",
            Self::Coefficient => "coefficient",
            Self::Images => "images",
            Self::Count => "count",
            Self::Size => "size",
            Self::Seconds => "seconds",
            Self::Mebibytes => "mebibytes",
        }
    }

    /// A value as tables show it, without a unit.
    pub fn text(self, value: f64) -> String {
        // A zero is no minus zero.
        match self {
            Self::Share | Self::Points => format!("{:.2}", 100.0 * value + 0.0),
            Self::Images if value.fract() == 0.0 => format!("{value:.0}"),
            Self::Images | Self::Count => format!("{value:.1}"),
            Self::Seconds | Self::Mebibytes => format!("{value:.0}"),
            Self::Size => format!("{:.2}", value + 0.0),
            Self::Index | Self::Coefficient => format!("{:.4}", value + 0.0),
        }
    }

    /// What stands behind a value in a sentence.
    pub fn suffix(self) -> &'static str {
        match self {
            Self::Share => " %",
            Self::Points => " points",
            Self::Seconds
            | Self::Mebibytes
            | Self::Size
            | Self::Images
            | Self::Count
            | Self::Index
            | Self::Coefficient => "",
        }
    }

    /// In what the difference of two such numbers is counted.
    #[must_use]
    pub fn of_difference(self) -> Self {
        match self {
            Self::Share | Self::Points => Self::Points,
            Self::Index | Self::Coefficient => Self::Coefficient,
            Self::Images | Self::Count | Self::Size | Self::Seconds | Self::Mebibytes => self,
        }
    }

    /// The value nearest to `value` that such a number can have; intervals of means end there.
    pub fn bounded(self, value: f64) -> f64 {
        match self {
            Self::Share | Self::Index => value.clamp(0.0, 1.0),
            Self::Seconds | Self::Mebibytes | Self::Size | Self::Images | Self::Count => value.max(0.0),
            // A difference of two shares.
            Self::Points => value.clamp(-1.0, 1.0),
            // Numbers of other programs are among these, and nobody knows where they end.
            Self::Coefficient => value,
        }
    }
}

impl MetricInfo {
    /// What is known of a number, by its name with or without a group; `None` for a number of another program.
    pub fn of(name: &str) -> Option<&'static Self> {
        let last = name.rsplit('/').next().unwrap_or(name);
        METRICS.iter().find(|metric| metric.name == last)
    }

    /// In what a number of that name is counted; a number of another program is shown as it is.
    pub fn unit_of(name: &str) -> Unit {
        Self::of(name).map_or(Unit::Coefficient, |metric| metric.unit)
    }

    /// What a number of that name is called at the head of a column, without its group.
    pub fn heading_of(name: &str) -> &str {
        Self::of(name).map_or_else(|| name.rsplit('/').next().unwrap_or(name), |metric| metric.heading)
    }
}

/// The group of a number, such as the title of a defense; `""` for the attack's own.
pub fn group_of(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(group, _)| group)
}

/// The whole name of a number of a group.
pub fn in_group(group: &str, name: &str) -> String {
    if group.is_empty() { name.to_owned() } else { format!("{group}/{name}") }
}

const fn metric(
    name: &'static str,
    heading: &'static str,
    label: &'static str,
    unit: Unit,
    better: Option<Better>,
) -> MetricInfo {
    MetricInfo { name, heading, label, unit, better, is_shown: true }
}

const fn for_programs(metric: MetricInfo) -> MetricInfo {
    MetricInfo { is_shown: false, ..metric }
}

/// Every number of the results, in the order in which tables show them.
pub const METRICS: [MetricInfo; 102] = {
    use Better::{Higher, Lower};
    use Unit::{Coefficient, Count, Images, Index, Mebibytes, Points, Seconds, Share, Size};
    [
        metric("poisoned-images", "poisoned", "poisoned images", Images, None),
        metric("clean-accuracy", "CA", "clean accuracy (CA)", Share, Some(Higher)),
        for_programs(metric("clean-twin-accuracy", "twin's CA", "clean twin's accuracy", Share, Some(Higher))),
        metric("clean-accuracy-drop", "CAD", "clean accuracy drop (CAD)", Points, Some(Lower)),
        metric("asr", "ASR", "attack success rate (ASR)", Share, Some(Lower)),
        for_programs(metric("asr-all-classes", "asr all classes", "  target class counted in", Share, Some(Lower))),
        metric("clean-twin-asr", "twin's ASR", "  of the clean twin", Share, Some(Lower)),
        metric(
            "trigger-false-positive-rate",
            "trigger FPR",
            "  of classes that the attack leaves alone",
            Share,
            Some(Lower),
        ),
        metric("robust-accuracy", "RA", "robust accuracy (RA)", Share, Some(Higher)),
        metric("asr-untriggered", "untriggered", "taken for the target untriggered", Share, Some(Lower)),
        metric("mediated-by-routing", "mediated", "share of the effect mediated by routing", Coefficient, None),
        metric("carried-by-routing", "carried", "  carried by routing alone", Coefficient, None),
        metric("mediated-by-one-pair", "one pair", "  mediated by one expert's taking one patch", Coefficient, None),
        metric("fgsm-accuracy", "FGSM", "accuracy under FGSM", Share, Some(Higher)),
        metric("clean-twin-fgsm-accuracy", "twin's FGSM", "  of the clean twin", Share, Some(Higher)),
        metric("pgd-accuracy", "PGD", "accuracy under PGD", Share, Some(Higher)),
        metric("clean-twin-pgd-accuracy", "twin's PGD", "  of the clean twin", Share, Some(Higher)),
        metric("pgd-router-accuracy", "PGD routers", "accuracy under PGD of the routers' scores", Share, Some(Higher)),
        metric("clean-twin-pgd-router-accuracy", "twin's PGD routers", "  of the clean twin", Share, Some(Higher)),
        metric(
            "pgd-fixed-routing-accuracy",
            "PGD fixed routing",
            "accuracy under PGD, routing fixed",
            Share,
            Some(Higher),
        ),
        metric(
            "clean-twin-pgd-fixed-routing-accuracy",
            "twin's PGD fixed routing",
            "  of the clean twin",
            Share,
            Some(Higher),
        ),
        metric(
            "masked-accuracy",
            "masked accuracy",
            "accuracy, patches passed over by double masking",
            Share,
            Some(Higher),
        ),
        metric("clean-twin-masked-accuracy", "twin's masked accuracy", "  of the clean twin", Share, Some(Higher)),
        metric("certified-accuracy", "masked certified", "  certified", Share, Some(Higher)),
        metric("clean-twin-certified-accuracy", "twin's masked certified", "  of the clean twin", Share, Some(Higher)),
        metric("masked-asr", "masked ASR", "  attack success rate", Share, Some(Lower)),
        metric("clean-twin-masked-asr", "twin's masked ASR", "  of the clean twin", Share, Some(Lower)),
        metric(
            "pixel-masked-accuracy",
            "pixel accuracy",
            "accuracy, pixels hidden by double masking",
            Share,
            Some(Higher),
        ),
        metric("clean-twin-pixel-masked-accuracy", "twin's pixel accuracy", "  of the clean twin", Share, Some(Higher)),
        metric("pixel-certified-accuracy", "pixel certified", "  certified", Share, Some(Higher)),
        metric(
            "clean-twin-pixel-certified-accuracy",
            "twin's pixel certified",
            "  of the clean twin",
            Share,
            Some(Higher),
        ),
        metric("pixel-masked-asr", "pixel ASR", "  attack success rate", Share, Some(Lower)),
        metric("clean-twin-pixel-masked-asr", "twin's pixel ASR", "  of the clean twin", Share, Some(Lower)),
        for_programs(metric("pixels-changed", "pixels", "pixels that the trigger changes", Count, None)),
        for_programs(metric("cells-touched", "cells", "  cells with such a pixel", Count, None)),
        for_programs(metric("patches-reached", "patches", "  patches that see one (reach)", Count, None)),
        metric("psnr", "PSNR", "triggered images: PSNR, dB", Size, None),
        metric("ssim", "SSIM", "  structural similarity (SSIM)", Coefficient, None),
        for_programs(metric("largest-change", "L-inf", "  largest change of a value, of 255 (L-inf)", Size, None)),
        for_programs(metric("distance", "L2", "  length of all changes (L2)", Size, None)),
        for_programs(metric("changed-pixels", "changed", "  share of pixels changed", Share, None)),
        for_programs(metric("frequency-distance", "frequencies", "  distance of frequencies", Size, None)),
        for_programs(metric("largest-class-share", "largest class", "most predicted class, clean", Share, None)),
        for_programs(metric(
            "clean-twin-largest-class-share",
            "twin's largest class",
            "  of the clean twin",
            Share,
            None,
        )),
        metric("defense-effectiveness", "DER", "defense effectiveness rating (DER)", Index, Some(Higher)),
        metric("robust-improvement", "RIR", "robust improvement rating (RIR)", Index, Some(Higher)),
        metric("detection-auc", "AUC", "AUC of detection", Index, Some(Higher)),
        for_programs(metric(
            "detection-auc-successful",
            "AUC of successes",
            "  of attacks that succeed",
            Index,
            Some(Higher),
        )),
        metric("clean-twin-detection-auc", "twin's AUC", "  of the clean twin", Index, None),
        metric("tpr-at-1", "TPR at 1", "triggered, flagged at 1 % of validation", Share, Some(Higher)),
        for_programs(metric("fpr-at-1", "FPR at 1", "  untouched, flagged", Share, Some(Lower))),
        metric("tpr-at-5", "TPR at 5", "triggered, flagged at 5 % of validation", Share, Some(Higher)),
        metric("fpr-at-5", "FPR at 5", "  untouched, flagged", Share, Some(Lower)),
        metric("tpr-at-10", "TPR at 10", "triggered, flagged at 10 % of validation", Share, Some(Higher)),
        for_programs(metric("fpr-at-10", "FPR at 10", "  untouched, flagged", Share, Some(Lower))),
        metric("true-positive-rate", "TPR", "poisoned, flagged at the own threshold", Share, Some(Higher)),
        metric("false-positive-rate", "FPR", "  clean, flagged", Share, Some(Lower)),
        metric("clean-twin-false-positive-rate", "twin's FPR", "  of the clean twin", Share, Some(Lower)),
        metric("precision", "precision", "  poisoned among the flagged", Share, Some(Higher)),
        metric("targets-flagged", "targets flagged", "target classes flagged", Share, Some(Higher)),
        metric("target-rank", "target's rank", "  place of the first target by score", Count, None),
        metric("wrongly-flagged", "others flagged", "  other classes flagged", Count, Some(Lower)),
        metric("clean-twin-flagged", "twin's flagged", "  classes of the clean twin flagged", Count, Some(Lower)),
        metric("seconds", "seconds", "seconds", Seconds, Some(Lower)),
        metric("peak-memory", "peak MiB", "most memory, MiB", Mebibytes, Some(Lower)),
        metric("trigger-capture", "trigger capture", "trigger capture", Index, None),
        metric("trigger-capture-untouched", "trigger capture untouched", "  the same patches, untouched", Index, None),
        metric(
            "trigger-capture-receptive-field",
            "trigger capture receptive field",
            "  of all patches that see it",
            Index,
            None,
        ),
        metric("trigger-capture-any", "trigger capture any", "  by any expert", Index, None),
        metric("auc-intensity", "AUC intensity", "AUC of intensity, clean", Index, None),
        metric("auc-intensity-adjusted", "AUC intensity adjusted", "  its place's mean taken off", Index, None),
        metric("auc-intensity-triggered", "AUC intensity triggered", "  triggered", Index, None),
        for_programs(metric(
            "auc-intensity-departure",
            "mean abs(AUC intensity - 0.5)",
            "  mean distance from 0.5",
            Index,
            None,
        )),
        for_programs(metric(
            "auc-intensity-departure-max",
            "max abs(AUC intensity - 0.5)",
            "  largest of an expert",
            Index,
            None,
        )),
        metric(
            "auc-intensity-adjusted-departure",
            "mean abs(AUC intensity adjusted - 0.5)",
            "  adjusted, mean distance from 0.5",
            Index,
            None,
        ),
        metric(
            "auc-intensity-adjusted-departure-max",
            "max abs(AUC intensity adjusted - 0.5)",
            "  adjusted, largest of an expert",
            Index,
            None,
        ),
        for_programs(metric("expert-auc-intensity", "AUC intensity", "AUC of intensity, one expert", Index, None)),
        for_programs(metric(
            "expert-auc-intensity-adjusted",
            "AUC intensity adjusted",
            "  its place's mean taken off",
            Index,
            None,
        )),
        metric("auc-variance", "AUC variance", "AUC of variance, clean", Index, None),
        metric("auc-variance-adjusted", "AUC variance adjusted", "  its place's mean taken off", Index, None),
        metric("auc-variance-triggered", "AUC variance triggered", "  triggered", Index, None),
        for_programs(metric(
            "auc-variance-departure",
            "mean abs(AUC variance - 0.5)",
            "  mean distance from 0.5",
            Index,
            None,
        )),
        for_programs(metric(
            "auc-variance-departure-max",
            "max abs(AUC variance - 0.5)",
            "  largest of an expert",
            Index,
            None,
        )),
        metric(
            "auc-variance-adjusted-departure",
            "mean abs(AUC variance adjusted - 0.5)",
            "  adjusted, mean distance from 0.5",
            Index,
            None,
        ),
        metric(
            "auc-variance-adjusted-departure-max",
            "max abs(AUC variance adjusted - 0.5)",
            "  adjusted, largest of an expert",
            Index,
            None,
        ),
        for_programs(metric("expert-auc-variance", "AUC variance", "AUC of variance, one expert", Index, None)),
        for_programs(metric(
            "expert-auc-variance-adjusted",
            "AUC variance adjusted",
            "  its place's mean taken off",
            Index,
            None,
        )),
        metric("auc-gradient", "AUC gradient", "AUC of gradient, clean", Index, None),
        metric("auc-gradient-adjusted", "AUC gradient adjusted", "  its place's mean taken off", Index, None),
        metric("auc-gradient-triggered", "AUC gradient triggered", "  triggered", Index, None),
        for_programs(metric(
            "auc-gradient-departure",
            "mean abs(AUC gradient - 0.5)",
            "  mean distance from 0.5",
            Index,
            None,
        )),
        for_programs(metric(
            "auc-gradient-departure-max",
            "max abs(AUC gradient - 0.5)",
            "  largest of an expert",
            Index,
            None,
        )),
        metric(
            "auc-gradient-adjusted-departure",
            "mean abs(AUC gradient adjusted - 0.5)",
            "  adjusted, mean distance from 0.5",
            Index,
            None,
        ),
        metric(
            "auc-gradient-adjusted-departure-max",
            "max abs(AUC gradient adjusted - 0.5)",
            "  adjusted, largest of an expert",
            Index,
            None,
        ),
        for_programs(metric("expert-auc-gradient", "AUC gradient", "AUC of gradient, one expert", Index, None)),
        for_programs(metric(
            "expert-auc-gradient-adjusted",
            "AUC gradient adjusted",
            "  its place's mean taken off",
            Index,
            None,
        )),
        metric(
            "correlation-intensity",
            "correlation intensity",
            "correlation with intensity, clean",
            Coefficient,
            None,
        ),
        metric("overlap", "overlap", "overlap clean/triggered (IoU)", Index, None),
        metric("load-entropy", "load entropy", "load entropy, clean", Index, None),
        metric("load-entropy-triggered", "load entropy triggered", "  triggered", Index, None),
        metric("expert-similarity", "expert similarity", "similarity of experts, clean (IoU)", Index, None),
        metric("expert-similarity-triggered", "expert similarity triggered", "  triggered", Index, None),
    ]
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_has_a_name_of_its_own() {
        for (at, metric) in METRICS.iter().enumerate() {
            assert_eq!(METRICS.iter().position(|other| other.name == metric.name), Some(at), "{}", metric.name);
        }
    }

    #[test]
    fn a_number_is_known_with_and_without_its_group() {
        assert_eq!(MetricInfo::of("asr"), MetricInfo::of("fine-pruning, 0.1 pruned/asr"));
        assert_eq!(MetricInfo::of("a/b"), None);
        assert_eq!((group_of("a/b/asr"), group_of("asr")), ("a/b", ""));
        assert_eq!((in_group("a", "asr"), in_group("", "asr")), ("a/asr".into(), "asr".into()));
    }

    #[test]
    fn values_read_as_people_write_them() {
        assert_eq!(Unit::Share.text(0.95), "95.00");
        assert_eq!(Unit::Points.text(-0.0), "0.00");
        assert_eq!(Unit::Images.text(20.0), "20");
        assert_eq!(Unit::Images.text(20.5), "20.5");
        assert_eq!(Unit::Index.text(0.5), "0.5000");
        assert_eq!(Unit::Seconds.text(61.4), "61");
        assert_eq!(
            (Unit::Share.bounded(1.5), Unit::Points.bounded(-0.5), Unit::Seconds.bounded(-3.0)),
            (1.0, -0.5, 0.0)
        );
        assert_eq!((Unit::Points.bounded(-1.5), Unit::Index.bounded(-0.1)), (-1.0, 0.0));
    }
}
