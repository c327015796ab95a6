"""Shards hold each image once, whenever the work was stopped and whoever took part in it."""

import errno
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from tests.conftest import REPO, environment
from vision.core import workdir as files
from vision.core.errors import UserError
from vision.search import describing, descriptions, index, search, shards

if not os.environ.get('CI'):
    pytest.importorskip('imagehash')

ROWS = 8  # images of a shard


@pytest.fixture(scope='module')
def photos(tmp_path_factory, digits):
    """Files of 40 scans in two folders, one that is no image, and the shards of them all."""
    root = tmp_path_factory.mktemp('photos')
    for i in range(40):
        (root / f'{i % 2}').mkdir(exist_ok=True)
        size = (8, 8) if i % 3 else (20, 13)
        Image.fromarray(digits.images[i, ..., 0]).resize(size).save(
            root / f'{i % 2}' / f'{i:02}.png'
        )
    (root / 'broken.png').write_bytes(b'no image')
    return root


@pytest.fixture(scope='module')
def undisturbed(classifier, photos, tmp_path_factory):
    folder = tmp_path_factory.mktemp('shards') / 'shards'
    found = described(classifier, photos, folder)
    assert found == {'images': 41, 'gone': 0, 'failed': 1, 'described': 41, 'errors': {
        str(photos / 'broken.png'): 'not an image'}}  # fmt: skip
    return folder


def described(classifier, photos, folder, **options):
    images = search.named(classifier.run, photos)
    return describing.describe(classifier, images, folder, rows=ROWS, **options)


def table(folder):
    paths = sorted(folder.glob('*.parquet'))
    return pa.concat_tables(map(parquet.read_table, paths)).sort_by('path')


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.glob('*.parquet')}


def test_a_row_is_what_the_libraries_say_of_the_file(classifier, photos, undisturbed):
    import imagehash

    rows = table(undisturbed).to_pylist()
    assert [row['path'] for row in rows] == sorted(map(str, photos.rglob('*.png')))
    for row in rows:
        data, about = Path(row['path']).read_bytes(), os.stat(row['path'])
        assert row['size'] == len(data) and row['gone'] is False
        assert row['date'].timestamp() == pytest.approx(about.st_mtime, abs=2e-6)
        if row['path'].endswith('broken.png'):
            assert row['error'] == 'not an image' and row['vector'] is None
            continue
        image = Image.open(row['path'])
        assert (row['width'], row['height']) == image.size and row['error'] is None
        assert row['sha256'] == hashlib.sha256(data).digest()
        assert row['phash'] == str(imagehash.phash(image))
        assert row['class'] == row['path'].split('/')[-2]
    good = [row for row in rows if row['error'] is None]
    vectors = np.stack([np.frombuffer(row['vector'], '<f2') for row in good])
    exact = classifier.embed([row['path'] for row in good])
    np.testing.assert_allclose(vectors, exact, rtol=2e-3, atol=1e-4)


def test_the_hash_of_a_large_photo_is_nearly_that_of_imagehash():
    import imagehash
    import skimage.data

    astronaut = skimage.data.astronaut()  # 512 × 512
    for side in (300, 512, 1500):
        photo = Image.fromarray(astronaut).resize((side, side + 9))
        ours = imagehash.hex_to_hash(descriptions.perceptual_hash()(np.asarray(photo)))
        assert ours - imagehash.phash(photo) <= (2 if side >= 512 else 0)


def test_a_path_decides_its_shard(undisturbed):
    every = sorted(undisturbed.glob('*.parquet'))
    assert len(every) == 5
    for number, path in enumerate(every):
        paths = parquet.read_table(path)['path'].to_pylist()
        assert paths == sorted(paths)
        assert all(zlib.crc32(p.encode()) % len(every) == number for p in paths)


@pytest.mark.parametrize('moment', [0, 3])
def test_a_full_disk_and_the_same_command_again(
    classifier, photos, undisturbed, tmp_path, monkeypatch, moment
):
    sync, writes = files.sync, 0

    def full(file):
        nonlocal writes
        writes += file.name.endswith('.parquet.tmp')
        if writes > moment:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return sync(file)

    monkeypatch.setattr(files, 'sync', full)
    with pytest.raises(
        UserError, match=r'No space left on device; .* start the same command again'
    ):
        described(classifier, photos, tmp_path / 's')
    before = contents(tmp_path / 's')
    assert len(before) == moment and not list(tmp_path.rglob('*.tmp'))
    monkeypatch.setattr(files, 'sync', sync)
    # A kill leaves a file that is half written.
    (tmp_path / 's' / 'shard-00004.parquet.tmp').write_bytes(b'PAR1 half of it')
    found = described(classifier, photos, tmp_path / 's')
    assert contents(tmp_path / 's') == contents(undisturbed)
    kept = sum(len(parquet.read_table(pa.BufferReader(data))) for data in before.values())
    assert found['described'] in (41 - kept, 42 - kept)  # what cannot be read is tried again


def test_several_describe_each_image_once(classifier, photos, undisturbed, tmp_path):
    found = []

    def take_part():
        found.append(described(classifier, photos, tmp_path / 's', shared=True))

    threads = [threading.Thread(target=take_part) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(one['described'] for one in found) == 41 and all(n['images'] == 41 for n in found)
    assert contents(tmp_path / 's') == contents(undisturbed)


def test_what_is_new_changed_and_gone(classifier, photos, undisturbed, tmp_path):
    folder, ours = tmp_path / 's', tmp_path / 'photos'
    shutil.copytree(photos, ours)
    described(classifier, ours, folder)
    before = {row['path']: row for row in table(folder).to_pylist()}
    images = search.named(classifier.run, ours)  # listed before two of them vanish
    (ours / '0' / '00.png').unlink()
    shutil.copy(ours / '0' / '02.png', ours / '0' / 'new.png')
    shutil.copy(ours / '0' / '04.png', ours / '1' / '01.png')
    found = describing.describe(classifier, images, folder)
    assert (found['described'], found['gone'], found['images']) == (2, 1, 40)
    found = described(classifier, ours, folder)
    assert (found['described'], found['gone'], found['images']) == (2, 1, 41)
    after = {row['path']: row for row in table(folder).to_pylist()}
    changed = {path for path in after if before.get(path) != after[path]}
    assert changed == {f'{ours}/{name}' for name in ('0/00.png', '0/new.png', '1/01.png')}
    assert after[f'{ours}/0/00.png'] == before[f'{ours}/0/00.png'] | {'gone': True}
    assert after[f'{ours}/1/01.png']['vector'] == before[f'{ours}/0/04.png']['vector']
    # A part of the folder is no reason to forget the rest, and what comes back is not described.
    shutil.copy2(photos / '0' / '00.png', ours / '0' / '00.png')
    found = described(classifier, ours / '0', folder)
    assert (found['described'], found['gone'], found['images']) == (0, 0, 42)
    built, failed = search.build(None, shards.open_shards(folder))
    assert len(built.names) == 41 and failed == {str(ours / 'broken.png'): 'not an image'}


def test_an_index_of_shards_is_that_of_the_images(classifier, photos, undisturbed):
    built, failed = search.build(None, shards.open_shards(undisturbed), metric='euclidean')
    direct, _ = search.build(classifier, search.named(classifier.run, photos), metric='euclidean')
    assert failed == {str(photos / 'broken.png'): 'not an image'}
    order = [built.names.index(name) for name in direct.names]
    np.testing.assert_allclose(built.vectors()[order], direct.vectors(), rtol=2e-3, atol=1e-4)
    built.check(classifier)
    assert search.add(None, built, shards.open_shards(undisturbed)) == failed and len(built) == 40
    other = index.create(built.made_by | {'weights': 'other'}, built.index.d)
    with pytest.raises(UserError, match='was described by another model than the index'):
        search.add(None, other, shards.open_shards(undisturbed))


def test_a_split_of_the_run(classifier, digits, tmp_path):
    images = [search.whole_split(classifier.run, 'test')]
    found = describing.describe(classifier, images, tmp_path / 's', 'logits')
    assert found['described'] == found['images'] == 360
    row = table(tmp_path / 's').filter(pa.compute.field('path') == 'test:7').to_pylist()[0]
    assert row['class'] == digits.class_names[digits.labels[7]] and row['width'] == 8
    assert describing.describe(classifier, images, tmp_path / 's', 'logits')['described'] == 0
    with pytest.raises(UserError, match=r'endpoint: logits in .*/s, features in the run; describe'):
        describing.describe(classifier, images, tmp_path / 's')


def test_a_shard_that_is_damaged_missing_or_of_another_model(
    classifier, photos, undisturbed, tmp_path, caplog
):
    folder = tmp_path / 's'
    shutil.copytree(undisturbed, folder)
    half = folder / 'shard-00002.parquet'
    half.write_bytes(half.read_bytes()[:500])
    with pytest.raises(UserError, match=r'shard-00002\.parquet is damaged'):
        search.build(None, shards.open_shards(folder))
    assert described(classifier, photos, folder)['described'] >= 1
    assert 'is damaged' in caplog.text and contents(folder) == contents(undisturbed)
    half.unlink()
    with pytest.raises(
        UserError, match='not complete: 1 of 5 shards are missing; start `describe`'
    ):
        search.build(None, shards.open_shards(folder))
    other = parquet.read_table(undisturbed / half.name)
    parquet.write_table(other.replace_schema_metadata({'made_by': '{}'}), half)
    with pytest.raises(UserError, match='was written with another model'):
        search.build(None, shards.open_shards(folder))
    with pytest.raises(UserError, match='name a folder that `describe` has written'):
        shards.open_shards(photos)
    about = json.loads((undisturbed / 'manifest.json').read_text())
    for wrong in ({'shards': 0}, {'dimensions': '64'}, {'made_by': {}}):
        (folder / 'manifest.json').write_text(json.dumps(about | wrong))
        with pytest.raises(UserError, match='damaged'):
            shards.open_shards(folder)
    (folder / 'manifest.json').write_text('{"format": 1')
    with pytest.raises(UserError, match='damaged'):
        shards.open_shards(folder)


def test_shards_whose_bytes_columns_or_metadata_are_wrong(undisturbed, tmp_path):
    shutil.copytree(undisturbed, tmp_path / 's')
    manifest = shards.open_shards(tmp_path / 's')
    path, whole = manifest.shard(1), undisturbed / 'shard-00001.parquet'
    rows, data = parquet.read_table(whole), bytearray(whole.read_bytes())
    vectors = parquet.ParquetFile(whole).metadata.row_group(0).column(10)
    data[vectors.data_page_offset + vectors.total_compressed_size - 1] ^= 1
    for content in (
        bytes(data),
        shards.to_parquet(rows.drop_columns(['size'])),
        shards.to_parquet(rows.drop_columns(['gone'])),
        shards.to_parquet(rows.replace_schema_metadata({b'made_by': b'\xff'})),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r'shard-00001\.parquet is damaged \(.+\)'):
            list(shards.read_shards(manifest))
    path.write_bytes(shards.to_parquet(rows.drop_columns(['gone'])))
    with pytest.raises(UserError, match='is damaged'):
        shards.count(manifest)


def test_what_a_row_says(monkeypatch, classifier, photos, tmp_path):
    vectors = np.array([[1, 0], [1e9, 0], [1e-9, 0], [0, 0]], np.float32)
    about = [descriptions.Described(f'/{i}') for i in range(4)]
    rows = shards.table_of(about, vectors).to_pylist()
    assert [row['class'] for row in rows] == [None] * 4  # as in `fields.table`
    large, small = (f"the model's features {why} float16" for why in (
        'exceed the range of', 'are all zero in'))  # fmt: skip
    assert [row['error'] for row in rows] == [None, large, small, None]
    # Such errors are reported, too.
    original = descriptions.describe_images

    def too_large(*args):
        return ((about, 1e30 * vectors) for about, vectors in original(*args))

    monkeypatch.setattr(describing, 'describe_images', too_large)
    with pytest.raises(UserError, match=rf'no image .* example /.*/0/0[02]\.png: {large}'):
        described(classifier, [photos / '0' / '00.png', photos / '0' / '02.png'], tmp_path / 's')


def test_an_image_that_is_named_twice(classifier, photos, undisturbed, tmp_path, caplog):
    shutil.copytree(undisturbed, tmp_path / 's')
    manifest = shards.open_shards(tmp_path / 's')
    images = [*search.named(classifier.run, photos / '0')] * 2
    work = describing._Work(classifier, images, manifest)
    wanted = [place for i in range(5) for place in work._wanted(i).values()]
    assert len(wanted) == 20 and {which for which, _ in wanted} == {0}
    assert sum(sum(work(i)) for i in range(5)) == 40 and work.described == 0
    # Many more images than those that the folder was begun with.
    describing.describe(classifier, images, tmp_path / 's', rows=2)
    assert 'begun with' not in caplog.text
    describing.describe(classifier, images, tmp_path / 's', rows=1)
    assert 'each of its 5 shards gets about 8' in caplog.text


def test_a_folder_without_its_manifest(undisturbed, tmp_path, monkeypatch):
    names = ['claims', '.lock', 'manifest.json.tmp']
    for name in names[1:]:
        (tmp_path / name).touch()
    describing._create(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted(names)
    # Another process begins meanwhile.
    shutil.copy(undisturbed / 'manifest.json', tmp_path)
    monkeypatch.setattr(os, 'listdir', lambda _: [*names, 'shard-00000.parquet.tmp'])
    describing._create(tmp_path)


def test_folders_that_cannot_be_used(classifier, photos, undisturbed, tmp_path):
    with pytest.raises(UserError, match='has other files; name a new folder'):
        described(classifier, photos, photos)
    (tmp_path / 'bad.png').write_bytes(b'no')
    with pytest.raises(UserError, match=r'no image could be read, .*bad\.png: not an image'):
        described(classifier, tmp_path / 'bad.png', tmp_path / 's')
    says = pytest.raises(UserError, match=r'in use by process .* --distributed')
    with describing._whole(undisturbed, False), says:
        described(classifier, photos, undisturbed, shared=True)


_DESCRIBE = """
import sys
from vision.prediction import Classifier
from vision.search import describe, named
classifier = Classifier.from_workdir(sys.argv[1])
print('ready', flush=True)
describe(classifier, named(classifier.run, sys.argv[2]), sys.argv[3], shared=True, rows=8)
"""


@pytest.mark.slow
def test_killed_at_any_moment(workdir, photos, undisturbed, tmp_path):
    """Two processes at a time, one of which is killed; the other takes over its share."""
    draw = random.Random(0)

    def start():
        return subprocess.Popen(
            [sys.executable, '-c', _DESCRIBE, workdir, photos, tmp_path / 's'],
            cwd=REPO, env=environment(), stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    for _ in range(6):
        shutil.rmtree(tmp_path / 's', ignore_errors=True)
        one, other = start(), start()
        one.stdout.readline()
        time.sleep(draw.uniform(0, 3))
        one.send_signal(signal.SIGKILL)
        assert other.wait(120) == 0
        one.wait()
        assert contents(tmp_path / 's') == contents(undisturbed)
        assert start().wait(120) == 0
        assert contents(tmp_path / 's') == contents(undisturbed)
