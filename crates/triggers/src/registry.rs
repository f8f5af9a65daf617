/// Writes the enum of all triggers and what follows from their list; see [`TriggerConfig`](crate::TriggerConfig).
///
/// One line is one trigger: its variant, the configuration in it, and its name in TOML. The configuration implements
/// [`TriggerKind`](crate::TriggerKind) and has defaults.
macro_rules! triggers {
    (
        $(#[$about:meta])*
        pub enum $registry:ident { $($(#[$documentation:meta])* $variant:ident($config:ty) = $name:literal,)+ }
    ) => {
        $(#[$about])*
        pub enum $registry {
            $($(#[$documentation])* #[serde(rename = $name)] $variant($config),)+
        }

        impl $registry {
            /// The names of all triggers, as a configuration writes them.
            pub const NAMES: &[&str] = &[$($name),+];

            /// Every trigger as an empty table makes it, in the order of [`NAMES`](Self::NAMES).
            pub fn defaults() -> Vec<Self> {
                vec![$(Self::$variant(<$config>::default())),+]
            }

            /// The trigger's name, as in a configuration.
            pub fn name(&self) -> &'static str {
                match self {
                    $(Self::$variant(_) => $name,)+
                }
            }

            /// What the trigger's own configuration answers.
            pub fn kind(&self) -> &dyn TriggerKind {
                match self {
                    $(Self::$variant(config) => config,)+
                }
            }
        }
    };
}

pub(crate) use triggers;
