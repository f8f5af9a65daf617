use std::collections::{BTreeMap, BTreeSet};

use burn::tensor::{Tensor, backend::Backend};

/// A value from the inside of a network.
#[derive(Clone, Debug)]
pub enum Tapped<B: Backend> {
    /// A feature map, `[batch, row, column, channel]`.
    Map(Tensor<B, 4>),
    /// A vector for each image, `[batch, feature]`.
    Features(Tensor<B, 2>),
}

impl<B: Backend> Tapped<B> {
    /// The feature map, if it is one.
    pub fn map(self) -> Option<Tensor<B, 4>> {
        match self {
            Self::Map(map) => Some(map),
            Self::Features(_) => None,
        }
    }

    /// The vectors, if they are such.
    pub fn features(self) -> Option<Tensor<B, 2>> {
        match self {
            Self::Features(features) => Some(features),
            Self::Map(_) => None,
        }
    }
}

/// Keeps the values that somebody asked for by name while a pass runs; what nobody asked for costs nothing.
pub(crate) struct Taps<B: Backend> {
    wanted: BTreeSet<String>,
    pub(crate) found: BTreeMap<String, Tapped<B>>,
}

impl<B: Backend> Taps<B> {
    pub(crate) fn none() -> Self {
        Self::of(&[])
    }

    pub(crate) fn of(names: &[&str]) -> Self {
        Self { wanted: names.iter().map(|&name| name.to_owned()).collect(), found: BTreeMap::new() }
    }

    pub(crate) fn wants(&self, name: &str) -> bool {
        self.wanted.contains(name)
    }

    /// Keeps a value if it is wanted.
    pub(crate) fn offer(&mut self, name: &str, value: impl FnOnce() -> Tapped<B>) {
        if self.wants(name) {
            self.found.insert(name.to_owned(), value());
        }
    }
}
