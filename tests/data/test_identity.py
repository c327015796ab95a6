"""Identity of a run's data: it ignores where the files are, and changes with any example."""

import json
import types

import numpy as np
import pytest

from vision.data import arrays, changes, identity
from vision.data.source import FileSource, Source
from vision.data.tfds_source import RecordSource, TFDSSource


def files(root, sizes, labels=None, names=('cat', 'dog')):
    """Makes a source of files below `root` with given sizes: 'cat/0.png' → 10."""
    for name, size in sizes.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b'x' * size)
    labels = [names.index(name.split('/')[0]) for name in sizes] if labels is None else labels
    paths = tuple(str(root / name) for name in sizes)
    return FileSource(f'{root}:train', names, paths, np.array(labels, np.int32))


def digest(source):
    return identity.digest(source.identities())


SIZES = {'cat/0.png': 10, 'cat/1.png': 20, 'dog/0.png': 30}


def test_files_are_known_by_path_size_and_label_wherever_their_root_is(tmp_path):
    known = digest(files(tmp_path / 'a', SIZES))
    assert len(known) == 32 and int(known, 16)
    assert digest(files(tmp_path / 'moved' / 'far', SIZES)) == known
    others = [
        files(tmp_path / 'b', SIZES | {'dog/0.png': 31}),
        files(tmp_path / 'c', SIZES | {'dog/1.png': 30}),
        files(tmp_path / 'd', {'cat/0.png': 10, 'cat/2.png': 20, 'dog/0.png': 30}),
        files(tmp_path / 'e', SIZES, [0, 1, 1]),
        files(tmp_path / 'f', dict(reversed(SIZES.items()))),
    ]
    assert len({known, *map(digest, others)}) == 6


def test_names_of_all_kinds_and_files_that_are_gone_have_an_identity(tmp_path):
    names = {'cat/caf\udce9.png': 1, 'cat/a\nb.png': 2, 'dog/[1] *?.png': 3}
    source = files(tmp_path, names)
    (tmp_path / 'dog/[1] *?.png').unlink()
    assert [name for name, _ in source.identities()] == list(names)
    assert digest(source) == digest(source)


@pytest.mark.parametrize('several', [False, True])
def test_arrays_are_known_by_their_bytes(several):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (5, 4, 4, 1), np.uint8)
    labels = np.eye(5, 3, dtype=np.float32) if several else np.array([0, 1, 2, 1, 0])
    source = arrays.from_arrays('a', images, labels)
    pixel, label = images.copy(), labels.copy()
    pixel[3, 0, 0] ^= 1
    label[1] = label[2]
    others = [
        arrays.from_arrays('a', pixel, labels),
        arrays.from_arrays('a', images, label, source.class_names),
        source.subset([0, 1, 2, 3]),
        source.subset([1, 0, 2, 3, 4]),
    ]
    assert digest(source) == digest(arrays.from_arrays('elsewhere', images.copy(), labels))
    assert len({digest(source), *map(digest, others)}) == 5


class Own(Source):
    """A user-defined source whose labels are known only by reading."""

    name, class_names, image_shape, encoded = 'own', ('a', 'b'), (1, 1, 1), False

    def __init__(self, labels):
        self._given, self.num_examples = labels, len(labels)

    def read(self, ids):
        return np.zeros((len(ids), 1, 1, 1), np.uint8), np.array([self._given[i] for i in ids])


class Named(Own):
    def name_of(self, example):
        return f'scan {self._given[example]}-{example}'


def test_a_users_own_source_is_known_by_names_and_labels_unless_it_says_otherwise():
    assert digest(Own([0, 1, 0])) == digest(Own([0, 1, 0]))
    assert len({digest(Own(x)) for x in ([0, 1, 0], [0, 1, 1], [0, 1], [0, 1, 0, 0])}) == 4
    assert next(Named([1]).identities()) == ('scan 1-0', 'label 1')
    assert len({digest(Own([0, 1, 0]).subset(ids)) for ids in ([2, 1], [0, 1], [1, 2])}) == 3
    many = Own([0] * 50_000)
    many.read = lambda ids: (
        pytest.fail('too many are read') if len(ids) > 1000 else Own.read(many, ids)
    )
    assert len(list(many.identities())) == 50_000

    class Versioned(Own):
        def identities(self):
            return iter([('version 3', '')])

    assert digest(Versioned([0])) == digest(Versioned([1]))
    assert digest(Versioned([0, 1]).subset([0])) != digest(Versioned([0, 1]).subset([1]))


def test_a_set_of_tfds_is_known_by_name_version_split_and_number():
    def both(name='m:train', version='1.0.0', count=3):
        builder = types.SimpleNamespace(info=types.SimpleNamespace(version=version))
        return (
            TFDSSource(name, ('a',), builder, 'train', count),
            RecordSource(name, ('a',), [None] * count, version=version),
        )

    for kind in (0, 1):
        others = [both('n:train'), both(version='1.0.1'), both(count=4), both('m:test'), both()]
        assert len({digest(pair[kind]) for pair in others}) == 5


def test_advice_for_images_in_folders_that_are_no_longer_read(tmp_path):
    recorded = {'class_names': ['@eaDir', 'cat']}
    (tmp_path / 'dataset.json').write_text(json.dumps(recorded))
    found = changes.difference(tmp_path, {'class_names': ['cat']}, {})
    assert found and found.endswith('no longer read: train again in another workdir')
    (tmp_path / 'dataset.json').write_text(json.dumps({'class_names': ['dog', 'cat']}))
    assert changes.difference(tmp_path, {'class_names': ['cat']}, {}) == "they lost the class 'dog'"
