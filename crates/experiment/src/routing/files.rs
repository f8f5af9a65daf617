use std::io;
use std::path::Path;

use fs_err as fs;
use patchdoor_data::ImageSet;
use patchdoor_kernels::TrainingBackend;
use patchdoor_model::{Classifier, ClassifierConfig};
use patchdoor_train::{RoutedPrediction, predict_with_routing};
use safetensors::tensor::{Dtype, TensorView};

use super::analysis::{Analysis, SETS, Scene, StatisticRow, analyse};
use super::config::RoutingConfig;
use super::figures;
use super::numbers::RoutingMeasurements;
use crate::files::{write_json, write_whole};
use crate::run::{PREDICTION_BATCH, RunError};

/// Looks at what the routers of a seed's classifiers select, in the test images and in the same triggered, and leaves
/// arrays, tables and figures in `folder`. `victim` are the predictions for both sets, `twin` the clean twin with its
/// prediction for the triggered one.
pub(crate) fn measure<B: TrainingBackend>(
    (config, model): (&RoutingConfig, &ClassifierConfig),
    (clean, triggered): (&ImageSet, &ImageSet),
    victim: [&RoutedPrediction; 2],
    twin: Option<(&Classifier<B::InnerBackend>, &RoutedPrediction)>,
    folder: &Path,
    device: &B::Device,
) -> Result<Option<RoutingMeasurements>, RunError> {
    let Some(model) = model.network().expert_choice() else { return Ok(None) };
    let [Some(of_clean), Some(of_triggered)] = victim.map(|prediction| prediction.selections.as_ref()) else {
        return Ok(None);
    };
    let start = std::time::Instant::now();
    let scene = Scene::new(clean, triggered, model);
    let mut analyses = vec![("victim", analyse(&scene, "victim", [of_clean, of_triggered]))];
    if let Some((classifier, of_triggered)) = twin {
        let of_clean = predict_with_routing(classifier, clean, PREDICTION_BATCH, device);
        if let (Some(of_clean), Some(of_triggered)) = (&of_clean.selections, &of_triggered.selections) {
            analyses.push(("clean-twin", analyse(&scene, "clean-twin", [of_clean, of_triggered])));
        }
    }
    fs::create_dir_all(folder)?;
    let statistics: Vec<&StatisticRow> = analyses.iter().flat_map(|(_, analysis)| &analysis.statistics).collect();
    write_json(&folder.join("statistics.json"), &statistics)?;
    let mut table = csv::Writer::from_writer(Vec::new());
    for statistic in statistics {
        table.serialize(statistic)?;
    }
    write_whole(&folder.join("statistics.csv"), &table.into_inner().map_err(csv::IntoInnerError::into_error)?)?;
    write_arrays(&folder.join("selections.safetensors"), &scene, &analyses)?;
    if config.figures {
        for (name, analysis) in &analyses {
            write_whole(&folder.join(format!("{name}.svg")), figures::experts(name, &scene, analysis).as_bytes())?;
            let classes = figures::classes(name, &scene, analysis);
            write_whole(&folder.join(format!("{name}-classes.svg")), classes.as_bytes())?;
        }
    }
    tracing::info!(images = clean.len(), seconds = start.elapsed().as_secs_f64(), "looked at routing");
    let mut numbers = analyses.into_iter().map(|(_, analysis)| analysis.numbers);
    Ok(numbers.next().map(|victim| scene.measurements(victim, numbers.next())))
}

/// Writes how often each expert selects each patch, and what goes with it, as safetensors of `f32` and `u32`.
fn write_arrays(path: &Path, scene: &Scene, analyses: &[(&str, Analysis)]) -> io::Result<()> {
    let [rows, columns] = scene.grid;
    let (classes, experts, patches) = (scene.classes.len(), scene.experts, scene.patches());
    let mut arrays: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = Vec::new();
    let floats = |values: &[f64]| values.iter().flat_map(|&value| (value as f32).to_le_bytes()).collect::<Vec<u8>>();
    for (name, analysis) in analyses {
        let mut frequencies = Vec::new();
        for counts in &analysis.counts {
            for (class, expert) in (0..classes).flat_map(|class| (0..experts).map(move |expert| (class, expert))) {
                let absent = || vec![f64::NAN; patches];
                frequencies.extend(counts.frequencies(Some(class), expert).unwrap_or_else(absent));
            }
        }
        let shape = vec![SETS.len(), classes, experts, rows, columns];
        arrays.push((format!("{name}.frequency"), Dtype::F32, shape, floats(&frequencies)));
        let shape = vec![SETS.len(), experts, experts];
        let similarity = floats(&analysis.similarity.concat());
        arrays.push((format!("{name}.expert-similarity"), Dtype::F32, shape, similarity));
    }
    if let Some((_, analysis)) = analyses.first() {
        let images = analysis.counts[0].images().iter().flat_map(|&count| (count as u32).to_le_bytes());
        arrays.push(("images".into(), Dtype::U32, vec![classes], images.collect()));
    }
    let marks = [&scene.is_triggered, &scene.sees_trigger].map(|marks| scene.share_marked(marks)).concat();
    arrays.push(("triggered-patches".into(), Dtype::F32, vec![2, rows, columns], floats(&marks)));
    let views: Result<Vec<_>, _> = arrays
        .iter()
        .map(|(name, dtype, shape, bytes)| Ok((name, TensorView::new(*dtype, shape.clone(), bytes)?)))
        .collect();
    let bytes = views.and_then(|views| safetensors::serialize(views, None)).map_err(io::Error::other)?;
    write_whole(path, &bytes)
}
