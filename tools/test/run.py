#!/usr/bin/env python3
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
"""The stages of ``make test``: run them, count, tell the truth.

A stage is a list of checks, a check one program. Every check of every stage
runs, whatever failed before it; the summary names what failed and how long
each stage took; the exit status is 0 only if all passed. A check passes if
its program ends with 0 *and* it proved something: a suite without a test
fails, and so does a missing program. Skipped tests fail unless
``tests/allowed_skips.txt`` lists them (``tests/conftest.py`` sees to it).

Checks that say they may run beside others do so, ``LANES`` at a time, after
the stage's other ones; what such a check prints comes in one piece, when it
has ended.

Runs inside the all-in-one's private root, whose ``/opt/test`` holds the
tools, or in any environment that has them (``tox -e pep8``). Standard
library only.
"""

import argparse
import concurrent.futures
import dataclasses
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable

CHECK_SECONDS_MAX = 1500.0
SOAK_SECONDS_MAX = 12 * 3600.0
#: Checks that run at a time; as many as the cores that CI is promised.
LANES = 2
TREE = pathlib.Path(__file__).resolve().parents[2]
RESULTS = pathlib.Path(
    os.environ.get('LAZYIMAGE_TEST_RESULTS') or tempfile.mkdtemp(prefix='lt-')
)


@dataclasses.dataclass
class Counts:
    """What programs say they proved."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0

    def __add__(self, other: 'Counts') -> 'Counts':
        return Counts(
            self.passed + other.passed,
            self.failed + other.failed,
            self.skipped + other.skipped,
        )

    def __str__(self) -> str:
        line = f'{self.passed} passed, {self.failed} failed'
        return line + (f', {self.skipped} skipped' if self.skipped else '')


@dataclasses.dataclass
class Check:
    """One program, and how to count what it proved."""

    name: str
    command: list[str]
    folder: pathlib.Path = TREE
    suite: str = ''  # 'pytest' or 'cargo' for a program with tests of its own
    remedy: str = ''
    seconds_max: float = CHECK_SECONDS_MAX
    beside_others: bool = False

    def run(self, say: Callable[[str], object]) -> Counts:
        """Run it, its output said on; a failure counts at least one."""
        program = shutil.which(self.command[0])
        if program is None:
            say(
                f'{self.command[0]} is missing. It comes with '
                'test-requirements.txt or bindep.txt; install it, or run '
                '"make test", whose root has everything.\n'
            )
            return Counts(failed=1)
        command = [program, *self.command[1:]]
        report = RESULTS / f'{re.sub("[^a-z0-9]+", "-", self.name)}.xml'
        if self.suite == 'pytest':
            report.unlink(missing_ok=True)
            command.append(f'--junitxml={report}')
        status, lines = stream(command, self.folder, self.seconds_max, say)
        if self.suite == 'pytest':
            counts = counts_of_junit(report)
        elif self.suite == 'cargo':
            counts = counts_of_cargo(lines)
        else:
            counts = Counts(passed=1)
        if self.suite and not (counts.passed or counts.failed):
            say(f'{self.name}: no test ran, so nothing is proved\n')
            return Counts(failed=1)
        if status and not counts.failed:
            counts = (
                dataclasses.replace(counts, failed=1)
                if self.suite
                else Counts(failed=1)
            )
        if counts.failed and self.remedy:
            say(f'{self.name}: {self.remedy}\n')
        return counts


def say_at_once(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def stream(
    command: list[str],
    folder: pathlib.Path,
    seconds_max: float,
    say: Callable[[str], object],
) -> tuple[int, list[str]]:
    """Run a program and pass on what it prints; its status and lines.

    One that does not end is killed: a test that hangs past its own time-out
    would else take the stages behind it, and the summary, along.
    """
    lines = []
    with subprocess.Popen(
        command,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding='utf-8',
        errors='replace',
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        guard = threading.Timer(
            seconds_max, os.killpg, (process.pid, signal.SIGKILL)
        )
        guard.start()
        for line in process.stdout:
            say(line)
            lines.append(line)
        guard.cancel()
    return process.returncode, lines


def counts_of_junit(report: pathlib.Path) -> Counts:
    """What a pytest run wrote; nothing, if it did not come so far."""
    counts = Counts()
    if not report.exists():
        return counts
    for suite in ElementTree.parse(report).getroot().iter('testsuite'):
        number = {
            name: int(suite.get(name, 0))
            for name in ('tests', 'failures', 'errors', 'skipped')
        }
        failed = number['failures'] + number['errors']
        counts += Counts(
            max(0, number['tests'] - failed - number['skipped']),
            failed,
            number['skipped'],
        )
    return counts


def counts_of_cargo(lines: list[str]) -> Counts:
    """What ``cargo test`` printed, over all its binaries."""
    counts = Counts()
    for line in lines:
        found = re.match(
            r'test result: \w+\. (\d+) passed; (\d+) failed; (\d+) ignored',
            line,
        )
        if found:
            counts += Counts(*map(int, found.groups()))
    return counts


def files(*patterns: str, shebang: str = '') -> list[str]:
    """Files that git knows or would take, by pattern or by first line."""
    listing = subprocess.run(
        ['git', '-c', f'safe.directory={TREE}', 'ls-files', '-z']
        + ['--cached', '--others', '--exclude-standard'],
        cwd=TREE,
        check=True,
        capture_output=True,
    ).stdout.decode()
    found = []
    for name in sorted(filter(None, listing.split('\0'))):
        path = TREE / name
        if not path.is_file():
            continue
        if any(pathlib.PurePath(name).match(p) for p in patterns):
            found.append(name)
        elif shebang and not path.suffix:
            with path.open('rb') as stream_:
                first = stream_.readline(100)
            if re.match(shebang.encode(), first):
                found.append(name)
    return found


def pytest(*arguments: str) -> list[str]:
    return ['python', '-m', 'pytest', '--skips-fail'] + [
        '--continue-on-collection-errors',
        '--durations=20',
        '--durations-min=1',
        *arguments,
    ]


def beside_each_other(*checks: Check) -> list[Check]:
    """Checks of which each has the other lane free; the longest first."""
    return [dataclasses.replace(check, beside_others=True) for check in checks]


def lint() -> list[Check]:
    shell = files('*.sh', shebang=r'#!.*\b(ba)?sh\b')
    prose = files('*.rst')
    mirror = TREE / 'mirror'
    return beside_each_other(
        Check(
            'cargo clippy',
            ['cargo', 'clippy', '--quiet', '--locked', '--all-targets']
            + ['--all-features', '--', '-D', 'warnings']
            # Rust 1.85 counts shifts and masks among the first, and finds
            # the second where the types ask for a half-open range.
            + ['-A', 'clippy::precedence', '-A', 'clippy::range_plus_one'],
            mirror,
        ),
        Check('files', ['python', 'tools/test/files.py', *files('*')]),
        Check(
            'ruff check',
            ['ruff', 'check', '.'],
            remedy='"ruff check --fix" mends what can be mended',
        ),
        Check(
            'ruff format',
            ['ruff', 'format', '--check', '--diff', '.'],
            remedy='"ruff format FILE" does it',
        ),
        Check('hacking', ['flake8', *files('*.py')]),
        Check('codespell', ['codespell', *files('*')]),
        Check('doc8', ['doc8', '--quiet', *prose]),
        Check('sphinx-lint', ['sphinx-lint', *prose]),
        Check('shellcheck', ['shellcheck', '--external-sources', *shell]),
        Check('bashate', ['bashate', '--ignore', 'E003,E006,E011', *shell]),
        Check('import-linter', ['lint-imports', '--no-cache']),
        Check(
            'cargo fmt',
            ['cargo', 'fmt', '--check'],
            mirror,
            remedy='"cargo fmt" does it',
        ),
    )


def types() -> list[Check]:
    # Even unused, a cache is a database that only one at a time can open.
    mypy = ['mypy', f'--cache-dir={os.devnull}']
    return beside_each_other(
        Check('mypy', mypy),
        Check('mypy of bench', [*mypy, '-p', 'bench']),
        Check(
            'stubtest',
            ['python', '-m', 'mypy.stubtest', 'nova_lazyimage._mirror']
            + ['--concise', '--mypy-config-file', 'pyproject.toml']
            + ['--ignore-disjoint-bases', '--allowlist']
            + ['tools/test/stubtest.txt'],
            remedy='nova_lazyimage/_mirror.pyi and mirror/src/python/ '
            'disagree',
        ),
    )


def unit() -> list[Check]:
    return [
        Check('unit', pytest('-n', '2', 'tests/unit'), suite='pytest'),
        Check(
            'cargo test',
            # With "faults" for tests/crash; a wheel is built without.
            ['cargo', 'test', '--locked', '--features', 'faults'],
            TREE / 'mirror',
            suite='cargo',
        ),
        *(
            # Locks and atomics in a model checker's hands (src/sync.rs).
            Check(
                f'models of {name}',
                ['cargo', 'test', '--locked', '--features', 'shuttle', *which],
                TREE / 'mirror',
                suite='cargo',
            )
            for name, which in (
                ('the engine', ['--test', 'models']),
                ('its parts', ['--lib', 'models']),
            )
        ),
    ]


def wheel() -> list[Check]:
    return [Check('wheel', ['tools/test/wheel'])]


def docs() -> list[Check]:
    def sphinx(builder: str) -> list[str]:
        return ['sphinx-build', '-EW', '--keep-going', '-q', '-b', builder] + [
            'doc/source',
            f'doc/build/{builder}',
        ]

    # One after the other: both write doc/source/_static.
    return [
        Check('html', sphinx('html')),
        Check('man pages', sphinx('man')),
        Check('release notes', ['reno', '-q', 'lint']),
    ]


#: The longest first, and beside it what disturbs it least: then the lanes
#: end together. A folder that is not named comes last.
FUNCTIONAL_ORDER = (
    'agent',
    'nova',
    'lazyblob',
    'glance',
    'mirror',
    'conductor',
)


def functional() -> list[Check]:
    # A process each: Nova's and Glance's harnesses change theirs for good.
    folder = TREE / 'tests' / 'functional'
    names = {
        path.relative_to(folder).parts[0] for path in folder.rglob('test_*.py')
    }
    ordered = [name for name in FUNCTIONAL_ORDER if name in names]
    return beside_each_other(
        *(
            Check(name, pytest(f'tests/functional/{name}'), suite='pytest')
            for name in ordered + sorted(names - set(ordered))
        )
    )


def e2e() -> list[Check]:
    return [Check('e2e', pytest('--timeout=900', 'tests/e2e'), suite='pytest')]


def soak() -> list[Check]:
    """The long runs; "make soak" says how long.

    Every test with the mark ``soak``, which takes its length from the
    environment; those that are too long for "make test" are in tests/soak.
    ``LAZYIMAGE_SOAK_ONLY`` chooses, as pytest's ``-k`` does.
    """
    found = [
        str(path.relative_to(TREE))
        for path in sorted((TREE / 'tests').rglob('test_*.py'))
        if 'pytest.mark.soak' in path.read_text()
    ]
    options = ['-m', 'soak', '--timeout=0', '-s']
    crash = Check(
        'crash',
        ['cargo', 'test', '--locked', '--features', 'faults']
        + ['--test', 'crash'],
        TREE / 'mirror',
        suite='cargo',
        seconds_max=SOAK_SECONDS_MAX,
    )
    cache = Check(
        'cache',
        ['cargo', 'test', '--locked', '--test', 'cache', 'eviction'],
        TREE / 'mirror',
        suite='cargo',
        seconds_max=SOAK_SECONDS_MAX,
    )
    only = os.environ.get('LAZYIMAGE_SOAK_ONLY')
    for check in (crash, cache):
        if only == check.name:
            return [check]
    if only:
        return [
            Check(
                only,
                pytest(*options, '-k', only, *found),
                suite='pytest',
                seconds_max=SOAK_SECONDS_MAX,
            )
        ]
    return [
        Check(
            name,
            pytest(*options, name),
            suite='pytest',
            seconds_max=SOAK_SECONDS_MAX,
        )
        for name in found
    ] + [crash, cache]


STAGES = {
    stage.__name__: stage
    for stage in (lint, types, unit, wheel, docs, functional, e2e)
}
# Not of "make test": only when named.
LONG_STAGES = {'soak': soak}


def prepare() -> None:
    """Put the tools first in PATH: the root's, or this interpreter's."""
    place = pathlib.Path('/opt/test/bin')
    if not place.exists():
        place = pathlib.Path(sys.executable).parent
    # Nova's harness looks for its files where its interpreter is.
    files_of_services = pathlib.Path('/opt/openstack/etc')
    beside = place.parent / 'etc'
    is_root = place == pathlib.Path('/opt/test/bin')
    if is_root and files_of_services.exists() and not beside.exists():
        beside.symlink_to(files_of_services)
    os.environ['PATH'] = f'{place}{os.pathsep}{os.environ["PATH"]}'
    os.environ.setdefault('PYTHONUNBUFFERED', '1')
    RESULTS.mkdir(parents=True, exist_ok=True)


def run_one(stage: str, check: Check, say: Callable[[str], object]) -> Counts:
    """Run a check between a line that begins and one that ends it."""
    say(f'\n--- {stage}: {check.name}\n')
    started = time.monotonic()
    counts = check.run(say)
    verdict = 'FAILED' if counts.failed else 'ok'
    seconds = time.monotonic() - started
    say(f'--- {stage}: {check.name}: {verdict}, {seconds:.1f} s\n')
    return counts


def run_kept(stage: str, check: Check) -> Counts:
    """Run a check beside others: all it says comes when it has ended."""
    say_at_once(f'\n--- {stage}: {check.name} begins\n')
    said: list[str] = []
    try:
        return run_one(stage, check, said.append)
    finally:
        say_at_once(''.join(said))


def run_stage(stage: str, checks: list[Check]) -> dict[str, Counts]:
    """Run all checks of a stage, whatever fails; what each proved."""
    beside = [check for check in checks if check.beside_others]
    found = {
        check.name: run_one(stage, check, say_at_once)
        for check in checks
        if check not in beside
    }
    with concurrent.futures.ThreadPoolExecutor(LANES) as lanes:
        counts = lanes.map(lambda check: run_kept(stage, check), beside)
        names = (check.name for check in beside)
        found.update(zip(names, counts, strict=True))
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument(
        'stages', nargs='*', metavar='STAGE', help=', '.join(STAGES)
    )
    chosen = parser.parse_args(arguments).stages or list(STAGES)
    stages = {**STAGES, **LONG_STAGES}
    unknown = [name for name in chosen if name not in stages]
    if unknown:
        parser.error(f'no stage "{unknown[0]}"; there are {", ".join(stages)}')
    prepare()
    started = time.monotonic()
    total = Counts()
    summary = []
    failures = []
    for name in chosen:
        stage_started = time.monotonic()
        counts = Counts()
        for check, found in run_stage(name, stages[name]()).items():
            counts += found
            if found.failed:
                failures.append(f'{name}: {check}: {found}')
        seconds = time.monotonic() - stage_started
        summary.append(f'  {name:<12}{seconds:>8.1f} s   {counts}')
        total += counts
    print('\nStages:')
    print('\n'.join(summary))
    if failures:
        print('\nFailed:')
        print('\n'.join(f'  {line}' for line in failures))
    print(f'\nAll stages took {time.monotonic() - started:.0f} s.')
    print(total, flush=True)
    return 1 if total.failed else 0


if __name__ == '__main__':
    sys.exit(main())
