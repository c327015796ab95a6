"""The throughput benchmark: figures from readings, refused arguments, and a real measurement."""

import json
import subprocess
import sys

import pytest

from benchmarks import race, throughput
from tests.processes import run_module
from vision.core.errors import UserError


def test_medians_ratio_and_spread_of_readings_taken_in_turn(monkeypatch):
    readings = iter([10.0, 5.0, 30.0, 8.0, 20.0, 4.0])
    order = []

    def run(words, env=None):
        order.append('peer' if 'torch_throughput.py' in words[1] else 'ours')
        return {
            'rate': next(readings),
            'device': 'NVIDIA H100',
            'peak': 989e12,
            'flops_per_image': 1e12,
        }

    monkeypatch.setattr(throughput, 'run_process', run)
    (row,) = throughput.compare('train', ['lenet5'], ['float32'], 'torchvision', 'python', 3)
    assert order == ['ours', 'peer'] * 3
    assert (row['ours'], row['peer'], row['ratio'], row['spread']) == (20.0, 5.0, 4.0, 3.0)
    assert row['mfu'] == pytest.approx(20e12 / 989e12)
    assert row['rounds'] == {'ours': [10.0, 30.0, 20.0], 'peer': [5.0, 8.0, 4.0]}


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
