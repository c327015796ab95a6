"""The throughput benchmark: figures from readings, refused arguments, and a real measurement."""

import json
import subprocess
import sys

import pytest

from benchmarks import race, throughput, turns
from tests.processes import run_module
from vision.core.errors import UserError


def _fake(monkeypatch, rates, device):
    """Lets processes return the rates in turn; returns who was run, in order."""
    readings, order = iter(rates), []

    def run(words, env=None):
        peer = 'torch_throughput.py' in words[1]
        order.append(' '.join(words[2:4]) if peer else 'ours')
        return {
            'rate': next(readings),
            'first': 60.0 / len(order),
            'form': f'library, {words[3]}',
            'device': device,
            'peak': 989e12,
            'flops_per_image': 1e12,
        }

    monkeypatch.setattr(throughput, 'run_process', run)
    return order


def test_medians_ratio_and_spread_of_readings_taken_in_turn(monkeypatch):
    order = _fake(monkeypatch, [10.0, 5.0, 30.0, 8.0, 20.0, 4.0], 'NVIDIA H100')
    (row,) = throughput.compare('train', ['lenet5'], ['float32'], ['torchvision'], 'python', 3)
    assert order == ['ours', 'torchvision channels_last'] * 3
    assert (row['ours'], row['peer'], row['ratio'], row['spread']) == (20.0, 5.0, 4.0, 3.0)
    assert (row['against'], row['form']) == ('torchvision', 'library, channels_last')
    assert (row['first'], row['peer_first']) == (60.0, 30.0)
    assert row['mfu'] == pytest.approx(20e12 / 989e12)
    assert row['rounds'] == {'ours': [10.0, 30.0, 20.0], 'peer': [5.0, 8.0, 4.0]}


def test_a_cpu_s_peers_are_taken_in_both_formats_and_the_faster_one_counts(monkeypatch, tmp_path):
    rates = [20.0, 8.0, 5.0, 9.0, 10.0, 40.0]
    order = _fake(monkeypatch, rates, 'cpu')
    peers = ['torchvision', 'torch.compile', 'onnxruntime', 'timm']
    ask = 'infer', ['alexnet'], ['float32'], peers, 'python', 1, None
    rows = throughput.compare(*ask, turns.Store(tmp_path))
    assert order == [
        'ours',
        'torchvision contiguous_format',
        'torchvision channels_last',
        'torch.compile contiguous_format',
        'torch.compile channels_last',
        'onnxruntime contiguous_format',
    ]
    assert [row['peer'] for row in rows] == [8.0, 10.0, 40.0, None]
    assert [row['ratio'] for row in rows] == [2.5, 2.0, 0.5, None]
    assert rows[1]['form'] == 'library, channels_last'
    # What was measured is not measured again.
    assert throughput.compare(*ask, turns.Store(tmp_path)) == rows and len(order) == 6


def test_stored_readings_survive_half_a_line(tmp_path):
    store = turns.Store(tmp_path)
    assert store.get(['a', 1], lambda: 2.0) == 2.0
    with (tmp_path / 'readings.jsonl').open('a') as file:
        file.write('\n{"key": ["b", 1], "rea')
    again = turns.Store(tmp_path)
    assert again.get(['a', 1], lambda: 3.0) == 2.0 and again.get(['b', 1], lambda: 4.0) == 4.0
    assert turns.Store(tmp_path).get(['b', 1], lambda: 5.0) == 4.0


@pytest.mark.parametrize('mode', ['train', 'infer'])
def test_our_rate_is_measured(monkeypatch, mode):
    monkeypatch.setattr(throughput, '_SECONDS', 0.0)
    reading = json.loads(throughput.measure(mode, 'lenet5', 'float32', 28, 1, 8))
    assert reading['rate'] > 10 and reading['peak'] is None
    # 416,520 multiply-adds: conv1 117,600, conv2 240,000, the layers 58,920.
    assert reading['flops_per_image'] == 416_520 * (6 if mode == 'train' else 2)


@pytest.mark.parametrize(
    'words',
    [
        ['--models=resnet'],
        ['--dtypes=float16'],
        ['--peer=keras'],
        ['--peer=onnxruntime'],
        ['--models='],
    ],
)
def test_what_is_not_known_is_the_users_mistake(words):
    done = run_module('benchmarks', 'throughput', 'train', *words)
    assert done.returncode == 2 and done.stderr.count('\n') == 1, done.stderr


@pytest.mark.parametrize(
    ('words', 'says'),
    [
        (['throughptu'], "unknown benchmark 'throughptu'. Did you mean 'throughput'?"),
        (['throughput', 'trian'], "Did you mean 'train'?"),
        (['throughput', 'train', 'infer'], "unexpected argument 'infer'"),
        (['throughput', '--peer=onnxruntime'], "'onnxruntime' is unknown in train"),
        (['throughput', '--peer=torchvision,keras'], "'keras' is unknown in train"),
        (['race', '--peer=torchvision,timm'], 'only throughput takes several'),
        (['search', '5'], "unexpected argument '5'"),
        ([], 'name one benchmark: throughput, race'),
    ],
)
def test_a_misspelt_name_gets_the_nearest_one(words, says):
    done = run_module('benchmarks', *words)
    assert done.returncode == 2 and done.stderr.count('\n') == 1, done.stderr
    assert says in done.stderr


def test_the_old_command_names_the_new_one():
    done = run_module('experiments.benchmark', 'train', '--rounds=1')
    assert done.returncode == 2 and done.stderr.count('\n') == 1, done.stderr
    assert 'python -m benchmarks NAME' in done.stderr


def test_a_process_that_fails_is_named(tmp_path):
    with pytest.raises(UserError, match='none/python'):
        throughput.run_process(['none/python'])
    with pytest.raises(UserError, match='no peer here'):
        throughput.run_process([sys.executable, '-c', "raise SystemExit('no peer here')"])


@pytest.mark.parametrize('file', [throughput._PEER, race._PEER])
def test_the_peer_needs_nothing_of_ours(file):
    done = subprocess.run(
        [sys.executable, '-S', '-c', f'import runpy; runpy.run_path({str(file)!r})'],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
