"""JSON without NaN and Infinity: such numbers are null, with the reason beside them."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from vision.core.config import check, default_config
from vision.core.errors import UserError
from vision.core.text import json_text

NAN, INF = float('nan'), float('inf')


def strict(text):
    """Reads JSON as strict parsers do."""

    def refuse(word):
        raise AssertionError(f'{word} is no JSON')

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize(
    ('value', 'written'),
    [
        ({'a': 1.5, 'b': [1, None, 'x']}, {'a': 1.5, 'b': [1, None, 'x']}),
        ({'loss': NAN}, {'loss': None, 'not_finite': {'loss': 'NaN'}}),
        ({'a': {'b': INF}, 'c': 1}, {'a': {'b': None, 'not_finite': {'b': 'Infinity'}}, 'c': 1}),
        (
            {'rates': [1.0, (-INF, 2)]},
            {'rates': [1.0, [None, 2]], 'not_finite': {'rates[1][0]': '-Infinity'}},
        ),
        ([NAN, 1.0], [None, 1.0]),
        ([{'x': NAN}, {'x': 2}], [{'x': None, 'not_finite': {'x': 'NaN'}}, {'x': 2}]),
        ({'x': np.float64('nan')}, {'x': None, 'not_finite': {'x': 'NaN'}}),
        (NAN, None),
    ],
)
def test_a_number_that_is_not_finite_is_null_with_its_reason(value, written):
    assert strict(json_text(value)) == written
    assert strict(json_text(value, indent=2)) == written


def test_all_writers_go_through_it():
    """Exceptions pass values between our processes, or are scripts of peers without `vision`."""
    root = Path(__file__).parents[2]
    others = {
        f'{folder}/{name}'
        for folder, names in {
            'vision': ('core/text.py', 'core/processes.py', 'data/identity.py'),
            'benchmarks': (
                'race.py',
                'gpu.py',
                'growth.py',
                'memory.py',
                'scaling.py',
                'search.py',
                'startup.py',
                'throughput.py',
                'torch_race.py',
                'torch_throughput.py',
            ),
        }.items()
        for name in names
    }
    # Look for direct calls of json.dump and json.dumps.
    for folder in ('vision', 'experiments', 'benchmarks'):
        for path in (root / folder).rglob('*.py'):
            direct = re.search(r'(?<!strict_)json\.dumps?\(', path.read_text())
            assert not direct or str(path.relative_to(root)) in others, path


@pytest.mark.parametrize('key', ['optimizer.momentum', 'model.scale'])
def test_a_config_has_no_such_number(key):
    config = default_config()
    section, name = key.split('.')
    config[section][name] = INF
    with pytest.raises(UserError, match=f'{key}.*inf'):
        check(config)
