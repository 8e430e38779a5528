"""Signatures: who stands for a file. A seal can be made again by anybody; a signature only by who has the private key.

``efface sign`` writes ``FILE.sig`` beside the file (for a folder, beside its card, which has the digests of all files). What is
signed is the text ``efface-signature-v1`` and the sha256 of the file, with ed25519 (RFC 8032). Keys are those that
``ssh-keygen -t ed25519`` or ``openssl genpkey -algorithm ed25519`` makes. The library
``cryptography`` does the arithmetic; it is the extra ``sign``.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import BadFile, BadOption, MissingExtra
from ..io.files import file_digest, write_text
from .manifest import NAME

PURPOSE = b"efface-signature-v1\n"
"""What is signed beside the digest, so that a signature for another purpose is none of a file."""


def signed_file(path: Path) -> Path:
    """The file whose bytes a signature covers: the file itself, or the card of a folder."""
    return path / NAME if path.is_dir() else path


def signature_path(path: Path) -> Path:
    """Where the signature of a file or a folder lies."""
    file = signed_file(path)
    return file.with_name(f"{file.name}.sig")


def sign(path: str | Path, key: str | Path, password: Callable[[], str] = lambda: "") -> Path:
    """Sign a file or an exported folder with the private key in the file ``key`` (OpenSSH or PEM). Returns the place of it.

    password: asked for where the key is encrypted. Raises BadFile for a file that is not there or is no ed25519 key,
    MissingExtra without ``cryptography``.
    """
    path = Path(path)
    if not signed_file(path).is_file():
        raise BadFile(f"there is no file {str(signed_file(path))!r} to sign.")
    private = _private(Path(key), password)
    digest = file_digest(signed_file(path))
    facts = {
        "format": "efface-signature",
        "version": 1,
        "algorithm": "ed25519",
        "sha256": digest,
        "public_key": base64.b64encode(private.public_key().public_bytes_raw()).decode(),
        "signature": base64.b64encode(private.sign(PURPOSE + digest.encode())).decode(),
    }
    write_text(signature_path(path), json.dumps(facts, indent=1) + "\n")
    return signature_path(path)


def check_signature(path: Path, key: str | Path | None = None) -> str:
    """The public key (base64) that signed a file; ``key``, a file or the base64 text of a public key, says which it must be.

    Raises BadFile where the signature does not fit the file or is by another key, MissingExtra without ``cryptography``.
    """
    ed25519, _ = _library()
    from cryptography.exceptions import InvalidSignature

    where = signature_path(path)
    try:
        facts: Any = json.loads(where.read_text("utf-8"))
        public, signature = (base64.b64decode(facts[name], validate=True) for name in ("public_key", "signature"))
        if (facts["format"], facts["version"], facts["algorithm"]) != ("efface-signature", 1, "ed25519"):
            raise ValueError("it is of another kind")
        ed25519.Ed25519PublicKey.from_public_bytes(public).verify(signature, PURPOSE + file_digest(signed_file(path)).encode())
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadFile(f"{where} is no signature of efface ({error}).") from error
    except InvalidSignature as error:
        raise BadFile(f"the signature {where} does not fit the file: one of the two was changed after signing.") from error
    if key is not None and _public(key) != public:
        raise BadFile(f"{path} is signed with another key ({base64.b64encode(public).decode()}) than the one that was given.")
    return base64.b64encode(public).decode()


def _library() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise MissingExtra('signatures need the library cryptography: pip install "efface[sign]"') from error
    return ed25519, serialization


def _private(path: Path, password: Callable[[], str]) -> Any:
    ed25519, serialization = _library()
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadFile(f"the key {path} cannot be read: {error}.") from error
    load = serialization.load_ssh_private_key if b"OPENSSH PRIVATE KEY" in data else serialization.load_pem_private_key
    try:
        try:
            key = load(data, password=None)
        except TypeError:  # cryptography says so of an encrypted key
            key = load(data, password=password().encode())
    except Exception as error:  # cryptography raises several of its own kinds
        raise BadFile(f"{path} is no private key that can be read ({type(error).__name__}: {error}).") from error
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise BadFile(f"{path} is no ed25519 key. Make one with: ssh-keygen -t ed25519 -f {path.name}")
    return key


def _public(key: str | Path) -> bytes:
    """The 32 bytes of a public key: from a file (OpenSSH or PEM), or from base64."""
    ed25519, serialization = _library()
    path = Path(key)
    try:
        if not path.is_file():
            raw = base64.b64decode(str(key), validate=True)
            return bytes(ed25519.Ed25519PublicKey.from_public_bytes(raw).public_bytes_raw())
        data = path.read_bytes()
        load = serialization.load_pem_public_key if data.startswith(b"-----") else serialization.load_ssh_public_key
        public = load(data)
    except Exception as error:  # cryptography raises several of its own kinds
        raise BadOption(f"{key} is neither a file with a public key nor one in base64 ({error}).") from error
    if not isinstance(public, ed25519.Ed25519PublicKey):
        raise BadOption(f"{key} is no ed25519 key.")
    return bytes(public.public_bytes_raw())
