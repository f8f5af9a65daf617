/// Writes the enum of all attacks of one kind and what follows from their list; see [`CraftedConfig`](crate::CraftedConfig) and
/// [`ControlledConfig`](crate::ControlledConfig).
///
/// After the enum's name stand the trait that every configuration in it implements, and the one that it implements for every
/// backend. One line is one attack: its variant, the configuration in it, which has defaults, and its name in TOML.
macro_rules! attacks {
    (
        $(#[$about:meta])*
        pub enum $registry:ident: $kind:ident + $attack:ident {
            $($(#[$documentation:meta])* $variant:ident($config:ty) = $name:literal,)+
        }
    ) => {
        $(#[$about])*
        pub enum $registry {
            $($(#[$documentation])* #[serde(rename = $name)] $variant($config),)+
        }

        impl $registry {
            /// The names of all attacks of this kind, as a configuration writes them.
            pub const NAMES: &[&str] = &[$($name),+];

            /// Every one as an empty table makes it, in the order of [`NAMES`](Self::NAMES).
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
            pub fn kind(&self) -> &dyn $kind {
                match self {
                    $(Self::$variant(config) => config,)+
                }
            }

            /// Like [`kind`](Self::kind), to change it.
            pub fn kind_mut(&mut self) -> &mut dyn $kind {
                match self {
                    $(Self::$variant(config) => config,)+
                }
            }

            /// What the attack does on a backend.
            pub fn on_backend<B: TrainingBackend>(&self) -> &dyn $attack<B> {
                match self {
                    $(Self::$variant(config) => config,)+
                }
            }
        }
    };
}

pub(crate) use attacks;
