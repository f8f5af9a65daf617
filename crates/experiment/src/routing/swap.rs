use burn::tensor::backend::AutodiffBackend;
use patchdoor_kernels::TrainingBackend;
use patchdoor_metrics::RoutedSuccess;
use patchdoor_model::{Classifier, Part, TakenRouting};
use patchdoor_record::{RoutedStanding, SwapMeasurements};
use patchdoor_train::{PREDICTION_BATCH, predict, predict_given_routing};

use crate::exam::{Answers, Exam};
use crate::halt::Step;

type Inner<B> = Classifier<<B as AutodiffBackend>::InnerBackend>;

/// The attack's success with a classifier's own routing and with another one; `None` where nothing is attacked.
pub(crate) fn success_of(own: RoutedStanding, changed: RoutedStanding) -> Option<RoutedSuccess> {
    let asr = own.asr.zip(changed.asr);
    let all = asr.zip(own.asr_untriggered.zip(changed.asr_untriggered));
    all.map(|((own, clean_routing), (untriggered, triggered_routing))| RoutedSuccess {
        own,
        clean_routing,
        untriggered,
        triggered_routing,
    })
}

/// Judges the backdoored classifier by test images whose routing is not their own. `own` are its answers with their own.
pub(crate) fn swap_routing<B: TrainingBackend>(
    exam: &Exam<'_>,
    victim: &Inner<B>,
    own: &Answers,
    twin: Option<&Inner<B>>,
    device: &B::Device,
) -> Step<SwapMeasurements> {
    let (clean, triggered) = (exam.test, &exam.triggered);
    let given = |images, router, routed, taken: &[TakenRouting]| {
        predict_given_routing(victim, images, (router, routed), taken, PREDICTION_BATCH, device)
    };
    let both = [TakenRouting::All, TakenRouting::Selections];
    let of_clean = given(clean, victim, triggered, &both)?;
    let of_triggered = given(triggered, victim, clean, &both)?;
    let [other_version, other_version_selections] =
        [0, 1].map(|taken| exam.routed_standing_of(&of_clean[taken], &of_triggered[taken]));
    let own = exam.routed_standing_of(&own.clean.classes, &own.triggered.classes);

    let (mut twin_routing, mut twin_routers) = (None, None);
    if let Some(twin) = twin {
        let of_clean = given(clean, twin, clean, &both[..1])?;
        let of_triggered = given(triggered, twin, triggered, &both[..1])?;
        twin_routing = Some(exam.routed_standing_of(&of_clean[0], &of_triggered[0]));
        let transplanted = victim.clone().with_parts_of(twin, &[Part::Router]);
        let of = |images| predict(&transplanted, images, PREDICTION_BATCH, device);
        twin_routers = Some(exam.routed_standing_of(&of(clean), &of(triggered)));
    }

    let success = success_of(own, other_version);
    Ok(SwapMeasurements {
        own,
        other_version,
        other_version_selections,
        twin_routing,
        twin_routers,
        mediated_by_routing: success.and_then(|success| success.mediated()),
        carried_by_routing: success.and_then(|success| success.carried()),
    })
}
