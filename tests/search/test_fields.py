"""Conditions on fields choose what NumPy chooses, in every kind of index."""

import os
import struct
import threading
import zlib

import faiss
import numpy as np
import pytest

from vision.core.errors import UserError
from vision.core.text import json_text
from vision.search import fields, index, search
from vision.search.descriptions import Described

ABOUT = {'model': 'm', 'preprocessing': 'p', 'endpoint': 'features', 'weights': 'w'}
COUNT, SIZE = 1200, 16
DAY = 86_400_000_000  # microseconds


@pytest.fixture(scope='module', autouse=True)
def one_thread():
    """Threads of faiss would wait for each other on a busy machine."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(before)


@pytest.fixture(scope='module')
def vectors():
    return np.random.default_rng(0).normal(size=(COUNT, SIZE)).astype(np.float32)


@pytest.fixture(scope='module')
def columns():
    rng = np.random.default_rng(1)
    return {
        'label': np.array(['cat', 'dog', "d'or"])[rng.integers(0, 3, COUNT)],
        'size': rng.integers(0, 2000, COUNT),
        'modified': rng.integers(0, 40, COUNT) * DAY,
        'width': np.where(rng.random(COUNT) < 0.2, -1, rng.integers(1, 99, COUNT)),
        'height': rng.integers(1, 99, COUNT),
    }


@pytest.fixture(scope='module')
def table(columns):
    rows = (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
    return fields.table(
        Described(
            f'/photos/{i % 4}/{i}.png',
            str(row['label']),
            int(row['size']),
            int(row['modified']),
            None if row['width'] < 0 else int(row['width']),
            int(row['height']),
        )
        for i, row in enumerate(rows)
    )


@pytest.fixture(scope='module')
def indexes(vectors, table):
    made = {}
    for kind in index.KINDS:
        made[kind] = index.create(ABOUT, SIZE, kind=kind, count=COUNT)
        made[kind].train(vectors)
        made[kind].add(table, vectors)
    return made


CONDITIONS = {
    "class='cat' and size>800": lambda c: (c['label'] == 'cat') & (c['size'] > 800),
    "class == 'd\\'or' or size <= 3.5": lambda c: (c['label'] == "d'or") | (c['size'] <= 3.5),
    'width > 50': lambda c: c['width'] > 50,
    'not width > 50': lambda c: (c['width'] <= 50) & (c['width'] >= 0),
    'width is None': lambda c: c['width'] < 0,
    'width is not None and width < height': lambda c: (c['width'] >= 0) & (c['width'] < c['height']),
    '20 <= height < 40': lambda c: (c['height'] >= 20) & (c['height'] < 40),
    "class in ('cat', 'dog') and not (size != 5)": lambda c: (c['label'] != "d'or") & (c['size'] == 5),
    "class not in ['cat']": lambda c: c['label'] != 'cat',
    "date >= '1970-01-11' and date<'1970-01-21T12:00'": lambda c: (c['modified'] >= 10 * DAY)
    & (c['modified'] < 20.5 * DAY),
    "folder = '/photos/2'": lambda c: np.arange(COUNT) % 4 == 2,
    'size in ()': lambda c: np.zeros(COUNT, bool),
}  # fmt: skip


@pytest.mark.parametrize('where', CONDITIONS)
def test_a_condition_chooses_as_numpy_does(table, columns, where):
    np.testing.assert_array_equal(fields.choose(table, where), CONDITIONS[where](columns))


@pytest.mark.parametrize('kind', index.KINDS)
def test_the_nearest_of_the_chosen(indexes, vectors, kind):
    made = indexes[kind]
    chosen = made.choose("class='cat' and size<100")
    assert 5 < chosen.sum() < 50
    asked = np.random.default_rng(2).normal(size=(4, SIZE)).astype(np.float32)
    stored = made.vectors() if kind == 'ivfpq' else index.unit(vectors)
    scores = np.where(chosen, index.unit(asked) @ stored.T, -2)
    for row, found in zip(scores, made.search(asked, 10, chosen), strict=True):
        nearest = np.argsort(-row)[: min(10, chosen.sum())]
        np.testing.assert_allclose([s for _, s in found], row[nearest], atol=1e-5)
        assert {i for i, _ in found} <= {*np.flatnonzero(chosen)}
        if kind != 'ivfpq':
            assert [i for i, _ in found] == nearest.tolist()
    assert made.search(asked, 3, np.zeros(COUNT, bool)) == [[], [], [], []]


@pytest.mark.parametrize(
    ('where', 'says'),
    [
        ("clas='cat'", r"unknown field 'clas'\. Did you mean 'class'\? Known: class, date, folder"),
        ("width='wide'", "width='wide': 'wide' is not a value of type int32"),
        ('class=3', '3 is not a value of type string'),
        ("date>'soon'", "'soon' is not a date like '2024-05-01'"),
        ('class = width', r'class \(string\) cannot be compared with width \(number\)'),
        ('date > width', r'date \(date\) cannot be compared with width \(number\)'),
        ('width>True', 'True is not'),
        ("width>__import__('os').getpid()", 'is not a|no comparison|unknown field'),
        ('width', 'width is no comparison of a field'),
        ("open('x')", 'no comparison'),
        ('width>', 'not a condition'),
        ("class='cat", 'not a condition'),
        ('', 'not a condition'),
        ('1<2', 'no comparison'),
        ('width in 3', 'no comparison'),
        ('size = ' + '9' * 30, 'is not a value'),
        ('(' * 500 + 'size=1' + ')' * 500, 'not a condition'),
    ],
)
def test_what_is_no_condition(table, where, says):
    with pytest.raises(UserError, match=says) as error:
        fields.choose(table, where)
    assert '\n' not in str(error.value)


def test_fields_of_a_csv_file(table, tmp_path, monkeypatch):
    monkeypatch.chdir('/')
    file = tmp_path / 'own.csv'
    file.write_text('path,score,taken\n/photos/0/4.png,.5,2024-05-01\nphotos/1/1.png,2,\n/x,1,\n')
    joined = fields.Own(file).join(table)
    assert np.flatnonzero(fields.choose(joined, 'score > 1')).tolist() == [1]
    assert np.flatnonzero(fields.choose(joined, "taken = '2024-05-01'")).tolist() == [4]
    # Two fields of different types, one of nanoseconds, and one that nothing is known of.
    file.write_text('path,b,t,n\n/photos/0/4.png,true,2024-05-01T00:00:00.123456789,\n/x,false,,\n')
    other = fields.Own(file).join(table)
    assert np.flatnonzero(fields.choose(other, "t > '2024-05-01' and t > date")).tolist() == [4]
    assert not fields.choose(other, 'n = width or n = class or n = t').any()
    assert fields.choose(other, 'n is None').all()
    with pytest.raises(UserError, match=r'b \(bool\) cannot be compared with width \(number\)'):
        fields.choose(other, 'b = width')
    # Images without the fields, and with a whole number where there were fractions, can be added.
    file.write_text('path,score\n/photos/2/2.png,3\n')
    more = fields.join(joined, table, fields.Own(file).join(table))
    assert np.flatnonzero(fields.choose(more, 'score >= .5')).tolist() == [1, 4, 2 * COUNT + 2]
    file.write_text('path,score\n/photos/2/2.png,high\n')
    with pytest.raises(UserError, match='score'):
        fields.join(joined, fields.Own(file).join(table))
    for text, says in (
        ('file,score\na,1\n', 'has no column path'),
        ('path,tag,tag\n/photos/0/4.png,1,2\n', 'has the column tag twice'),
        ('path,path\n/photos/0/4.png,1\n', 'has the column path twice'),
        ('path,size\n/photos/0/4.png,1\n', "cannot be called 'size'"),
        ('path,a b\n/photos/0/4.png,1\n', "cannot be called 'a b'"),
        ('path,score\n/other,1\n', 'names none of the images'),
        ('path,a\n/photos/0/4.png,1\n/photos/0/4.png,2\n', 'twice'),
        ('path,a\n/photos/0/4.png\n', r'own\.csv: '),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=says) as error:
            own = fields.Own(file)
            own.join(table)
            own.check_used()
        assert '\n' not in str(error.value)
    with pytest.raises(UserError, match='nowhere'):
        fields.Own(tmp_path / 'nowhere.csv')


def test_ivfpq_finds_what_faiss_does_by_hand(indexes, vectors):
    made = indexes['ivfpq']
    lists = made.index.nlist
    hand = faiss.index_factory(SIZE, f'IVF{lists},PQ4', faiss.METRIC_INNER_PRODUCT)
    hand.do_polysemous_training = False
    hand.train(index.unit(vectors)), hand.add(index.unit(vectors))
    hand.nprobe = made.index.nprobe
    asked = index.unit(vectors[:50])
    _, rows = hand.search(asked, 5)
    assert [[i for i, _ in found] for found in made.search(asked, 5)] == rows.tolist()
    with pytest.raises(UserError, match='ivfpq needs at least 1,000 images, there are 999'):
        index.create(ABOUT, SIZE, kind='ivfpq', count=999)
    with pytest.raises(UserError, match=r"unknown kind 'hsnw'\. Did you mean 'hnsw'"):
        index.create(ABOUT, SIZE, kind='hsnw')


@pytest.mark.parametrize('kind', index.KINDS)
def test_what_is_removed_is_not_found(indexes, vectors, kind, tmp_path):
    indexes[kind].save(tmp_path / 'i')
    made = index.load(tmp_path / 'i')
    folder = [n for n in made.names if n.startswith('/photos/1/')]
    assert search.remove(made, ['/photos/1', '/photos/2/2.png']) == len(folder) + 1
    with pytest.raises(UserError, match='/photos/1 is not in the index'):
        search.remove(made, ['/photos/1'])
    made.save(tmp_path / 'i')
    made = index.load(tmp_path / 'i', read_only=True)
    names = [n for n in indexes[kind].names if n not in {*folder, '/photos/2/2.png'}]
    assert made.names == names and len(made) == made.index.ntotal == len(names)
    # What is left is found under its own name, with its own fields.
    numbers = [int(os.path.basename(n)[:-4]) for n in names]
    for i, found in zip(numbers, made.search(vectors[numbers], 1), strict=True):
        if kind != 'ivfpq':
            assert made.name(found[0][0]) == f'/photos/{i % 4}/{i}.png'
    np.testing.assert_array_equal(
        made.choose('size > 1000'), indexes[kind].choose('size > 1000')[numbers]
    )
    if kind == 'ivfpq':
        np.testing.assert_array_equal(made.vectors(), indexes[kind].vectors()[numbers])


def test_a_reader_sees_one_version_while_another_process_writes_the_next(vectors, tmp_path):
    def version(count):
        made = index.create(ABOUT, SIZE)
        made.add([f'{count}-{i}' for i in range(count)], vectors[:count])
        return made

    version(10).save(tmp_path / 'i')
    opened = index.load(tmp_path / 'i', read_only=True)
    stop = threading.Event()

    def write():
        count = 10
        while not stop.is_set():
            count = count % 50 + 1
            version(count).save(tmp_path / 'i')

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for i in range(40):
            made = index.load(tmp_path / 'i', read_only=bool(i % 2))
            assert made.names == [f'{len(made)}-{i}' for i in range(len(made))]
            assert made.search(vectors[:1], 1) == [[(0, 1.0)]]
    finally:
        stop.set()
        writer.join()
    assert opened.names[9] == '10-9' and opened.search(vectors[9:10], 1) == [[(9, 1.0)]]


def test_a_file_of_version_1(vectors, tmp_path):
    flat = faiss.IndexFlatIP(SIZE)
    flat.add(index.unit(vectors[:3]))
    names = ['/a/ü.png', os.fsdecode(b'/\xff.png'), 'train:3']
    data = faiss.serialize_index(flat).tobytes()
    about = {'made_by': ABOUT, 'metric': 'cosine', 'names': names, 'crc32': zlib.crc32(data)}
    text = json_text(about).encode()
    (tmp_path / 'i').write_bytes(data + text + struct.pack('<Q', len(text)) + b'\nVISION-INDEX-1\n')
    index.check_replaceable(tmp_path / 'i')
    made = index.load(tmp_path / 'i')
    assert made.names == names and made.search(vectors[1:2], 1) == [[(1, 1.0)]]
    # The first files had no checksum.
    del about['crc32']
    text = json_text(about).encode()
    tail = struct.pack('<Q', len(text)) + b'\nVISION-INDEX-1\n'
    (tmp_path / 'old').write_bytes(data + text + tail)
    assert index.load(tmp_path / 'old').names == names
    with pytest.raises(UserError, match='earlier version have no checksum; `build` it again'):
        index.verify(tmp_path / 'old')
    made.add(['b.png'], vectors[3:4])
    made.save(tmp_path / 'i')
    assert index.load(tmp_path / 'i').names == [*names, 'b.png']


def test_replace_describes_again(classifier, digits, tmp_path):
    from PIL import Image

    for i, name in enumerate(('a.png', 'b.png')):
        Image.fromarray(digits.images[i, ..., 0]).save(tmp_path / name)
    made, _ = search.build(classifier, search.named(classifier.run, tmp_path))
    Image.fromarray(digits.images[2, ..., 0]).resize((9, 9)).save(tmp_path / 'b.png')
    Image.fromarray(digits.images[3, ..., 0]).save(tmp_path / 'c.png')
    (tmp_path / 'a.png').write_bytes(b'no image')
    images = search.named(classifier.run, tmp_path)
    failed = search.add(classifier, made, images, replace=True)
    assert failed == {f'{tmp_path}/a.png': 'not an image'}
    assert sorted(made.names) == [f'{tmp_path}/{n}.png' for n in 'abc']
    (found,) = search.query(
        classifier, made, search.named(classifier.run, tmp_path / 'b.png'), where='width=9'
    )
    assert found['neighbours'] == [{'path': f'{tmp_path}/b.png', 'score': 1.0}]
