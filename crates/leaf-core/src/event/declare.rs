//! The macro that declares the facts of a noun.

/// Declares the facts of one noun: a type for each, and the enum of them. A missing attribute is a compile error.
macro_rules! facts {
    ($facts:ident of $aggregate:literal; $(
        $(#[$doc:meta])*
        $variant:ident: $name:ident = $fact:literal v $version:literal about $about:ident $(($($key:ident).+))? {
            $($(#[$fdoc:meta])* $field:ident : $type:ty),* $(,)?
        }
    )*) => {
        $(
            $(#[$doc])*
            #[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
            pub struct $name { $($(#[$fdoc])* pub $field: $type),* }

            impl From<$name> for $crate::event::Fact {
                fn from(fact: $name) -> Self {
                    $facts::$variant(fact).into()
                }
            }
        )*

        /// The facts of this noun. Each variant has its own type, schema and subject.
        #[derive(Debug, Clone, PartialEq, Eq)]
        #[allow(clippy::large_enum_variant, reason = "one input leads to a few facts, which are not kept")]
        pub enum $facts { $($(#[$doc])* $variant($name),)* }

        /// The types of these facts.
        pub(super) const TYPES: &[$crate::event::EventType] = &[
            $($crate::event::EventType {
                name: concat!("cim.leaf.", $aggregate, ".", $fact, ".v", $version),
                aggregate: $aggregate,
                fact: $fact,
                shape: $crate::shape::Shape::of::<$name>(),
            },)*
        ];

        impl $facts {
            pub(super) fn kind(&self) -> &'static str {
                match self {
                    $(Self::$variant(_) => concat!("cim.leaf.", $aggregate, ".", $fact, ".v", $version),)*
                }
            }

            pub(super) fn aggregate_and_fact(&self) -> (&'static str, &'static str) {
                match self { $(Self::$variant(_) => ($aggregate, $fact),)* }
            }

            pub(super) fn about(&self) -> $crate::aggregate::Aggregate<'_> {
                match self {
                    $(Self::$variant(_fact) => $crate::aggregate::Aggregate::$about $((&_fact.$($key).+))?,)*
                }
            }

            pub(super) fn to_body(&self) -> Vec<u8> {
                match self { $(Self::$variant(fact) => $crate::json::to_json(fact),)* }
            }

            /// Parses a fact; `None` if the type is not one of this noun.
            pub(super) fn from_body(kind: &str, body: &serde_json::Value) -> Option<Result<Self, serde_json::Error>> {
                match kind {
                    $(concat!("cim.leaf.", $aggregate, ".", $fact, ".v", $version) => {
                        Some(<$name as serde::Deserialize>::deserialize(body).map(Self::$variant))
                    })*
                    _ => None,
                }
            }
        }
    };
}

pub(super) use facts;
