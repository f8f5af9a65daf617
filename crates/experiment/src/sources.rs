use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use patchdoor_plan::Plan;
use patchdoor_record::{Environment, RecordError, read_sealed_json};
use sha2::{Digest, Sha256};

/// What a run depends on is not what it was.
#[derive(Debug, thiserror::Error)]
pub enum OtherSources {
    /// A run of the same name was computed on other images.
    #[error(
        "{} was begun on other images than these ({found}, now {expected}); --fresh moves it aside",
        path.display()
    )]
    Images {
        /// The run.
        path: PathBuf,
        /// Fingerprint of its images.
        found: String,
        /// Fingerprint of the images now.
        expected: String,
    },
    /// A run of the same name was computed with another file of the same path.
    #[error(
        "{} was begun with another {input} than this ({found}, now {expected}); --fresh moves it aside",
        path.display()
    )]
    Input {
        /// The run.
        path: PathBuf,
        /// The file, as the experiment names it.
        input: String,
        /// SHA-256 of the file then.
        found: String,
        /// SHA-256 of the file now.
        expected: String,
    },
}

/// What results depend on besides their configuration: the images, and other files that it names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sources {
    /// SHA-256 over pixels and labels of both splits.
    pub(crate) fingerprint: String,
    /// SHA-256 of other files, by their paths as written.
    pub(crate) inputs: BTreeMap<String, String>,
}

impl Sources {
    /// Those of a run that was begun or finished in a folder.
    pub(crate) fn of_run(folder: &Path) -> Result<Self, RecordError> {
        let Environment { fingerprint, inputs, .. } = read_sealed_json(&folder.join("environment.json"))?;
        Ok(Self { fingerprint, inputs })
    }

    /// Makes sure that what a run in a folder was computed on is what is there now. Runs of earlier versions say nothing of
    /// files besides images.
    pub(crate) fn expect(&self, now: &Self, folder: &Path) -> Result<(), OtherSources> {
        if self.fingerprint != now.fingerprint {
            let (found, expected) = (self.fingerprint.clone(), now.fingerprint.clone());
            return Err(OtherSources::Images { path: folder.to_owned(), found, expected });
        }
        for (input, expected) in &now.inputs {
            if let Some(found) = self.inputs.get(input).filter(|found| *found != expected) {
                let (input, found, expected) = (input.clone(), found.clone(), expected.clone());
                return Err(OtherSources::Input { path: folder.to_owned(), input, found, expected });
            }
        }
        Ok(())
    }
}

/// The SHA-256 of the files that a plan names besides its images.
pub(crate) fn digests_of(plan: &Plan) -> io::Result<BTreeMap<String, String>> {
    let of = |path: &Path| {
        let digest = Sha256::digest(fs_err::read(path)?);
        let digest = digest.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
        Ok((path.display().to_string(), digest))
    };
    plan.config().trigger.iter().flat_map(|trigger| trigger.files()).map(of).collect()
}
