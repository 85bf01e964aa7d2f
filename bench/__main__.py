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
"""``python -m bench [NAME...]``: run comparisons and print their tables.

Ends with 0 if all were measured and every goal was met, with 3 if a goal was
not, with 1 if something could not be measured.
"""

import argparse
import importlib
import pathlib
import shutil
import sys
import tempfile

from bench import harness
from bench import runs

NAMES = {
    'fuse': 'bench.fuse',
    'touch': 'bench.touch',
    'misses': 'bench.misses',
    'scale': 'bench.scale',
    'takeover': 'bench.takeover',
    'freeze': 'bench.freeze',
    'commit': 'bench.commit',
    'import': 'bench.importing',
    'snapshot': 'bench.snapshot',
    'glance': 'bench.glance',
    's3': 'bench.gateway',
    'catalog': 'bench.catalog',
    'conductor': 'bench.conductor',
    'verify': 'bench.verifying',
    'cloud': 'bench.cloud',
}
HERE = pathlib.Path(__file__).parent


def load(name: str) -> harness.Bench:
    found = importlib.import_module(NAMES[name]).BENCH
    assert isinstance(found, harness.Bench)
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog='bench', description=__doc__)
    parser.add_argument(
        'names', nargs='*', metavar='NAME', help=', '.join(NAMES)
    )
    parser.add_argument('--rounds', type=int, help='more than its own number')
    parser.add_argument(
        '--only', metavar='PATTERN', help='only cases whose names match'
    )
    parser.add_argument(
        '--smoke',
        action='store_true',
        help='one round, and no figure: that the bench itself works',
    )
    parser.add_argument(
        '--work',
        type=pathlib.Path,
        default=pathlib.Path('/var/tmp'),
        help='a folder on the file system to be measured; O_DIRECT must work '
        '(default: %(default)s)',
    )
    parser.add_argument(
        '--results',
        type=pathlib.Path,
        default=HERE / 'results',
        help='where <name>.json goes (default: %(default)s)',
    )
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in NAMES]
    if unknown:
        parser.error(f'no bench "{unknown[0]}"; there are {", ".join(NAMES)}')
    status = 0
    for name in options.names or NAMES:
        work = pathlib.Path(
            tempfile.mkdtemp(prefix=f'bench-{name}-', dir=options.work)
        )
        try:
            bench = load(name)
            if options.only:
                bench = bench.only(options.only)
            if options.smoke:
                runs.smoke(bench, work=work)
            elif not runs.run(
                bench,
                work=work,
                results=options.results,
                rounds=options.rounds,
                tell=lambda line: print(line, flush=True),
            ):
                status = status or 3
        except (harness.TooFewRounds, harness.Missing) as exc:
            print(f'bench: {exc}', file=sys.stderr)
            status = 1
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return status


if __name__ == '__main__':
    sys.exit(main())
