"""Writes certificates for tests into a folder: of an authority, of nodes on 127.0.0.1 that it signed, and of a stranger."""
import datetime
import ipaddress
import sys
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

FOLDER = Path(sys.argv[1])


def write(name, certificate, key):
    (FOLDER / f"{name}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (FOLDER / f"{name}.key").write_bytes(private)


def certificate(name, key, authority=None):
    """Makes a certificate that an authority signed, which is a pair of its name and key, or the key itself."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    issuer, signs = authority or (subject, key)
    now = datetime.datetime.now(datetime.timezone.utc)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=authority is None, path_length=None), critical=True)
    )
    if authority:
        addresses = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        builder = builder.add_extension(x509.SubjectAlternativeName(addresses), critical=False)
    return builder.sign(signs, hashes.SHA256())


def new_key():
    return ec.generate_private_key(ec.SECP256R1())


for authority_name, node_name in [("ca", "node"), ("stranger_ca", "stranger")]:
    authority_key, node_key = new_key(), new_key()
    authority = certificate(authority_name, authority_key)
    write(authority_name, authority, authority_key)
    write(node_name, certificate(node_name, node_key, (authority.subject, authority_key)), node_key)
