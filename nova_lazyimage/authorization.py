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
"""Which images are booted lazily, and who may (contract 33).

An image of a blob store is the blob of the same id. Knowing an id is no
permission to read: the record is read again with the token of the request,
must be active, and one byte of its data is asked for with the same token, so
that an image which the request could not download is not cloned for it
either. Asked once, when a disk is made; a disk that exists is its server's.
"""

from typing import Any

import glanceclient.exc
import nova.conf
from nova import exception
from nova.i18n import _
from nova.image import glance
from oslo_log import log as logging

from nova_lazyimage import exceptions

CONF = nova.conf.CONF
LOG = logging.getLogger(__name__)

DENIED = (
    glanceclient.exc.HTTPForbidden,
    glanceclient.exc.HTTPUnauthorized,
    glanceclient.exc.HTTPNotFound,
)


class OneByte(glance.GlanceClientWrapper):
    """Nova's client of Glance, which asks for the first byte only.

    glanceclient quotes the values of headers ("bytes%3D0-0"), so the range is
    added below it.
    """

    def _create_onetime_client(self, context: Any, version: int) -> Any:
        client = super()._create_onetime_client(context, version)
        client.http_client.additional_headers = {'Range': 'bytes=0-0'}
        return client


def lazy_image(context: Any, image_id: str, trusted_certs: Any) -> Any:
    """The record of an image that this request may boot lazily.

    :raises ImageNotFound: there is none, or the request may not see it
    :raises ImageNotActive: it is deactivated, or not uploaded yet
    :raises ImageNotLazy: it has to be copied
    :raises ImageUnacceptable: the request may not download it
    """
    image = glance.API().get(context, image_id, show_deleted=False)
    if image.get('status') != 'active':
        raise exception.ImageNotActive(image_id=image_id)
    why_not = _why_not_lazy(image, trusted_certs)
    if why_not:
        raise exceptions.ImageNotLazy(image_id=image_id, reason=why_not)
    if CONF.lazyimage.image_authorization == 'download':
        check_download(context, image_id)
    return image


def is_lazy(image: Any) -> bool:
    """Whether servers boot from it without a copy (no permission asked)."""
    return _why_not_lazy(image, None) is None


def check_download(context: Any, image_id: str) -> None:
    """Ask for one byte, as a download would.

    :raises ImageUnacceptable: Glance refuses
    """
    try:
        response, body = OneByte().call(
            context,
            2,
            'get',
            controller='http_client',
            args=(f'/v2/images/{image_id}/file',),
        )
    except DENIED as exc:
        raise exception.ImageUnacceptable(
            image_id=image_id,
            reason=_('the request may not download it: %s') % exc,
        ) from exc
    try:
        # A Glance that does not know ranges sends everything: stop there.
        next(iter(body or ()), None)
    finally:
        response.close()


def _why_not_lazy(image: Any, trusted_certs: Any) -> str | None:
    stores = image.get('stores') or image.get('properties', {}).get('stores')
    found = {name.strip() for name in (stores or '').split(',')}
    wanted = CONF.lazyimage.glance_stores
    if not found.intersection(wanted):
        return _(
            'it is in none of the stores [lazyimage] glance_stores = %s'
        ) % ', '.join(wanted)
    if image.get('disk_format') != 'raw':
        return _('its format is "%s" and not raw') % image.get('disk_format')
    if image.get('container_format') != 'bare':
        return _('it comes in a container of format "%s"') % image.get(
            'container_format'
        )
    if trusted_certs or _signatures_are_verified():
        return _('its signature has to be verified over all of its bytes')
    return None


def _signatures_are_verified() -> bool:
    return bool(
        CONF.glance.verify_glance_signatures
        or (
            CONF.glance.enable_certificate_validation
            and CONF.glance.default_trusted_certificate_ids
        )
    )
