//! The CA of a fleet, and the certificate of the hub's server.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use leaf_core::host_op::Secret;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};

use super::error::KeysError;

/// How long the CA is valid, in days.
const CA_DAYS: i64 = 20 * 365;
/// How long the certificate of the hub's server is valid, in days.
const SERVER_DAYS: i64 = 800;

/// A certificate and its key, as PEM.
pub(super) struct Certified {
    pub(super) certificate: String,
    pub(super) key: Secret,
}

/// Makes the CA of a fleet of this name.
pub(super) fn new_ca(fleet: &str, now: Timestamp) -> Result<Certified, KeysError> {
    let key = KeyPair::generate().map_err(failed)?;
    let params = ca_params(fleet, now)?;
    let certificate = params.self_signed(&key).map_err(failed)?;
    Ok(Certified {
        certificate: certificate.pem(),
        key: Secret::new(key.serialize_pem()),
    })
}

/// Makes the certificate of the hub's server, for these names and addresses.
pub(super) fn server(
    fleet: &str,
    ca_key: &str,
    hosts: &[String],
    now: Timestamp,
) -> Result<Certified, KeysError> {
    let ca_key = KeyPair::from_pem(ca_key).map_err(failed)?;
    let issuer = Issuer::new(ca_params(fleet, now)?, ca_key);
    let mut params = CertificateParams::new(hosts).map_err(failed)?;
    params.distinguished_name = named(hosts.first().map_or("hub", String::as_str));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    valid(&mut params, now, SERVER_DAYS)?;
    let key = KeyPair::generate().map_err(failed)?;
    let certificate = params.signed_by(&key, &issuer).map_err(failed)?;
    Ok(Certified {
        certificate: certificate.pem(),
        key: Secret::new(key.serialize_pem()),
    })
}

/// Returns from when to when a certificate in PEM is valid, in seconds since 1970.
pub(super) fn validity(pem: &str) -> Result<(i64, i64), KeysError> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).map_err(failed)?;
    let certificate = pem.parse_x509().map_err(failed)?;
    let validity = certificate.validity();
    Ok((validity.not_before.timestamp(), validity.not_after.timestamp()))
}

/// What a certificate that the CA signs takes of it are its name and its key.
fn ca_params(fleet: &str, now: Timestamp) -> Result<CertificateParams, KeysError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = named(&format!("CA of the fleet {fleet}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    valid(&mut params, now, CA_DAYS)?;
    Ok(params)
}

fn named(name: &str) -> DistinguishedName {
    let mut names = DistinguishedName::new();
    names.push(DnType::CommonName, name);
    names
}

/// Sets the validity, from the day before: the clock of a leaf may be behind.
fn valid(params: &mut CertificateParams, now: Timestamp, days: i64) -> Result<(), KeysError> {
    let today = now.to_zoned(TimeZone::UTC).date();
    let day = |offset: i64| {
        let day = today
            .checked_add(jiff::Span::new().days(offset))
            .map_err(failed)?;
        let number = |part: i8| u8::try_from(part).map_err(failed);
        Ok::<_, KeysError>(rcgen::date_time_ymd(
            day.year().into(),
            number(day.month())?,
            number(day.day())?,
        ))
    };
    params.not_before = day(-1)?;
    params.not_after = day(days)?;
    Ok(())
}

fn failed(error: impl ToString) -> KeysError {
    KeysError::Certificate(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_says_itself_when_it_ends() {
        let now: Timestamp = "2026-11-30T08:00:00Z".parse().expect("a time");
        let ca = new_ca("here", now).expect("a CA");
        let server =
            server("here", ca.key.expose(), &["hub.example".to_owned()], now).expect("a certificate");
        let day = |text: &str| -> i64 { text.parse::<Timestamp>().expect("a time").as_second() };
        let (from, to) = validity(&server.certificate).expect("valid");
        assert_eq!(
            (from, to),
            (day("2026-11-29T00:00:00Z"), day("2029-02-07T00:00:00Z"))
        );
        assert!(validity(&ca.certificate).expect("valid").1 > to);
        assert!(validity("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").is_err());
        assert!(validity("").is_err());
    }
}
