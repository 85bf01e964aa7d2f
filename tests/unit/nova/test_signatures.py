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
"""Every overridden method takes what the installed Nova passes."""

import inspect

import pytest
from nova.virt.libvirt import driver as libvirt_driver
from nova.virt.libvirt import imagebackend as nova_imagebackend

from nova_lazyimage import driver
from nova_lazyimage import imagebackend

PAIRS = (
    (driver.LazyLibvirtDriver, libvirt_driver.LibvirtDriver),
    (imagebackend.LazyImage, nova_imagebackend.Image),
    (imagebackend.LazyBackend, nova_imagebackend.Backend),
)
# What Nova added after the oldest release, taken by **kwargs.
KNOWN = {'finish_migration': {'share_info'}}


def overridden():
    for ours, theirs in PAIRS:
        for cls in ours.__mro__:
            if not cls.__module__.startswith('nova_lazyimage'):
                continue
            for name, member in vars(cls).items():
                function = inspect.unwrap(getattr(member, '__func__', member))
                if inspect.isfunction(function) and hasattr(theirs, name):
                    yield pytest.param(
                        function,
                        getattr(theirs, name),
                        id=f'{cls.__name__}.{name}',
                    )


def names(function):
    parameters = inspect.signature(function).parameters.values()
    return [
        p.name
        for p in parameters
        if p.name != 'self' and p.kind is not p.VAR_KEYWORD
    ]


@pytest.mark.parametrize('ours,theirs', overridden())
def test_the_arguments_are_those_of_nova(ours, theirs):
    if ours.__name__ == '__init__' and 'disk_name' in names(ours):
        theirs = nova_imagebackend.Flat.__init__
    known = KNOWN.get(ours.__name__, set())
    wanted = [name for name in names(theirs) if name not in known]
    assert names(ours) == wanted


@pytest.mark.parametrize('ours,theirs', overridden())
def test_the_defaults_are_those_of_nova(ours, theirs):
    if ours.__name__ == '__init__':
        return
    ours, theirs = (
        {
            p.name: p.default
            for p in inspect.signature(f).parameters.values()
            if p.default is not p.empty
        }
        for f in (ours, theirs)
    )
    for name, default in ours.items():
        assert theirs[name] == default, name


def test_something_is_compared():
    assert len(list(overridden())) > 35
