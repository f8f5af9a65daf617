//! Empty: this package only holds tests.
