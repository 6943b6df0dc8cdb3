//! TLS 1.3 with certificates on both sides: what a process shows of itself and whom it believes.
//!
//! A [`Tls`] is read from three PEM files and checked at once, so that a wrong file is an error at start
//! and not a failed handshake at night. It hands out rustls configurations for QUIC ([`crate::quic`]) and
//! for TCP (administration over HTTPS); all of them follow a [`Tls::reload`], which touches new
//! connections only. The provider is `ring`, named explicitly: two providers in one build would panic.
//!
//! Refuses sessions to be resumed and early data: a resumed session would not be verified against
//! the certificates of now. Closing the connections of a revoked peer is its owner's work.

use crate::identity::{IdentityError, PeerIdentity, Role};
use arc_swap::ArcSwap;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{
    ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier,
};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, ConfigBuilder, ConfigSide, DigitallySignedStruct,
    DistinguishedName, OtherError, RootCertStore, ServerConfig, SignatureScheme, WantsVerifier,
    WantsVersions,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use x509_parser::prelude::{FromDer, X509Certificate};

/// Largest PEM file that is read; a chain is a few KiB.
pub const PEM_BYTES_MAX: u64 = 1024 * 1024;

/// Where a process finds its certificates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The authorities believed, PEM; several while one replaces another.
    pub ca: PathBuf,
    /// The own certificate, PEM, with intermediates after it.
    pub certificate: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
}

/// Why certificates cannot be used. Each names the file; none leaves anything changed.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {}: {source}; `tollgate certs` makes certificates", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file holds something else.
    #[error("{} holds no PEM section `{expected}`: {reason}", path.display())]
    NotPem {
        /// The file.
        path: PathBuf,
        /// The section looked for.
        expected: &'static str,
        /// What was found.
        reason: String,
    },
    /// A certificate or key that cannot be used.
    #[error("{} cannot be used: {reason}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The key belongs to another certificate.
    #[error("{} is not the key of {}", key.display(), certificate.display())]
    KeyMismatch {
        /// The key file.
        key: PathBuf,
        /// The certificate file.
        certificate: PathBuf,
    },
    /// Too late.
    #[error("{} expired at {not_after}: issue a new one", path.display())]
    Expired {
        /// The file.
        path: PathBuf,
        /// The end of its validity.
        not_after: String,
    },
    /// Too early: a wrong clock, here or where it was issued.
    #[error("{} is not valid before {not_before}: check the clock", path.display())]
    NotYetValid {
        /// The file.
        path: PathBuf,
        /// The beginning of its validity.
        not_before: String,
    },
    /// Signed by an authority that is not in the CA file: peers would refuse it.
    #[error("{} is not issued by an authority in {}: {reason}", certificate.display(), ca.display())]
    OtherAuthority {
        /// The certificate file.
        certificate: PathBuf,
        /// The CA file.
        ca: PathBuf,
        /// What the verifier said.
        reason: String,
    },
    /// The certificate names no peer of ours.
    #[error("{}: {source}", path.display())]
    Identity {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: IdentityError,
    },
    /// The certificate is for somebody else than this process, or than before a reload.
    #[error("{} is for {found}, expected {expected}", path.display())]
    OtherIdentity {
        /// The file.
        path: PathBuf,
        /// Whom it is for.
        found: PeerIdentity,
        /// A role, or the identity before.
        expected: String,
    },
}

/// Certificates in force. Clones share them.
#[derive(Clone, Debug)]
pub struct Tls {
    files: TlsFiles,
    identity: PeerIdentity,
    current: Arc<Current>,
}

impl Tls {
    /// Reads and checks `files`; the certificate must be for `role`.
    ///
    /// # Errors
    /// The first thing that is wrong, see [`TlsError`].
    pub fn load(files: TlsFiles, role: Role) -> Result<Self, TlsError> {
        let loaded = Loaded::read(&files)?;
        let identity = loaded.identity.clone();
        if identity.role() != role {
            return Err(TlsError::OtherIdentity {
                path: files.certificate,
                found: identity,
                expected: format!("role {role}"),
            });
        }
        Ok(Self {
            files,
            identity,
            current: Arc::new(Current(ArcSwap::from_pointee(loaded))),
        })
    }

    /// Who this process is; the same through every reload.
    #[must_use]
    pub fn identity(&self) -> &PeerIdentity {
        &self.identity
    }

    /// When the first of certificate, intermediates and authorities in force expires.
    #[must_use]
    pub fn expires(&self) -> SystemTime {
        self.current.0.load().expires
    }

    /// Reads the files again; new connections use what they hold now. Also for a changed CA file.
    ///
    /// # Errors
    /// As [`Tls::load`], and [`TlsError::OtherIdentity`] for another peer's certificate; what was in
    /// force stays in force.
    pub fn reload(&self) -> Result<(), TlsError> {
        let loaded = Loaded::read(&self.files)?;
        if loaded.identity != self.identity {
            return Err(TlsError::OtherIdentity {
                path: self.files.certificate.clone(),
                found: loaded.identity,
                expected: self.identity.to_string(),
            });
        }
        self.current.0.store(Arc::new(loaded));
        Ok(())
    }

    /// For accepting: asks for a certificate of this cluster. `alpns` in order of preference.
    #[must_use]
    pub fn server_config(&self, alpns: &[&str]) -> Arc<ServerConfig> {
        let mut config = tls13(ServerConfig::builder_with_provider(provider()))
            .with_client_cert_verifier(self.current.clone())
            .with_cert_resolver(self.current.clone());
        config.alpn_protocols = alpns.iter().map(|alpn| alpn.as_bytes().to_vec()).collect();
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Arc::new(config)
    }

    /// For dialling: shows the own certificate and accepts a node of this cluster that bears the
    /// server name dialled ([`crate::identity::node_server_name`]).
    #[must_use]
    pub fn client_config(&self, alpns: &[&str]) -> Arc<ClientConfig> {
        let mut config = tls13(ClientConfig::builder_with_provider(provider()))
            .dangerous() // rustls' word for any verifier of one's own; this one adds to webpki's
            .with_custom_certificate_verifier(self.current.clone())
            .with_client_cert_resolver(self.current.clone());
        config.alpn_protocols = alpns.iter().map(|alpn| alpn.as_bytes().to_vec()).collect();
        config.resumption = Resumption::disabled();
        config.enable_early_data = false;
        Arc::new(config)
    }

    /// 32 bytes that only holders of the private key can compute, the same after every start.
    pub(crate) fn derive_secret(&self, purpose: &str) -> [u8; 32] {
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &self.current.0.load().secret);
        let mut secret = [0; 32];
        secret.copy_from_slice(ring::hmac::sign(&key, purpose.as_bytes()).as_ref());
        secret
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// TLS 1.3 and nothing else: QUIC has no other, and every client of a node is ours or recent.
fn tls13<S: ConfigSide>(
    builder: ConfigBuilder<S, WantsVersions>,
) -> ConfigBuilder<S, WantsVerifier> {
    builder
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("ring has cipher suites for TLS 1.3")
}

/// What one reading of the files gave.
struct Loaded {
    identity: PeerIdentity,
    key: Arc<CertifiedKey>,
    /// Digest of the private key, for [`Tls::derive_secret`].
    secret: [u8; 32],
    clients: Arc<dyn ClientCertVerifier>,
    servers: Arc<WebPkiServerVerifier>,
    expires: SystemTime,
}

impl Loaded {
    fn read(files: &TlsFiles) -> Result<Self, TlsError> {
        let authorities = read_certificates(&files.ca)?;
        let chain = read_certificates(&files.certificate)?;
        let key = read_key(&files.key)?;
        let mut expires = check_validity(&files.ca, &authorities)?;
        expires = expires.min(check_validity(&files.certificate, &chain)?);

        let mut secret = [0; 32];
        let digest = ring::digest::digest(&ring::digest::SHA256, key.secret_der());
        secret.copy_from_slice(digest.as_ref());
        let certified = CertifiedKey::from_der(chain.clone(), key, &provider());
        let key = certified.map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => TlsError::KeyMismatch {
                key: files.key.clone(),
                certificate: files.certificate.clone(),
            },
            other => unusable(&files.key, &other),
        })?;

        let mut roots = RootCertStore::empty();
        for authority in authorities {
            roots
                .add(authority)
                .map_err(|error| unusable(&files.ca, &error))?;
        }
        let roots = Arc::new(roots);
        let clients = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider())
            .build()
            .map_err(|error| unusable(&files.ca, &error))?;
        let servers = WebPkiServerVerifier::builder_with_provider(roots, provider())
            .build()
            .map_err(|error| unusable(&files.ca, &error))?;

        let certificate = files.certificate.clone();
        let Some((leaf, intermediates)) = chain.split_first() else {
            return Err(unusable(&certificate, &"no certificate"));
        };
        clients
            .verify_client_cert(leaf, intermediates, UnixTime::now())
            .map_err(|error| {
                let (certificate, ca) = (certificate.clone(), files.ca.clone());
                TlsError::OtherAuthority {
                    certificate,
                    ca,
                    reason: error.to_string(),
                }
            })?;
        let identity =
            PeerIdentity::from_certificate(leaf).map_err(|source| TlsError::Identity {
                path: certificate,
                source,
            })?;
        Ok(Self {
            identity,
            key: Arc::new(key),
            secret,
            clients,
            servers,
            expires,
        })
    }

    /// Whom a verified certificate is for, if it is of this cluster.
    fn peer(&self, certificate: &CertificateDer<'_>) -> Result<PeerIdentity, IdentityError> {
        let peer = PeerIdentity::from_certificate(certificate)?;
        if peer.cluster() == self.identity.cluster() {
            Ok(peer)
        } else {
            let (found, expected) = (peer.cluster().clone(), self.identity.cluster().clone());
            Err(IdentityError::OtherCluster { found, expected })
        }
    }
}

fn unusable(path: &Path, reason: &dyn std::fmt::Display) -> TlsError {
    TlsError::Unusable {
        path: path.to_owned(),
        reason: reason.to_string(),
    }
}

fn read_file(path: &Path) -> Result<Vec<u8>, TlsError> {
    let failed = |source| TlsError::Read {
        path: path.to_owned(),
        source,
    };
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(PEM_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > PEM_BYTES_MAX {
        let reason = format!("larger than {PEM_BYTES_MAX} bytes");
        return Err(TlsError::Unusable {
            path: path.to_owned(),
            reason,
        });
    }
    Ok(bytes)
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let not_pem = |reason: String| TlsError::NotPem {
        path: path.to_owned(),
        expected: "CERTIFICATE",
        reason,
    };
    let bytes = read_file(path)?;
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&bytes)
        .collect::<Result<_, _>>()
        .map_err(|error| not_pem(error.to_string()))?;
    if certificates.is_empty() {
        return Err(not_pem(format!("{} bytes of something else", bytes.len())));
    }
    Ok(certificates)
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(&read_file(path)?).map_err(|error| TlsError::NotPem {
        path: path.to_owned(),
        expected: "PRIVATE KEY",
        reason: error.to_string(),
    })
}

/// The first end of validity among `certificates`, all of which must be valid now.
fn check_validity(
    path: &Path,
    certificates: &[CertificateDer<'_>],
) -> Result<SystemTime, TlsError> {
    let now = i64::try_from(UnixTime::now().as_secs()).unwrap_or(i64::MAX);
    let mut first = i64::MAX;
    for certificate in certificates {
        let (_, parsed) =
            X509Certificate::from_der(certificate).map_err(|error| unusable(path, &error))?;
        let (not_before, not_after) = (parsed.validity().not_before, parsed.validity().not_after);
        let path = path.to_owned();
        if not_after.timestamp() < now {
            return Err(TlsError::Expired {
                path,
                not_after: not_after.to_string(),
            });
        }
        if not_before.timestamp() > now {
            return Err(TlsError::NotYetValid {
                path,
                not_before: not_before.to_string(),
            });
        }
        first = first.min(not_after.timestamp());
    }
    Ok(UNIX_EPOCH + Duration::from_secs(u64::try_from(first).unwrap_or(0)))
}

/// The certificates in force, as rustls asks for them: each answer is of the moment it is asked.
struct Current(ArcSwap<Loaded>);

impl std::fmt::Debug for Current {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Nothing of the key.
        f.debug_tuple("Current")
            .field(&self.0.load().identity)
            .finish()
    }
}

/// In this variant, because it is shown in the error's own words.
fn refused(error: IdentityError) -> rustls::Error {
    rustls::Error::Other(OtherError(Arc::new(error)))
}

/// webpki's two ways to say that the issuer is not ours: an unknown name, and our name with another key.
fn in_words(error: rustls::Error) -> rustls::Error {
    match error {
        rustls::Error::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature,
        ) => refused(IdentityError::OtherAuthority),
        other => other,
    }
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load().key.clone())
    }
}

impl ResolvesClientCert for Current {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load().key.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl ClientCertVerifier for Current {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // No hints: a client of ours has one certificate, and the authorities may change.
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let loaded = self.0.load();
        let verified = loaded
            .clients
            .verify_client_cert(leaf, intermediates, now)
            .map_err(in_words)?;
        loaded.peer(leaf).map_err(refused)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0
            .load()
            .clients
            .verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0
            .load()
            .clients
            .verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.load().clients.supported_verify_schemes()
    }
}

impl ServerCertVerifier for Current {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let loaded = self.0.load();
        let verified = loaded
            .servers
            .verify_server_cert(leaf, intermediates, server_name, ocsp_response, now)
            .map_err(in_words)?;
        let found = loaded.peer(leaf).map_err(refused)?;
        if found.role() != Role::Node {
            return Err(refused(IdentityError::OtherRole {
                found,
                expected: Role::Node,
            }));
        }
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0
            .load()
            .servers
            .verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0
            .load()
            .servers
            .verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.load().servers.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests;
