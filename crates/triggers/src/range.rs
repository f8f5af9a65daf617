use crate::TriggerError;
use crate::error::invalid;

/// Checks a share of something.
pub(crate) fn share(field: &'static str, value: f64) -> Option<TriggerError> {
    (!(0.0..=1.0).contains(&value)).then(|| invalid(field, value, "a share in [0, 1]"))
}

/// Checks what may be any number but a negative one.
pub(crate) fn zero_or_more(field: &'static str, value: f64) -> Option<TriggerError> {
    let is_allowed = value >= 0.0 && value.is_finite();
    (!is_allowed).then(|| invalid(field, value, "a number that is 0 or more"))
}

/// Checks what may be any number above 0.
pub(crate) fn above_zero(field: &'static str, value: f64) -> Option<TriggerError> {
    let is_allowed = value > 0.0 && value.is_finite();
    (!is_allowed).then(|| invalid(field, value, "a number above 0"))
}
