use maud::{Markup, html};
use patchdoor_metrics::EpochRecord;
use patchdoor_record::CurvePoint;

use super::chart::{Axis, Chart, Look, Point, Series};
use crate::history::History;

/// One number by epoch, of every seed that has it.
struct Measure {
    /// What it is called beside others; empty if it stands alone.
    name: &'static str,
    seeds: Vec<(u64, Vec<Point>)>,
}

impl Measure {
    fn of<T>(
        name: &'static str,
        histories: &[History<T>],
        epoch: fn(&T) -> usize,
        of: fn(&T) -> Option<f64>,
    ) -> Option<Self> {
        let point = |seen: &T| Some(Point::new(epoch(seen) as f64 + 1.0, of(seen)?));
        let points = |history: &History<T>| (history.seed, history.epochs.iter().filter_map(point).collect::<Vec<_>>());
        let seeds = histories.iter().map(points).filter(|(_, points)| !points.is_empty()).collect::<Vec<_>>();
        (!seeds.is_empty()).then_some(Self { name, seeds })
    }

    fn points(&self) -> impl Iterator<Item = &Point> {
        self.seeds.iter().flat_map(|(_, points)| points)
    }

    /// The mean over seeds of each epoch that all of them have.
    fn mean(&self) -> Vec<Point> {
        let Some((_, first)) = self.seeds.first() else { return Vec::new() };
        let at = |x: f64| {
            let of_seed = |(_, points): &(u64, Vec<Point>)| {
                points.iter().find(|point| point.x.total_cmp(&x).is_eq()).map(|point| point.y)
            };
            let values = self.seeds.iter().map(of_seed).collect::<Option<Vec<f64>>>()?;
            Some(Point::new(x, values.iter().sum::<f64>() / values.len() as f64))
        };
        first.iter().filter_map(|point| at(point.x)).collect()
    }
}

/// Loss and accuracies by epoch, and how the attack came up, for every seed and their mean.
pub(crate) fn curves(histories: &[History<EpochRecord>], followed: &[History<CurvePoint>]) -> Markup {
    let of_training = |of: fn(&EpochRecord) -> Option<f64>| Measure::of("", histories, |epoch| epoch.epoch, of);
    let of_test = |name, of: fn(&CurvePoint) -> Option<f64>| Measure::of(name, followed, |point| point.epoch, of);
    let alone = |title: &str, label: &str, measure: Option<Measure>| {
        curve(title, label, &measure.into_iter().collect::<Vec<_>>())
    };
    let attack = [
        of_test("clean accuracy", |point| Some(point.clean_accuracy)),
        of_test("attack success rate", |point| point.asr),
        of_test("robust accuracy", |point| point.robust_accuracy),
    ];
    let attack = attack.into_iter().flatten().collect::<Vec<_>>();
    let charts = [
        curve("The attack by epoch, on test images", "share", &attack),
        alone("Training loss by epoch", "loss, nats", of_training(|epoch| Some(epoch.loss))),
        alone("Accuracy on training images by epoch", "accuracy", of_training(|epoch| Some(epoch.training_accuracy))),
        alone("Accuracy on validation images by epoch", "accuracy", of_training(|epoch| epoch.validation_accuracy)),
    ];
    let charts = charts.into_iter().flatten().collect::<Vec<_>>();
    let images = followed.iter().flat_map(|history| &history.epochs).map(|point| point.images).max();
    html! {
        @if charts.is_empty() {
            p { "No epoch is on record." }
        } @else {
            div.charts { @for chart in &charts { (chart.markup()) } }
            p.note {
                "Of the backdoored classifier; thin lines are single seeds. Loss and training accuracy are taken in training mode just "
                "before each step, on poisoned images under the attacker's labels too; validation images are clean and cut from the "
                "training set."
                @if let Some(images) = images {
                    " The attack is followed on " (images) " test images, untouched and triggered, to be looked at: nothing is chosen "
                    "by it, and the numbers of the attack are those after training, on all test images."
                }
            }
        }
    }
}

/// One chart of numbers that share an axis; `None` where no epoch has one of them.
fn curve(title: &str, label: &str, measures: &[Measure]) -> Option<Chart> {
    let means = measures.iter().map(Measure::mean).collect::<Vec<_>>();
    let last = measures.iter().flat_map(Measure::points).map(|point| point.x).fold(f64::NAN, f64::max);
    let is_share = label != "loss, nats";
    let seeds = measures.iter().map(|measure| measure.seeds.len()).max()?;
    let text = |y: f64| if is_share { format!("{:.1} %", 100.0 * y) } else { format!("{y:.3}") };
    let said = measures.iter().zip(&means).filter_map(|(measure, mean)| {
        let (first, end) = (mean.first()?, mean.last()?);
        let name = if measure.name.is_empty() { String::new() } else { format!("{} ", measure.name) };
        Some(format!("{name}{} after epoch {}, {} after epoch {}", text(first.y), first.x, text(end.y), end.x))
    });
    let said = said.collect::<Vec<_>>();
    if said.is_empty() {
        return None;
    }
    let of = if seeds == 1 { "one seed".to_owned() } else { format!("mean of {seeds} seeds") };
    let y = if is_share {
        Axis::percent(label)
    } else {
        Axis::from_zero(label, measures.iter().flat_map(Measure::points).map(|point| point.y))
    };
    let epochs = (1..=last as usize).map(|epoch| epoch as f64).collect::<Vec<_>>();
    let mut series = Vec::new();
    for (colour, (measure, mean)) in measures.iter().zip(means).enumerate() {
        let is_alone = measure.name.is_empty();
        if let [_, _, ..] = measure.seeds.as_slice() {
            series.extend(measure.seeds.iter().enumerate().map(|(index, (_, points))| Series {
                name: if index == 0 && is_alone { "each seed".into() } else { String::new() },
                colour,
                look: Look::Thin,
                points: points.clone(),
            }));
        }
        let name = match measure.seeds.as_slice() {
            _ if !is_alone => measure.name.to_owned(),
            [(seed, _)] => format!("seed {seed}"),
            _ => "mean".to_owned(),
        };
        series.push(Series { name, colour, look: Look::Line, points: mean });
    }
    let description = format!("{}; {of}.", said.join("; "));
    Some(Chart { title: title.to_owned(), description, x: Axis::at("epoch", &epochs, false), y, series })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(seed: u64, losses: &[f64]) -> History<EpochRecord> {
        let epochs = losses.iter().enumerate().map(|(epoch, &loss)| EpochRecord {
            epoch,
            learning_rate: 0.1,
            loss,
            training_accuracy: 0.5,
            validation_accuracy: None,
            seconds: 1.0,
            images_per_second: 1.0,
        });
        History { seed, epochs: epochs.collect() }
    }

    #[test]
    fn the_mean_is_of_epochs_that_every_seed_has() {
        let histories = [history(0, &[2.0, 1.0, 0.5]), history(1, &[4.0, 2.0])];
        let measure = Measure::of("", &histories, |epoch| epoch.epoch, |epoch| Some(epoch.loss));
        let chart = curve("loss", "loss, nats", &[measure.expect("there are epochs")]).expect("there are epochs");
        let mean = chart.series.last().expect("the mean is last");
        assert_eq!(mean.points.iter().map(|point| (point.x, point.y)).collect::<Vec<_>>(), [(1.0, 3.0), (2.0, 1.5)]);
        assert_eq!(chart.series.len(), 3, "two seeds and their mean");
        assert!(Measure::of("", &histories, |epoch| epoch.epoch, |epoch| epoch.validation_accuracy).is_none());
        assert!(curve("", "accuracy", &[]).is_none());
    }

    #[test]
    fn the_attack_has_a_line_for_each_number_and_lacks_what_was_not_measured() {
        let point = |epoch, asr| CurvePoint { epoch, images: 60, clean_accuracy: 0.5, asr, robust_accuracy: None };
        let of_seed = |seed, last| History { seed, epochs: vec![point(1, Some(0.25)), point(3, Some(last))] };
        let markup = curves(&[], &[of_seed(0, 0.5), of_seed(1, 1.0)]).into_string();
        // The mean of 0.5 and 1.
        assert!(
            markup.contains("attack success rate 25.0 % after epoch 2, 75.0 % after epoch 4; mean of 2 seeds."),
            "{markup}"
        );
        assert!(markup.contains("on 60 test images") && !markup.contains("robust accuracy"), "{markup}");
        assert_eq!(markup.matches("<figure").count(), 1, "no history of the training is there");
        let without = curves(&[history(0, &[2.0, 1.0])], &[]).into_string();
        assert!(!without.contains("The attack by epoch") && without.contains("Training loss"), "{without}");
    }
}
