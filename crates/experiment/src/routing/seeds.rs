use std::io;
use std::path::Path;

use fs_err as fs;
use safetensors::SafeTensors;

use super::figures::{self, SeedMaps};
use crate::files::write_whole;
use crate::result::SeedResult;
use crate::run::RunError;

/// Classifiers whose maps a seed's arrays may hold, as the arrays and as the page call them.
const CLASSIFIERS: [(&str, &str); 2] = [("victim", "victim"), ("clean-twin", "twin")];

/// Draws where routers look, averaged over experts, for each seed and on average over them: `routing.svg` in the run's
/// folder, from the arrays of its seeds. Experts are averaged because the first of one seed is no kin of the first of another.
pub(crate) fn draw_seeds(folder: &Path, seeds: &[SeedResult]) -> Result<(), RunError> {
    let looked = seeds.iter().filter(|seed| seed.measurements().is_some_and(|measured| measured.routing.is_some()));
    let maps = looked.map(|seed| read_maps(folder, seed.seed)).collect::<Result<Vec<_>, _>>()?;
    if !maps.is_empty() {
        write_whole(&folder.join("routing.svg"), figures::seeds(&maps).as_bytes())?;
    }
    Ok(())
}

fn read_maps(folder: &Path, seed: u64) -> io::Result<SeedMaps> {
    let bytes = fs::read(folder.join(format!("seed-{seed}/routing/selections.safetensors")))?;
    let file = SafeTensors::deserialize(&bytes).map_err(io::Error::other)?;
    let words = |name: &str| -> io::Result<(Vec<usize>, Vec<[u8; 4]>)> {
        let view = file.tensor(name).map_err(io::Error::other)?;
        Ok((
            view.shape().to_vec(),
            view.data().chunks_exact(4).map(|word| [word[0], word[1], word[2], word[3]]).collect(),
        ))
    };
    let images = words("images")?.1.into_iter().map(|word| f64::from(u32::from_le_bytes(word))).collect::<Vec<_>>();
    let (shape, marks) = words("triggered-patches")?;
    let grid = [shape[1], shape[2]];
    let patches = grid[0] * grid[1];
    let triggered = marks[..patches].iter().map(|&word| f64::from(f32::from_le_bytes(word))).collect();
    let mut classifiers = Vec::new();
    for (name, title) in CLASSIFIERS {
        let array = format!("{name}.frequency");
        if !file.names().contains(&array.as_str()) {
            continue;
        }
        let (shape, words) = words(&array)?;
        let frequencies = words.into_iter().map(|word| f64::from(f32::from_le_bytes(word))).collect::<Vec<_>>();
        let experts = shape[2];
        let of_set = |set: &[f64]| mean_map(set, &images, experts, patches);
        let mut sets = frequencies.chunks_exact(images.len() * experts * patches).map(of_set);
        if let (Some(clean), Some(triggered)) = (sets.next(), sets.next()) {
            classifiers.push((title, [clean, triggered]));
        }
    }
    Ok(SeedMaps { seed, grid, triggered, classifiers })
}

/// Share of the images in which a patch is selected, averaged over experts, from `[class, expert, patch]`; classes without
/// images are NaN there.
fn mean_map(frequencies: &[f64], images: &[f64], experts: usize, patches: usize) -> Vec<f64> {
    let all = images.iter().sum::<f64>() * experts as f64;
    let mut map = vec![0.0; patches];
    for (of_class, &count) in frequencies.chunks_exact(experts * patches).zip(images) {
        if count > 0.0 {
            for of_expert in of_class.chunks_exact(patches) {
                for (sum, frequency) in map.iter_mut().zip(of_expert) {
                    *sum += frequency * count / all;
                }
            }
        }
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mean_map_weighs_classes_by_their_images_and_experts_alike() {
        // Two classes of 3 and 1 images, a third without any; two experts; two patches.
        let frequencies = [1.0, 0.0, 0.0, 1.0, 0.5, 0.5, 1.0, 0.0, f64::NAN, f64::NAN, f64::NAN, f64::NAN];
        let map = mean_map(&frequencies, &[3.0, 1.0, 0.0], 2, 2);
        // Patch 0: (3 * 1 + 3 * 0 + 0.5 + 1) / 8.
        assert_eq!(map, [4.5 / 8.0, 3.5 / 8.0]);
    }
}
