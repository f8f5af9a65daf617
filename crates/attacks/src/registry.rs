/// Writes the enum of all crafted triggers and what follows from their list; see [`CraftedConfig`](crate::CraftedConfig).
///
/// One line is one trigger: its variant, the configuration in it, and its name in TOML. The configuration implements
/// [`Crafting`](crate::Crafting) and [`Craft`](crate::Craft) and has defaults.
macro_rules! crafted {
    (
        $(#[$about:meta])*
        pub enum $registry:ident { $($(#[$documentation:meta])* $variant:ident($config:ty) = $name:literal,)+ }
    ) => {
        $(#[$about])*
        pub enum $registry {
            $($(#[$documentation])* #[serde(rename = $name)] $variant($config),)+
        }

        impl $registry {
            /// The names of all crafted triggers, as a configuration writes them.
            pub const NAMES: &[&str] = &[$($name),+];

            /// Every one as an empty table makes it, in the order of [`NAMES`](Self::NAMES).
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
            pub fn as_crafting(&self) -> &dyn Crafting {
                match self {
                    $(Self::$variant(config) => config,)+
                }
            }

            /// Like [`as_crafting`](Self::as_crafting), to change it.
            pub fn as_crafting_mut(&mut self) -> &mut dyn Crafting {
                match self {
                    $(Self::$variant(config) => config,)+
                }
            }

            /// Makes the trigger.
            ///
            /// # Errors
            /// [`AttackError::Interrupted`] if it was asked to stop.
            pub fn craft<B: TrainingBackend>(&self, workshop: &Workshop<'_, B>) -> Result<Crafted, AttackError> {
                match self {
                    $(Self::$variant(config) => config.craft(workshop),)+
                }
            }
        }
    };
}

pub(crate) use crafted;
