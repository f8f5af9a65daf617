use patchdoor_kernels::TrainingBackend;
use patchdoor_train::TrainingConfig;
use serde::de::DeserializeSeed;
use serde::{Deserialize, Deserializer, Serialize};

use crate::error::invalid;
use crate::registry::defenses;
use crate::{
    ActionKind, ActivationClustering, AdversarialFeatureMapPruning, AdversarialNeuronPruning, AntiBackdoorLearning,
    AttentionDistillation, BanFineTuning, BtiDbf, ChannelLipschitzPruning, DefendedClassifier, Defense, DefenseAction,
    DefenseError, ExpertDisagreement, ExpertFineTuning, ExpertPruning, FeatureShiftTuning, FinePruning, FineTuning,
    ImplicitBackdoorUnlearning, MmBd, Need, NeuralCleanse, NeuralCleanseUnlearning, NeuralPolarizer,
    NeuronNoiseInspection, ParameterScaling, PatchBlocking, PatchDrop, PatchSearch, PatchShuffle, PixelVariance,
    PruningSeries, Rasa, ReconstructiveNeuronPruning, RouterConsensus, RouterNullSpace, RouterRetraining,
    RoutingDistance, ScaleUp, Scan, SharedAdversarialUnlearning, SharpnessAwareFineTuning, SpectralSignatures,
    StepwiseFinePruning, Strip, TopologicalEvolution, TrapExpert,
};

defenses! {
    /// What a defender does.
    ///
    /// This list is all there is to registering a defense: its names, the keys of `[[defenses]]` tables, defaults and
    /// tests follow from it.
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    pub enum DefenseConfig {
        /// Goes on training all weights.
        FineTuning(FineTuning): Repair = "fine-tuning",
        /// Prunes a share of every expert's filters, then trains: the protocol of Chan et al.
        FinePruning(FinePruning): Repair = "fine-pruning",
        /// Prunes until the validation accuracy drops, then trains what is left: the protocol of the field.
        StepwiseFinePruning(StepwiseFinePruning): Repair = "stepwise-fine-pruning",
        /// Prunes at several fractions, without training.
        PruningSeries(PruningSeries): Repair = "pruning-series",
        /// Takes away the experts whose routing looks least at what an image shows.
        ExpertPruning(ExpertPruning): Repair = "expert-pruning",
        /// Lets each expert pass over some patches, by default those that it hardly ever selects.
        PatchBlocking(PatchBlocking): Repair = "patch-blocking",
        /// Draws the routers anew and trains nothing else.
        RouterRetraining(RouterRetraining): Repair = "router-retraining",
        /// Fine-tunes with routers that keep how they score clean patches.
        RouterNullSpace(RouterNullSpace): Repair = "router-null-space",
        /// Trains the routers so that experts agree where they disagreed most.
        RouterConsensus(RouterConsensus): Repair = "router-consensus",
        /// Trains the experts and nothing else.
        ExpertFineTuning(ExpertFineTuning): Repair = "expert-fine-tuning",
        /// Switches off channels that answer much more strongly than others of their layer; needs no image.
        ChannelLipschitzPruning(ChannelLipschitzPruning): Repair = "channel-lipschitz-pruning",
        /// Trains towards minima that stay low nearby.
        SharpnessAwareFineTuning(SharpnessAwareFineTuning): Repair = "sharpness-aware-fine-tuning",
        /// Pulls what is attended to towards a fine-tuned teacher.
        AttentionDistillation(AttentionDistillation): Repair = "attention-distillation",
        /// Prunes the channels that matter most under the worst disturbance of all.
        AdversarialNeuronPruning(AdversarialNeuronPruning): Repair = "adversarial-neuron-pruning",
        /// Unlearns the one perturbation that misleads most on all images.
        ImplicitBackdoorUnlearning(ImplicitBackdoorUnlearning): Repair = "implicit-backdoor-unlearning",
        /// Draws the head anew and pushes it away from what it was.
        FeatureShiftTuning(FeatureShiftTuning): Repair = "feature-shift-tuning",
        /// Unlearns the smallest trigger that can be made of a class.
        NeuralCleanseUnlearning(NeuralCleanseUnlearning): Repair = "neural-cleanse-unlearning",
        /// Unlearns perturbations that mislead the classifier and what it was before to the same wrong class.
        SharedAdversarialUnlearning(SharedAdversarialUnlearning): Repair = "shared-adversarial-unlearning",
        /// Unlearns clean images and prunes the channels that have to be masked to learn them again.
        ReconstructiveNeuronPruning(ReconstructiveNeuronPruning): Repair = "reconstructive-neuron-pruning",
        /// Inserts one linear map of channels that turns perturbed images back, and learns it alone.
        NeuralPolarizer(NeuralPolarizer): Repair = "neural-polarizer",
        /// Prunes the feature maps that a small step of the images moves at the highest cost, then trains.
        AdversarialFeatureMapPruning(AdversarialFeatureMapPruning): Repair = "adversarial-feature-map-pruning",
        /// Fine-tunes with the neurons as they are and as harmfully disturbed as can be.
        BanFineTuning(BanFineTuning): Repair = "ban-fine-tuning",
        /// Tunes the experts that a reversed trigger wakes, then pulls the routers back to what clean images select.
        Rasa(Rasa): Repair = "rasa",
        /// Superimposes clean images on an input and looks at the entropy of the predictions.
        Strip(Strip): Detect = "strip",
        /// Multiplies an input's pixels and looks at whether the predicted class stays.
        ScaleUp(ScaleUp): Detect = "scale-up",
        /// Compares an input's routing with that of clean images of its predicted class.
        RoutingDistance(RoutingDistance): Detect = "routing-distance",
        /// Scales up the last normalizations and looks at whether the classifier stays sure.
        ParameterScaling(ParameterScaling): Detect = "ibd-psc",
        /// Ranks clean images of the predicted class among all, layer by layer.
        TopologicalEvolution(TopologicalEvolution): Detect = "ted",
        /// Drops patches and looks at whether the predicted class changes.
        PatchDrop(PatchDrop): Detect = "patch-drop",
        /// Shuffles cells and looks at whether the predicted class stays.
        PatchShuffle(PatchShuffle): Detect = "patch-shuffle",
        /// Looks at how much the experts disagree.
        ExpertDisagreement(ExpertDisagreement): Detect = "expert-disagreement",
        /// Splits the features of each class in two and drops a small cluster.
        ActivationClustering(ActivationClustering): Filter = "activation-clustering",
        /// Drops the examples of each class that lie farthest out along its first singular direction.
        SpectralSignatures(SpectralSignatures): Filter = "spectral-signatures",
        /// Splits each class in two where two groups tell its features much better than one.
        Scan(Scan): Filter = "scan",
        /// Pastes the part of each example that the gates look at into images of other classes.
        PatchSearch(PatchSearch): Filter = "patch-search",
        /// Drops the examples of a class that are all alike where its surest ones decide.
        PixelVariance(PixelVariance): Filter = "pixel-variance",
        /// Looks for the class whose logit can be driven farthest above all others.
        MmBd(MmBd): Inspect = "mm-bd",
        /// Looks for the class that images can be sent to by the smallest trigger.
        NeuralCleanse(NeuralCleanse): Inspect = "neural-cleanse",
        /// Looks for the class that images go to when all is changed in them but what tells their class.
        BtiDbf(BtiDbf): Inspect = "bti-dbf",
        /// Looks for the class that clean images go to when neurons are disturbed as harmfully as can be.
        NeuronNoiseInspection(NeuronNoiseInspection): Inspect = "neuron-noise",
        /// Trains so that what is learned first stands out, and unlearns it.
        AntiBackdoorLearning(AntiBackdoorLearning): Train = "anti-backdoor-learning",
        /// Trains an expert first that takes the shortcut, and drops it.
        TrapExpert(TrapExpert): Train = "trap-expert",
    }
}

impl DefenseConfig {
    /// Checks every field against the classifier that it shall defend, and that this has what the defense needs, and
    /// returns all problems at once; `field` is the dotted path below the defense's table, empty for the defense as a
    /// whole.
    pub fn validate(&self, classifier: &DefendedClassifier<'_>) -> Vec<DefenseError> {
        let mut problems = self.as_defense().validate(classifier);
        let lacking = |need: &&Need| !need.is_met_by(classifier);
        for need in self.as_defense().needs().iter().filter(lacking) {
            let able =
                Self::defaults().into_iter().filter(|other| !other.as_defense().needs().iter().any(|n| lacking(&n)));
            let allowed = match need {
                // The network has them and keeps them as they are: that is easier to change than the defense.
                Need::LearningRouters => "another defense, or routers = \"trained\"".to_owned(),
                Need::SeveralExperts => "another defense, or experts = 2 or more".to_owned(),
                _ => format!("one of {}", able.map(|defense| defense.name()).collect::<Vec<_>>().join(", ")),
            };
            let there = if *need == Need::SeveralExperts { "one" } else { "none" };
            let found = format!("in need of {need}, and {} has {there}", classifier.name);
            problems.push(invalid("", found, &allowed));
        }
        problems
    }

    /// Whether it cannot do without.
    pub fn needs(&self, need: Need) -> bool {
        self.as_defense().needs().contains(&need)
    }

    /// Epochs of training it takes, beside an undefended training of that recipe.
    pub fn epochs(&self, recipe: &TrainingConfig) -> usize {
        self.as_defense().epochs(recipe)
    }

    /// Shortens it to a second, keeping every code path it takes: one epoch of small batches, and what the defense says.
    pub fn make_quick(&mut self) {
        let defense = self.as_defense_mut();
        if let Some(training) = defense.training_mut() {
            training.epochs = training.epochs.min(1);
            training.batch_size = training.batch_size.min(64);
        }
        defense.make_quick();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use burn::module::AutodiffModule;
    use burn_flex::FlexDevice;
    use patchdoor_data::{AugmentationConfig, ImageSet, stream};
    use patchdoor_model::{Classifier, ClassifierConfig, InputShape, WideResNetConfig};

    use super::*;
    use crate::testing::{Learner, ascending_filters, bits, quick_training, shapes};
    use crate::{
        Calibrated, DefenderData, DetectionThreshold, Filtering, Inputs, Inspection, InspectionWork, RepairDetails,
        RepairWork, SafelyTrained, TrainingPhase, TrainingWork,
    };

    const EXPERTS: DefendedClassifier<'_> =
        DefendedClassifier { name: "patch-moe", experts: Some(4), routers_learn: true, has_batch_norm: true };
    const DENSE: DefendedClassifier<'_> =
        DefendedClassifier { name: "wide-resnet", experts: None, routers_learn: false, has_batch_norm: true };

    #[test]
    fn every_defense_is_known_by_the_name_that_serde_reads_and_an_empty_table_is_its_default() {
        assert_eq!(DefenseConfig::defaults().len(), DefenseConfig::NAMES.len());
        for (defense, &name) in DefenseConfig::defaults().iter().zip(DefenseConfig::NAMES) {
            assert_eq!(defense.name(), name);
            assert_eq!(&toml::from_str::<DefenseConfig>(&format!("[{name}]")).unwrap(), defense);
            assert_eq!(&toml::from_str::<DefenseConfig>(&toml::to_string(defense).unwrap()).unwrap(), defense);
            let read = DefenseName::of(name).unwrap().deserialize(toml::Deserializer::parse("").unwrap()).unwrap();
            assert_eq!(&read, defense);
        }
        assert_eq!(DefenseName::of("none"), None);
    }

    #[test]
    fn every_defense_has_a_name_in_kebab_case_a_section_in_the_documents_and_an_experiment() {
        let documents = include_str!("../../../docs/defenses.md");
        let experiment: toml::Table = include_str!("../../../experiments/defenses.toml").parse().unwrap();
        let tried = experiment["defenses"].as_array().unwrap();
        for name in DefenseConfig::NAMES {
            assert!(name.split('-').all(|word| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_lowercase())));
            assert!(documents.contains(&format!("\n## `{name}`\n")), "docs/defenses.md has no section `{name}`");
            assert!(tried.iter().any(|table| table.get(name).is_some()), "experiments/defenses.toml has no {name}");
        }
    }

    #[test]
    fn every_default_is_valid_for_four_experts_and_without_them_if_it_needs_none() {
        for defense in DefenseConfig::defaults() {
            assert!(defense.validate(&EXPERTS).is_empty(), "{defense:?}");
            assert_eq!(defense.validate(&DENSE).len(), usize::from(defense.needs(Need::Experts)), "{defense:?}");
            let fraction = defense.as_defense().default_clean_fraction();
            assert!(fraction > 0.0 && fraction <= 1.0, "{defense:?}");
        }
    }

    #[test]
    fn a_classifier_that_lacks_what_a_defense_needs_is_refused_with_what_does_without() {
        let defense = DefenseConfig::RouterRetraining(RouterRetraining { gate_init_std: -1.0, ..Default::default() });
        let said = defense.validate(&DENSE).iter().map(ToString::to_string).collect::<Vec<_>>();
        let able = DefenseConfig::defaults().into_iter().filter(|defense| !defense.needs(Need::Experts));
        let names = able.map(|defense| defense.name()).collect::<Vec<_>>().join(", ");
        assert!(names.contains("fine-tuning") && !names.contains("router-retraining"), "{names}");
        assert_eq!(
            said,
            [
                "gate-init-std is -1, expected a number in [0, 10]".to_owned(),
                format!(" is in need of experts, and wide-resnet has none, expected one of {names}"),
            ]
        );
        let plain = DefendedClassifier { has_batch_norm: false, ..EXPERTS };
        assert!(!Need::BatchNorm.is_met_by(&plain) && Need::BatchNorm.is_met_by(&EXPERTS));
        let frozen = DefendedClassifier { routers_learn: false, ..EXPERTS };
        for defense in DefenseConfig::defaults() {
            let said = defense.validate(&frozen).iter().map(ToString::to_string).collect::<Vec<_>>();
            let expected = " is in need of routers that learn, and patch-moe has none, expected another defense, or";
            assert_eq!(said.len(), usize::from(defense.needs(Need::LearningRouters)), "{said:?}");
            assert!(said.iter().all(|said| said.starts_with(expected)), "{said:?}");
        }
        let single = DefendedClassifier { experts: Some(1), ..EXPERTS };
        for defense in DefenseConfig::defaults().into_iter().filter(|defense| defense.needs(Need::SeveralExperts)) {
            let said = defense.validate(&single).iter().map(ToString::to_string).collect::<Vec<_>>();
            let expected = " is in need of more than one expert, and patch-moe has one, expected another defense, or experts = 2 or more";
            assert_eq!(said, [expected]);
        }
    }

    #[test]
    fn a_quick_defense_is_a_valid_one_of_one_epoch_a_phase_at_most_in_small_batches() {
        for before in DefenseConfig::defaults() {
            let mut quick = before.clone();
            quick.make_quick();
            assert!(quick.validate(&EXPERTS).is_empty(), "{quick:?}");
            let [before, after] = [&before, &quick].map(|defense| defense.epochs(&quick_training()));
            match quick.kind() {
                ActionKind::Train => assert!((1..=3).contains(&after) && after <= before, "{quick:?}"),
                _ => assert_eq!(after, before.min(1), "{quick:?}"),
            }
            assert!(quick.as_defense().training().is_none_or(|training| training.batch_size <= 64), "{quick:?}");
            let mut again = quick.clone();
            again.make_quick();
            assert_eq!(again, quick);
        }
        let mut stepwise = DefenseConfig::StepwiseFinePruning(StepwiseFinePruning::default());
        stepwise.make_quick();
        assert!(matches!(&stepwise, DefenseConfig::StepwiseFinePruning(quick) if quick.step_fraction >= 0.2));
    }

    /// What a defense came to, to compare by.
    #[derive(PartialEq)]
    enum Acted {
        Repaired { weights: BTreeMap<String, Vec<u32>>, details: RepairDetails, epochs: usize },
        Detected { scores: Vec<f64>, threshold: f64 },
        Filtered(Filtering),
        Inspected(Inspection),
        Trained { weights: BTreeMap<String, Vec<u32>>, phases: Vec<TrainingPhase>, isolation: Filtering },
    }

    /// What a defense makes of a classifier of four experts or none, given validation images or not.
    fn act(
        defense: &DefenseConfig,
        classifier: Classifier<Learner>,
        validation: Option<&ImageSet>,
    ) -> Result<Acted, DefenseError> {
        let clean = shapes(40);
        let data = DefenderData { clean: &clean, validation };
        match defense.action::<Learner>() {
            DefenseAction::Repair(repair) => {
                let mut work = RepairWork { data, seed: 0, checkpoints: None, observer: &mut () };
                let repaired = repair.repair(classifier, &mut work, &FlexDevice)?;
                let epochs = repaired.history.len();
                Ok(Acted::Repaired { weights: bits(&repaired.classifier), details: repaired.details, epochs })
            }
            DefenseAction::Detect(detector) => {
                let detector = Calibrated::new(detector, defense.name(), &classifier, &data, 0, &FlexDevice)?;
                let threshold = detector.threshold(DetectionThreshold::FalsePositiveRate(0.1));
                Ok(Acted::Detected { scores: detector.scores(Inputs::of(&shapes(30))), threshold })
            }
            DefenseAction::Filter(filter) => {
                filter.filter(&shapes(60), classifier.valid(), &FlexDevice).map(Acted::Filtered)
            }
            DefenseAction::Inspect(inspector) => {
                let work = InspectionWork { data, seed: 0, is_stopped: &|| false };
                inspector.inspect(classifier, &work, &FlexDevice).map(Acted::Inspected)
            }
            DefenseAction::Train(training) => {
                let (set, model, recipe) = (shapes(60), classifier.config(), quick_training());
                let mut work = TrainingWork {
                    set: &set,
                    validation,
                    augmentation: &AugmentationConfig::default(),
                    model: &model,
                    recipe: &recipe,
                    seed: 0,
                    checkpoints: None,
                    observer: &mut (),
                };
                let SafelyTrained { classifier, phases, isolation, .. } = training.train(&mut work, &FlexDevice)?;
                Ok(Acted::Trained { weights: bits(&classifier), phases, isolation })
            }
        }
    }

    #[test]
    fn every_defense_does_the_same_again_to_the_last_bit() {
        let validation = shapes(20);
        for mut defense in DefenseConfig::defaults() {
            defense.make_quick();
            let name = defense.name();
            let [first, second] = [0, 1].map(|_| act(&defense, ascending_filters(), Some(&validation)).unwrap());
            assert!(first == second, "{name}");
            match first {
                Acted::Repaired { weights, epochs, .. } => {
                    assert_eq!(epochs, defense.epochs(&quick_training()), "{name}");
                    assert!(weights.values().flatten().all(|&bits| f32::from_bits(bits).is_finite()), "{name}");
                }
                Acted::Detected { scores, .. } => assert!(scores.iter().all(|score| score.is_finite()), "{name}"),
                Acted::Inspected(Inspection { scores, is_flagged }) => {
                    assert_eq!((scores.len(), is_flagged.len()), (10, 10), "{name}");
                    assert!(scores.iter().all(|score| score.is_finite()), "{name}");
                }
                Acted::Trained { weights, phases, isolation } => {
                    assert_eq!(
                        phases.iter().map(|phase| phase.epochs).sum::<usize>(),
                        defense.epochs(&quick_training()),
                        "{name}"
                    );
                    assert!(weights.values().flatten().all(|&bits| f32::from_bits(bits).is_finite()), "{name}");
                    assert_eq!((isolation.scores.len(), isolation.is_suspect.len()), (60, 60), "{name}");
                    assert!(isolation.scores.iter().all(|score| score.is_finite()), "{name}");
                }
                Acted::Filtered(Filtering { scores, is_suspect }) => {
                    assert_eq!((scores.len(), is_suspect.len()), (60, 60), "{name}");
                    assert!(scores.iter().all(|score| score.is_finite()), "{name}");
                }
            }
        }
    }

    #[test]
    fn what_a_detector_says_of_an_image_depends_on_that_image_alone() {
        let (images, clean, validation) = (shapes(30), shapes(40), shapes(20));
        let data = DefenderData { clean: &clean, validation: Some(&validation) };
        let turned = images.subset(&(0..30).rev().collect::<Vec<_>>());
        let without_labels =
            ImageSet::new(images.shape(), images.all_pixels().to_vec(), vec![0; 30], images.classes().to_vec());
        for mut defense in DefenseConfig::defaults() {
            defense.make_quick();
            let DefenseAction::Detect(detector) = defense.action::<Learner>() else { continue };
            let detector =
                Calibrated::new(detector, defense.name(), &ascending_filters(), &data, 0, &FlexDevice).unwrap();
            let scores = detector.scores(Inputs::of(&images));
            assert_eq!(scores.len(), 30, "{}", defense.name());
            let mut again = detector.scores(Inputs::of(&turned));
            again.reverse();
            assert!(scores == again, "{} sees the others", defense.name());
            let alone = detector.scores(Inputs::of(&images.subset(&[7])));
            assert!(scores[7..8] == alone[..], "{} sees the others", defense.name());
            let unlabelled = detector.scores(Inputs::of(without_labels.as_ref().unwrap()));
            assert!(scores == unlabelled, "{} sees labels", defense.name());
        }
    }

    #[test]
    fn every_defense_says_what_it_lacks_and_lacks_nothing_that_it_does_not_say() {
        let input = InputShape { height: 32, width: 32, channels: 3 };
        let config = ClassifierConfig::WideResnet(WideResNetConfig { widen_factor: 1, ..Default::default() });
        let dense = || config.init::<Learner>(input, 10, &mut stream(0, "weights"), &FlexDevice).unwrap();
        for mut defense in DefenseConfig::defaults() {
            defense.make_quick();
            let refused = act(&defense, dense(), Some(&shapes(20)));
            assert_eq!(
                matches!(refused, Err(DefenseError::NoExperts { defense: name }) if name == defense.name()),
                defense.needs(Need::Experts),
                "{} without experts",
                defense.name()
            );
            assert_eq!(refused.is_ok(), !defense.needs(Need::Experts), "{} without experts", defense.name());
            let refused = act(&defense, ascending_filters(), None);
            assert_eq!(
                matches!(refused, Err(DefenseError::NoValidation { defense: name }) if name == defense.name()),
                defense.needs(Need::ValidationImages),
                "{} without validation images",
                defense.name()
            );
            assert_eq!(refused.is_ok(), !defense.needs(Need::ValidationImages), "{} without any", defense.name());
        }
    }

    #[test]
    fn every_problem_of_a_defense_is_reported_at_once() {
        let training = TrainingConfig { epochs: 0, learning_rate: -1.0, ..TrainingConfig::default() };
        let defense =
            FinePruning { pruned_fraction: 1.0, scored_images: 0, training: training.clone(), ..Default::default() };
        let said =
            |defense: DefenseConfig| defense.validate(&EXPERTS).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(
            said(DefenseConfig::FinePruning(defense)),
            [
                "pruned-fraction is 1, expected a fraction in [0, 1)",
                "scored-images is 0, expected 1 or more",
                "training.learning-rate is -1, expected a finite number above 0",
            ]
        );
        // Where training is all there is, there must be some.
        assert_eq!(
            said(DefenseConfig::FineTuning(FineTuning { training })),
            [
                "training.epochs is 0, expected 1 to 100000",
                "training.learning-rate is -1, expected a finite number above 0",
            ]
        );
    }
}
