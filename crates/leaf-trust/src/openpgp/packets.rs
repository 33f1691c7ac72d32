//! What keys and signatures are made of.

use pgp::crypto::hash::HashAlgorithm;
use pgp::crypto::public_key::PublicKeyAlgorithm;
use pgp::packet::{Packet, PacketParser, Signature, SignatureVersion, SubpacketData};
use pgp::ser::Serialize as _;
use pgp::types::Fingerprint;

use crate::allowed_signers::OPENPGP;

/// Returns the packets of some bytes: all of them, each understood, and nothing between or behind them.
pub(super) fn packets(bytes: &[u8]) -> Result<Vec<Packet>, pgp::errors::Error> {
    let packets: Vec<Packet> = PacketParser::new(bytes).collect::<Result<_, _>>()?;
    let mut written = Vec::new();
    for packet in &packets {
        packet.to_writer(&mut written)?;
    }
    if written != bytes {
        return Err(pgp::errors::Error::from(std::io::Error::new(
            std::io::ErrorKind::InvalidData,
            "there are bytes that are no packet, or a packet in a form that is not used here",
        )));
    }
    Ok(packets)
}

/// Returns the fingerprint of a key of version 4 as it is shown here: `pgp:` and 40 digits in capital letters.
pub(super) fn shown(fingerprint: &Fingerprint) -> Option<String> {
    match fingerprint {
        Fingerprint::V4(_) => Some(format!("{OPENPGP}{fingerprint:X}")),
        _ => None,
    }
}

/// Returns why a signature of whatever kind is not looked at: another version, algorithm or hash, or a part that its maker marked as
/// critical and that is not understood here (RFC 9580, 5.2.3.7).
pub(super) fn unusable(signature: &Signature, is_known: impl Fn(&SubpacketData) -> bool) -> Option<String> {
    let Some(config) = signature.config() else {
        return Some(format!(
            "it is of version {:?}, and must be of version 4",
            signature.version()
        ));
    };
    if config.version() != SignatureVersion::V4 {
        return Some(format!(
            "it is of version {:?}, and must be of version 4",
            config.version()
        ));
    }
    if !is_ed25519(config.pub_alg) {
        return Some(format!(
            "it is of the algorithm {:?}, and must be of Ed25519",
            config.pub_alg
        ));
    }
    if !matches!(
        config.hash_alg,
        HashAlgorithm::Sha256 | HashAlgorithm::Sha384 | HashAlgorithm::Sha512
    ) {
        return Some(format!(
            "it uses the hash {:?}, and must use SHA-256, SHA-384 or SHA-512",
            config.hash_alg
        ));
    }
    let mut critical = config.hashed_subpackets().filter(|part| part.is_critical);
    critical
        .any(|part| !is_known(&part.data))
        .then(|| "it has a part that is marked as critical, and is not known here".to_owned())
}

pub(super) fn is_ed25519(algorithm: PublicKeyAlgorithm) -> bool {
    matches!(
        algorithm,
        PublicKeyAlgorithm::EdDSALegacy | PublicKeyAlgorithm::Ed25519
    )
}
