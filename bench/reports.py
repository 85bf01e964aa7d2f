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
"""The result of a bench: a table for people, a file for comparisons.

The file has what the table leaves out: every round, the machine, the commit.
"""

import contextlib
import json
import os
import pathlib
import platform
import subprocess
import time
from collections.abc import Iterable
from typing import Any

from bench import harness
from bench import verdicts


def _figure(value: float) -> str:
    return f'{value:,.0f}' if abs(value) >= 1000 else f'{value:.3g}'


def _wanted(row: verdicts.Row) -> str:
    """The goal."""
    if row.at_most is not None:
        return f'<= {_figure(row.at_most)}'
    return '' if row.goal is None else f'>= {row.goal:g}'


def table(
    bench: harness.Bench, rows: Iterable[verdicts.Row], rounds: int
) -> str:
    """The rows, for people."""
    lines = [
        (
            'metric',
            'contender',
            'median',
            'spread',
            f'CPU {bench.cpu_unit}',
            'ratio',
            'spread',
            'goal',
            '',
        )
    ]
    for row in rows:
        verdict = {None: '', True: 'met', False: 'NOT MET'}[row.is_met]
        lines.append(
            (
                f'{row.metric.name} [{row.metric.unit}]',
                f'  against {row.against}' if row.against else row.contender,
                '' if row.against else _figure(row.median),
                '' if row.against else f'{row.spread:.0%}',
                '' if row.against else f'{row.cpu_seconds:.2f}',
                '-' if row.ratio is None else f'{row.ratio:.2f}',
                '' if row.ratio is None else f'{row.ratio_spread:.2f}',
                _wanted(row),
                verdict,
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = []
    for line in lines:
        cells = [
            cell.ljust(width) if index < 2 else cell.rjust(width)
            for index, (cell, width) in enumerate(
                zip(line, widths, strict=True)
            )
        ]
        text.append('  '.join(cells).rstrip())
    return '\n'.join(
        [
            f'{bench.name}: {bench.summary}',
            f'{rounds} interleaved rounds; ratio: times as good as '
            f'{bench.baseline}',
            '',
            text[0],
            '-' * len(text[0]),
            *text[1:],
        ]
    )


def _machine() -> dict[str, Any]:
    model = ''
    with contextlib.suppress(OSError):
        for line in pathlib.Path('/proc/cpuinfo').read_text().splitlines():
            if line.startswith('model name'):
                model = line.partition(':')[2].strip()
                break
    pages = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    return {
        'processor': model,
        'processors': len(os.sched_getaffinity(0)),
        'memory_bytes': pages,
        'kernel': platform.release(),
        'python': platform.python_version(),
    }


def _commit() -> str:
    with contextlib.suppress(OSError):
        done = subprocess.run(
            ['git', 'describe', '--always', '--dirty', '--abbrev=12'],
            cwd=pathlib.Path(__file__).parent,
            capture_output=True,
            text=True,
        )
        return done.stdout.strip()
    return ''


def save(
    bench: harness.Bench,
    rows: Iterable[verdicts.Row],
    rounds: harness.Rounds,
    folder: pathlib.Path,
) -> pathlib.Path:
    """Write ``<name>.json`` with all that was measured; its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f'{bench.name}.json'
    content = {
        'format': 1,
        'name': bench.name,
        'summary': bench.summary,
        'baseline': bench.baseline,
        'commit': os.environ.get('LAZYIMAGE_COMMIT') or _commit(),
        'time': time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime()),
        'machine': _machine(),
        'rows': [
            {
                'metric': row.metric.name,
                'unit': row.metric.unit,
                'better': row.metric.better,
                'contender': row.contender,
                'median': row.median,
                'spread': row.spread,
                'ratio': row.ratio,
                'cpu': row.cpu_seconds,
                'cpu_unit': bench.cpu_unit,
                'against': row.against or bench.baseline,
                'ratio_spread': row.ratio_spread,
                'goal': row.goal,
                'at_most': row.at_most,
                'met': row.is_met,
            }
            for row in rows
        ],
        'rounds': rounds,
    }
    temporary = path.with_suffix('.json.tmp')
    temporary.write_text(json.dumps(content, indent=1) + '\n')
    temporary.replace(path)
    return path
