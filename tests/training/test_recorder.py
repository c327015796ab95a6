"""Records equal TensorBoard's events and survive a kill."""

import shlex

import numpy as np
import pytest

from vision.core.workdir import read_records
from vision.training.records import Recorder, grid, newest, next_commands


def test_tensorboard_reads_the_curves_and_the_images(tmp_path):
    accumulator = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    images = np.random.default_rng(0).uniform(-20, 300, (10, 8, 8, 1)).astype(np.float32)
    with Recorder(tmp_path, 0) as recorder:
        recorder.images('train/images', images, 0)
        for step in (10, 20, 30):
            recorder.write(step, {'train/loss': 1 / step, 'validation/top5': None})
    with Recorder(tmp_path, 20) as recorder:  # killed after its checkpoint of step 20
        recorder.write(30, {'train/loss': 7.0})
    events = accumulator.EventAccumulator(str(tmp_path))
    events.Reload()
    assert events.Images('train/images')[0].encoded_image_string.startswith(b'\x89PNG')
    curve = [(e.step, e.value) for e in events.Scalars('train/loss')]
    assert curve == [(10, pytest.approx(0.1)), (20, pytest.approx(0.05)), (30, 7.0)]
    assert [r['step'] for r in read_records(tmp_path)] == [10, 20, 30]
    assert read_records(tmp_path)[-1]['train/loss'] == 7.0


def test_a_half_written_line_is_left_out(tmp_path):
    with Recorder(tmp_path, 0) as recorder:
        recorder.write(1, {'a': 1})
    with open(tmp_path / 'metrics.jsonl', 'a') as file:
        file.write('{"step": 2, "a"')
    assert read_records(tmp_path) == [{'step': 1, 'a': 1}]
    with Recorder(tmp_path, 1) as recorder:
        recorder.write(2, {'a': 3})
    assert read_records(tmp_path) == [{'step': 1, 'a': 1}, {'step': 2, 'a': 3}]


def test_the_newest_metrics_of_a_split():
    scores = {
        f'test/{k}': v for k, v in {'top1': 0.5, 'top5': None, 'loss': 1.0, 'count': 4}.items()
    }
    records = [{'step': 1, **scores}, {'step': 2, 'train/loss': 1.0}]
    assert newest(records, 'test') == {'top1': 0.5, 'top5': None, 'loss': 1.0, 'count': 4}
    assert newest(records, 'test', step=2) is None
    assert newest(records, 'validation') is None


@pytest.mark.parametrize('channels', [1, 2, 3, 4])
def test_a_grid_shows_every_image_once(channels):
    values = np.arange(1, 6, dtype=np.uint8)[:, None, None, None]
    images = values * np.ones((1, 4, 3, channels), np.uint8)
    sheet = grid(images, columns=2)
    assert sheet.shape == (3 * 5 + 1, 2 * 4 + 1, 3)
    for value in range(1, 6):
        assert (sheet[..., 0] == value).sum() == 12


@pytest.mark.parametrize('workdir', ['runs/digits', 'my runs/a', "it's $HOME"])
def test_the_next_commands_are_read_by_a_shell(workdir):
    lines = next_commands(workdir).removeprefix('next: ').splitlines()
    evaluate, predict = (shlex.split(line) for line in lines)
    assert evaluate == ['python', '-m', 'experiments.evaluate', f'--workdir={workdir}']
    assert predict[2:4] == ['experiments.predict', f'--workdir={workdir}']
    (only,) = next_commands(workdir, 'validation', predicts=False).splitlines()
    assert shlex.split(only)[-2:] == [f'--workdir={workdir}', '--split=validation']
