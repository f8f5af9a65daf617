use patchdoor_record::Build;

/// Extra compiler flags; often none.
const RUSTFLAGS: &str = env!("PATCHDOOR_RUSTFLAGS");

/// This program, as it was when it was built; see `build.rs`.
pub(crate) fn build_facts() -> Build {
    let known = |value: &str| (!value.is_empty()).then(|| value.to_owned());
    Build {
        patchdoor: env!("CARGO_PKG_VERSION").into(),
        burn: known(env!("PATCHDOOR_BURN")),
        rustc: env!("PATCHDOOR_RUSTC").into(),
        target: env!("PATCHDOOR_TARGET").into(),
        rustflags: String::from(RUSTFLAGS),
        optimized: !cfg!(debug_assertions),
        commit: known(env!("PATCHDOOR_COMMIT")),
        dirty: known(env!("PATCHDOOR_DIRTY")).map(|dirty| dirty == "true"),
        cargo_lock: env!("PATCHDOOR_CARGO_LOCK").into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_of_burn_is_found_in_the_lock_file() {
        let build = build_facts();
        assert!(build.burn.is_some_and(|version| version.starts_with("0.21.")));
        assert_eq!(build.cargo_lock.len(), 64);
    }
}
