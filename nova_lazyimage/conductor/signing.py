# Licensed under the Apache License, Version 2.0 (the "License"); you may
# not use this file except in compliance with the License. You may obtain
# a copy of the License at
#
#      http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS, WITHOUT
# WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied. See the
# License for the specific language governing permissions and limitations
# under the License.
"""Who answered: a conductor's signature, and its check.

Whoever can speak on the message bus can answer in the conductor's name, a
compute node that has fallen among them, and so have other hosts serve its
bytes (contract 34). A caller that knows the conductors' public keys sends a
nonce with its question and takes nothing but::

    {'signed': TEXT, 'signature': BASE64, 'key': BASE64}

TEXT is JSON, and what is parsed is what was signed, byte for byte:

============= =============================================================
``answer``    as without a signature (plain.py)
``operation`` that was asked for
``arguments`` SHA-256 of the arguments as JSON: sorted keys, no spaces
``nonce``     the caller's: an older answer has another one
============= =============================================================

The signature is Ed25519 over ``PURPOSE`` and TEXT. ``key``, the signer's
public key, only helps to say what is wrong. A caller accepts several keys, so
that they can be changed one host after the other.

An answer that is refused is none: what became of the call is unknown, as it
is after a time-out (contract 21).

Threads: keys never change; everything may be called from any thread.
"""

import base64
import hashlib
import json
import os
import pathlib
import secrets
import stat
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lazyblob import exceptions

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ed25519

PURPOSE = b'lazyimage catalog answer 1\n'
KEY_BYTES = 32
NONCE_LENGTH_MAX = 64


def new_nonce() -> str:
    """Of one call."""
    return secrets.token_hex(16)


def digest_of(arguments: Any) -> str:
    """What arguments both sides mean."""
    text = json.dumps(arguments, sort_keys=True, separators=(',', ':'))
    return hashlib.sha256(text.encode()).hexdigest()


class Signer:
    """Signs answers: a conductor's.

    :ivar public_key: what callers are to know, as text
    """

    def __init__(self, key: 'ed25519.Ed25519PrivateKey') -> None:
        self._key = key
        self.public_key = _text_of(key)

    @classmethod
    def load(cls, path: str) -> 'Signer':
        """With the key of a file that :func:`make_key` made.

        :raises InvalidConfiguration: there is none, or strangers may read it
        """
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519

        def refusal(why: str) -> exceptions.InvalidConfiguration:
            return exceptions.InvalidConfiguration(
                f'[conductor] signing_key "{path}" {why}'
            )

        remedy = 'make one by "lazyimage-conductor --new-signing-key FILE"'
        try:
            with open(path, 'rb') as file:
                mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
                text = file.read()
        except OSError as exc:
            raise refusal(
                f'cannot be read: {exc.strerror}; {remedy}, for the user '
                'of the conductor'
            ) from exc
        if mode & 0o007:
            raise refusal(
                f'has mode {mode:04o}: everybody could answer for the '
                'conductor; take it from others (chmod o=), or replace it if '
                'others could read it'
            )
        try:
            key = serialization.load_pem_private_key(text, password=None)
        except (ValueError, TypeError) as exc:
            raise refusal(f'is no private key; {remedy}') from exc
        if not isinstance(key, ed25519.Ed25519PrivateKey):
            raise refusal(f'is no Ed25519 key; {remedy}')
        return cls(key)

    def sign(
        self, operation: str, arguments: Any, nonce: str, answer: Any
    ) -> dict[str, str]:
        """An answer that is believed."""
        text = json.dumps(
            {
                'operation': operation,
                'arguments': digest_of(arguments),
                'nonce': nonce,
                'answer': answer,
            }
        )
        signature = self._key.sign(PURPOSE + text.encode())
        return {
            'signed': text,
            'signature': base64.b64encode(signature).decode(),
            'key': self.public_key,
        }


class Verifier:
    """Checks answers: a caller's.

    :param public_keys: any of them may have signed
    :raises InvalidConfiguration: one of them is none
    """

    def __init__(self, public_keys: Sequence[str]) -> None:
        self._keys = [_raw(key) for key in public_keys]

    def check(
        self, operation: str, arguments: Any, nonce: str, reply: Any
    ) -> Any:
        """The answer to this very call.

        :raises CatalogUnavailable: it is nobody's, or to another call
        """
        said = reply if isinstance(reply, dict) else {}
        text, signature = said.get('signed'), said.get('signature')
        if not isinstance(text, str) or not isinstance(signature, str):
            raise _refusal(
                operation,
                'is not signed; set [conductor] signing_key for every '
                'conductor, or see who else speaks on the message bus',
            )
        if not self._is_signed(PURPOSE + text.encode(), signature):
            raise _refusal(
                operation,
                'is signed by no key of [conductor] public_keys (it says '
                f'"{str(said.get("key"))[:44]}"); add the key of every '
                'conductor, or see who else speaks on the message bus',
            )
        # Signed by a conductor, and so what the table above says.
        signed = json.loads(text)
        expected = (operation, digest_of(arguments), nonce)
        if expected != (
            signed['operation'],
            signed['arguments'],
            signed['nonce'],
        ):
            raise _refusal(
                operation,
                'was signed for another question; see who repeats or diverts '
                'answers on the message bus',
            )
        return signed['answer']

    def _is_signed(self, data: bytes, signature: str) -> bool:
        from cryptography import exceptions as cryptography
        from cryptography.hazmat.primitives.asymmetric import ed25519

        try:
            raw = base64.b64decode(signature, validate=True)
        except ValueError:
            return False
        for key in self._keys:
            try:
                ed25519.Ed25519PublicKey.from_public_bytes(key).verify(
                    raw, data
                )
            except cryptography.InvalidSignature:
                continue
            return True
        return False


def make_key(path: pathlib.Path) -> str:
    """Write a new private key, and its public key beside it (``.pub``).

    :returns: the public key
    :raises OSError: FileExistsError: there is a key; nothing is replaced
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ed25519

    key = ed25519.Ed25519PrivateKey.generate()
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with open(os.open(path, flags, 0o600), 'wb') as file:
        file.write(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
    public = _text_of(key)
    path.with_name(f'{path.name}.pub').write_text(f'{public}\n')
    return public


def is_public_key(text: str) -> bool:
    """Whether it can be one of ``[conductor] public_keys``."""
    try:
        return len(base64.b64decode(text, validate=True)) == KEY_BYTES
    except ValueError:
        return False


def _raw(text: str) -> bytes:
    if not is_public_key(text):
        raise exceptions.InvalidConfiguration(
            f'"{text[:60]}" of [conductor] public_keys is no public key; '
            'write what "lazyimage-conductor --new-signing-key" has put into '
            'the file that ends in .pub'
        )
    return base64.b64decode(text)


def _text_of(key: 'ed25519.Ed25519PrivateKey') -> str:
    return base64.b64encode(key.public_key().public_bytes_raw()).decode()


def _refusal(operation: str, why: str) -> exceptions.CatalogUnavailable:
    return exceptions.CatalogUnavailable(
        f'what was answered to "{operation}" in the conductor\'s name {why}'
    )
