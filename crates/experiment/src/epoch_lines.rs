use std::path::Path;

use fs_err as fs;
use patchdoor_record::{RecordError, read_sealed_json_lines, write_sealed_json_lines};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Adds what was seen after an epoch to a file of lines, which is made with its folder if need be. Lines of this epoch and of
/// later ones, from before an interruption, are replaced. Called before the epoch's checkpoint is saved, so a resumed
/// training lacks no line.
pub(crate) fn keep_line<T: Serialize + DeserializeOwned>(
    path: &Path,
    line: T,
    epoch_of: fn(&T) -> usize,
) -> Result<(), RecordError> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut lines: Vec<T> = if path.is_file() { read_sealed_json_lines(path)? } else { Vec::new() };
    let epoch = epoch_of(&line);
    lines.retain(|kept| epoch_of(kept) < epoch);
    lines.push(line);
    write_sealed_json_lines(path, &lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_an_epoch_that_is_repeated_and_of_later_ones_are_replaced() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("new/lines.jsonl");
        let keep = |line: (usize, String)| keep_line(&path, line, |line| line.0).expect("the folder is writable");
        for epoch in 0..4 {
            keep((epoch, "before".into()));
        }
        keep((2, "again".into()));
        let lines: Vec<(usize, String)> = read_sealed_json_lines(&path).expect("just written");
        assert_eq!(lines, [(0, "before".into()), (1, "before".into()), (2, "again".into())]);
    }
}
