use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

/// Eight hexadecimal digits that depend on every field of a value.
pub(crate) fn digest(value: &impl Serialize) -> String {
    // serde_json's map is sorted by key, so the order of fields in our types does not matter.
    let mut canonical = serde_json::to_value(value).expect("configurations are plain data");
    without_minus_zero(&mut canonical);
    let canonical = canonical.to_string();
    Sha256::digest(canonical.as_bytes())[..4].iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

/// Writes minus zero as zero: nobody means another number by it.
fn without_minus_zero(value: &mut Value) {
    match value {
        Value::Number(number) if number.as_f64() == Some(0.0) && number.is_f64() => *value = 0.0.into(),
        Value::Array(values) => values.iter_mut().for_each(without_minus_zero),
        Value::Object(fields) => fields.values_mut().for_each(without_minus_zero),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_has_one_digest_and_other_numbers_their_own() {
        assert_eq!(digest(&[-0.0, 1.0]), digest(&[0.0, 1.0]));
        assert_eq!(digest(&[(1, [-0.0_f32])]), digest(&[(1, [0.0_f32])]));
        assert_ne!(digest(&[0.0, 1.0]), digest(&[0.0, -1.0]));
        assert_ne!(digest(&0.0), digest(&0), "as before");
    }
}
