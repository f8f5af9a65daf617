use serde::Serialize;
use sha2::{Digest, Sha256};

/// Eight hexadecimal digits that depend on every field of a value.
pub(crate) fn digest(value: &impl Serialize) -> String {
    // serde_json's map is sorted by key, so the order of fields in our types does not matter.
    let canonical = serde_json::to_value(value).expect("configurations are plain data").to_string();
    Sha256::digest(canonical.as_bytes())[..4].iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}
