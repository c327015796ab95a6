"""The progress bar shows the compilation and excludes it from the time left."""

import re
import sys
import types
from functools import partial

from vision.core import progress
from vision.task.classification import METRICS
from vision.training.hooks import Display


def test_the_first_step_is_compiled_and_promises_no_time(monkeypatch, capsys):
    monkeypatch.setenv('FORCE_COLOR', '1')
    monkeypatch.setenv('COLUMNS', '120')
    monkeypatch.setenv('TERM', 'xterm')
    display = Display('digits:train', 1000, METRICS)

    now = [0.0]
    at = partial(now.__setitem__, 0)

    def shown():
        progress._display.refresh()
        return re.sub(r'\x1b\[[0-9;?]*[A-Za-z]', '', capsys.readouterr().err)

    with display:
        monkeypatch.setattr(progress._display, 'get_time', lambda: now[0])
        display.start(0)
        before = shown()
        assert 'compiling' in before and '0/1,000' in before
        at(90.0)  # that long it was compiled
        display.after_step(1, {}, {})
        first = shown()
        assert 'step' in first and '1/1,000' in first and 'compiling' not in first.splitlines()[-1]
        assert not re.search(r'\d:\d\d left', first)
        at(91.0)
        display.after_step(11, {}, {})
        at(92.0)
        display.after_step(21, {}, {})
        left = re.search(r'1:32, (\d+):(\d\d) left', shown().splitlines()[-1])
    assert left and 60 <= 60 * int(left[1]) + int(left[2]) <= 120  # 979 steps at 10 a second


def test_in_a_notebook_one_output_is_replaced(monkeypatch, capsys):
    shown = []
    handle = types.SimpleNamespace(update=lambda data, raw: shown.append(data['text/plain']))
    shell = types.SimpleNamespace(kernel=None)
    ipython = types.SimpleNamespace(get_ipython=lambda: shell)
    ipython.display = types.SimpleNamespace(display=lambda data, raw, display_id: handle)
    for name, module in (('IPython', ipython), ('IPython.display', ipython.display)):
        monkeypatch.setitem(sys.modules, name, module)
    record = {'train/loss': 0.5, 'train/top1': 0.9, 'images_per_second': 100.0}
    with Display('digits:train', 10, METRICS) as display:
        display.start(0)
        display.after_step(1, {}, {})
        display.after_log(5, record, 65.0)
        assert shown[-1].splitlines()[-1] == (
            'step 5/10  loss 0.5000  top-1 90.00%  100 images/s  1:05 left'
        )
        display.after_evaluation(5, {'loss': 0.4, 'top1': 1.0, 'count': 20})
        display.after_log(10, record, 0.0)
    first, validated, last = shown[-1].splitlines()
    assert first == 'training on digits:train: 10 steps; compiling the first one'
    assert validated == 'step 5/10  validation: loss 0.4000  top-1 100.00% of 20'
    assert last.startswith('step 10/10') and capsys.readouterr() == ('', '')
