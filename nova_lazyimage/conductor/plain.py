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
"""The catalog's values and errors as plain data, both ways.

A record travels as ``{'_': 'Version', ...}``, an error as its class's name
and message. Only the classes listed here are made from what arrives.
"""

import dataclasses
import enum
from typing import Any

from lazyblob import exceptions
from lazyblob.catalog import api

_MARK = '_'
_RECORDS: dict[str, type] = {
    cls.__name__: cls
    for cls in (
        api.RepositoryInfo,
        api.Blob,
        api.Version,
        api.Session,
        api.BadDigest,
        api.NewImage,
    )
}
_ENUMS: dict[str, dict[str, type[enum.Enum]]] = {
    'Blob': {'kind': api.Kind, 'state': api.State}
}
_ERRORS: dict[str, type[exceptions.LazyBlobError]] = {
    name: cls
    for name, cls in vars(exceptions).items()
    if isinstance(cls, type) and issubclass(cls, exceptions.LazyBlobError)
}


def encode(value: Any) -> Any:
    """As numbers, texts, lists and dictionaries."""
    if isinstance(value, enum.Enum):
        return value.value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {
            field.name: encode(getattr(value, field.name))
            for field in dataclasses.fields(value)
        }
        return {_MARK: type(value).__name__, **fields}
    if isinstance(value, dict):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(item) for item in value]
    return value


def decode(value: Any) -> Any:
    """What :func:`encode` was given.

    :raises ValueError: not a record of this release
    """
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    fields = {key: decode(item) for key, item in value.items()}
    name = fields.pop(_MARK, None)
    if name is None:
        return fields
    cls = _RECORDS.get(name)
    if cls is None:
        raise ValueError(f'unknown record "{name}"')
    # A newer conductor may send fields that this release does not know.
    known = {field.name for field in dataclasses.fields(cls)}
    fields = {key: item for key, item in fields.items() if key in known}
    for key, kind in _ENUMS.get(name, {}).items():
        fields[key] = kind(fields[key])
    return cls(**fields)


def failure(exc: exceptions.LazyBlobError) -> dict[str, Any]:
    """An answer that is an error."""
    return {'error': type(exc).__name__, 'message': str(exc)}


def success(value: Any) -> dict[str, Any]:
    """An answer that is one."""
    return {'value': encode(value)}


def answer(data: Any) -> Any:
    """The value of an answer, or its error raised."""
    if not isinstance(data, dict) or not {'value', 'error'} & set(data):
        raise exceptions.CatalogUnavailable(
            'what answers for the conductor is none; see [DEFAULT] '
            'transport_url'
        )
    if 'error' in data:
        cls = _ERRORS.get(str(data['error']), exceptions.LazyBlobError)
        raise cls(str(data.get('message', '')))
    return decode(data['value'])
