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
"""What a client may say: every argument is checked before anything is done."""

import re
from typing import Any

from nova_lazyimage.agent import attachments
from nova_lazyimage.agent import errors
from nova_lazyimage.agent import freezes
from nova_lazyimage.agent import mirrors

UUID = re.compile(
    r'[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}'
)
DISK = re.compile(r'[A-Za-z0-9][A-Za-z0-9._-]{0,63}')
BLOB = re.compile(r'[A-Za-z0-9][A-Za-z0-9._-]{0,254}')
DIGEST = re.compile(r'[0-9a-f]{64}')
SIZE_BYTES_MAX = 1 << 62


def key(instance: str, disk: str) -> mirrors.Key:
    """Which mirror."""
    return match(UUID, 'instance', instance), match(DISK, 'disk', disk)


def match(pattern: re.Pattern[str], name: str, value: Any) -> str:
    """A text of this form. :raises BadRequest:"""
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise errors.BadRequest(
            f'"{name}" is {str(value)[:80]!r}; it must match '
            f'"{pattern.pattern}"'
        )
    return value


def text(name: str, value: Any, length_max: int = 255) -> str:
    """Any printable text; None is none."""
    if value is None:
        return ''
    if (
        not isinstance(value, str)
        or len(value) > length_max
        or not (value.isprintable())
    ):
        raise errors.BadRequest(
            f'"{name}" must be printable text of at most {length_max} '
            'characters'
        )
    return value


def number(name: str, value: Any, least: int, most: int) -> int:
    """A whole number."""
    if (
        not isinstance(value, int)
        or isinstance(value, bool)
        or not least <= value <= most
    ):
        raise errors.BadRequest(
            f'"{name}" is {str(value)[:40]!r}; it must be a whole number from '
            f'{least} to {most}'
        )
    return value


def only(body: dict[str, Any], *names: str) -> None:
    """Refuse fields that nobody would read."""
    unknown = sorted(set(body) - set(names))
    if unknown:
        raise errors.BadRequest(
            f'unknown field "{unknown[0][:40]}"; known are '
            f'{", ".join(names) or "none"}'
        )


def attach(body: dict[str, Any], uid: int, gid: int) -> attachments.Request:
    """The body of an attach."""
    only(body, 'clone', 'blob', 'project_id', 'size_bytes')
    clone, version, blob = '', None, ''
    if ('clone' in body) == ('blob' in body):
        raise errors.BadRequest('give either "clone" or "blob"')
    if 'clone' in body:
        source = body['clone']
        if not isinstance(source, dict):
            raise errors.BadRequest('"clone" must be an object')
        only(source, 'blob', 'version')
        clone = match(BLOB, 'clone.blob', source.get('blob'))
        version = source.get('version')
        if version is not None:
            number('clone.version', version, 1, 1 << 31)
    else:
        blob = match(BLOB, 'blob', body['blob'])
    size_bytes = body.get('size_bytes')
    if size_bytes is not None:
        number('size_bytes', size_bytes, 1, SIZE_BYTES_MAX)
    return attachments.Request(
        clone=clone,
        clone_version=version,
        blob=blob,
        project_id=text('project_id', body.get('project_id')),
        size_bytes=size_bytes,
        uid=uid,
        gid=gid,
    )


def commit(body: dict[str, Any]) -> dict[str, str]:
    """The body of a COMMIT, as the arguments of Commits.start."""
    only(body, 'commit_id', 'image_id', 'project_id', 'name', 'token')
    image_id = token = ''
    if body.get('token') is not None:
        token = match(UUID, 'token', body['token'])
    if body.get('image_id') is not None:
        image_id = match(UUID, 'image_id', body['image_id'])
    return {
        'commit_id': match(UUID, 'commit_id', body.get('commit_id')),
        'image_id': image_id,
        'project_id': text('project_id', body.get('project_id')),
        'name': text('name', body.get('name')),
        'token': token,
    }


def freeze(body: dict[str, Any]) -> tuple[str, float]:
    """The body of a freeze: its token, and its seconds at most."""
    only(body, 'token', 'seconds')
    seconds = body.get('seconds', freezes.SECONDS)
    if (
        not isinstance(seconds, (int, float))
        or isinstance(seconds, bool)
        or not 0 < seconds <= freezes.SECONDS_MAX
    ):
        raise errors.BadRequest(
            f'"seconds" is {str(seconds)[:40]!r}; it must be more than 0 and '
            f'at most {freezes.SECONDS_MAX}'
        )
    return match(UUID, 'token', body.get('token')), float(seconds)


def thaw(body: dict[str, Any]) -> str:
    """The body of a thaw: the freeze's token."""
    only(body, 'token')
    return match(UUID, 'token', body.get('token'))
