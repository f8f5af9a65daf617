/// The expert that a parameter belongs to, by its path, such as `experts.0.conv.weight`; `None` if it is of none.
pub(crate) fn expert_in(path: &str) -> Option<usize> {
    path.split('.').skip_while(|name| *name != "experts").nth(1)?.parse().ok()
}
