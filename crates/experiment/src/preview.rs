use std::path::{Path, PathBuf};

use patchdoor_data::{DataError, load};
use patchdoor_plan::{DatasetFacts, Plan};

use crate::backend::Backend;
use crate::describe::{describe, describe_images};
use crate::error::RunError;
use crate::images::ImagesError;

/// Says what a plan will do and what is to be known about its images, one line each, computing and fetching nothing. Images that
/// are on disk are read.
///
/// # Errors
/// If the images are there but cannot be read, or the plan does not fit them.
pub fn preview(plan: &Plan, roots: &[PathBuf], backend: &Backend, folder: &Path) -> Result<Vec<String>, RunError> {
    backend.check(plan).map_err(ImagesError::from)?;
    let dataset = match load(&plan.config().dataset, roots) {
        Ok(dataset) => dataset,
        Err(DataError::Missing { .. }) => {
            let mut lines = describe(plan, None, backend, folder);
            lines.push("  the images are not here, so nothing is known about them".to_owned());
            return Ok(lines);
        }
        Err(error) => return Err(ImagesError::from(error).into()),
    };
    let facts = DatasetFacts::of(&dataset.train, &dataset.test);
    let plan = plan.for_images(&facts).map_err(ImagesError::from)?;
    let lines = describe(&plan, Some(&facts), backend, folder);
    Ok(lines.into_iter().chain(describe_images(&dataset)).collect())
}
