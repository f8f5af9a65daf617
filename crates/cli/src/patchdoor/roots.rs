use std::path::PathBuf;

/// Where images are looked for: the given folder, then the environment's, then `data/`.
pub(crate) fn data_roots(given: Option<&PathBuf>) -> Vec<PathBuf> {
    let environment = std::env::var_os("PATCHDOOR_DATA").filter(|value| !value.is_empty()).map(PathBuf::from);
    let mut roots = given.cloned().into_iter().chain(environment).collect::<Vec<_>>();
    roots.push(PathBuf::from("data"));
    roots
}
