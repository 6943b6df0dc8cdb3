//! Makes a cluster's certificates: an authority, and one certificate per node, edge and administrator.
//!
//! Used by `tollgate certs` and by tests; a cluster may as well bring certificates of its own, as long as
//! they carry the names of [`crate::identity`]. Keys are ECDSA P-256, their files are mode 0600, every
//! file is synced before it gets its name, and nothing is overwritten unless asked. Refuses to revoke or
//! to remember what it issued: reissue under a new authority. Next: [`crate::tls`].

use crate::identity::{IdentityError, PeerIdentity, Role, any_node_server_name, node_server_name};
use crate::tls::TlsFiles;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use std::fs;
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Files of the authority in its folder.
pub const CA_CERTIFICATE: &str = "ca.pem";
/// The authority's private key: keep it away from nodes and edges.
pub const CA_KEY: &str = "ca.key";

/// How far the beginning of a validity lies in the past: clocks differ.
const BACKDATED: Duration = Duration::from_secs(3600);

/// Why a certificate was not made. Files that existed before are untouched, unless overwriting was asked.
#[derive(Debug, thiserror::Error)]
pub enum CertsError {
    /// The file is there and overwriting was not asked for.
    #[error("{} exists: name another folder, or ask to overwrite", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The authority's files hold something else, or do not belong together.
    #[error("the authority in {} cannot be used: {reason}", folder.display())]
    Authority {
        /// Its folder.
        folder: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The peer cannot be named so.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// An extra name that cannot stand in a certificate.
    #[error("`{found}` is neither a DNS name nor an address")]
    ExtraName {
        /// The name.
        found: String,
    },
    /// The cryptography failed.
    #[error("making a certificate: {0}")]
    Crypto(#[from] rcgen::Error),
}

/// From when until when a certificate is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// First moment.
    pub not_before: SystemTime,
    /// Last moment.
    pub not_after: SystemTime,
}

impl Validity {
    /// From an hour ago (clocks differ) for `days` days.
    #[must_use]
    pub fn days(days: u32) -> Self {
        let now = SystemTime::now();
        let length = Duration::from_secs(u64::from(days) * 24 * 3600);
        Self {
            not_before: now - BACKDATED,
            not_after: now + length,
        }
    }
}

/// A cluster's authority, able to issue.
pub struct Authority {
    cluster: String,
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority")
            .field("cluster", &self.cluster)
            .finish_non_exhaustive()
    }
}

impl Authority {
    /// Makes the authority of `cluster` and writes it to `folder`, which is created if need be.
    ///
    /// # Errors
    /// See [`CertsError`].
    pub fn create(
        folder: &Path,
        cluster: &str,
        validity: Validity,
        overwrite: bool,
    ) -> Result<Self, CertsError> {
        // Checked by the same rules as the names it will issue.
        PeerIdentity::new(cluster, Role::Admin, "check")?;
        let key = new_key()?;
        let mut params = params(&common_name(cluster), validity);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key)?.pem();
        write_pair(
            folder,
            (CA_KEY, &key.serialize_pem()),
            (CA_CERTIFICATE, &certificate),
            overwrite,
        )?;
        Ok(Self {
            cluster: cluster.to_owned(),
            certificate,
            issuer: Issuer::new(params, key),
        })
    }

    /// Reads the authority back that [`Authority::create`] wrote.
    ///
    /// # Errors
    /// [`CertsError::Io`], [`CertsError::Authority`].
    pub fn open(folder: &Path) -> Result<Self, CertsError> {
        let read = |name| {
            let path = folder.join(name);
            fs::read_to_string(&path).map_err(|source| CertsError::Io { path, source })
        };
        let wrong = |reason: String| CertsError::Authority {
            folder: folder.to_owned(),
            reason,
        };
        let certificate = read(CA_CERTIFICATE)?;
        let key = KeyPair::from_pem(&read(CA_KEY)?)
            .map_err(|error| wrong(format!("{CA_KEY}: {error}")))?;
        let cluster = check_authority(&certificate, &key).map_err(wrong)?;
        let issuer = Issuer::from_ca_cert_pem(&certificate, key)
            .map_err(|error| wrong(format!("{CA_CERTIFICATE}: {error}")))?;
        Ok(Self {
            cluster,
            certificate,
            issuer,
        })
    }

    /// The cluster it is for.
    #[must_use]
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// Issues a certificate for `name` in `role` and writes it, its key and `ca.pem` to `folder`.
    ///
    /// A node's certificate also carries its DNS names and `extra_names` (DNS names or addresses, for
    /// clients that are not ours, such as curl). Files: `{role}-{name}.pem`, `{role}-{name}.key`.
    ///
    /// # Errors
    /// See [`CertsError`].
    pub fn issue(
        &self,
        folder: &Path,
        (role, name): (Role, &str),
        extra_names: &[String],
        validity: Validity,
        overwrite: bool,
    ) -> Result<TlsFiles, CertsError> {
        let peer = PeerIdentity::new(&self.cluster, role, name)?;
        let mut params = params(&format!("{role} {name} of {}", self.cluster), validity);
        params
            .subject_alt_names
            .push(SanType::URI(peer.to_string().try_into()?));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        if let Some(id) = peer.node_id() {
            params
                .extended_key_usages
                .push(ExtendedKeyUsagePurpose::ServerAuth);
            let names = [
                node_server_name(&self.cluster, id),
                any_node_server_name(&self.cluster),
            ];
            for name in names.iter().chain(extra_names) {
                params.subject_alt_names.push(server_name(name)?);
            }
        }
        let key = new_key()?;
        let certificate = params.signed_by(&key, &self.issuer)?.pem();
        let (key_file, certificate_file) =
            (format!("{role}-{name}.key"), format!("{role}-{name}.pem"));
        create_folder(folder)?;
        let ca = folder.join(CA_CERTIFICATE);
        if fs::read(&ca).ok().as_deref() != Some(self.certificate.as_bytes()) {
            write_file(&ca, &self.certificate, 0o644, overwrite)?;
        }
        write_pair(
            folder,
            (&key_file, &key.serialize_pem()),
            (&certificate_file, &certificate),
            overwrite,
        )?;
        Ok(TlsFiles {
            ca,
            certificate: folder.join(certificate_file),
            key: folder.join(key_file),
        })
    }
}

fn new_key() -> Result<KeyPair, rcgen::Error> {
    KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)
}

fn common_name(cluster: &str) -> String {
    format!("{COMMON_NAME}{cluster}")
}

const COMMON_NAME: &str = "Tollgate authority of ";

fn params(common_name: &str, validity: Validity) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    params.not_before = validity.not_before.into();
    params.not_after = validity.not_after.into();
    params
}

fn server_name(name: &str) -> Result<SanType, CertsError> {
    if let Ok(address) = name.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(address));
    }
    let wrong = || CertsError::ExtraName {
        found: name.to_owned(),
    };
    rustls_pki_types::DnsName::try_from(name).map_err(|_| wrong())?;
    Ok(SanType::DnsName(name.try_into().map_err(|_| wrong())?))
}

/// The cluster of an authority, if certificate and key belong together.
fn check_authority(certificate: &str, key: &KeyPair) -> Result<String, String> {
    use rustls_pki_types::CertificateDer;
    use rustls_pki_types::pem::PemObject;
    use x509_parser::prelude::{FromDer, X509Certificate};
    let der = CertificateDer::from_pem_slice(certificate.as_bytes())
        .map_err(|error| format!("{CA_CERTIFICATE}: {error}"))?;
    let (_, parsed) =
        X509Certificate::from_der(&der).map_err(|error| format!("{CA_CERTIFICATE}: {error}"))?;
    if parsed.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
        return Err(format!("{CA_KEY} is not the key of {CA_CERTIFICATE}"));
    }
    let name = parsed
        .subject()
        .iter_common_name()
        .next()
        .and_then(|name| name.as_str().ok());
    let cluster = name.and_then(|name| name.strip_prefix(COMMON_NAME));
    cluster.map(str::to_owned).ok_or_else(|| {
        let found = name.unwrap_or("nothing");
        format!("{CA_CERTIFICATE} is for `{found}`, expected `{COMMON_NAME}CLUSTER`")
    })
}

/// Writes a key and its certificate, or neither if one of them is there already.
fn write_pair(
    folder: &Path,
    (key_file, key): (&str, &str),
    (certificate_file, certificate): (&str, &str),
    overwrite: bool,
) -> Result<(), CertsError> {
    create_folder(folder)?;
    let (key_path, certificate_path) = (folder.join(key_file), folder.join(certificate_file));
    if !overwrite
        && let Some(path) = [&key_path, &certificate_path]
            .into_iter()
            .find(|path| path.exists())
    {
        return Err(CertsError::Exists { path: path.clone() });
    }
    write_file(&key_path, key, 0o600, overwrite)?;
    write_file(&certificate_path, certificate, 0o644, overwrite)
}

fn create_folder(folder: &Path) -> Result<(), CertsError> {
    fs::create_dir_all(folder).map_err(|source| CertsError::Io {
        path: folder.to_owned(),
        source,
    })
}

/// Gives `text` the name `path` in one step, once it is on the disk. A file that is there stays, unless
/// `overwrite`.
fn write_file(path: &Path, text: &str, mode: u32, overwrite: bool) -> Result<(), CertsError> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    let remove = || match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    };
    let write = || {
        // What a crash left of an earlier attempt would keep its mode.
        remove()?;
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        if overwrite {
            fs::rename(&temporary, path)?;
        } else {
            // Unlike a rename, a link never replaces.
            fs::hard_link(&temporary, path)?;
            remove()?;
        }
        let folder = path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty());
        fs::File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
    };
    let written = write();
    if written.is_err() {
        // The first error is the one to tell; a key must not lie around under another name.
        let _ = remove();
    }
    written.map_err(|source| {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::AlreadyExists => CertsError::Exists { path },
            _ => CertsError::Io { path, source },
        }
    })
}

#[cfg(test)]
mod tests;
