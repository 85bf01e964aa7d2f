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
"""What the interface tells of a COMMIT."""

from typing import Any

from nova_lazyimage.agent import mirrors


def known(live: mirrors.Live, commit_id: str) -> dict[str, Any] | None:
    """A COMMIT of a mirror, under way or ended; the caller holds its lock."""
    record = live.record
    commit = record.commit
    if commit is not None and commit.commit_id == commit_id:
        job = live.job
        return {
            'commit_id': commit_id,
            'state': 'sealed',
            'blob_id': record.blob_id,
            'version': None,
            'image_id': commit.image_id or None,
            'location': None,
            'committed_bytes': job.committed_bytes if job else 0,
            'total_bytes': commit.total_bytes,
            'statistics': {},
            'error': None,
        }
    result = record.result(commit_id)
    if result is None:
        return None
    state = result.state
    if state == 'published' and result.image_id and not result.location:
        state = 'sealed'  # its location is still to be minted
    if (
        live.job is not None
        and commit is None
        and result is record.results[-1]
    ):
        # Its job still ends: whoever is told that it is over may ask for the
        # next one at once.
        state = 'sealed'
    error = None
    if state == 'failed':
        error = {'code': result.error_code, 'message': result.error}
    return {
        'commit_id': commit_id,
        'state': state,
        'blob_id': result.blob_id,
        'version': result.version or None,
        'root': result.root or None,
        'image_id': result.image_id or None,
        'location': result.location or None,
        'committed_bytes': result.committed_bytes,
        'total_bytes': result.total_bytes,
        'statistics': result.statistics,
        'error': error,
    }
