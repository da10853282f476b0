"""TLS of an endpoint: a self-signed certificate made on the fly, and what clients bind to."""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from harness.winrmd.config import TlsFiles


def make_certificate(names: Sequence[str], folder: Path) -> TlsFiles:
    """Write a certificate for these host names and addresses, and its key (mode 0600)."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=30))
        .add_extension(x509.SubjectAlternativeName([_name(name) for name in names]), critical=False)
        # Its own authority: clients can be given this very file to trust.
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=True,
                key_cert_sign=True,
                crl_sign=False,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    files = TlsFiles(folder / "winrmd.pem", folder / "winrmd.key")
    files.key.touch(mode=0o600)
    files.key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    files.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return files


def _name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _first(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificates(path.read_bytes())[0]


def fingerprint(path: Path) -> str:
    """Return the SHA-256 of the first certificate of a PEM file, hexadecimal."""
    return hashlib.sha256(_first(path).public_bytes(serialization.Encoding.DER)).hexdigest()


def end_point_binding(path: Path) -> bytes:
    """Return the `tls-server-end-point` channel binding of a PEM file's first certificate.

    The hash is that of the certificate's signature, SHA-256 in place of MD5 and SHA-1 (RFC 5929).
    """
    certificate = _first(path)
    used = certificate.signature_hash_algorithm
    if used is None or used.name in ("md5", "sha1"):
        used = hashes.SHA256()
    return b"tls-server-end-point:" + certificate.fingerprint(used)
