use serde::{Deserialize, Serialize};

/// What perturbations of test images that know the weights come to.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct EvasionMeasurements {
    /// Test images attacked.
    pub images: usize,
    /// Of the backdoored classifier.
    #[serde(flatten)]
    pub victim: EvasionStanding,
    /// Of the clean twin, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clean_twin: Option<EvasionStanding>,
}

/// Shares of the same test images that are predicted right, in [0, 1].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct EvasionStanding {
    /// Untouched.
    pub untouched_accuracy: f64,
    /// After one step along the sign of the gradient (FGSM).
    pub fgsm_accuracy: f64,
    /// After projected gradient descent (PGD), from every start.
    pub pgd_accuracy: f64,
    /// After PGD that moves the routers' scores and does not look at the classes; `None` without experts that choose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pgd_router_accuracy: Option<f64>,
    /// After PGD with the routing of the untouched image, in the attack and in the prediction; `None` without experts that
    /// choose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pgd_fixed_routing_accuracy: Option<f64>,
}
