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
"""What holds for every test here.

*Logs.* A warning or an error from one of our loggers fails the test that
caused it, unless it was expected::

    def test_a_retry_is_told(expect_logs):
        with expect_logs('Cannot read a chunk', count=2):
            ...

    @pytest.mark.expect_logs('agent is away')     # any number, or none
    def test_...

*Seeds.* ``rng`` is a ``random.Random`` of the test's own. The seed is printed
at the top of the run and with a failure; ``LAZYIMAGE_TEST_SEED`` repeats it,
Hypothesis included.

*Threads.* Native ones: whoever imports oslo.service first decides for the
whole process, so it is decided here.

*Skips.* With ``--skips-fail`` (``make test``) a skipped test is a failed one,
unless a line of ``allowed_skips.txt`` matches "test: reason".
"""

import collections
import contextlib
import logging
import os
import pathlib
import random
import re

import pytest

with contextlib.suppress(ImportError, ValueError):  # not in every environment
    from oslo_service import backend

    backend.init_backend(backend.BackendType.THREADING)

LOGGERS = (
    'glance_store_blob',
    'lazyblob',
    'nova.virt.lazyimage',
    'nova_lazyimage',
)
ALLOWED_SKIPS = pathlib.Path(__file__).with_name('allowed_skips.txt')
SEED = 'LAZYIMAGE_TEST_SEED'


class Watch(logging.Handler):
    """Remembers what our loggers say at WARNING and above."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.records = []
        self.expected = []  # patterns of the marks: may be logged

    def emit(self, record):
        self.records.append(record)

    def take(self, pattern):
        """Remove and return the records that match."""
        found = [
            record
            for record in self.records
            if re.search(pattern, record.getMessage())
        ]
        self.records = [r for r in self.records if r not in found]
        return found

    def unexpected(self):
        for pattern in self.expected:
            self.take(pattern)
        return [
            f'{record.levelname} {record.name}: {record.getMessage()}'
            for record in self.records
        ]


def pytest_addoption(parser):
    parser.addoption(
        '--skips-fail',
        action='store_true',
        help='a skip that allowed_skips.txt does not list is a failure',
    )


def pytest_configure(config):
    # Set before pytest-xdist starts its workers: all have the same one.
    drawn = random.SystemRandom().getrandbits(32)
    seed = os.environ.setdefault(SEED, str(drawn))
    if getattr(config.option, 'hypothesisseed', False) is None:
        config.option.hypothesisseed = seed


def pytest_report_header(config):
    return f'seed: {os.environ[SEED]} (repeat with {SEED})'


@pytest.fixture
def rng(request):
    """Chance that a run can repeat: seeded by the run and the test's name."""
    seed = f'{os.environ[SEED]}:{request.node.nodeid}'
    print(f'seed of this test: {seed}')
    return random.Random(seed)


@pytest.fixture(autouse=True)
def log_watch(request):
    """Fail the test if one of our loggers warned of what nobody expected."""
    watch = Watch()
    watch.expected = [
        mark.args[0] for mark in request.node.iter_markers('expect_logs')
    ]
    loggers = [logging.getLogger(name) for name in LOGGERS]
    for logger in loggers:
        logger.addHandler(watch)
    yield watch
    for logger in loggers:
        logger.removeHandler(watch)
    unexpected = watch.unexpected()
    if unexpected:
        pytest.fail(
            'logged unexpectedly (expect_logs of tests/conftest.py tells '
            'how to expect it):\n  ' + '\n  '.join(unexpected),
            pytrace=False,
        )


@pytest.fixture
def expect_logs(log_watch):
    """``with expect_logs(pattern, count=1)``: exactly so many warnings.

    ``count=None`` is any number but none: silence proves nothing.
    """

    @contextlib.contextmanager
    def expecting(pattern, count=1):
        log_watch.records, before = [], log_watch.records
        yield
        found = len(log_watch.take(pattern))
        log_watch.records = before + log_watch.records
        if found != count if count is not None else not found:
            wanted = 'at least one' if count is None else count
            pytest.fail(
                f'expected {wanted} of the warnings or errors {pattern!r}, '
                f'saw {found}',
                pytrace=False,
            )

    return expecting


def _allowed(where, reason):
    for line in ALLOWED_SKIPS.read_text().splitlines():
        pattern = line.split('#')[0].strip()
        if pattern and re.search(pattern, f'{where}: {reason}'):
            return True
    return False


def _fail_skip(report, config):
    if not (report.skipped and config.getoption('--skips-fail')):
        return
    if hasattr(report, 'wasxfail'):
        return
    reason = report.longrepr
    if isinstance(reason, tuple):
        reason = reason[2]
    if not _allowed(report.nodeid, reason):
        report.outcome = 'failed'
        report.longrepr = (
            f'{reason}\nA skip is a failure here: install what is missing, '
            'or list it in tests/allowed_skips.txt with the reason.'
        )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    _fail_skip(report, item.config)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    report = yield
    _fail_skip(report, collector.config)
    return report


def pytest_terminal_summary(terminalreporter):
    """Count the reasons of skips, so that none is overlooked."""
    reasons = collections.Counter(
        report.longrepr[2]
        for report in terminalreporter.stats.get('skipped', [])
        if isinstance(report.longrepr, tuple)
    )
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f'skipped {count} times: {reason}')
