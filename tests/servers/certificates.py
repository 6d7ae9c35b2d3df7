"""A certificate authority of one's own, and a certificate for 127.0.0.1: for TLS listeners."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import trustme
from cryptography.hazmat.primitives import serialization


@dataclass(frozen=True)
class Certificates:
    """PEM files."""

    authority: Path
    """What a client trusts (``ssl.ca.location``, ``ssl_ca_certs``)."""
    chain: Path
    """The server's certificate."""
    key: Path
    """The server's private key, PKCS #8, which Java insists on."""
    both: Path
    """Key and chain in one file."""


def certificates(folder: Path) -> Certificates:
    """Make an authority and a server certificate for 127.0.0.1 and localhost in ``folder``."""
    authority = trustme.CA()
    server = authority.issue_cert("127.0.0.1", "localhost")
    private = serialization.load_pem_private_key(server.private_key_pem.bytes(), None)
    key = private.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    chain = b"".join(blob.bytes() for blob in server.cert_chain_pems)
    made = Certificates(
        folder / "authority.pem", folder / "chain.pem", folder / "key.pem", folder / "both.pem"
    )
    made.authority.write_bytes(authority.cert_pem.bytes())
    made.chain.write_bytes(chain)
    made.key.write_bytes(key)
    made.both.write_bytes(key + chain)
    return made
