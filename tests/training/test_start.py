"""Errors at the start of a run, before its workdir is made or an existing run is touched."""

import json
import os
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.models.weights.test_pretrained import save, torch_state
from tests.training.tiny import tiny_config
from vision.core import workdir as workdir_lib
from vision.core.errors import UserError
from vision.data import arrays, identity
from vision.evaluation.run import check_data
from vision.studies.cost import dry_run
from vision.training import train
from vision.training.setup import setup
from vision.training.start import _check_like, check_start, warn_of_selection


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    """A folder of three splits, with eight small pictures of each of two classes."""
    root = tmp_path_factory.mktemp('photos')
    rng = np.random.default_rng(0)
    for split in ('train', 'val', 'test'):
        for i in range(16):
            path = root / split / ('cat', 'dog')[i % 2] / f'{i}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (32, 32), np.uint8)).save(path)
    return root


def config_for(root, **overrides):
    config = tiny_config(data__source='folder', **overrides)
    config.data.path = str(root)
    config.preprocess.train = config.preprocess.eval = 'decode(channels=1)|resize(32)'
    return config


def test_few_validation_images_are_told_with_advice_that_is_accepted(photos, caplog):
    def told(config):
        caplog.clear()
        warn_of_selection(setup(config))
        return '\n'.join(r.getMessage() for r in caplog.records if 'select' in r.getMessage())

    # A standard error of √(.9 × .1 / n); a folder for validation takes no share.
    given = told(config_for(photos))
    assert '16 images' in given and '8 points' in given and 'data.validation' not in given
    split = told(config_for(photos / 'train'))
    assert '2 images' in split and '21 points' in split
    # Each of the flags is accepted.
    advice = dict(re.findall(r'--config\.(\S+)=([\w%]+)', split))
    assert advice == {'training.best_by': 'loss', 'data.validation': '20%'}
    more = told(config_for(photos / 'train', data__validation='20%'))
    assert '3 images' in more and 'more images than --config.data.validation=20%' in more
    # The loss is no fraction, and 360 digits are enough.
    assert told(config_for(photos, training__best_by='loss')) == '' == told(tiny_config())


def begin(config, path):
    """Writes what a run records at its start."""
    run = setup(config)
    start = check_start(run, path)
    workdir_lib.create(path)
    workdir_lib.describe(path, run.config)
    identity.record(path, run.dataset, start.examples)


def contents(path):
    return {p.name: p.read_bytes() for p in path.iterdir()}


@pytest.fixture
def copy(photos, tmp_path):
    """A copy of the photos to modify, and the workdir of a run that was started with them."""
    root, path = tmp_path / 'data', tmp_path / 'run'
    shutil.copytree(photos, root)
    begin(config_for(root), path)
    return root, path


def renamed(root):
    for split in ('train', 'val', 'test'):
        os.rename(root / split / 'cat', root / split / 'zebra')


def twice(root):
    for file in list((root / 'train').rglob('*.png')):
        shutil.copyfile(file, file.with_stem(f'{file.stem}_copy'))


def copied(root):
    return shutil.copytree(root, root.with_name('copy'), dirs_exist_ok=True)


def one_file(change):
    return lambda root: change(root / 'test' / 'dog' / '3.png')


CHANGES = {
    'a class renamed': (renamed, "lost the class 'cat' and have the new class 'zebra'"),
    'a class more': (
        lambda root: [
            shutil.copytree(root / s / 'cat', root / s / 'eel') for s in ('train', 'val', 'test')
        ],
        "have the new class 'eel'",
    ),
    'twice the images': (
        twice, r"train had 16 examples and has 32; 16 are new, the first is 'cat/0_copy.png'",
    ),
    'an image gone': (
        one_file(os.unlink), r"test had 16 .* has 15; 1 is gone, the first is 'dog/3.png'"
    ),
    'an image changed': (
        one_file(lambda path: path.write_bytes(path.read_bytes() + b'x')),
        r"1 is changed, the first is 'dog/3.png'",
    ),
    'an image renamed': (
        one_file(lambda path: path.rename(path.with_name('new.png'))),
        r"1 is gone, the first is 'dog/3.png'; 1 is new, the first is 'dog/new.png'",
    ),
    'an image in another class': (
        one_file(lambda path: path.rename(path.parent.parent / 'cat' / '3.png')),
        r"1 is gone, the first is 'dog/3.png'; 1 is new, the first is 'cat/3.png'",
    ),
}  # fmt: skip


@pytest.mark.parametrize('name', CHANGES)
def test_data_that_changed_between_two_starts_are_refused_and_the_workdir_is_left_alone(copy, name):
    root, path = copy
    change, says = CHANGES[name]
    before = contents(path)
    change(root)
    with pytest.raises(UserError, match=says) as error:
        train(config_for(root), path)
    assert 'another --workdir' in str(error.value) and '\n' not in str(error.value)
    assert contents(path) == before


def test_a_root_that_moved_passes(copy, tmp_path):
    root, path = copy
    shutil.move(root, tmp_path / 'moved')
    check_start(setup(config_for(tmp_path / 'moved')), path)
    (tmp_path / 'moved' / 'test' / 'dog' / '3.png').unlink()
    with pytest.raises(UserError, match=r"was trained on other data: .* the first is 'dog/3.png'"):
        check_start(setup(config_for(tmp_path / 'moved')), path)


def test_it_is_written_once(copy):
    root, path = copy
    before = contents(path)
    recorded = json.loads(before['dataset.json'])
    assert recorded['num_examples'] == {'train': 16, 'validation': 16, 'test': 16}
    assert recorded['class_names'] == ['cat', 'dog'] and 'rules' in recorded
    assert {len(digest) for digest in recorded['identity'].values()} == {32}
    begin(config_for(root), path)
    assert contents(path)['dataset.json'] == before['dataset.json']


def test_an_older_workdir_is_compared_in_what_it_has_recorded(copy):
    """Without digests the numbers of examples are compared; without these, the classes."""
    root, path = copy
    recorded = json.loads((path / 'dataset.json').read_text())
    check_start(setup(config_for(copied(root))), path)
    for key in ('identity', 'rules'):
        del recorded[key]
    (path / 'dataset.json').write_text(json.dumps(recorded))
    (path / 'examples.json.gz').unlink()
    run = setup(config_for(root))
    check_start(run, path)
    with pytest.raises(UserError, match=r'another config: data\.path is'):
        check_start(setup(config_for(copied(root))), path)
    (root / 'train' / 'cat' / '0.png').unlink()
    with pytest.raises(UserError, match='train had 16 examples and has 15'):
        check_start(setup(config_for(root)), path)
    del recorded['num_examples']
    (path / 'dataset.json').write_text(json.dumps(recorded))
    check_start(setup(config_for(root)), path)


def test_arrays_that_changed_are_refused(tmp_path):
    def write(**changes):
        splits = {s: arrays.digits(s) for s in ('train', 'test')}
        found = {f'x_{s}': d.images[:40] for s, d in splits.items()}
        found |= {f'y_{s}': d.labels[:40] for s, d in splits.items()}
        np.savez(tmp_path / 'data.npz', **(found | changes))
        return found

    def config():
        made = tiny_config(data__source='npz', data__validation=10)
        made.data.path = str(tmp_path / 'data.npz')
        return made

    found = write()
    begin(config(), tmp_path / 'run')
    images = found['x_train'].copy()
    images[:, 0, 0] ^= 1
    write(x_train=images)
    with pytest.raises(UserError, match='train had 30 examples and has 30; 30 are changed'):
        check_start(setup(config()), tmp_path / 'run')
    write(x_test=np.pad(found['x_test'], ((0, 0), (0, 2), (0, 0), (0, 0))),
          x_train=np.pad(found['x_train'], ((0, 0), (0, 2), (0, 0), (0, 0))))  # fmt: skip
    with pytest.raises(UserError, match=r'the images are \[10, 8, 1\]; they were \[8, 8, 1\]'):
        check_start(setup(config()), tmp_path / 'run')


def test_evaluation_compares_the_split_that_it_is_of(copy, monkeypatch):
    root, path = copy
    run = setup(config_for(root))

    class Run:
        class_names, image_shape = run.train.class_names, None

    Run.path = path
    check_data(Run, run.test, 'test')
    (root / 'train' / 'cat' / '0.png').unlink()
    (root / 'test' / 'cat' / '0.png').unlink()
    now = setup(config_for(root))
    check_data(Run, now.validation, 'validation')
    check_data(Run, now.test)  # as another data set, or with other keys
    with pytest.raises(UserError, match=r"1 is gone, the first is 'cat/0.png'.*--eval.data.path"):
        check_data(Run, now.test, 'test')


# Weights to start from.


def refused(config, path, says):
    """Checks that a start and a dry run are refused before the workdir exists."""
    with pytest.raises(UserError, match=says) as error:
        train(config, path)
    assert '\n' not in str(error.value) and not path.exists()
    with pytest.raises(UserError, match=says):
        dry_run(setup(config))


def small_state():
    """Weights of a ResNet-18 with one block in each stage."""
    return {k: v for k, v in torch_state('resnet18').items() if not re.match(r'layer\d\.1\.', k)}


def small_config(source):
    config = tiny_config()
    config.model = {'name': 'resnet18', 'stage_sizes': (1, 1, 1, 1)}
    config.preprocess.train = config.preprocess.eval = 'resize(32)|rgb'
    config.init_from = str(source)
    return config


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    return save(tmp_path_factory.mktemp('weights') / 'small.safetensors', small_state())


def test_weights_that_are_not_there_or_of_another_model(tmp_path, weights, monkeypatch):
    monkeypatch.setattr('vision.training.start.init_state', lambda *_: pytest.fail('compiles'))
    config = tiny_config()
    for source, says in (
        (tmp_path / 'none', 'init_from=.*none: no such file or workdir'),
        (tmp_path, 'is not a workdir'),
        (weights, 'no torchvision or timm weights for model'),
    ):
        config.init_from = str(source)
        refused(config, tmp_path / 'run', says)
    config = small_config(weights)
    config.model.stage_sizes = (2, 1, 1, 1)
    refused(config, tmp_path / 'run', 'does not match the model: missing layer1.1')


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_weights_that_are_not_finite_are_named(tmp_path, value):
    state = small_state()
    state['layer2.0.conv1.weight'] = np.full_like(state['layer2.0.conv1.weight'], value)
    config = small_config(save(tmp_path / 'bad.safetensors', state))
    refused(
        config, tmp_path / 'run', r'bad.safetensors has .*NaN or infinite: params/layer2_0/conv1'
    )


def test_a_place_that_cannot_be_written_to_is_told_before_data_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr('vision.training.loop.setup', lambda config: pytest.fail('reads data'))
    (tmp_path / 'file').touch()
    for path, says in (
        (tmp_path / 'file', 'is not a folder'),
        (tmp_path / 'file' / 'run', 'not a directory'),
        (tmp_path / ('x' * 300), 'name too long'),
        ('/proc/run', r'cannot be written to|/proc'),
        ('', 'is empty'),
        (f'{tmp_path}/caf\udce9', 'not valid UTF-8'),
    ):
        with pytest.raises(UserError, match=f'(?i){says}') as error:
            train(tiny_config(), path)
        assert '\n' not in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ['file']


@pytest.mark.parametrize('read', [{'a': np.zeros(2)}, {'b': np.zeros(3)}, None])
def test_a_task_must_read_what_it_initialises(read):
    """Else the run would train, and its checkpoints could not be resumed."""
    with pytest.raises(UserError, match='`read` and `init` differ'):
        _check_like({'a': np.zeros(3)}, read)
    _check_like({'a': np.zeros(3)}, {'a': np.ones(3)})
