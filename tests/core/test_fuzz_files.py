"""Fuzzing of files other than images, and of op strings: each is read, or refused in one line."""

import gzip
import json
import resource
import time

import numpy as np
import pytest

from configs import digits_lenet5
from tests.core.test_checkpoints import save as save_checkpoints
from tests.core.test_checkpoints import state
from tests.models.weights import torch_format
from tests.prediction.fuzz import ROOM, mutate, virtual_size
from tests.task.judged import RANK
from tests.tiers import quick
from vision.core import config as config_lib
from vision.core import workdir
from vision.core.checkpoints import Checkpoints
from vision.core.errors import UserError
from vision.data import array_files, arrays, file_list, identity
from vision.evaluation.predictions import read_predictions
from vision.models.weights import pretrained
from vision.models.weights.state_dicts import read_state_dict
from vision.preprocess import inputs
from vision.search import index
from vision.task import read_task

MUTATIONS = 60 if quick() else 2000
OPS = (
    'decode|resize(36)|random_crop(32, padding=4)|flip_lr',
    'random_resized_crop(28, area=(0.3, 1.0))|brightness(0.4)|contrast(0.4)|cutout(8)',
    "affine(degrees=10, scale=0.3)|autoaugment('imagenet')|randaugment(2, 9)|erase(0.25)",
)


def idx_file(values):
    header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, '>i4').tobytes()
    return header + values.astype(np.uint8).tobytes()


@pytest.fixture(autouse=True)
def limited():
    """Limits memory: no file may make a reader allocate more than `ROOM` bytes."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (virtual_size() + ROOM, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (10, 8, 8), np.uint8)


def refused_or_read(files, read, seed=0, mutations=MUTATIONS):
    """Reads mutations of files, and returns the number of refused ones.

    Fails for any error other than a UserError, and for a file that takes ten seconds.
    """
    rng, refused = np.random.default_rng(seed), 0
    for _ in range(mutations):
        data, began = mutate(rng, files), time.process_time()
        try:
            read(data)
        except UserError as e:
            refused += 1
            assert str(e).strip() and '\n' not in str(e), (data[:200], str(e))
        except Exception as e:
            raise AssertionError(f'{type(e).__name__}: {e}, for {data[:300]!r}') from e
        assert time.process_time() - began < 10, data[:300]
    return refused


def test_idx(tmp_path, images):
    labels = np.arange(10) % 3
    for split in ('train', 't10k'):
        (tmp_path / f'{split}-images-idx3-ubyte').write_bytes(idx_file(images))
        (tmp_path / f'{split}-labels-idx1-ubyte').write_bytes(idx_file(labels))

    def read_images(data):
        (tmp_path / 'train-images-idx3-ubyte').write_bytes(data)
        array_files.idx('train', str(tmp_path))

    assert refused_or_read([idx_file(images)], read_images)
    (tmp_path / 'train-images-idx3-ubyte').unlink()

    def read_packed(data):
        (tmp_path / 'train-images-idx3-ubyte.gz').write_bytes(data)
        array_files.idx('train', str(tmp_path))

    assert refused_or_read([gzip.compress(idx_file(images))], read_packed)


def test_npz(tmp_path, images):
    path = tmp_path / 'a.npz'
    np.savez(path, train_images=images, train_labels=np.arange(10) % 3)
    whole = path.read_bytes()
    np.savez_compressed(path, train_images=images, train_labels=np.arange(10) % 3)
    packed = path.read_bytes()

    def read(data):
        path.write_bytes(data)
        array_files.npz('train', str(path))

    path.write_bytes(whole)
    assert array_files.npz('train', str(path)).num_examples == 10
    assert refused_or_read([whole, packed], read)


def test_safetensors(tmp_path):
    safetensors = pytest.importorskip('safetensors.numpy')
    tensors = {f'layer{i}.weight': np.full((3, i + 1), i, np.float32) for i in range(4)}
    path = tmp_path / 'a.safetensors'
    safetensors.save_file(tensors, path)

    def read(data):
        path.write_bytes(data)
        read_state_dict(str(path))

    assert refused_or_read([path.read_bytes()], read)


@pytest.mark.parametrize('in_a_row', [False, True])
def test_torch_files(tmp_path, in_a_row):
    path = tmp_path / 'a.pth'
    tensors = {f'layer{i}.weight': np.full((3, i + 1), i, np.float32) for i in range(4)}
    arguments = torch_format.Call('argparse', 'Namespace')
    whole = torch_format.save(
        path, {'state_dict': tensors, 'args': arguments, 'epoch': 3}, in_a_row
    )

    def read(data):
        path.write_bytes(data)
        read_state_dict(str(path))

    read(whole)
    assert refused_or_read([whole], read)


def test_a_config_of_the_hub(tmp_path, monkeypatch):
    about = {
        'input_size': [3, 224, 224],
        'test_input_size': [3, 288, 288],
        'crop_pct': 0.95,
        'mean': [0.5],
        'std': [0.5],
    }
    file = tmp_path / 'config.json'
    monkeypatch.setattr('huggingface_hub.hf_hub_download', lambda repository, filename: file)

    def read(data):
        file.write_bytes(data)
        pretrained.pretrained_input('resnet50', 'hf:timm/resnet50')

    assert refused_or_read([json.dumps({'pretrained_cfg': about}).encode()], read)


@pytest.mark.slow
def test_a_checkpoint(tmp_path):
    save_checkpoints(tmp_path, [3, 5], {3: (0.5, 1.0), 5: (0.6, 1.0)})
    damaged = tmp_path / 'checkpoints' / '5'
    files = [p for p in sorted(damaged.rglob('*')) if p.is_file() and p.stat().st_size]
    sums = damaged / 'checksums.json'
    for number, path in enumerate(files):
        whole, kept = path.read_bytes(), sums.read_bytes()

        def read(data, path=path, whole=whole):
            if data == whole:
                raise UserError('as it was')
            path.write_bytes(data)
            with Checkpoints(tmp_path, RANK, read_only=True) as checkpoints:
                checkpoints.restore(5, state(0))

        # With checksums every mutation is found. Without them, as in older versions, a mutation is
        # read or refused in one line.
        each = max(1, MUTATIONS // 60)
        if path != sums:
            assert refused_or_read([whole], read, number, each) == each
            sums.unlink()
        refused_or_read([whole], read, number, each)
        path.write_bytes(whole)
        sums.write_bytes(kept)


def test_an_index(tmp_path):
    pytest.importorskip('faiss')
    made = index.create(
        {'model': '{}', 'preprocessing': '[]', 'endpoint': 'features', 'weights': 'a'}, 4
    )
    made.add([f'{i}.png' for i in range(20)], np.random.default_rng(0).normal(size=(20, 4)))
    made.save(tmp_path / 'i')

    def read(data):
        (tmp_path / 'i').write_bytes(data)
        index.load(tmp_path / 'i')

    assert refused_or_read([(tmp_path / 'i').read_bytes()], read)


def test_config_and_dataset(tmp_path):
    config = config_lib.to_json(config_lib.resolve(digits_lenet5.get_config())).encode()
    dataset = json.dumps(
        {'class_names': list('abc'), 'input_shape': [32, 32, 1], 'image_shape': [8, 8, 1], 'num_examples': {'train': 3},
         'mean': [0.0], 'std': [1.0]}
    ).encode()  # fmt: skip
    (tmp_path / 'dataset.json').write_bytes(dataset)

    def read_config(data):
        (tmp_path / 'config.json').write_bytes(data)
        workdir.read_config(tmp_path)
        read_task(tmp_path)

    assert refused_or_read([config], read_config)
    (tmp_path / 'config.json').write_bytes(config)

    def read_dataset(data):
        (tmp_path / 'dataset.json').write_bytes(data)
        workdir.read_json(tmp_path, 'dataset.json')
        read_task(tmp_path)

    assert refused_or_read([dataset], read_dataset)


CLASSES = ('a', 'b', 'c')
ANSWER = {'id': 0, 'path': 'a.png', 'label': 1, 'class': 'b', 'rank': 0, 'loss': 0.5,
          'predictions': [{'class': n, 'index': i, 'probability': 0.3} for i, n in enumerate(CLASSES)]}  # fmt: skip
LABELS = {
    'id': 0,
    'path': None,
    'labels': ['a', 'c'],
    'loss': 0.5,
    'predictions': ANSWER['predictions'],
}


@pytest.mark.parametrize(('task', 'answer'), [('classification', ANSWER), ('multilabel', LABELS)])
def test_predictions(tmp_path, task, answer):
    config = digits_lenet5.get_config()
    config.task.name = task
    config.loss.name = {'multilabel': 'sigmoid_cross_entropy'}.get(task, config.loss.name)
    (tmp_path / 'config.json').write_text(config_lib.to_json(config_lib.resolve(config)))
    dataset = {'class_names': CLASSES, 'input_shape': [8, 8, 1]}
    (tmp_path / 'dataset.json').write_text(json.dumps(dataset))
    file = tmp_path / 'report' / 'predictions_test.jsonl'
    file.parent.mkdir()

    def read(data):
        file.write_bytes(data)
        read_predictions(tmp_path)

    lines = [json.dumps({**answer, 'id': i}) + '\n' for i in range(4)]
    read(''.join(lines).encode())
    assert refused_or_read([''.join(lines).encode()], read)


def test_recorded_examples(tmp_path):
    dataset = {'class_names': CLASSES, 'num_examples': {'train': 2}, 'identity': {'train': 'x'}}
    (tmp_path / 'dataset.json').write_text(json.dumps(dataset))
    file = tmp_path / 'examples.json.gz'

    def read(data):
        file.write_bytes(data)
        identity.check_unchanged(tmp_path, {}, {'train': [('a.png', '1')]}, 'x')

    text = json.dumps({'train': [['a.png', '1'], ['b.png', '2']]}).encode()
    assert refused_or_read([gzip.compress(text), text], read) == MUTATIONS


@pytest.mark.parametrize('kind', ['csv', 'jsonl'])
def test_lists(tmp_path, kind):
    rows = [(f'{i}.png', 'ab'[i % 2], 'train') for i in range(6)]
    text = 'path,label,split\n' + ''.join(','.join(row) + '\n' for row in rows)
    if kind == 'jsonl':
        text = ''.join(
            json.dumps(dict(zip(('path', 'label', 'split'), row))) + '\n' for row in rows
        )
    for row in rows:
        (tmp_path / row[0]).touch()
    file = tmp_path / f'list.{kind}'

    def read(data):
        file.write_bytes(data)
        file_list.file_list('train', str(file))

    assert refused_or_read([text.encode()], read)


def test_records(tmp_path):
    lines = [
        json.dumps({'step': i, 'train/loss': 1 / i, 'validation/count': 5}) + '\n'
        for i in range(1, 9)
    ]

    def read(data):
        (tmp_path / 'metrics.jsonl').write_bytes(data)
        workdir.read_records(tmp_path)

    assert refused_or_read([''.join(lines).encode()], read)


def test_op_strings(images):
    source = arrays.from_arrays('a', images[..., None], np.arange(10) % 3, ('a', 'b', 'c'))

    def read(data):
        inputs.check(source, data.decode('utf-8', 'replace'))

    assert refused_or_read([ops.encode() for ops in OPS], read)
