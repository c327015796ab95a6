"""Damaged files other than images, and damaged op strings: each is read, or refused in one line."""

import gzip
import json

import numpy as np
import pytest

from configs import digits_lenet5
from tests.prediction.fuzz import mutate
from tests.tiers import quick
from vision.core import config as config_lib
from vision.core import workdir
from vision.core.errors import UserError
from vision.data import array_files, arrays
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


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (10, 8, 8), np.uint8)


def refused_or_read(files, read, seed=0):
    """Reads mutations of files; any other error than one line fails. Returns how many were refused."""
    rng, refused = np.random.default_rng(seed), 0
    for _ in range(MUTATIONS):
        data = mutate(rng, files)
        try:
            read(data)
        except UserError as e:
            refused += 1
            assert str(e).strip() and '\n' not in str(e), (data[:200], str(e))
        except Exception as e:
            raise AssertionError(f'{type(e).__name__}: {e}, for {data[:300]!r}') from e
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
