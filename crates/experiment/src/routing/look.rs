use std::io;
use std::path::Path;

use fs_err as fs;
use patchdoor_data::ImageSet;
use patchdoor_kernels::TrainingBackend;
use patchdoor_model::Classifier;
use patchdoor_plan::ExperimentConfig;
use patchdoor_record::{RoutingMeasurements, write_sealed, write_sealed_json};
use patchdoor_train::{PREDICTION_BATCH, RoutedPrediction, predict_with_routing};
use safetensors::tensor::{Dtype, TensorView};

use super::analysis::{Analysis, SETS, Scene, StatisticRow, analyse};
use super::audit::audit;
use super::blocking::block_pairs;
use super::swap::swap_routing;
use crate::console::Watch;
use crate::exam::{Answers, Exam};
use crate::halt::Step;

/// What there is to look at in one seed.
pub(crate) struct Looked<'a, B: TrainingBackend> {
    pub(crate) seed: u64,
    /// Untouched training images.
    pub(crate) training: &'a ImageSet,
    pub(crate) victim: &'a Classifier<B::InnerBackend>,
    /// What it makes of the test images.
    pub(crate) answers: &'a Answers,
    /// The clean twin with its prediction for the triggered test images.
    pub(crate) twin: Option<(&'a Classifier<B::InnerBackend>, &'a RoutedPrediction)>,
}

/// Looks at what the routers of a seed's classifiers select, in the test images and in the same triggered, and leaves
/// arrays and tables in the seed's folder; then at what the victim makes of images that are routed otherwise. `None` if the
/// experiment does not ask for it.
pub(crate) fn look_at_routing<B: TrainingBackend>(
    config: &ExperimentConfig,
    exam: &Exam<'_>,
    looked: &Looked<'_, B>,
    folder: &Path,
    watch: Watch<'_>,
    device: &B::Device,
) -> Step<Option<RoutingMeasurements>> {
    let (Some(routing), Some(model)) = (&config.routing, config.model.network().expert_choice()) else {
        return Ok(None);
    };
    let Looked { seed, training, victim, answers, twin } = *looked;
    let (Some(of_clean), Some(of_triggered)) = (&answers.clean.selections, &answers.triggered.selections) else {
        return Ok(None);
    };
    let start = std::time::Instant::now();
    let scene = Scene::new(exam.test, &exam.triggered, model);
    let mut analyses = vec![("victim", analyse(&scene, "victim", [of_clean, of_triggered]))];
    if let Some((classifier, of_triggered)) = twin {
        let of_clean = predict_with_routing(classifier, exam.test, PREDICTION_BATCH, device);
        if let (Some(of_clean), Some(of_triggered)) = (&of_clean.selections, &of_triggered.selections) {
            analyses.push(("clean-twin", analyse(&scene, "clean-twin", [of_clean, of_triggered])));
        }
    }
    let folder = folder.join("routing");
    fs::create_dir_all(&folder)?;
    let statistics: Vec<&StatisticRow> = analyses.iter().flat_map(|(_, analysis)| &analysis.statistics).collect();
    write_sealed_json(&folder.join("statistics.json"), &statistics)?;
    let mut table = csv::Writer::from_writer(Vec::new());
    for statistic in statistics {
        table.serialize(statistic)?;
    }
    let table = table.into_inner().map_err(csv::IntoInnerError::into_error)?;
    write_sealed(&folder.join("statistics.csv"), &table)?;
    write_sealed(&folder.join("selections.safetensors"), &arrays(&scene, &analyses)?)?;
    tracing::info!(images = exam.test.len(), seconds = start.elapsed().as_secs_f64(), "looked at routing");
    let mut numbers = analyses.into_iter().map(|(_, analysis)| analysis.numbers);
    let Some(of_victim) = numbers.next() else { return Ok(None) };
    let mut measured = scene.measurements(of_victim, numbers.next());
    if routing.swap {
        let twin = twin.map(|(twin, _)| twin);
        measured.swap = Some(swap_routing::<B>(exam, victim, answers, twin, device)?);
    }
    if routing.audit {
        measured.audit = Some(audit::<B>(exam, victim, training, seed, device));
    }
    if routing.blocking
        && let Some((blocking, maps)) = block_pairs::<B>(exam, victim, training, seed, watch, device)?
    {
        write_sealed_json(&folder.join("blocking.json"), &maps)?;
        measured.blocking = Some(blocking);
    }
    Ok(Some(measured))
}

/// How often each expert selects each patch, and what goes with it, as safetensors of `f32` and `u32`.
fn arrays(scene: &Scene, analyses: &[(&str, Analysis)]) -> io::Result<Vec<u8>> {
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
    views.and_then(|views| safetensors::serialize(views, None)).map_err(io::Error::other)
}
