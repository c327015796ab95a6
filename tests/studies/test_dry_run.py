"""A dry run reports the figures of a run and writes nothing."""

import json

import jax
import pytest
from ml_collections import ConfigDict
from PIL import Image

from configs.digits_lenet5 import get_config
from tests.training.tiny import NET, tiny_config
from vision.core.config import to_json
from vision.core.errors import UserError
from vision.core.workdir import check_place
from vision.models.summary import summarise
from vision.studies.cost import dry_run, dry_run_text
from vision.studies.lr_range import find_lr
from vision.training.setup import setup


def test_the_figures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = tiny_config()
    config.model.norm = False
    result, summary = dry_run(setup(config)), summarise(NET, 32, 1, 10, norm=False)
    assert result['parameters'] == summary.parameters
    assert result['gmacs'] * 1e9 == summary.macs
    assert (result['steps'], result['batch_size'], result['examples']) == (24, 32, 1077)
    # Parameters and momentum in float32, in addition step, counters and key.
    exact = 8 * summary.parameters
    assert exact <= result['state_bytes'] <= exact + 64
    assert result['step_bytes'] is None or result['step_bytes'] > result['state_bytes']
    assert result['estimated_seconds'] == pytest.approx(24 * result['step_seconds'])
    assert result['config']['optimizer']['lr'] == 0.05
    assert result['ops'] == {'train': 'on the device', 'eval': 'on the device'}
    text = dry_run_text(result)
    assert 'training and evaluation on the device\n' in text
    assert 's to compile; without evaluations' in text
    assert '24 steps of 32 images' in text and f'{summary.parameters:,} parameters' in text
    # A number of whole epochs may end within a batch, and the ops may run in two places.
    config.training.duration = '2 epochs'
    other = {'config': config.to_dict(), 'steps': 67, 'ops': {'train': 'here', 'eval': 'there'}}
    text = dry_run_text(result | other)
    assert '1.991 epochs (rounded to whole steps)' in text
    assert 'training here; evaluation there\n' in text
    assert list(tmp_path.iterdir()) == []
    assert jax.devices()


def test_what_would_stop_the_run_stops_it():
    with pytest.raises(UserError, match='lenet6'):
        dry_run(setup(tiny_config(model__name='lenet6')))


@pytest.mark.parametrize(
    ('source', 'says'),
    [('nowhere', 'no such file or workdir'), ('{tmp}', 'is not a workdir'), ('{tmp}/run', 'has no checkpoint'),
     ('{tmp}/other', 'holds no complete checkpoint'),
     ('{tmp}/x.safetensors', 'not a readable .safetensors file'), ('{tmp}/x.txt', 'weights must be a')],
)  # fmt: skip
def test_weights_that_do_not_fit_are_refused(tmp_path, source, says):
    config = tiny_config(init_from=source.format(tmp=tmp_path))
    for name in ('run', 'other'):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'config.json').write_text(to_json(get_config()))
        dataset = {'class_names': ['a', 'b'], 'input_shape': [32, 32, 1]}
        (tmp_path / name / 'dataset.json').write_text(json.dumps(dataset))
    (tmp_path / 'other' / 'checkpoints' / '3').mkdir(parents=True)
    for name in ('x.safetensors', 'x.txt'):
        (tmp_path / name).write_bytes(b'no weights')
    if '/x' in source:
        config.model = get_config().model
        config.model.name = 'alexnet'
        config.preprocess.train = config.preprocess.eval = 'resize(63)'
    run = setup(config)
    for study in (dry_run, find_lr):
        with pytest.raises(UserError, match=says):
            study(run)


def test_a_workdir_that_the_run_could_not_be_in_is_refused(tmp_path):
    run = setup(tiny_config())
    (tmp_path / 'other').mkdir()
    other = tiny_config(optimizer__lr=0.3)
    (tmp_path / 'other' / 'config.json').write_text(to_json(other))
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match=r'optimizer.lr is 0.3 there and 0.05 here'):
        dry_run(run, tmp_path / 'other')
    with pytest.raises(UserError, match='Not a directory'):
        check_place(tmp_path / 'file' / 'run')


def test_unreadable_validation_images_are_found(tmp_path):
    for split, content in (('train', None), ('val', b'no image'), ('test', None)):
        for name in ('a', 'b'):
            (tmp_path / split / name).mkdir(parents=True)
            image = tmp_path / split / name / '1.png'
            Image.new('L', (32, 32), 9).save(image)
            image.write_bytes(content or image.read_bytes())
    config = tiny_config(training__batch_size=2)
    config.data = ConfigDict({'source': 'folder', 'path': str(tmp_path)})
    config.preprocess.train = config.preprocess.eval = 'decode(1)|resize(32)'
    config.preprocess.mean, config.preprocess.std = (0.0,), (1.0,)
    with pytest.raises(UserError, match=r'1\.png'):
        dry_run(setup(config))
