//! Reads the files of `[tls]`, with the rights of the master.
//!
//! Owns: reading PEM, the checks that certificate, key and CA belong together and are valid now, and the one rustls
//! configuration that every worker of a generation inherits by its fork. Refuses: to handle connections
//! (`worker::connection::handshake` does), and to choose ciphers, because rustls' safe defaults are used.

use std::{error::Error, fmt, fs, os::unix::fs::MetadataExt, path::Path, sync::Arc};

use jiff::Timestamp;
pub(crate) use rustls::ServerConfig;
use rustls::{
    Error as TlsError, RootCertStore,
    crypto::ring,
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{Error as PemError, PemObject},
    },
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
};
use x509_parser::parse_x509_certificate;

use super::{Findings, Tls};
use crate::settings::{problem::Problem, sources::Sources};

/// A certificate that expires in fewer days than this gives a warning. ACME clients renew thirty days before the end,
/// so at fourteen days two renewals have already failed.
const EXPIRES_SOON_DAYS: i64 = 14;

/// The seconds of a day.
const DAY: i64 = 86_400;

/// The contents of the files of `[tls]`, and the TLS configuration made from them.
pub(crate) struct Material {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    client_ca: Vec<CertificateDer<'static>>,
    /// The configuration for all workers of a generation. It holds the key of the session tickets, so each worker can
    /// resume TLS sessions that began at another worker. Sessions of an earlier generation cannot be resumed, because
    /// its `client_ca` may have been different.
    config: Arc<ServerConfig>,
}

impl Material {
    pub(crate) fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.config)
    }

    /// Returns true if the file that `key` names had other contents for `before` than it has for `self`.
    pub(super) fn is_rewritten(&self, before: &Self, key: &str) -> bool {
        match key {
            "tls.certfile" => self.chain != before.chain,
            "tls.keyfile" => self.key != before.key,
            "tls.client_ca" => self.client_ca != before.client_ca,
            _ => false,
        }
    }
}

impl PartialEq for Material {
    fn eq(&self, other: &Self) -> bool {
        (&self.chain, &self.key, &self.client_ca) == (&other.chain, &other.key, &other.client_ca)
    }
}

impl Eq for Material {}

impl fmt::Debug for Material {
    /// Shows only the number of certificates, because the private key is a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Material").field("certificates", &self.chain.len()).finish_non_exhaustive()
    }
}

type Authorities = (Vec<CertificateDer<'static>>, Arc<dyn ClientCertVerifier>);

/// Reads the files of certificate, key and client CA, and adds what is wrong with them to `findings`. Returns `None` if
/// the certificate or the key is not set, or if there was a problem. If only one of the two is set, `check` reports
/// that.
pub(in crate::settings) fn read(
    tls: &Tls,
    http2: bool,
    sources: &mut Sources,
    findings: &mut Findings,
) -> Option<Material> {
    let (certfile, keyfile) = (tls.certfile.as_deref()?, tls.keyfile.as_deref()?);
    let chain = findings.take("tls.certfile", certificates(certfile, sources));
    if let Some(chain) = &chain {
        in_force(chain, certfile, findings);
    }
    if let Some(mode) = fs::metadata(keyfile).ok().map(|found| found.mode() & 0o777).filter(|mode| mode & 0o007 != 0) {
        let name = keyfile.display();
        findings
            .warn("tls.keyfile", format!("{name} can be read by every user of this machine: its mode is {mode:04o}"));
    }
    let key = findings.take("tls.keyfile", private_key(keyfile, sources));
    let client_ca = findings.take("tls.client_ca", authorities(tls.client_ca.as_deref(), sources));

    let (chain, key, (client_ca, verifier)) = (chain?, key?, client_ca?);
    match configure(&chain, &key, verifier, http2) {
        Ok(config) => return Some(Material { chain, key, client_ca, config: Arc::new(config) }),
        Err(TlsError::InconsistentKeys(_)) => {
            let (key, certificate) = (keyfile.display(), certfile.display());
            let message = format!("the key in {key} does not belong to the first certificate in {certificate}");
            findings.refuse("tls.keyfile", message);
        }
        Err(error) => findings.refuse("tls.certfile", format!("{} cannot be used: {error}", certfile.display())),
    }
    None
}

/// Returns the certificates of a PEM file, at least one. Other items in the file are ignored.
fn certificates(path: &Path, sources: &mut Sources) -> Result<Vec<CertificateDer<'static>>, String> {
    let name = path.display();
    let pem = contents(path, sources)?;
    let found: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| format!("{name} is damaged: {error}"))?;
    if found.is_empty() {
        return Err(format!("there is no certificate in {name}; it takes PEM, with a line \"BEGIN CERTIFICATE\""));
    }
    match found.iter().position(|certificate| parse_x509_certificate(certificate).is_err()) {
        Some(index) => Err(format!("certificate {} of {name} is damaged", index + 1)),
        None => Ok(found),
    }
}

/// Returns the first private key of a PEM file: PKCS#8, PKCS#1 or SEC1.
fn private_key(path: &Path, sources: &mut Sources) -> Result<PrivateKeyDer<'static>, String> {
    let name = path.display();
    let pem = contents(path, sources)?;
    // An encrypted key has the line "BEGIN ENCRYPTED PRIVATE KEY" in PKCS#8, and "Proc-Type: 4,ENCRYPTED" in the older
    // forms (RFC 1421, section 4.6.1.1).
    if pem.contains("ENCRYPTED") {
        return Err(format!(
            "the key in {name} is encrypted, and oxicorn cannot ask for its passphrase; write it out without one, \
             readable by the master's user alone"
        ));
    }
    let key = PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|error| match error {
        PemError::NoItemsFound => {
            format!("there is no private key in {name}; it takes PEM, with a line \"BEGIN PRIVATE KEY\"")
        }
        error => format!("{name} is damaged: {error}"),
    })?;
    match ring::sign::any_supported_type(&key) {
        Ok(_) => Ok(key),
        Err(_) => Err(format!(
            "the key in {name} is of no kind that can be used: RSA of 2048 to 4096 bits, ECDSA P-256 or P-384, Ed25519"
        )),
    }
}

fn contents(path: &Path, sources: &mut Sources) -> Result<String, String> {
    sources.read(path).map_err(|error| format!("{} cannot be read: {error}", path.display()))
}

/// Checks the dates of the certificates in `chain`. The first one is the certificate of the service. If it is expired
/// or not valid yet, this function adds a problem, because no client would accept it. For the other certificates it
/// adds only a warning, because clients may know a better chain. It also warns of certificates that expire soon.
fn in_force(chain: &[CertificateDer<'_>], path: &Path, findings: &mut Findings) {
    let now = Timestamp::now().as_second();
    for (index, certificate) in chain.iter().enumerate() {
        let Ok((_, parsed)) = parse_x509_certificate(certificate) else { continue };
        let name = match index {
            0 => format!("the certificate in {}", path.display()),
            _ => format!("certificate {} of {}", index + 1, path.display()),
        };
        let (from, to) = (parsed.validity().not_before.timestamp(), parsed.validity().not_after.timestamp());
        let (message, refused) = if now > to {
            (format!("{name} expired on {}; renew it", date(to)), index == 0)
        } else if now < from {
            (format!("{name} is not valid before {}; is the clock right?", date(from)), index == 0)
        } else if to - now < EXPIRES_SOON_DAYS * DAY {
            (format!("{name} expires on {}, {} days from now; renew it", date(to), (to - now) / DAY), false)
        } else {
            continue;
        };
        if refused {
            findings.refuse("tls.certfile", message);
        } else {
            findings.warn("tls.certfile", message);
        }
    }
}

/// Checks once more the dates of the certificates that are in use, and returns what is wrong with them today. It does
/// not look at the file of the certificates, because the file may have changed since they were read.
pub(in crate::settings) fn aged(tls: &Tls) -> Vec<Problem> {
    let mut findings = Findings::default();
    if let (Some(material), Some(path)) = (&tls.material, &tls.certfile) {
        in_force(&material.chain, path, &mut findings);
    }
    [findings.problems, findings.warnings].concat()
}

fn date(seconds: i64) -> String {
    Timestamp::from_second(seconds).map_or_else(|_| format!("second {seconds}"), |date| date.to_string())
}

/// Returns the certificates of the authorities that must have signed the certificates of clients, and the verifier for
/// them. If `path` is `None`, clients are not asked for a certificate.
fn authorities(path: Option<&Path>, sources: &mut Sources) -> Result<Authorities, String> {
    let Some(path) = path else { return Ok((Vec::new(), WebPkiClientVerifier::no_client_auth())) };
    let unusable = |error: &dyn Error| format!("{} cannot be used: {error}", path.display());
    let known = certificates(path, sources)?;
    let mut roots = RootCertStore::empty();
    for certificate in &known {
        roots.add(certificate.clone()).map_err(|error| unusable(&error))?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::new(ring::default_provider()));
    Ok((known, verifier.build().map_err(|error| unusable(&error))?))
}

fn configure(
    chain: &[CertificateDer<'static>],
    key: &PrivateKeyDer<'static>,
    verifier: Arc<dyn ClientCertVerifier>,
    http2: bool,
) -> Result<ServerConfig, TlsError> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain.to_vec(), key.clone_key())?;
    config.ticketer = ring::Ticketer::new()?;
    // The order matters: the first protocol that the client offers too is chosen (RFC 7301, section 3.2), so h2 is
    // preferred.
    let protocols: &[&[u8]] = if http2 { &[b"h2", b"http/1.1"] } else { &[b"http/1.1"] };
    config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    Ok(config)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use jiff::{Zoned, civil::Date, tz::TimeZone};
    use rcgen::{
        BasicConstraints, CertificateParams, IsCa, KeyPair, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, date_time_ymd,
    };
    use tempfile::TempDir;

    use super::*;

    /// The files of `[tls]` for one test, in a temporary folder.
    struct Files {
        folder: TempDir,
        tls: Tls,
    }

    fn files(chain: &str, key: &str) -> Files {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| Some(folder.path().join(name));
        let tls = Tls { certfile: path("chain.pem"), keyfile: path("key.pem"), client_ca: None, material: None };
        let files = Files { folder, tls };
        files.write("chain.pem", chain);
        files.write("key.pem", key);
        fs::set_permissions(files.folder.path().join("key.pem"), PermissionsExt::from_mode(0o640)).unwrap();
        files
    }

    impl Files {
        fn write(&self, name: &str, text: &str) {
            fs::write(self.folder.path().join(name), text).unwrap();
        }

        fn client_ca(mut self, text: &str) -> Self {
            self.write("ca.pem", text);
            self.tls.client_ca = Some(self.folder.path().join("ca.pem"));
            self
        }

        /// Reads the files. Returns what was read, the problems and the warnings, both without the path of the folder.
        fn read(&self) -> (Option<Material>, Vec<String>, Vec<String>) {
            let mut findings = Findings::default();
            let material = read(&self.tls, true, &mut Sources::default(), &mut findings);
            let folder = format!("{}/", self.folder.path().display());
            let said = |all: &[Problem]| all.iter().map(|one| one.to_string().replace(&folder, "")).collect();
            (material, said(&findings.problems), said(&findings.warnings))
        }

        #[track_caller]
        fn refused(&self, wanted: &str) {
            assert_eq!(self.read().1, [wanted]);
        }

        #[track_caller]
        fn accepted(&self, warned: &[String]) -> Material {
            let (material, problems, warnings) = self.read();
            assert_eq!(problems, [""; 0]);
            assert_eq!(warnings, warned);
            material.unwrap()
        }
    }

    fn certified(change: impl FnOnce(&mut CertificateParams)) -> (String, String) {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
    }

    fn days_from_now(days: i64) -> Date {
        let today = Zoned::now().with_time_zone(TimeZone::UTC).date();
        today.checked_add(jiff::Span::new().days(days)).unwrap()
    }

    fn from_to(from: Date, to: Date) -> (String, String) {
        let day =
            |date: Date| date_time_ymd(date.year().into(), date.month().cast_unsigned(), date.day().cast_unsigned());
        certified(|params| (params.not_before, params.not_after) = (day(from), day(to)))
    }

    #[test]
    fn a_good_pair_makes_one_configuration() {
        for algorithm in [&rcgen::PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384, &PKCS_ED25519] {
            let key = KeyPair::generate_for(algorithm).unwrap();
            let certificate = CertificateParams::new(vec!["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
            let files = files(&certificate.pem(), &key.serialize_pem());
            let material = files.accepted(&[]);
            assert!(material.config.ticketer.enabled());
            assert!(!format!("{material:?}").contains("key"), "{material:?}");
        }
        // Some tools write key and chain into one file.
        let (chain, key) = certified(|_| {});
        files(&format!("{key}{chain}"), &format!("{chain}{key}")).accepted(&[]);
    }

    #[test]
    fn each_mistake_is_one_sentence() {
        let (chain, key) = certified(|_| {});
        let none = "there is no certificate in chain.pem; it takes PEM, with a line \"BEGIN CERTIFICATE\"";
        files("", &key).refused(&format!("tls.certfile: {none}"));
        files(&key, &key).refused(&format!("tls.certfile: {none}"));
        let damaged = chain.replacen("MII", "MIJ", 1);
        files(&damaged, &key).refused("tls.certfile: certificate 1 of chain.pem is damaged");
        files(&format!("{chain}{damaged}"), &key).refused("tls.certfile: certificate 2 of chain.pem is damaged");
        let cut = chain.replace("-----END CERTIFICATE-----", "");
        let (_, problems, _) = files(&cut, &key).read();
        assert!(problems[0].starts_with("tls.certfile: chain.pem is damaged: "), "{problems:?}");

        let none = "there is no private key in key.pem; it takes PEM, with a line \"BEGIN PRIVATE KEY\"";
        files(&chain, &chain).refused(&format!("tls.keyfile: {none}"));
        for encrypted in [
            key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY"),
            "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\nAAAA\n".to_owned(),
        ] {
            files(&chain, &encrypted).refused(
                "tls.keyfile: the key in key.pem is encrypted, and oxicorn cannot ask for its passphrase; write it out \
                 without one, readable by the master's user alone",
            );
        }
        let odd = "-----BEGIN PRIVATE KEY-----\nMAA=\n-----END PRIVATE KEY-----\n";
        files(&chain, odd).refused(
            "tls.keyfile: the key in key.pem is of no kind that can be used: RSA of 2048 to 4096 bits, ECDSA P-256 or \
             P-384, Ed25519",
        );
        let (_, other) = certified(|_| {});
        files(&chain, &other)
            .refused("tls.keyfile: the key in key.pem does not belong to the first certificate in chain.pem");

        // Each of the three files is reported with its own problem.
        let (_, problems, _) = files("", "").client_ca("").read();
        assert_eq!(problems.len(), 3, "{problems:?}");
    }

    #[test]
    fn a_certificate_outside_its_validity_is_refused_and_one_near_its_end_causes_a_warning() {
        let name = "tls.certfile: the certificate in chain.pem";
        let (chain, key) = from_to(days_from_now(-90), days_from_now(0));
        files(&chain, &key).refused(&format!("{name} expired on {}T00:00:00Z; renew it", days_from_now(0)));
        let (chain, key) = from_to(days_from_now(2), days_from_now(90));
        let early = format!("{name} is not valid before {}T00:00:00Z; is the clock right?", days_from_now(2));
        files(&chain, &key).refused(&early);

        let (chain, key) = from_to(days_from_now(-80), days_from_now(14));
        let soon = format!("{name} expires on {}T00:00:00Z, 13 days from now; renew it", days_from_now(14));
        files(&chain, &key).accepted(&[soon]);
        let (chain, key) = from_to(days_from_now(-80), days_from_now(16));
        files(&chain, &key).accepted(&[]);

        // An expired certificate behind the first gives only a warning: clients may know a better chain, and some
        // chains contain an old root on purpose.
        let (old, _) = from_to(days_from_now(-90), days_from_now(-1));
        let warned =
            format!("tls.certfile: certificate 2 of chain.pem expired on {}T00:00:00Z; renew it", days_from_now(-1));
        files(&format!("{chain}{old}"), &key).accepted(&[warned]);
    }

    /// A certificate may expire while the master runs with it. Then the master must warn of it, even if its file is
    /// gone.
    #[test]
    fn a_served_certificate_is_checked_again_for_its_end() {
        let aged = |days| {
            let (chain, key) = from_to(days_from_now(-90), days_from_now(days));
            let files = files(&chain, &key);
            let material = files.read().0.map(Arc::new);
            for name in ["chain.pem", "key.pem"] {
                fs::remove_file(files.folder.path().join(name)).unwrap();
            }
            let said = super::aged(&Tls { material, ..files.tls.clone() });
            said.iter().map(|one| one.message.rsplit_once(" on ").unwrap().1.to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(aged(30), [""; 0]);
        assert_eq!(aged(3), [format!("{}T00:00:00Z, 2 days from now; renew it", days_from_now(3))]);
        assert_eq!(aged(0), [format!("{}T00:00:00Z; renew it", days_from_now(0))]);
        assert_eq!(super::aged(&files("", "").tls), []);
    }

    #[test]
    fn a_key_that_all_may_read_causes_a_warning() {
        let (chain, key) = certified(|_| {});
        let files = files(&chain, &key);
        fs::set_permissions(files.folder.path().join("key.pem"), PermissionsExt::from_mode(0o644)).unwrap();
        files
            .accepted(&["tls.keyfile: key.pem can be read by every user of this machine: its mode is 0644".to_owned()]);
    }

    #[test]
    fn the_authority_of_clients_is_checked_too() {
        let (chain, key) = certified(|_| {});
        let (ca, ca_key) = certified(|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained));
        files(&chain, &key).client_ca(&ca).accepted(&[]);
        files(&chain, &key).client_ca(&ca_key).refused(
            "tls.client_ca: there is no certificate in ca.pem; it takes PEM, with a line \"BEGIN CERTIFICATE\"",
        );
    }

    #[test]
    fn a_file_that_holds_something_else_is_a_change() {
        let (chain, key) = certified(|_| {});
        let files = files(&chain, &key);
        let with = |material| Tls { material: Some(Arc::new(material)), ..files.tls.clone() };
        let before = with(files.accepted(&[]));
        let again = with(files.accepted(&[]));
        assert_eq!(before, again);
        let (chain, key) = certified(|_| {});
        files.write("chain.pem", &chain);
        files.write("key.pem", &key);
        let after = with(files.accepted(&[]));
        assert_ne!(before, after);
        let changed = ["tls.certfile", "tls.keyfile", "tls.client_ca"].map(|key| after.is_rewritten(&before, key));
        assert_eq!(changed, [true, true, false]);
    }
}
