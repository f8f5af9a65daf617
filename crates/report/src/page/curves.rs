use maud::{Markup, html};
use patchdoor_metrics::EpochRecord;

use super::chart::{Axis, Chart, Look, Point, Series};

/// What each epoch of the training of one seed came to.
pub(crate) struct History {
    pub(crate) seed: u64,
    pub(crate) epochs: Vec<EpochRecord>,
}

/// Loss and accuracies by epoch, for every seed and their mean.
pub(crate) fn curves(histories: &[History]) -> Markup {
    let loss = curve("Training loss by epoch", "loss, nats", histories, |epoch| Some(epoch.loss));
    let training =
        curve("Accuracy on training images by epoch", "accuracy", histories, |epoch| Some(epoch.training_accuracy));
    let validation =
        curve("Accuracy on validation images by epoch", "accuracy", histories, |epoch| epoch.validation_accuracy);
    let charts = [loss, training, validation].into_iter().flatten().collect::<Vec<_>>();
    html! {
        @if charts.is_empty() {
            p { "No epoch is on record." }
        } @else {
            div.charts { @for chart in &charts { (chart.markup()) } }
            p.note {
                "Of the backdoored classifier. Loss and training accuracy are taken in training mode just before each step, on "
                "poisoned images under the attacker's labels too; validation images are clean and cut from the training set."
            }
        }
    }
}

/// One chart; `None` where no epoch has the number.
fn curve(title: &str, label: &str, histories: &[History], of: fn(&EpochRecord) -> Option<f64>) -> Option<Chart> {
    let point = |epoch: &EpochRecord| Some(Point::new(epoch.epoch as f64 + 1.0, of(epoch)?));
    let by_seed = histories.iter().map(|history| history.epochs.iter().filter_map(point).collect::<Vec<_>>());
    let by_seed = by_seed.filter(|points| !points.is_empty()).collect::<Vec<_>>();
    let last = by_seed.iter().flatten().map(|point| point.x).fold(f64::NAN, f64::max);
    let seeds = by_seed.len();
    let mean = mean(&by_seed);
    let (first, end) = (mean.first()?, mean.last()?);
    let is_share = label == "accuracy";
    let text = |y: f64| if is_share { format!("{:.1} %", 100.0 * y) } else { format!("{y:.3}") };
    let description = format!(
        "{} after epoch {}, {} after epoch {}; {}.",
        text(first.y),
        first.x,
        text(end.y),
        end.x,
        if seeds == 1 { "one seed".to_owned() } else { format!("mean of {seeds} seeds") }
    );
    let y = if is_share {
        Axis::percent(label)
    } else {
        Axis::from_zero(label, by_seed.iter().flatten().map(|point| point.y))
    };
    let epochs = (1..=last as usize).map(|epoch| epoch as f64).collect::<Vec<_>>();
    let name = match histories {
        [only] => format!("seed {}", only.seed),
        _ => "mean".to_owned(),
    };
    let mut series = Vec::new();
    if seeds > 1 {
        let named = by_seed.into_iter().enumerate().map(|(index, points)| Series {
            name: if index == 0 { "each seed".into() } else { String::new() },
            colour: 0,
            look: Look::Thin,
            points,
        });
        series.extend(named);
    }
    series.push(Series { name, colour: 0, look: Look::Line, points: mean });
    Some(Chart { title: title.to_owned(), description, x: Axis::at("epoch", &epochs, false), y, series })
}

/// The mean over seeds of each epoch that all of them have.
fn mean(by_seed: &[Vec<Point>]) -> Vec<Point> {
    let Some(first) = by_seed.first() else { return Vec::new() };
    let at = |x: f64| {
        let values =
            by_seed.iter().map(|points| points.iter().find(|point| point.x.total_cmp(&x).is_eq()).map(|point| point.y));
        let values = values.collect::<Option<Vec<f64>>>()?;
        Some(Point::new(x, values.iter().sum::<f64>() / values.len() as f64))
    };
    first.iter().filter_map(|point| at(point.x)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(seed: u64, losses: &[f64]) -> History {
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
        let chart = curve("loss", "loss, nats", &histories, |epoch| Some(epoch.loss)).expect("there are epochs");
        let mean = chart.series.last().expect("the mean is last");
        assert_eq!(mean.points.iter().map(|point| (point.x, point.y)).collect::<Vec<_>>(), [(1.0, 3.0), (2.0, 1.5)]);
        assert_eq!(chart.series.len(), 3, "two seeds and their mean");
        assert!(curve("", "accuracy", &histories, |epoch| epoch.validation_accuracy).is_none());
    }
}
