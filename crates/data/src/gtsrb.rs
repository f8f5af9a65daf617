/// Number of the one track of class 33 that lacks a frame.
const SHORT_TRACK: usize = 19;

/// Its class.
const SHORT_CLASS: u8 = 33;

/// Frames of a track in the complete training set, and in the subset of every sixth frame.
const FRAMES_PER_TRACK: [usize; 2] = [30, 5];

/// Numbers the tracks of a GTSRB training set: the photographs of one physical sign, taken while driving past it, which
/// look so alike that a validation set sharing a track with the training set measures memory.
///
/// The files name no tracks, but they are ordered by class, track and frame, and a track has 30 frames: all classes
/// have a multiple of 30 images (39,209 in all) or, where every sixth frame is kept, of 5 (6,534 in all). The exception
/// is class 33, one image short: of its track 19, counted from 0, the benchmark has no `00033_00019_00029`. In the images
/// of the subset, too, neighbours differ most at the borders that this choice gives.
///
/// Returns `None` if the labels do not have that form; then nothing can be said about tracks.
pub(crate) fn tracks(labels: &[u8]) -> Option<Vec<u32>> {
    FRAMES_PER_TRACK.into_iter().find_map(|frames| tracks_of(labels, frames))
}

fn tracks_of(labels: &[u8], frames: usize) -> Option<Vec<u32>> {
    if labels.is_empty() || !labels.is_sorted() {
        return None;
    }
    let mut groups = Vec::with_capacity(labels.len());
    let mut next = 0;
    for class in labels.chunk_by(|a, b| a == b) {
        let is_short = class[0] == SHORT_CLASS && class.len() % frames == frames - 1;
        let tracks = class.len().div_ceil(frames);
        if !(class.len().is_multiple_of(frames) || is_short && tracks > SHORT_TRACK) {
            return None;
        }
        for track in 0..tracks {
            let count = if is_short && track == SHORT_TRACK { frames - 1 } else { frames };
            groups.extend(std::iter::repeat_n(next, count));
            next += 1;
        }
    }
    Some(groups)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(counts: &[(u8, usize)]) -> Vec<u8> {
        counts.iter().flat_map(|&(class, count)| std::iter::repeat_n(class, count)).collect()
    }

    #[test]
    fn five_records_make_a_track_and_one_of_class_33_has_four() {
        // Class 33 of the subset has 114 = 22 * 5 + 4 images, tracks 0 to 22; here its tracks are 3 to 25.
        let groups = tracks(&labels(&[(32, 15), (33, 114), (34, 10)])).unwrap();
        assert_eq!(groups[..16], [0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 3]);
        for (track, count) in [(2, 5), (21, 5), (22, 4), (23, 5), (25, 5), (26, 5), (27, 5), (28, 0)] {
            assert_eq!(groups.iter().filter(|&&group| group == track).count(), count, "track {track}");
        }
        // Track 19 of class 33 begins after 19 * 5 records of it.
        assert_eq!(groups.iter().position(|&group| group == 22), Some(15 + 95));
    }

    #[test]
    fn thirty_records_make_a_track_of_the_complete_set() {
        let groups = tracks(&labels(&[(0, 60), (33, 689)])).unwrap();
        assert_eq!(groups[59], 1);
        assert_eq!(groups.iter().filter(|&&group| group == 2 + 19).count(), 29);
        assert_eq!(groups.last(), Some(&(2 + 22)));
    }

    #[test]
    fn nothing_is_guessed_about_other_files() {
        assert_eq!(tracks(&labels(&[(0, 7)])), None);
        assert_eq!(tracks(&labels(&[(1, 5), (0, 5)])), None);
        assert_eq!(tracks(&labels(&[(33, 9)])), None);
        assert_eq!(tracks(&[]), None);
    }
}
