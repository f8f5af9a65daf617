//! Whether networks that hide a backdoor can be told from clean ones by what their routers select in untouched images.

mod held_out;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use patchdoor_metrics::{Estimate, RoutingProfile, separation};
use patchdoor_record::{Environment, RecordError, commit_in_words, read_sealed_json, read_summary, run_builds};
use serde::Serialize;

pub use held_out::HeldOut;
use held_out::{Sample, held_out};

use crate::config::flat_config;
use crate::config::{Setup, read_config};
use crate::maps::{SETS, SeedMaps};
use crate::text::{Row, align, fold};

/// Version of the layout as JSON.
const NETWORKS_SCHEMA: u32 = 1;

/// What networks must have in common, as keys of their configurations begin.
const COMMON: [&str; 6] = ["dataset", "data.", "model.", "training.", "precision", "victim."];

/// Why networks cannot be told apart.
#[derive(Debug, thiserror::Error)]
pub enum NetworksError {
    /// A record cannot be read back.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// A run is not fit for it.
    #[error("{}: {reason}", run.display())]
    Unfit {
        /// Its folder.
        run: PathBuf,
        /// Why.
        reason: String,
    },
    /// There are too few networks.
    #[error("these networks are too few: {0}")]
    TooFew(String),
}

/// How well backdoored networks are told from clean ones by their [`RoutingProfile`] in untouched test images.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct NetworkSeparation {
    /// Layout of this document.
    pub schema: u32,
    /// The attacks, each with the backdoored networks it made.
    pub attacks: Vec<AttackNetworks>,
    /// Clean networks.
    pub clean: usize,
    /// Different seeds.
    pub seeds: usize,
    /// Parts into which seeds were divided.
    pub folds: usize,
    /// What a classifier says of networks whose attack and seeds it has not seen.
    pub held_out: HeldOut,
    /// Each number of the profile alone, nothing learned: the area under the receiver operating characteristic of backdoored
    /// against clean networks, above a half where it is larger in backdoored ones. Thirteen looks at the same networks: none of
    /// them proves anything.
    pub single: BTreeMap<&'static str, Estimate>,
    /// Builds that trained and looked.
    pub commits: BTreeSet<String>,
}

/// The networks of one attack.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct AttackNetworks {
    /// The trigger with what is most often varied.
    pub attack: String,
    /// How many.
    pub networks: usize,
}

impl NetworkSeparation {
    /// Reads the victims and clean twins of finished runs with `[routing]`, and tells them apart. A run without poisoned images has
    /// clean networks; of one seed, one clean network counts.
    ///
    /// # Errors
    /// If a folder has no finished run or no routing, networks differ in more than their attack and seed, or are too few.
    pub fn of(folders: &[PathBuf], folds: usize) -> Result<Self, NetworksError> {
        let mut gathered = Gathered::default();
        for folder in folders {
            gathered.add(folder)?;
        }
        let Gathered { samples, attacks, commits, .. } = gathered;
        let separated = held_out(&samples, attacks.len(), folds).map_err(NetworksError::TooFew)?;
        let feature = |place: usize, is_backdoored: bool| {
            let wanted = samples.iter().filter(|sample| sample.attack.is_some() == is_backdoored);
            wanted.map(|sample| sample.features[place]).collect::<Vec<_>>()
        };
        let single = RoutingProfile::NAMES.iter().enumerate();
        let single = single
            .filter_map(|(place, name)| Some((*name, separation(&feature(place, true), &feature(place, false))?)));
        let count = |wanted: Option<usize>| samples.iter().filter(|sample| sample.attack == wanted).count();
        let of_attack =
            |(place, attack): (usize, &String)| AttackNetworks { attack: attack.clone(), networks: count(Some(place)) };
        Ok(Self {
            schema: NETWORKS_SCHEMA,
            attacks: attacks.iter().enumerate().map(of_attack).collect(),
            clean: count(None),
            seeds: samples.iter().map(|sample| sample.seed).collect::<BTreeSet<_>>().len(),
            folds,
            held_out: separated,
            single: single.collect(),
            commits,
        })
    }

    /// For a terminal of so many columns.
    pub fn text(&self, width: usize) -> String {
        let backdoored: usize = self.attacks.iter().map(|attack| attack.networks).sum();
        let head = format!(
            "{backdoored} backdoored networks of {} attacks and {} clean ones, of {} seeds. Profiles of what their routers select in \
             untouched images; each classifier is tested on an attack and on a fifth of the seeds that it has not seen.",
            self.attacks.len(),
            self.clean,
            self.seeds
        );
        let head =
            if self.folds == 5 { head } else { head.replace("a fifth", &format!("one of {} parts", self.folds)) };
        let interval = |estimate: &Estimate| match (estimate.low, estimate.high) {
            (Some(low), Some(high)) => format!("[{low:.3}, {high:.3}]"),
            _ => "-".into(),
        };
        let row = |label: &str, networks: usize, estimate: &Estimate| {
            Row::Cells(vec![label.into(), networks.to_string(), format!("{:.3}", estimate.value), interval(estimate)])
        };
        let mut rows = self
            .attacks
            .iter()
            .zip(&self.held_out.areas)
            .map(|(attack, area)| row(&attack.attack, attack.networks, area))
            .collect::<Vec<_>>();
        rows.push(row("mean over attacks", backdoored, &self.held_out.area));
        let header = ["attack held out", "networks", "AUC", "95 %"].map(String::from);
        let flags = [
            row("backdoored", backdoored, &self.held_out.true_positive_rate),
            row("clean", self.clean, &self.held_out.false_positive_rate),
        ];
        let flagged = ["flagged, aiming at 5 % of the clean", "networks", "share", "95 %"].map(String::from);
        let single =
            self.single.iter().map(|(name, area)| row(name, backdoored + self.clean, area)).collect::<Vec<_>>();
        let alone = ["one number alone", "networks", "AUC", "95 %"].map(String::from);
        let end = "Intervals of held-out networks come from the jackknife over seeds. Single numbers are looked at all at once and prove \
                   nothing; below a half, a number is smaller in backdoored networks.";
        format!(
            "{}\n\n{}\n{}\n{}\n{}\n",
            fold(&head, width),
            align(&header, &rows, width),
            align(&flagged, &flags, width),
            align(&alone, &single, width),
            fold(end, width)
        )
    }
}

/// The networks that have been read.
#[derive(Default)]
struct Gathered {
    samples: Vec<Sample>,
    /// The attacks in words, in the order of their numbers.
    attacks: Vec<String>,
    /// Seeds of which there is a clean network.
    clean: BTreeSet<u64>,
    commits: BTreeSet<String>,
    /// What all networks have in common, and the run that said so.
    common: Option<(PathBuf, BTreeMap<String, String>)>,
}

impl Gathered {
    fn add(&mut self, folder: &Path) -> Result<(), NetworksError> {
        let unfit = |reason: String| NetworksError::Unfit { run: folder.to_owned(), reason };
        let summary = read_summary(folder)?;
        self.expect_common(folder)?;
        let words = Setup::of(&read_config(folder)?).attack.words;
        self.commits.extend(run_builds(folder)?.iter().filter_map(commit_in_words));
        for seed in &summary.seeds {
            let Some(measured) = seed.measurements() else { continue };
            if measured.routing.is_none() {
                return Err(unfit("nobody looked at its routing; run it with a [routing] table".into()));
            }
            let maps = SeedMaps::read(&folder.join(format!("seed-{}", seed.seed)), seed.seed)?;
            for (place, classifier) in maps.classifiers.iter().enumerate() {
                let is_victim = classifier.name == "victim";
                let attack = (is_victim && seed.poisoned_images > 0).then(|| self.number_of(&words));
                if attack.is_none() && !self.clean.insert(seed.seed) {
                    continue;
                }
                let profile = RoutingProfile::of(&maps.of_classifier(place, SETS[0]));
                let profile = profile.ok_or_else(|| unfit("a single expert or class has no profile".into()))?;
                self.samples.push(Sample { features: profile.values().to_vec(), attack, seed: seed.seed });
            }
        }
        Ok(())
    }

    fn number_of(&mut self, words: &str) -> usize {
        let known = self.attacks.iter().position(|attack| attack == words);
        known.unwrap_or_else(|| {
            self.attacks.push(words.to_owned());
            self.attacks.len() - 1
        })
    }

    fn expect_common(&mut self, folder: &Path) -> Result<(), NetworksError> {
        let mut found = flat_config(folder)?;
        found.retain(|key, _| COMMON.iter().any(|start| key == start || key.starts_with(start)));
        let environment: Environment = read_sealed_json(&folder.join("environment.json"))?;
        found.insert("images".into(), environment.fingerprint);
        let Some((first, common)) = &self.common else {
            self.common = Some((folder.to_owned(), found));
            return Ok(());
        };
        let keys: BTreeSet<&String> = common.keys().chain(found.keys()).collect();
        let differs = keys.into_iter().find(|key| common.get(*key) != found.get(*key));
        differs.map_or(Ok(()), |key| {
            let value = |of: &BTreeMap<String, String>| of.get(key).cloned().unwrap_or_else(|| "not there".into());
            let reason = format!(
                "{key} is {}, in {} it is {}; networks may differ in attack and seed alone",
                value(&found),
                first.display(),
                value(common)
            );
            Err(NetworksError::Unfit { run: folder.to_owned(), reason })
        })
    }
}
