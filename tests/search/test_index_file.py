"""The file of an index: damage is found, opening does not read the file, old files are read."""

import errno
import fcntl
import os
import shutil
import tempfile
from pathlib import Path

import faiss
import numpy as np
import pytest

from tests import tiers
from tests.processes import run_module
from tests.search.test_fields import one_thread
from vision.core.errors import UserError
from vision.search import fields, index, index_file, search, spool
from vision.search.descriptors import fit_whitening

__all__ = ['one_thread']
ABOUT = {'model': 'm', 'preprocessing': 'p', 'endpoint': 'features', 'weights': 'w'}
NOT_AN_INDEX = 'is not an index of images, or is damaged'


def vectors(count, size=32, seed=0):
    return np.random.default_rng(seed).normal(size=(count, size)).astype(np.float32)


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    """An index of four megabytes with a whitening."""
    made = index.create(ABOUT, 16)
    many = vectors(60_000)
    made.whitening = fit_whitening(many, 16)
    made.add([f'/photos/{i}.png' for i in range(len(many))], many)
    path = tmp_path_factory.mktemp('index') / 'i'
    made.save(path)
    return path


def flip(path, position, keep_time=False):
    """Flips one bit of a byte; the time is kept as where a disk is to blame."""
    about = path.stat()
    with open(path, 'r+b') as file:
        file.seek(position)
        byte = file.read(1)
        file.seek(position)
        file.write(bytes([byte[0] ^ 4]))
    if keep_time:
        os.utime(path, ns=(about.st_mtime_ns, about.st_mtime_ns))


def test_a_byte_anywhere_that_a_program_changes(saved, tmp_path):
    path, size = tmp_path / 'i', saved.stat().st_size
    shutil.copy2(saved, path)
    index.load(path, read_only=True)
    for position in (8, 3_000_000, size - 3000, size - 200, size - 20, size - 1):
        for read_only in (False, True):
            flip(path, position)
            with pytest.raises(UserError, match=NOT_AN_INDEX):
                index.load(path, read_only)
            with pytest.raises(UserError, match=NOT_AN_INDEX):
                index.verify(path)
            flip(path, position)
            assert index.verify(path) == 60_000
    with open(path, 'r+b') as file:
        data = file.read()
        file.seek(0)
        file.write(data[:2_000_000] + data[2_100_000:])
        file.truncate()
    os.utime(path, ns=(1, saved.stat().st_mtime_ns))
    with pytest.raises(UserError, match='has lost some bytes'):
        index.load(path, read_only=True)


def test_a_byte_that_a_disk_loses(saved, tmp_path):
    """At once where it could do harm, among the vectors only by `verify` or before a change."""
    path, size = tmp_path / 'i', saved.stat().st_size
    shutil.copy2(saved, path)
    for position in (8, size - 200, size - 20):
        flip(path, position, keep_time=True)
        with pytest.raises(UserError, match=NOT_AN_INDEX):
            index.load(path, read_only=True)
        flip(path, position, keep_time=True)
    flip(path, 3_000_000, keep_time=True)
    index.load(path, read_only=True)
    with pytest.raises(UserError, match=NOT_AN_INDEX):
        index.load(path)
    done = run_module('experiments.search', 'verify', f'--index={path}')
    assert done.returncode == 2 and 'damaged' in done.stderr and done.stderr.count('\n') == 1
    flip(path, 3_000_000, keep_time=True)
    done = run_module('experiments.search', 'verify', f'--index={path}', '--format=json')
    assert done.returncode == 0 and '60000' in done.stdout, done.stderr


@pytest.mark.skipif(not Path('/proc/self/io').exists(), reason='Linux counts what is read')
def test_opening_does_not_read_the_file(saved, tmp_path):
    def bytes_read(path):
        before = _counted()
        made = index.load(path, read_only=True)
        found = _counted() - before
        assert made.search(made.whitening.mean[None], 1)  # it can be searched
        return found

    index.load(saved, read_only=True)  # imports everything
    assert bytes_read(saved) < 1_200_000 < saved.stat().st_size / 3
    # A copy with a time of its own is read as a whole, until it is verified.
    path = tmp_path / 'copy'
    shutil.copy(saved, path)
    assert bytes_read(path) > saved.stat().st_size
    index.verify(path)
    assert bytes_read(path) < 1_200_000


def _counted():
    return int(Path('/proc/self/io').read_text().split('rchar: ')[1].split()[0])


def test_what_a_killed_process_left_is_removed(tmp_path):
    made = index.create(ABOUT, 32)
    ours, locked, new, *others = (
        'i.0123abcd.tmp', 'i.0123abce.tmp', 'i.0123abcf.tmp', 'i.old.tmp', 'other.0123abcd.tmp',
    )  # fmt: skip
    for name in (ours, locked, new, *others):
        (tmp_path / name).write_bytes(b'half of an index')
        if name != new:  # which a process may have opened and not locked yet
            os.utime(tmp_path / name, (0, 0))
    with open(tmp_path / locked, 'rb') as file:  # another process writes this one
        fcntl.flock(file, fcntl.LOCK_EX)
        made.save(tmp_path / 'i')
    assert sorted(os.listdir(tmp_path)) == sorted(['i', locked, new, *others])


def test_a_file_system_that_rounds_times(tmp_path, monkeypatch):
    """The noted time is the one that the file gets, so that `query` need not read the file."""
    set_time = os.utime

    def rounded(file, ns):
        set_time(file, ns=tuple(time // 10**9 * 10**9 for time in ns))

    monkeypatch.setattr(os, 'utime', rounded)
    index.create(ABOUT, 32).save(tmp_path / 'i')
    with open(tmp_path / 'i', 'rb') as file:
        about, _ = index_file._about(file)
    assert about['modified'] == (tmp_path / 'i').stat().st_mtime_ns


def test_verify_sets_the_time_of_the_file_that_it_has_read(tmp_path, monkeypatch):
    for name, count in (('i', 1), ('new', 2)):
        made = index.create(ABOUT, 32)
        made.add([f'{i}' for i in range(count)], vectors(count))
        made.save(tmp_path / name)
    time = (tmp_path / 'new').stat().st_mtime_ns
    matches = index_file._match

    def replaced(*args):
        os.replace(tmp_path / 'new', tmp_path / 'i')
        matches(*args)

    monkeypatch.setattr(index_file, '_match', replaced)
    index_file.verify(tmp_path / 'i')
    assert (tmp_path / 'i').stat().st_mtime_ns == time


def test_a_file_of_version_2(tmp_path):
    made = index.create(ABOUT, 32)
    made.add(['a', 'b', 'c'], vectors(3))
    made.save(tmp_path / 'i')
    data = (tmp_path / 'i').read_bytes()
    with open(tmp_path / 'i', 'rb') as file:
        about, start = index_file._about(file)
    for name in ('bytes', 'head', 'modified', 'size'):
        del about[name]
    text = index_file.json_text(about).encode()
    old = data[:start] + text + index_file._OLD_TAIL.pack(len(text)) + b'\nVISION-INDEX-2\n'
    (tmp_path / 'i').write_bytes(old)
    index.check_replaceable(tmp_path / 'i')
    for read_only in (False, True):
        again = index.load(tmp_path / 'i', read_only)
        assert again.names == ['a', 'b', 'c'] and again.search(vectors(3), 1)[2] == [(2, 1.0)]
    assert index.verify(tmp_path / 'i') == 3
    flip(tmp_path / 'i', 100)
    with pytest.raises(UserError, match='its checksum does not match'):
        index.load(tmp_path / 'i', read_only=True)


@pytest.mark.parametrize('metric', tiers.split(index.METRICS, ['cosine']))
def test_codes_of_vectors_of_any_length(metric, tmp_path):
    """61 is prime, so that faiss by itself can only use one byte, or the first 60 values."""
    mix = np.random.default_rng(9).normal(size=(12, 61))
    stored, asked = ((vectors(n, 12, n) @ mix + 0.1 * vectors(n, 61, n)) for n in (2000, 60))
    made = index.create(ABOUT, 61, metric, 'ivfpq', len(stored))
    exact = index.create(ABOUT, 61, metric)
    made.train(stored)
    for some in (made, exact):
        some.add(list(map(str, range(2000))), stored)
    made.save(tmp_path / 'i')
    made = index.load(tmp_path / 'i', read_only=True)
    assert made.size == 61 and made.vectors().shape == (2000, 61) and made.index.pq.M == 16
    made.index.nprobe = made.index.nlist
    right, found = ([{i for i, _ in row} for row in x.search(asked, 10)] for x in (exact, made))

    def recall(rows):
        return np.mean([len(a & {*b}) for a, b in zip(right, rows, strict=True)]) / 10

    ready = [index.unit(x) if metric == 'cosine' else x for x in (stored, asked)]
    stored, asked = (x[:, :60].astype(np.float32) for x in ready)
    measure = faiss.METRIC_INNER_PRODUCT if metric == 'cosine' else faiss.METRIC_L2
    hand = faiss.index_factory(60, f'IVF{made.index.nlist},PQ15', measure)
    hand.do_polysemous_training, hand.nprobe = False, made.index.nlist
    hand.train(stored)
    hand.add(stored)
    assert recall(found) > max(0.75, recall(hand.search(asked, 10)[1].tolist()) - 0.05)
    with pytest.raises(UserError, match=r'the index has \[n, 61\]'):
        made.search(vectors(1, 64), 1)


@pytest.mark.slow
def test_images_wait_in_a_file_until_an_index_is_trained(classifier):
    """The index is the one that is trained on a sample of all vectors in memory."""
    images = [search.whole_split(classifier.run, 'train')]
    made, _ = search.build(classifier, images, kind='ivfpq', metric='euclidean')
    every = classifier.embed(images[0].source.images)
    hand = index.create(made.made_by, made.size, 'euclidean', 'ivfpq', len(every))
    hand.train(np.random.default_rng(0).permutation(every))
    hand.add(images[0].names, every)
    assert made.names == hand.names
    np.testing.assert_allclose(made.vectors(), hand.vectors(), atol=1e-3)


def test_a_spool(monkeypatch):
    batches = [(fields.table([f'{i}', f'{i}x']), vectors(2, 5, seed=i)) for i in range(4)]
    made = spool.Spool(iter(batches), 5)
    assert len(made) == 8
    for _ in range(2):
        for (table, rows), (ours, back) in zip(batches, made, strict=True):
            assert ours == table
            np.testing.assert_array_equal(back, rows)
    every = np.concatenate([rows for _, rows in batches])
    np.testing.assert_array_equal(made.sample(3), np.random.default_rng(0).permutation(every)[:3])
    assert spool.Spool([], 5).sample(3).shape == (0, 5)

    class Full(tempfile.SpooledTemporaryFile):
        def flush(self):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def none():
        raise FileNotFoundError(errno.ENOENT, 'No usable temporary directory found')

    for file, reason in ((Full, 'No space left on device'), (none, 'No usable temporary')):
        monkeypatch.setattr(tempfile, 'TemporaryFile', file)
        with pytest.raises(UserError, match=f'{reason}.*; .*TMPDIR'):
            spool.Spool(iter(batches), 5)
