//! One declaration for each host operation.

/// Declares the host operations: each with its documentation, what it is about, what it waits for, its summary (in which its
/// parameters may be named), and its parameters with their types in Rust and over varlink.
///
/// It makes the enum [`HostOp`](super::HostOp), and everything that is told of an operation. One that lacks a part does not
/// compile.
macro_rules! host_ops {
    ($(
        $(#[doc = $doc:literal])+
        $op:ident on $subject:ident $(($key:ident))?, waits for $wait:ident: $summary:literal {
            $($(#[doc = $parameter_doc:literal])+ $parameter:ident: $type:ty as $varlink:literal,)+
        }
    )+) => {
        /// One operation on the host that needs root. Each is idempotent.
        #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(tag = "method", content = "parameters", deny_unknown_fields)]
        #[expect(clippy::large_enum_variant, reason = "there are few of them at a time")]
        pub enum HostOp {
            $(
                $(#[doc = $doc])+
                $op {
                    $($(#[doc = $parameter_doc])+ $parameter: $type,)+
                },
            )+
        }

        impl HostOp {
            /// The operations, as they are called over varlink.
            pub const DECLARATIONS: &[HostOpDeclaration] = &[$(HostOpDeclaration {
                method: stringify!($op),
                doc: &[$($doc),+],
                parameters: &[$((stringify!($parameter), $varlink)),+],
            }),+];

            /// Returns the operation in a few words, without any secret.
            #[must_use]
            pub fn summary(&self) -> String {
                match self {
                    $(Self::$op { $($parameter),+ } => {
                        let _ = ($($parameter,)+);
                        format!($summary)
                    })+
                }
            }

            /// Returns what the operation is about.
            #[must_use]
            pub fn subject(&self) -> HostSubject {
                match self {
                    $(Self::$op { $($key,)? .. } => HostSubject::$subject $((Clone::clone($key)))?,)+
                }
            }

            /// Returns what the operation waits for once its own part is done.
            #[must_use]
            pub fn waits_for(&self) -> HostWait {
                match self {
                    $(Self::$op { .. } => HostWait::$wait,)+
                }
            }
        }
    };
}

pub(super) use host_ops;
