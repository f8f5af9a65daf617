use crate::dataset::DatasetConfig;
use crate::labels;
use crate::shapes::{self, ShapesConfig};

/// Images of each GTSRB class, training and test (Stallkamp et al. 2012).
#[rustfmt::skip]
const GTSRB: [[usize; 43]; 2] = [
    [
        210, 2220, 2250, 1410, 1980, 1860, 420, 1440, 1410, 1470, 2010, 1320, 2100, 2160, 780, 630, 420, 1110, 1200, 210,
        360, 330, 390, 510, 270, 1500, 600, 240, 540, 270, 450, 780, 240, 689, 420, 1200, 390, 210, 2070, 300, 360, 240,
        240,
    ],
    [
        60, 720, 750, 450, 630, 660, 150, 450, 450, 480, 660, 420, 690, 720, 270, 210, 150, 360, 390, 60, 90, 90, 120, 150,
        90, 480, 180, 60, 150, 90, 150, 270, 60, 210, 120, 390, 120, 60, 690, 90, 90, 60, 90,
    ],
];

/// Images of each MNIST class, training and test.
const MNIST: [[usize; 10]; 2] = [
    [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
    [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009],
];

/// Names of the classes of the data set of that name, in the order of their labels; `None` for a folder, whose classes
/// are known when it is read.
pub fn class_names_of(dataset: &str) -> Option<&'static [&'static str]> {
    match dataset {
        "cifar10" => Some(&labels::CIFAR10),
        "cifar100" => Some(&labels::CIFAR100),
        "gtsrb" => Some(&labels::GTSRB),
        "mnist" => Some(&labels::MNIST),
        "fashion-mnist" => Some(&labels::FASHION_MNIST),
        "shapes" => Some(&shapes::CLASSES),
        _ => None,
    }
}

impl DatasetConfig {
    /// Images of each class in the training and in the test split, if they are known before any file is read; those of a
    /// folder are not. Of GTSRB there are subsets: these are the numbers of the whole, and a subset has their proportions.
    pub fn published_class_counts(&self) -> Option<[Vec<usize>; 2]> {
        match self {
            Self::Cifar10 => Some([vec![5000; 10], vec![1000; 10]]),
            Self::Cifar100 => Some([vec![500; 100], vec![100; 100]]),
            Self::FashionMnist => Some([vec![6000; 10], vec![1000; 10]]),
            Self::Mnist => Some(MNIST.map(Vec::from)),
            Self::Gtsrb => Some(GTSRB.map(Vec::from)),
            Self::Shapes(ShapesConfig { train, test, .. }) => {
                let classes = shapes::CLASSES.len();
                // Classes take turns.
                let of = |images: usize| (0..classes).map(|class| (images + classes - 1 - class) / classes).collect();
                Some([*train, *test].map(of))
            }
            Self::Folder(_) => None,
        }
    }

    /// The same where no other number can be right: of GTSRB there are subsets, and shapes are as many as asked for.
    pub(crate) fn exact_class_counts(&self) -> Option<[Vec<usize>; 2]> {
        match self {
            Self::Gtsrb | Self::Shapes(_) => None,
            config => config.published_class_counts(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load;

    #[test]
    fn the_shapes_have_as_many_images_of_each_class_as_is_said() {
        let config = DatasetConfig::Shapes(ShapesConfig { train: 47, test: 10, seed: 0 });
        let drawn = load(&config, &[]).unwrap();
        let counts = [drawn.train.class_counts(), drawn.test.class_counts()];
        assert_eq!(config.published_class_counts().unwrap(), counts);
        assert_eq!(counts[0], [5, 5, 5, 5, 5, 5, 5, 4, 4, 4]);
    }

    #[test]
    fn the_published_numbers_sum_to_the_published_splits_and_every_class_has_a_name() {
        let sums = [
            (DatasetConfig::Cifar10, [50_000, 10_000]),
            (DatasetConfig::Cifar100, [50_000, 10_000]),
            (DatasetConfig::Mnist, [60_000, 10_000]),
            (DatasetConfig::FashionMnist, [60_000, 10_000]),
            (DatasetConfig::Gtsrb, [39_209, 12_630]),
        ];
        for (config, expected) in sums {
            let counts = config.published_class_counts().unwrap();
            assert_eq!(counts.each_ref().map(|counts| counts.iter().sum::<usize>()), expected, "{}", config.name());
            let names = class_names_of(config.name()).unwrap();
            assert!(counts.iter().all(|counts| counts.len() == names.len()), "{}", config.name());
        }
        assert_eq!(class_names_of("folder"), None);
    }
}
