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
"""``nova-compute-lazyimage``: nova-compute where no ``.pth`` is read.

Everywhere else nova-compute itself is enough. The driver's module must not be
imported here: ``nova.cmd.compute`` has to be the first of Nova, since it
patches the standard library (Nova 33 and older).
"""


def main() -> None:
    """Install the hook, then be nova-compute."""
    import nova_lazyimage_hook

    nova_lazyimage_hook.install()

    from nova.cmd import compute

    compute.main()


if __name__ == '__main__':
    main()
