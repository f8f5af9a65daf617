/// Writes the enum of all attacks that control the training and what follows from their list; see
/// [`ControlledConfig`](crate::ControlledConfig).
///
/// One line is one attack: its variant, the configuration in it, and its name in TOML. The configuration implements
/// [`ControlledKind`](crate::ControlledKind) and, for every backend, [`ControlledAttack`](crate::ControlledAttack).
macro_rules! controlled_attacks {
    (
        $(#[$about:meta])*
        pub enum $registry:ident { $($(#[$documentation:meta])* $variant:ident($config:ty) = $name:literal,)+ }
    ) => {
        $(#[$about])*
        pub enum $registry {
            $($(#[$documentation])* #[serde(rename = $name)] $variant($config),)+
        }

        impl $registry {
            /// The names of all such attacks, as a configuration writes them.
            pub const NAMES: &[&str] = &[$($name),+];

            /// Every attack as an empty table makes it, in the order of [`NAMES`](Self::NAMES).
            pub fn defaults() -> Vec<Self> {
                vec![$(Self::$variant(<$config>::default())),+]
            }

            /// The attack's name, as in a configuration.
            pub fn name(&self) -> &'static str {
                match self {
                    $(Self::$variant(_) => $name,)+
                }
            }

            /// What the attack's own configuration answers.
            pub fn kind(&self) -> &dyn ControlledKind {
                match self {
                    $(Self::$variant(config) => config,)+
                }
            }

            /// Like [`kind`](Self::kind), to change it.
            pub fn kind_mut(&mut self) -> &mut dyn ControlledKind {
                match self {
                    $(Self::$variant(config) => config,)+
                }
            }

            /// What the attack does on a backend.
            pub fn on_backend<B: TrainingBackend>(&self) -> &dyn ControlledAttack<B> {
                match self {
                    $(Self::$variant(config) => config,)+
                }
            }
        }
    };
}

pub(crate) use controlled_attacks;
