//! Empty: this package only holds benches.
