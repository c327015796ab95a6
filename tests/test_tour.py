"""The outputs that are stored in docs/tour.ipynb belong to its cells, and are fit to be shown."""

import json
import re

from tests.tour import NOTEBOOK, digest

TOUR = json.loads(NOTEBOOK.read_text('utf-8'))
CODE = [cell for cell in TOUR['cells'] if cell['cell_type'] == 'code']
OUTPUTS = [output for cell in CODE for output in cell['outputs']]


def test_the_outputs_are_those_of_the_sources():
    assert TOUR['metadata']['sources'] == digest(TOUR), 'execute it again: make tour'
    assert [cell['execution_count'] for cell in CODE] == list(range(1, len(CODE) + 1))


def test_each_cell_is_short_and_introduced():
    before = [kind['cell_type'] for kind in TOUR['cells'][:-1]]
    for kind, cell in zip(before, TOUR['cells'][1:], strict=True):
        if cell['cell_type'] == 'code':
            assert kind == 'markdown' and len(cell['source']) <= 16, ''.join(cell['source'])


def test_the_outputs_are_results_and_nothing_else():
    kinds = {output['output_type'] for output in OUTPUTS}
    assert kinds <= {'display_data', 'execute_result', 'stream'}
    assert {output['name'] for output in OUTPUTS if output['output_type'] == 'stream'} <= {'stdout'}
    text = json.dumps(
        [
            o.get('text', [v for k, v in o.get('data', {}).items() if k != 'image/png'])
            for o in OUTPUTS
        ]
    )
    assert not re.search(r'["\s(/](tmp|home|root|Users)/|Warning|\\u001b|Traceback', text)
    assert sum('image/png' in output.get('data', {}) for output in OUTPUTS) >= 8
    assert NOTEBOOK.stat().st_size < 1_500_000
