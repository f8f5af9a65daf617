use patchdoor_plan::Plan;
use patchdoor_record::ImagesUsed;

/// A configuration with every default written out, under a comment that says where it comes from.
pub(crate) fn config_text(plan: &Plan, what: &str, used: &ImagesUsed) -> String {
    let mut text = format!("# {what} {}, with every default written out.\n", plan.path().display());
    if let Some(point) = plan.point() {
        text.extend(["# Point of its sweep: ", point, "\n"]);
    }
    for set in plan.overrides() {
        text.extend(["# --set ", set, "\n"]);
    }
    if plan.is_quick() {
        text.push_str("# --quick: few images, two epochs, a thin network; its numbers mean nothing.\n");
    }
    if let Some(substitution) = &used.substitution {
        text.extend(["# ", substitution, ".\n"]);
    }
    text.push('\n');
    text.push_str(&plan.to_toml());
    text
}
