//! The macro that declares the host operations.

/// Declares the host operations: each with its documentation, its subject, what it waits for, its summary (which may
/// contain its parameters), its parameters with their types in Rust and over varlink, and the fields of [`HostReport`](super::HostReport)
/// that it reports, if any, with their types over varlink.
///
/// It defines the enum [`HostOp`](super::HostOp) and its properties. A missing part is a compile error.
macro_rules! host_ops {
    ($(
        $(#[doc = $doc:literal])+
        $op:ident on $subject:ident $(($key:ident))?, waits for $wait:ident: $summary:literal {
            $($(#[$parameter_attribute:meta])+ $parameter:ident: $type:ty as $varlink:literal,)*
        } $(-> $report:literal)?
    )+) => {
        /// An operation on the host that needs root. All are idempotent.
        #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(tag = "method", content = "parameters", deny_unknown_fields)]
        #[expect(clippy::large_enum_variant, reason = "there are few of them at a time")]
        pub enum HostOp {
            $(
                $(#[doc = $doc])+
                $op {
                    $($(#[$parameter_attribute])+ $parameter: $type,)*
                },
            )+
        }

        impl HostOp {
            /// The operations as varlink methods.
            pub const DECLARATIONS: &[HostOpDeclaration] = &[$(HostOpDeclaration {
                method: stringify!($op),
                doc: &[$($doc),+],
                parameters: &[$((stringify!($parameter), $varlink)),*],
                report: concat!($($report)?),
            }),+];

            /// Returns a short description of the operation, without secrets.
            #[must_use]
            pub fn summary(&self) -> String {
                match self {
                    $(Self::$op { $($parameter),* } => {
                        let _ = ($($parameter,)*);
                        format!($summary)
                    })+
                }
            }

            /// Returns the operation's subject.
            #[must_use]
            pub fn subject(&self) -> HostSubject {
                match self {
                    $(Self::$op { $($key,)? .. } => HostSubject::$subject $((Clone::clone($key)))?,)+
                }
            }

            /// Returns what the operation waits for after its own part is done.
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
