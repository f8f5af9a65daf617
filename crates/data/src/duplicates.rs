//! Images that a data set has more than once, and classes it lacks.

use std::collections::BTreeSet;

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::ImageSet;

/// Says how many images are repeated within a split or lie in both, and which classes have no image; one sentence each.
pub(crate) fn notes(train: &ImageSet, test: &ImageSet) -> Vec<String> {
    let mut notes = Vec::new();
    let (in_train, repeated) = distinct(train);
    let (in_test, repeated_in_test) = distinct(test);
    for (split, set, repeated) in [("training", train, repeated), ("test", test, repeated_in_test)] {
        match repeated {
            0 => {}
            1 => notes.push(format!("1 of {} {split} images is a copy of another", set.len())),
            _ => notes.push(format!("{repeated} of {} {split} images are copies of others", set.len())),
        }
    }
    let shared = if in_train.is_disjoint(&in_test) {
        0
    } else {
        digests(test).into_iter().filter(|digest| in_train.contains(digest)).count()
    };
    match shared {
        0 => {}
        1 => notes.push(format!("1 of {} test images is also a training image", test.len())),
        _ => notes.push(format!("{shared} of {} test images are also training images", test.len())),
    }
    for (split, set) in [("training", train), ("test", test)] {
        let counts = set.class_counts();
        let empty: Vec<&str> = set
            .classes()
            .iter()
            .zip(counts)
            .filter(|(_, count)| *count == 0)
            .map(|(class, _)| class.as_str())
            .collect();
        notes.extend(no_image_of(split, &empty));
    }
    notes
}

fn no_image_of(split: &str, classes: &[&str]) -> Option<String> {
    const SHOWN: usize = 5;
    Some(match classes {
        [] => return None,
        [class] => format!("no {split} image of class {class}"),
        _ if classes.len() <= SHOWN => format!("no {split} image of classes {}", classes.join(", ")),
        _ => {
            let (shown, more) = classes.split_at(SHOWN);
            format!("no {split} image of classes {} and {} more", shown.join(", "), more.len())
        }
    })
}

type Sum = [u8; 32];

fn digests(set: &ImageSet) -> Vec<Sum> {
    (0..set.len()).into_par_iter().map(|index| Sha256::digest(set.pixels(index)).into()).collect()
}

/// The different images of a set, by their pixels, and how many are copies of earlier ones.
fn distinct(set: &ImageSet) -> (BTreeSet<Sum>, usize) {
    let distinct: BTreeSet<Sum> = digests(set).into_iter().collect();
    let repeated = set.len() - distinct.len();
    (distinct, repeated)
}
