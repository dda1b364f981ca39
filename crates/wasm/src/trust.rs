//! Which authorities a guest's connections of TLS trust: those of its container's files, or where
//! it has none, those of Mozilla's list that are built in.

use std::fs;
use std::io;
use std::sync::{Arc, OnceLock};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use tokio_rustls::TlsConnector;

/// The variable of a guest's environment that names a bundle, as for OpenSSL.
const NAMED: &str = "SSL_CERT_FILE";

/// Where distributions have the bundle of all authorities.
const BUNDLES: [&str; 6] = [
    // Debian, Alpine, Arch, Gentoo.
    "/etc/ssl/certs/ca-certificates.crt",
    // Fedora.
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    // openSUSE.
    "/etc/ssl/ca-bundle.pem",
    // OpenELEC.
    "/etc/pki/tls/cacert.pem",
    // Alpine, BSDs.
    "/etc/ssl/cert.pem",
];

/// The most that a bundle may have, in bytes: one of a distribution has a quarter of a megabyte.
const MOST: u64 = 16 << 20;

/// The bundle of authorities that an environment names, `NAME=VALUE` each.
pub(crate) fn named(env: &[String]) -> Option<String> {
    let mut named = env
        .iter()
        .filter_map(|entry| entry.strip_prefix(NAMED)?.strip_prefix('='));
    named.find(|path| !path.is_empty()).map(str::to_owned)
}

/// What makes connections of TLS, with the bundle that is `named`, or else the first of the
/// distributions' that is there, or else the built-in list. It is read once in a process, when it
/// is first asked for: a process has one guest, and so one root folder and one environment.
///
/// # Errors
/// A sentence about a bundle that is there and cannot be used.
pub(crate) fn connector(named: Option<&str>) -> Result<TlsConnector, String> {
    static MADE: OnceLock<TlsConnector> = OnceLock::new();
    if let Some(connector) = MADE.get() {
        return Ok(connector.clone());
    }
    let is_there = |path: &&str| {
        let found = fs::metadata(path);
        !found.is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    };
    let path = named.or_else(|| BUNDLES.into_iter().find(is_there));
    let roots = match path {
        Some(path) => read(path).map_err(|reason| {
            format!(
                "the certificates of authorities in {path} cannot be used: {reason}; mend the file, \
                 or name another in the environment variable {NAMED}"
            )
        })?,
        None => RootCertStore {
            roots: webpki_roots::TLS_SERVER_ROOTS.into(),
        },
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(MADE.get_or_init(|| Arc::new(config).into()).clone())
}

/// The authorities of a bundle. Such as rustls cannot make anything of are passed over, as long as
/// there are others.
fn read(path: &str) -> Result<RootCertStore, String> {
    let file = fs::metadata(path).map_err(|error| error.to_string())?;
    // What is none could keep its reader waiting for ever.
    if !file.is_file() {
        return Err("it is no file".into());
    }
    if file.len() > MOST {
        return Err(format!("it has more than {MOST} bytes"));
    }
    let text = fs::read(path).map_err(|error| error.to_string())?;
    parse(&text)
}

fn parse(text: &[u8]) -> Result<RootCertStore, String> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text).collect();
    let certificates = certificates.map_err(|error| format!("it is malformed: {error}"))?;
    let mut roots = RootCertStore::empty();
    match roots.add_parsable_certificates(certificates) {
        (0, 0) => Err("it has no certificates in PEM".into()),
        (0, unusable) => Err(format!(
            "none of its {unusable} certificates is well-formed"
        )),
        _ => Ok(roots),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        parse(text.as_bytes()).unwrap_err()
    }

    #[test]
    fn what_is_no_bundle_is_told() {
        assert!(refused("").contains("no certificates"));
        assert!(refused("noise\u{0}").contains("no certificates"));
        let begin = "-----BEGIN CERTIFICATE-----\n";
        let end = "-----END CERTIFICATE-----\n";
        assert!(refused(begin).contains("malformed"));
        assert!(refused(&format!("{begin}!!!\n{end}")).contains("malformed"));
        assert!(refused(&format!("{begin}AAAA\n{end}")).contains("none of its 1"));
    }

    #[test]
    fn only_files_are_read() {
        assert_eq!(read("/dev/zero").unwrap_err(), "it is no file");
        assert_eq!(read("/").unwrap_err(), "it is no file");
        assert!(read("/missing").unwrap_err().contains("No such file"));
    }
}
