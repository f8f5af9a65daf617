/// The expert that a parameter belongs to, by the modules above it; `None` if it is of none.
pub(crate) fn expert_in(path: &[String]) -> Option<usize> {
    let mut path = path.iter().skip_while(|name| *name != "experts");
    path.nth(1)?.parse().ok()
}
