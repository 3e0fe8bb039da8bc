"""Authorities and certificates that tests make for themselves."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

TODAY = (-1, 1)
PAST = (-2, -1)
FUTURE = (1, 2)
"""Days from now on which a certificate begins and ends."""


@dataclass(frozen=True)
class Pair:
    """Files of a certificate and its key."""

    certificate: Path
    key: Path

    @property
    def options(self) -> tuple[str, ...]:
        """To serve with."""
        return ("--tls-cert", str(self.certificate), "--tls-key", str(self.key))


class Authority:
    """Signs certificates, for callers and for servers on this machine."""

    def __init__(self, folder: Path, name: str, days: tuple[int, int] = TODAY) -> None:
        self._folder = folder
        self._name = _name(name)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.file = folder / f"{name}.pem"
        certificate = (
            _begun(self._name, self._name, self._key, days)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def issue(
        self,
        name: str,
        days: tuple[int, int] = TODAY,
        passphrase: bytes | None = None,
        hosts: Sequence[str] = ("localhost",),
    ) -> Pair:
        """A certificate and its key in new files called `name`, for `hosts` and 127.0.0.1."""
        key = ec.generate_private_key(ec.SECP256R1())
        places = [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), *map(x509.DNSName, hosts)]
        certificate = (
            _begun(_name(name), self._name, key, days)
            .add_extension(x509.SubjectAlternativeName(places), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        pair = Pair(self._folder / f"{name}.crt", self._folder / f"{name}.key")
        pair.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        locked: serialization.KeySerializationEncryption = serialization.NoEncryption()
        if passphrase:
            locked = serialization.BestAvailableEncryption(passphrase)
        pair.key.write_bytes(
            key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, locked)
        )
        pair.key.chmod(0o600)
        return pair

    def channel(self, address: str, caller: Pair | None = None) -> grpc.Channel:
        """To a server whose certificate this authority has to have signed."""
        credentials = grpc.ssl_channel_credentials(
            self.file.read_bytes(),
            caller.key.read_bytes() if caller else None,
            caller.certificate.read_bytes() if caller else None,
        )
        return grpc.secure_channel(address, credentials)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _begun(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days: tuple[int, int]
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    begin, end = (now + timedelta(days=each) for each in days)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
    )
