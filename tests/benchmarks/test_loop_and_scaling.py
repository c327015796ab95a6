"""The benchmarks of the loop, a GPU and scaling: that they run, and how readings become figures."""

import json

import jax.numpy as jnp
import pytest

from benchmarks import gpu, growth, loop, memory, scaling, startup, throughput
from benchmarks.input import make_jpegs
from vision.core.errors import UserError
from vision.models.layers import xla_only


@pytest.mark.slow
def test_the_loop_is_fed_from_files(monkeypatch):
    monkeypatch.setattr(loop, '_TIMED', 2)
    monkeypatch.setattr(loop, 'make_jpegs', lambda folder: make_jpegs(folder, 40))
    result = loop.end_to_end('lenet5', 32, 4, rounds=1)
    assert result['files'] > 0 and result['synthetic'] > 0
    assert result['ratio'] == pytest.approx(result['files'] / result['synthetic'])


@pytest.mark.slow
def test_a_start_ends_with_its_first_step():
    cold, warm = startup.first_step('lenet5', 32, 4)
    for taken in (cold, warm):
        parts = json.loads(taken.last)
        assert list(parts) == ['import', 'setup', 'trace', 'compile', 'step']
        assert all(seconds >= 0 for seconds in parts.values())
        assert sum(parts.values()) <= taken.seconds
        assert taken.cpu > 0


@pytest.mark.slow
def test_memory_is_measured_in_the_loop():
    (row,) = memory.memory(['lenet5'], 64, [], None)
    assert 0 < row['temp_mib'] < row['start_mib'] < row['peak_mib'] and row['ratio'] == 1


@pytest.mark.slow
def test_growth_has_a_page_and_goes_on(tmp_path, monkeypatch):
    rows = growth.growth(tmp_path, quick=True)
    assert {row['curve'] for row in rows} == set(growth.CURVES)
    for row in rows:
        assert len(row['values']) == 2 and all(value > 0 for value in row['values'])
        assert row['slope'] == pytest.approx(row['first']) == row['last']
    assert (tmp_path / 'growth.png').stat().st_size > 10_000
    # What was measured is not measured again.
    monkeypatch.setattr(growth, 'run_process', None)
    assert growth.growth(tmp_path, quick=True) == rows


def test_a_gpu_gets_resnet50_with_mfu_and_epochs(monkeypatch):
    h100 = {'device': 'NVIDIA H100', 'rate': 2000.0, 'peak': 989e12, 'flops_per_image': 24.5e9}
    calls, plain = [], []

    def run(words, env=None):
        calls.append(words[3:])
        plain.append(env is not None and env.get('VISION_FAST') == '0')
        return h100

    monkeypatch.setattr(throughput, 'run_process', run)
    rows = gpu.gpu(['resnet50', 'inference', 'epochs'], batch_size=64)
    assert [
        (row['model'], row['mode'], row['dtype']) for row in rows if row['form'] != 'plain'
    ] == [
        (model, mode, dtype)
        for model, mode in [
            ('resnet50', 'train'),
            ('resnet50', 'infer'),
            ('lenet5', 'epoch'),
            ('resnet20', 'epoch'),
        ]
        for dtype in ('bfloat16', 'float32')
        for _ in range(1 + (mode == 'epoch'))
    ]
    assert calls[0] == calls[1] == ['train', 'resnet50', 'bfloat16', '224', '3', '64']
    assert [i for i, row in enumerate(rows) if row['form'] == 'plain'] == [1]
    assert [i for i, without in enumerate(plain) if without] == [1]
    assert calls[-2] == ['resnet20', 'float32', '32', '3', '128', '50000', '100']
    assert calls[-1] == ['resnet20', 'float32', '32', '3', '128', '50000', '1']
    assert rows[0]['mfu'] == pytest.approx(2000 * 24.5e9 / 989e12) and rows[0]['seconds'] is None
    assert rows[0]['peer'] is None and rows[0]['ratio'] is None
    assert rows[-1]['seconds'] == 25.0 and rows[-1]['device'] == 'NVIDIA H100'
    attention = [(row['model'], row['form']) for row in gpu.gpu(['attention'])]
    assert attention == [('vit_s16', 'fast'), ('vit_s16', 'plain'), ('convnext_tiny', 'fast')]
    with pytest.raises(UserError, match='epochs'):
        gpu.gpu(['epoch'])


def test_a_peer_s_resnet50_is_measured_after_ours(monkeypatch):
    order = []

    def run(words, env=None):
        order.append('peer' if words[0] == 'torch' else 'ours')
        rate, form = 30.0 / len(order), 'torchvision, channels_last'
        return {'device': 'cpu', 'rate': rate, 'peak': None, 'flops_per_image': 1.0, 'form': form}

    monkeypatch.setattr(throughput, 'run_process', run)
    rows = gpu.gpu(
        ['resnet50', 'inference', 'epochs'],
        tiny=True,
        peer=throughput.peer_command('torchvision', 'torch'),
    )
    assert order == ['ours', 'peer', 'ours'] + ['ours', 'peer'] * 3 + ['ours'] * 8
    assert (rows[0]['rate'], rows[0]['peer'], rows[0]['ratio']) == (30.0, 15.0, 2.0)
    assert rows[-1]['peer'] is None


@pytest.mark.parametrize(
    ('part', 'count'),
    [
        pytest.param('epochs', 8, marks=pytest.mark.slow),
        *(
            pytest.param(part, count, marks=pytest.mark.nightly)
            for part, count in {'resnet50': 3, 'inference': 2, 'attention': 3}.items()
        ),
    ],
)
def test_each_part_of_the_benchmark_of_a_gpu_runs(part, count):
    rows = gpu.gpu([part], tiny=True)
    assert len(rows) == count and all(row['rate'] > 0 for row in rows)


def test_xla_counts_what_is_counted_by_hand():
    """A training step costs three forward passes, less the input gradient of the first layer."""
    with xla_only():
        cost = scaling.step_cost('lenet5', 32, 64)
    assert 0.6 < cost['gflop'] / cost['gflop_by_hand'] < 1.1
    assert cost['mb_accessed'] > 4 * 32 * 32 * 3 / 1e6


@pytest.mark.slow
def test_memory_is_of_the_step_and_grows_with_the_batch():
    small, large = (
        scaling.compile_step('lenet5', 32, batch, dtype=jnp.float32).memory_analysis()
        for batch in (64, 128)
    )
    assert 1.5 < large.temp_size_in_bytes / small.temp_size_in_bytes < 2.5


def test_speed_by_batch_has_a_row_for_each(monkeypatch):
    monkeypatch.setattr(throughput, 'measure_apart', lambda *words: {'rate': 10.0 * words[-1]})
    rows = scaling.by_batch((16, 32))
    assert [(row['batch'], row['rate']) for row in rows] == [(16, 160.0), (32, 320.0)]
