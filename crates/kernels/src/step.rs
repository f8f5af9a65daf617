/// A step of stochastic gradient descent, as burn's and `PyTorch`'s take it without damping.
///
/// With `g = gradient + weight_decay * parameter` and `v = momentum * v + g` (`v = g` in the first step), a parameter
/// moves by `-rate * v`, or by `-rate * (g + momentum * v)` with Nesterov's momentum.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SgdStep {
    /// Learning rate.
    pub rate: f64,
    /// Share of the parameter that is added to its gradient.
    pub weight_decay: f64,
    /// Share of the last step's velocity that is kept; none if 0.
    pub momentum: f64,
    /// Whether the momentum is Nesterov's.
    pub nesterov: bool,
}
