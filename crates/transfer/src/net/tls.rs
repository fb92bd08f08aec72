//! TLS 1.3 with both keys pinned: no authorities, no names, no dates. A peer is the public key that it proves to hold.
//!
//! The vault accepts any client key in the handshake and leaves it to the [`super::Destination`] to know it, so that a
//! stranger gets a clear refusal instead of a broken connection. The source accepts one key only. Both still verify the
//! handshake's signature: a certificate is public, its key is not. No resumption and no early data, so that every
//! connection proves the key anew.

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, ServerConfig,
    SignatureScheme,
};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use tokio::io::BufReader;
use tokio::net::TcpStream;

/// The protocol's name in ALPN.
pub const ALPN: &[u8] = b"farwrite/1";
/// File of an [`Identity`] in its directory.
pub const IDENTITY_FILE: &str = "identity.pem";
/// Most bytes of that file.
const IDENTITY_BYTES: u64 = 64 << 10;
/// Bytes taken out of a socket at once.
const SOCKET_BYTES: usize = 64 << 10;
/// In the certificate, for who looks at it; nobody checks it.
const CERTIFICATE_NAME: &str = "farwrite";

/// A socket that TLS is spoken over. The library asks it for one TLS record at a time, 16 KiB, or
/// less: each would be a system call.
pub(super) fn buffered(socket: TcpStream) -> BufReader<TcpStream> {
    BufReader::with_capacity(SOCKET_BYTES, socket)
}

/// BLAKE3 over a public key (the certificate's SubjectPublicKeyInfo in DER). Compares in constant time.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// From the hash itself.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Fingerprint(bytes)
    }

    /// The hash.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Of a certificate's key.
    pub fn of_certificate(cert: &CertificateDer<'_>) -> Result<Self, Error> {
        let spki = ParsedCertificate::try_from(cert)?.subject_public_key_info();
        Ok(Fingerprint(*blake3::hash(&spki).as_bytes()))
    }
}

impl PartialEq for Fingerprint {
    fn eq(&self, other: &Self) -> bool {
        // `blake3::Hash` promises a comparison in constant time.
        blake3::Hash::from_bytes(self.0) == blake3::Hash::from_bytes(other.0)
    }
}

impl Eq for Fingerprint {}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

/// Not 64 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a fingerprint is 64 hexadecimal digits")]
pub struct BadFingerprint;

impl FromStr for Fingerprint {
    type Err = BadFingerprint;
    fn from_str(s: &str) -> Result<Self, BadFingerprint> {
        blake3::Hash::from_hex(s)
            .map(|h| Fingerprint(*h.as_bytes()))
            .map_err(|_| BadFingerprint)
    }
}

/// A key pair with a self-signed certificate around it.
pub struct Identity {
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
    fingerprint: Fingerprint,
}

impl Clone for Identity {
    fn clone(&self) -> Self {
        Identity {
            certificate: self.certificate.clone(),
            key: self.key.clone_key(),
            fingerprint: self.fingerprint,
        }
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.fingerprint)
    }
}

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file cannot be read or written.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is there but is no identity. It is not replaced: a new key would have to be paired anew.
    #[error("{path} is damaged: {why}", path = path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// In which way.
        why: String,
    },
    /// No key could be made.
    #[error("making a key: {0}")]
    Generate(String),
}

impl Identity {
    /// Makes a new Ed25519 key.
    pub fn generate() -> Result<Self, IdentityError> {
        Self::generate_pem().map(|(identity, _)| identity)
    }

    /// Reads `identity.pem` in `dir`, or makes one (mode 0600) if there is none. Two processes that do so at the same time
    /// get the same one.
    pub fn load_or_create(dir: &Path) -> Result<Self, IdentityError> {
        let path = dir.join(IDENTITY_FILE);
        let io = |source| IdentityError::Io {
            path: path.clone(),
            source,
        };
        if let Some(text) = crate::pairing::store::read_small(&path, IDENTITY_BYTES).map_err(io)? {
            return Self::from_pem(&text, &path);
        }
        let (_, pem) = Self::generate_pem()?;
        crate::pairing::store::create_new(&path, pem.as_bytes()).map_err(io)?;
        match crate::pairing::store::read_small(&path, IDENTITY_BYTES).map_err(io)? {
            Some(text) => Self::from_pem(&text, &path),
            None => Err(io(std::io::ErrorKind::NotFound.into())),
        }
    }

    /// Of its key.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    fn generate_pem() -> Result<(Self, String), IdentityError> {
        let failed = |e: rcgen::Error| IdentityError::Generate(e.to_string());
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).map_err(failed)?;
        let params =
            rcgen::CertificateParams::new(vec![CERTIFICATE_NAME.into()]).map_err(failed)?;
        let cert = params.self_signed(&key).map_err(failed)?;
        let pem = format!("{}{}", cert.pem(), key.serialize_pem());
        let identity = Self::from_pem(&pem, Path::new("new identity"))?;
        Ok((identity, pem))
    }

    fn from_pem(pem: &str, path: &Path) -> Result<Self, IdentityError> {
        let damaged = |why: String| IdentityError::Damaged {
            path: path.into(),
            why,
        };
        let certificate = CertificateDer::from_pem_slice(pem.as_bytes())
            .map_err(|e| damaged(format!("certificate: {e:?}")))?;
        let key = PrivateKeyDer::from_pem_slice(pem.as_bytes())
            .map_err(|e| damaged(format!("key: {e:?}")))?;
        let fingerprint =
            Fingerprint::of_certificate(&certificate).map_err(|e| damaged(e.to_string()))?;
        // Also checks that key and certificate belong together.
        rustls::sign::CertifiedKey::from_der(
            vec![certificate.clone()],
            key.clone_key(),
            &provider(),
        )
        .map_err(|e| damaged(e.to_string()))?;
        Ok(Identity {
            certificate,
            key,
            fingerprint,
        })
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// How a vault's server speaks TLS.
pub fn server_config(identity: &Identity) -> Result<Arc<ServerConfig>, Error> {
    let provider = provider();
    let mut config = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(AnyClient(provider)))
        .with_single_cert(vec![identity.certificate.clone()], identity.key.clone_key())?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    Ok(Arc::new(config))
}

/// How a source speaks TLS to the one vault that it trusts.
pub fn client_config(identity: &Identity, vault: Fingerprint) -> Result<Arc<ClientConfig>, Error> {
    let provider = provider();
    let mut config = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PinnedVault { vault, provider }))
        .with_client_auth_cert(vec![identity.certificate.clone()], identity.key.clone_key())?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    config.enable_sni = false;
    Ok(Arc::new(config))
}

/// What a TLS client must call the server; sent nowhere and checked by nobody.
pub fn server_name() -> ServerName<'static> {
    ServerName::try_from("farwrite.invalid").expect("a valid name")
}

/// The key that the client of an accepted connection has proved to hold.
pub fn client_fingerprint(connection: &rustls::ServerConnection) -> Option<Fingerprint> {
    let cert = connection.peer_certificates()?.first()?;
    Fingerprint::of_certificate(cert).ok()
}

/// Accepts the one vault key.
#[derive(Debug)]
struct PinnedVault {
    vault: Fingerprint,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinnedVault {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if Fingerprint::of_certificate(end_entity)? == self.vault {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(CertificateError::ApplicationVerificationFailure.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken here".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// Demands a client key and accepts any: who it is comes after the handshake.
#[derive(Debug)]
struct AnyClient(Arc<CryptoProvider>);

impl ClientCertVerifier for AnyClient {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Fingerprint::of_certificate(end_entity).map(|_| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken here".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(
            message,
            cert,
            dss,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
