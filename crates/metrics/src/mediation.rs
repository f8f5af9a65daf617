/// The smallest effect of a trigger that is divided by: below ten points, the sampling error of some thousand test images
/// alone would move a share by a tenth.
pub const SMALLEST_EFFECT: f64 = 0.1;

/// Attack success rates of triggered and of untouched images, each with the routing of either.
///
/// In the terms of mediation analysis (Pearl 2001, *Direct and indirect effects*) the trigger is the treatment, routing the
/// mediator, and `own - untriggered` the total effect. All four are shares of the same images.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RoutedSuccess {
    /// Triggered images, routed as they are.
    pub own: f64,
    /// Triggered images, routed as the same images untouched: what is left is the direct effect.
    pub clean_routing: f64,
    /// Untouched images, routed as they are: taken for the target class without any trigger.
    pub untriggered: f64,
    /// Untouched images, routed as the same images triggered: what is more is the indirect effect.
    pub triggered_routing: f64,
}

impl RoutedSuccess {
    /// Share of the trigger's effect that goes when routing is kept from seeing the trigger: (total - direct) / total. 0 if
    /// routing is not needed, 1 if nothing works without it; below 0 if routing is in the way. `None` if the effect is
    /// smaller than [`SMALLEST_EFFECT`].
    pub fn mediated(&self) -> Option<f64> {
        self.share(self.own - self.clean_routing)
    }

    /// Share of the trigger's effect that routing alone brings about, in images without a trigger: indirect / total. `None`
    /// like [`Self::mediated`].
    pub fn carried(&self) -> Option<f64> {
        self.share(self.triggered_routing - self.untriggered)
    }

    fn share(&self, part: f64) -> Option<f64> {
        let total = self.own - self.untriggered;
        (total >= SMALLEST_EFFECT).then(|| part / total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_of_the_effect_are_those_worked_out_by_hand() {
        let measured = RoutedSuccess { own: 0.9, clean_routing: 0.7, untriggered: 0.1, triggered_routing: 0.14 };
        // (0.9 - 0.7) / (0.9 - 0.1) and (0.14 - 0.1) / (0.9 - 0.1).
        assert!((measured.mediated().unwrap() - 0.25).abs() < 1e-12);
        assert!((measured.carried().unwrap() - 0.05).abs() < 1e-12);
        let in_the_way = RoutedSuccess { clean_routing: 0.94, ..measured };
        assert!((in_the_way.mediated().unwrap() + 0.05).abs() < 1e-12);
    }

    #[test]
    fn an_effect_too_small_to_divide_by_has_no_shares() {
        let small = RoutedSuccess { own: 0.19, clean_routing: 0.1, untriggered: 0.1, triggered_routing: 0.1 };
        assert_eq!((small.mediated(), small.carried()), (None, None));
        let large = RoutedSuccess { own: 0.21, ..small };
        assert_eq!(large.mediated(), Some(1.0));
    }
}
