/// Writes the enum of all defenses and what follows from their list; see [`DefenseConfig`](crate::DefenseConfig).
///
/// One line is one defense: its variant, the configuration in it, the variant of
/// [`DefenseAction`](crate::DefenseAction) that says what it acts on, and its name in TOML. The configuration implements
/// [`Defense`](crate::Defense) and the trait of that action for every backend, and has defaults.
macro_rules! defenses {
    (
        $(#[$about:meta])*
        pub enum $registry:ident {
            $($(#[$documentation:meta])* $variant:ident($config:ty): $action:ident = $name:literal,)+
        }
    ) => {
        $(#[$about])*
        pub enum $registry {
            $($(#[$documentation])* #[serde(rename = $name)] $variant($config),)+
        }

        impl $registry {
            /// The names of all defenses, as a configuration writes them.
            pub const NAMES: &[&str] = &[$($name),+];

            /// Every defense as an empty table makes it, in the order of [`NAMES`](Self::NAMES).
            pub fn defaults() -> Vec<Self> {
                vec![$(Self::$variant(<$config>::default())),+]
            }

            /// The defense's name, as a configuration writes it.
            pub fn name(&self) -> &'static str {
                match self {
                    $(Self::$variant(_) => $name,)+
                }
            }

            /// What the defense's own configuration answers.
            pub fn as_defense(&self) -> &dyn Defense {
                match self {
                    $(Self::$variant(defense) => defense,)+
                }
            }

            /// Like [`as_defense`](Self::as_defense), to change it.
            pub fn as_defense_mut(&mut self) -> &mut dyn Defense {
                match self {
                    $(Self::$variant(defense) => defense,)+
                }
            }

            /// What the defense does, whatever the backend.
            pub fn kind(&self) -> ActionKind {
                match self {
                    $(Self::$variant(_) => ActionKind::$action,)+
                }
            }

            /// What the defense does on a backend.
            pub fn action<B: TrainingBackend>(&self) -> DefenseAction<'_, B> {
                match self {
                    $(Self::$variant(defense) => DefenseAction::$action(defense),)+
                }
            }
        }

        /// The name of a defense. As a [`DeserializeSeed`] it reads the table that stands under that name.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum DefenseName {
            $($(#[$documentation])* $variant,)+
        }

        impl DefenseName {
            /// The defense that a configuration calls so, if there is one.
            pub fn of(name: &str) -> Option<Self> {
                match name {
                    $($name => Some(Self::$variant),)+
                    _ => None,
                }
            }
        }

        impl<'de> DeserializeSeed<'de> for DefenseName {
            type Value = $registry;

            fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<$registry, D::Error> {
                match self {
                    $(Self::$variant => <$config>::deserialize(deserializer).map($registry::$variant),)+
                }
            }
        }
    };
}

pub(crate) use defenses;
