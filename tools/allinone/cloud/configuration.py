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
"""The configuration files, written anew at each start."""

from __future__ import annotations

import grp
import os
import pathlib
import shutil
import subprocess
from collections.abc import Mapping
from typing import Any

from cloud import engine
from cloud import settings

Ini = Mapping[str, Mapping[str, Any]]
SIGNING_KEY = pathlib.Path('/etc/lazyimage/signing.key')

GUNICORN = """\
wsgi_app = '{module}:application'
bind = '{address}:{port}'
workers = {workers}
worker_class = 'gthread'
threads = {threads}
timeout = 600
graceful_timeout = 2
keepalive = 75
control_socket_disable = True
worker_tmp_dir = '/dev/shm'
proc_name = '{name}'
"""


def write(
    path: str | pathlib.Path, text: str, group: str = 'root', mode: int = 0o640
) -> None:
    """Write a file that one group may read."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding='utf-8')
    os.chown(path, 0, grp.getgrnam(group).gr_gid)
    path.chmod(mode)


def ini(sections: Ini) -> str:
    """Sections as oslo.config reads them; a list repeats the option."""
    lines = []
    for section, options in sections.items():
        lines.append(f'[{section}]')
        for name, value in options.items():
            values = value if isinstance(value, list) else [value]
            lines += [f'{name} = {item}' for item in values]
        lines.append('')
    return '\n'.join(lines)


def credentials(user: str) -> dict[str, Any]:
    """How one service user authenticates."""
    return {
        'auth_type': 'password',
        'auth_url': settings.AUTH_URL,
        'username': user,
        'password': settings.PASSWORD,
        'project_name': 'service',
        'user_domain_name': 'Default',
        'project_domain_name': 'Default',
        'region_name': settings.REGION,
    }


def middleware(user: str) -> dict[str, Any]:
    """[keystone_authtoken] of one service."""
    return credentials(user) | {
        'www_authenticate_uri': settings.AUTH_URL,
        'service_token_roles': 'service',
        'service_token_roles_required': True,
        'interface': 'internal',
    }


def database(name: str) -> dict[str, Any]:
    return {
        'connection': settings.database_url(name),
        'max_pool_size': 8,
        'max_overflow': 16,
    }


def gunicorn(name: str, module: str, port: int, threads: int = 8) -> None:
    text = GUNICORN.format(
        module=module,
        address=settings.ADDRESS,
        port=port,
        workers=1,
        threads=threads,
        name=name,
    )
    write(settings.ETC / f'{name}.py', text, mode=0o644)


def keystone() -> None:
    sections = {
        'DEFAULT': {'use_stderr': True, 'transport_url': settings.RABBIT_URL},
        'database': database('keystone'),
        'token': {'provider': 'fernet'},
        'identity': {'password_hash_rounds': 4},
        'cache': {'enabled': False},
    }
    for kind, folder in (
        ('fernet_tokens', 'fernet-keys'),
        ('fernet_receipts', 'fernet-keys'),
        ('credential', 'credential-keys'),
    ):
        sections[kind] = {'key_repository': f'/var/lib/keystone/{folder}'}
    write('/etc/keystone/keystone.conf', ini(sections), 'keystone')
    gunicorn('keystone', 'keystone.wsgi.api', settings.PORTS['keystone'])


def placement() -> None:
    sections = {
        'DEFAULT': {'use_stderr': True},
        'placement_database': database('placement'),
        'keystone_authtoken': middleware('placement'),
    }
    write('/etc/placement/placement.conf', ini(sections), 'placement')
    gunicorn('placement', 'placement.wsgi.api', settings.PORTS['placement'])


def glance(flavour: str) -> None:
    data = pathlib.Path('/var/lib/glance')
    sections: dict[str, dict[str, Any]] = {
        'DEFAULT': {
            'enabled_backends': 'local:file',
            'enabled_import_methods': '[]',
            'worker_self_reference_url': settings.url('glance'),
            'do_secure_hash': False,
            'use_stderr': True,
            'transport_url': settings.RABBIT_URL,
        },
        'glance_store': {'default_backend': 'local'},
        'local': {'filesystem_store_datadir': data / 'images'},
        'os_glance_staging_store': {'filesystem_store_datadir': data / 'st'},
        'os_glance_tasks_store': {'filesystem_store_datadir': data / 'tasks'},
        'database': database('glance'),
        'keystone_authtoken': middleware('glance'),
        'paste_deploy': {'flavor': 'keystone'},
        'oslo_concurrency': {'lock_path': data / 'locks'},
    }
    if flavour == 'lazy':
        sections['DEFAULT']['enabled_backends'] = 'blob1:blob, local:file'
        sections['glance_store']['default_backend'] = 'blob1'
        sections['blob1'] = {
            'store_description': 'Lazy image store',
            'blob_store_catalog': 'rpc://',
            'blob_store_transport_url': settings.RABBIT_URL,
            'blob_store_conductor_public_keys': public_key(),
            **engine.options('blob_store_'),
        }
    write('/etc/glance/glance-api.conf', ini(sections), 'glance')
    for name in ('glance-api-paste.ini',):
        shutil.copy(settings.OPENSTACK / 'etc/glance' / name, '/etc/glance')
    gunicorn('glance', 'glance.wsgi.api', settings.PORTS['glance'])


def public_key() -> str:
    """The conductors', whose key is made the first time."""
    if not SIGNING_KEY.exists():
        SIGNING_KEY.parent.mkdir(parents=True, exist_ok=True)
        program = settings.LAZYIMAGE / 'bin/lazyimage-conductor'
        command = [program, '--new-signing-key', SIGNING_KEY]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        shutil.chown(SIGNING_KEY, 'lazyimage')
    return SIGNING_KEY.with_name(f'{SIGNING_KEY.name}.pub').read_text().strip()


def lazyimage() -> None:
    """Our own daemons."""
    state = pathlib.Path('/var/lib/lazyimage')
    catalog = settings.database_url('lazyimage')
    sections: dict[str, dict[str, Any]] = {
        'DEFAULT': {'transport_url': settings.RABBIT_URL},
        'repository': {**engine.options(), 'catalog': 'rpc://'},
        'conductor': {'public_keys': public_key()},
        'agent': {
            'host': settings.HOST,
            'state_directory': state,
            'run_directory': '/run/lazyimage',
            'mount_root': state / 'mnt',
            'socket': '/run/lazyimage/agent.sock',
            'socket_group': 'nova',
        },
    }
    write('/etc/lazyimage/lazyimage.conf', ini(sections), 'lazyimage')
    # A controller's file: the only one that names the database.
    sections = {
        'DEFAULT': {'transport_url': settings.RABBIT_URL},
        'repository': {**engine.options(), 'catalog': catalog},
        'conductor': {'catalog': catalog, 'signing_key': SIGNING_KEY},
    }
    path = '/etc/lazyimage/lazyimage-conductor.conf'
    write(path, ini(sections), 'lazyimage')


def nova_common() -> dict[str, dict[str, Any]]:
    state = pathlib.Path('/var/lib/nova')
    privileged = {
        'helper_command': 'sudo -n /opt/openstack/bin/privsep-helper '
        '--config-file /etc/nova/nova-compute.conf'
    }
    return {
        'DEFAULT': {
            'host': settings.HOST,
            'my_ip': settings.ADDRESS,
            'state_path': state,
            'transport_url': settings.RABBIT_URL,
            'use_stderr': True,
            'log_dir': '',
            'rpc_response_timeout': 60,
            'manager_shutdown_timeout': 4,
            'graceful_shutdown_timeout': 6,
            'heal_instance_info_cache_interval': -1,
            'vif_plugging_is_fatal': False,
            'vif_plugging_timeout': 0,
            'allow_resize_to_same_host': True,
            'cpu_allocation_ratio': 16,
            'ram_allocation_ratio': 4,
            'disk_allocation_ratio': 4,
            'initial_cpu_allocation_ratio': 16,
            'reserved_host_memory_mb': 512,
            'service_down_time': 60,
            # Whether a service has come up is known by its report.
            'report_interval': 2,
        },
        'keystone_authtoken': middleware('nova'),
        'service_user': credentials('nova')
        | {'send_service_user_token': True},
        'placement': credentials('placement'),
        'neutron': credentials('neutron'),
        'glance': {'api_servers': settings.url('glance')},
        'oslo_concurrency': {'lock_path': state / 'locks'},
        'oslo_messaging_rabbit': {'heartbeat_timeout_threshold': 0},
        'nova_sys_admin': privileged,
        'privsep_osbrick': privileged,
        'vif_plug_ovs_privileged': privileged,
        'vif_plug_linux_bridge_privileged': privileged,
        'vnc': {'enabled': False},
        'conductor': {'workers': 1},
        'scheduler': {'workers': 1},
    }


def nova() -> None:
    """The controller's file, nova-compute's and the API's."""
    common = nova_common()
    controller = common | {
        'database': database('nova'),
        'api_database': database('nova_api'),
        'filter_scheduler': {'track_instance_changes': False},
    }
    write('/etc/nova/nova.conf', ini(controller), 'nova')
    shutil.copy(settings.OPENSTACK / 'etc/nova/api-paste.ini', '/etc/nova')
    gunicorn('nova-api', 'nova.wsgi.osapi_compute', settings.PORTS['nova'])
    write(
        '/etc/sudoers.d/nova',
        'Defaults:nova !requiretty\n'
        'nova ALL = (root) NOPASSWD: /opt/openstack/bin/privsep-helper *\n',
        mode=0o440,
    )


def nova_compute(flavour: str) -> None:
    """nova-compute's file; the one that differs between the flavours."""
    common = nova_common()
    libvirt: dict[str, Any] = {
        'virt_type': os.environ.get('LAZYIMAGE_VIRT_TYPE', 'qemu'),
        'cpu_mode': 'none',
        'tb_cache_size': 64,
        'wait_soft_reboot_seconds': 30,
        'inject_partition': -2,
    }
    compute = common | {'libvirt': libvirt}
    compute['DEFAULT'] = common['DEFAULT'] | {
        'compute_driver': 'libvirt.LibvirtDriver',
        'instances_path': '/var/lib/nova/instances',
        'shutdown_timeout': 20,
        'update_resources_interval': 20,
        'sync_power_state_interval': 600,
    }
    if flavour == 'lazy':
        compute['DEFAULT'] |= {
            'compute_driver': 'lazyimage.LazyLibvirtDriver',
            'use_cow_images': False,
            'force_raw_images': True,
        }
        libvirt['images_type'] = 'raw'
        compute['lazyimage'] = {
            'agent_socket': '/run/lazyimage/agent.sock',
            'mount_root': '/var/lib/lazyimage/mnt',
            'released_directory': '/var/lib/lazyimage/released',
            'glance_stores': 'blob1',
        }
    write('/etc/nova/nova-compute.conf', ini(compute), 'nova')


def libvirt() -> None:
    """The sockets' rights; qemu.conf stays Debian's."""
    text = (
        'unix_sock_group = "libvirt"\n'
        'unix_sock_rw_perms = "0770"\n'
        'auth_unix_rw = "none"\n'
        'auth_unix_ro = "none"\n'
        f'host_uuid = "{HOST_UUID}"\n'
    )
    write('/etc/libvirt/libvirtd.conf', text, mode=0o644)


HOST_UUID = '5f0c1b0e-6a0e-4a52-9c53-3d0f6f9e7a11'


def client() -> None:
    """clouds.yaml for the ordinary client."""
    text = 'clouds:\n'
    for name, user in (('allinone', 'demo'), ('admin', 'admin')):
        text += (
            f'  {name}:\n'
            f'    region_name: {settings.REGION}\n'
            '    auth:\n'
            f'      auth_url: {settings.AUTH_URL}\n'
            f'      username: {user}\n'
            f'      password: {settings.PASSWORD}\n'
            f'      project_name: {user}\n'
            '      user_domain_name: Default\n'
            '      project_domain_name: Default\n'
        )
    write(settings.CLOUDS, text, mode=0o600)


def write_all(flavour: str) -> None:
    """Every file of the cloud, for one flavour."""
    keystone()
    placement()
    glance(flavour)
    lazyimage()
    nova()
    nova_compute(flavour)
    libvirt()
    client()
