use serde::{Deserialize, Serialize};

/// Name of the file in a seed's folder with a line for each look at the backdoored classifier during its training.
pub const CURVES: &str = "curves.jsonl";

/// How the backdoored classifier does on some test images after an epoch of its training; a line of [`CURVES`]. Shares in
/// [0, 1]. It is there to be looked at: nothing is chosen by it, and the results of a seed are measured after training, on
/// all test images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct CurvePoint {
    /// Epoch, counted from 0.
    pub epoch: usize,
    /// Test images looked at, untouched and triggered.
    pub images: usize,
    /// Share of the untouched ones predicted right.
    pub clean_accuracy: f64,
    /// Attack success rate; `None` if none of them is attacked.
    pub asr: Option<f64>,
    /// Share of the attacked ones still given their true class; `None` if there are none.
    pub robust_accuracy: Option<f64>,
}
