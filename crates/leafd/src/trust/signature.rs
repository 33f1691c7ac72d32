//! A signature of a kind that this leafd reads.

use leaf_core::error::chain;
use leaf_core::signed::{OPENPGP_KIND, SSH_KIND};
#[cfg(feature = "openpgp")]
use leaf_trust::openpgp::OpenPgpSignature;
use leaf_trust::ssh_signature::SshSignature;

/// Why no OpenPGP signature is accepted by a leafd that was built without them.
pub(super) const WITHOUT_OPENPGP: &str = "this leafd was built without the cargo feature openpgp, and so accepts no OpenPGP signature: sign \
with an SSH key, or build leafd with `--features openpgp`";

/// A signature, which says by whose key it is.
pub(super) enum Signature {
    Ssh(SshSignature),
    #[cfg(feature = "openpgp")]
    OpenPgp(OpenPgpSignature),
}

impl Signature {
    /// Reads the bytes of a signature of this kind.
    ///
    /// # Errors
    /// Why it is refused.
    pub(super) fn read(kind: &str, bytes: &[u8]) -> Result<Self, String> {
        match kind {
            SSH_KIND => SshSignature::from_bytes(bytes)
                .map(Self::Ssh)
                .map_err(|error| chain(&error)),
            #[cfg(feature = "openpgp")]
            OPENPGP_KIND => OpenPgpSignature::from_bytes(bytes)
                .map(Self::OpenPgp)
                .map_err(|error| chain(&error)),
            #[cfg(not(feature = "openpgp"))]
            OPENPGP_KIND => Err(WITHOUT_OPENPGP.to_owned()),
            other => Err(format!(
                "the kind of signature {other:?} is not one that this leaf reads: {SSH_KIND}, {OPENPGP_KIND}"
            )),
        }
    }

    /// Returns the fingerprint of the key that it says it is by: `SHA256:…`, or `pgp:…`.
    pub(super) fn fingerprint(&self) -> String {
        match self {
            Self::Ssh(signature) => signature.key().fingerprint(),
            #[cfg(feature = "openpgp")]
            Self::OpenPgp(signature) => signature.fingerprint().to_owned(),
        }
    }
}
