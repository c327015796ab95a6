"""Search by image: results equal NumPy's, index files match their run and are never partial."""

import json
import os

import faiss
import numpy as np
import pytest
from PIL import Image

from tests.processes import run_module
from vision.core.errors import UserError
from vision.data import arrays
from vision.prediction import Classifier
from vision.search import display, fields, fingerprint, index, search
from vision.search.duplicates import find_duplicates

ABOUT = {'model': 'm', 'preprocessing': 'p', 'endpoint': 'features', 'weights': 'w'}


@pytest.fixture(scope='module')
def photos(tmp_path_factory, digits):
    """Files of twelve scans in two folders, and enlarged JPEG copies of two of them."""
    root = tmp_path_factory.mktemp('photos')
    for i in range(12):
        (root / f'{i % 2}').mkdir(exist_ok=True)
        Image.fromarray(digits.images[i, ..., 0]).save(root / f'{i % 2}' / f'{i:02}.png')
    for i in (3, 8):
        scan = Image.fromarray(digits.images[i, ..., 0])
        scan.resize((8, 8)).save(root / f'copy of {i:02}.bmp')
    return root


def vectors(count, size=16, seed=0):
    return np.random.default_rng(seed).normal(size=(count, size)).astype(np.float32)


@pytest.mark.parametrize('kind', ['exact', 'hnsw'])
@pytest.mark.parametrize('metric', index.METRICS)
def test_the_nearest_as_numpy_finds_them(metric, kind):
    stored, asked = vectors(300), vectors(7, seed=1)
    made = index.create(ABOUT, 16, metric, kind)
    made.add([f'{i}' for i in range(200)], stored[:200])
    made.add([f'{i}' for i in range(200, 300)], stored[200:])
    if metric == 'cosine':
        lengths = np.linalg.norm(stored, axis=1) * np.linalg.norm(asked, axis=1)[:, None]
        scores = asked @ stored.T / lengths
        order = np.argsort(-scores, axis=1)
    else:
        scores = np.linalg.norm(asked[:, None] - stored, axis=-1)
        order = np.argsort(scores, axis=1)
    for row, found in enumerate(made.search(asked, 10)):
        assert [i for i, _ in found] == list(order[row, :10])
        np.testing.assert_allclose([s for _, s in found], scores[row, order[row, :10]], rtol=1e-4)
    assert len(made.search(asked, 1000)[0]) <= 300
    if kind == 'hnsw':
        assert made.recall() > 0.99


def test_a_file_gives_back_the_index_and_faiss_reads_it_too(tmp_path):
    made = index.create(ABOUT, 16, 'euclidean')
    names = ['/a/ü.png', os.fsdecode(b'/\xff.png'), 'train:3']
    made.add(names, vectors(3))
    made.save(tmp_path / 'x')
    again = index.load(tmp_path / 'x')
    assert (again.names, again.metric, again.made_by) == (names, 'euclidean', ABOUT)
    np.testing.assert_array_equal(again.vectors(), vectors(3))
    assert faiss.read_index(str(tmp_path / 'x')).ntotal == 3
    assert os.listdir(tmp_path) == ['x']


def test_an_index_that_is_damaged_is_one_line(tmp_path):
    made = index.create(ABOUT, 16)
    made.add(['a', 'b'], vectors(2))
    made.save(tmp_path / 'x')
    whole = (tmp_path / 'x').read_bytes()
    for damaged in (
        b'',
        b'no index',
        whole[:-1],
        whole[: len(whole) // 2],
        whole[60:],
        whole[:40] + whole[90:],
    ):
        (tmp_path / 'y').write_bytes(damaged)
        with pytest.raises(UserError, match='not an index of images'):
            index.load(tmp_path / 'y')
    with pytest.raises(UserError, match='build'):
        index.load(tmp_path / 'nowhere')


def test_two_who_add_at_once_do_not_lose_each_others_images(tmp_path):
    """faiss issue 861."""
    made = index.create(ABOUT, 16)
    made.add(['a'], vectors(1))
    made.save(tmp_path / 'x')
    made.save(tmp_path / 'x')
    one, other = index.load(tmp_path / 'x'), index.load(tmp_path / 'x')
    one.add(['b'], vectors(1))
    other.add(['c'], vectors(1))
    one.save(tmp_path / 'x')
    with pytest.raises(UserError, match='changed by another process'):
        other.save(tmp_path / 'x')
    assert index.load(tmp_path / 'x').names == ['a', 'b']
    other.save(tmp_path / 'y')
    one.add(['d'], vectors(1))
    one.save(tmp_path / 'x')
    assert index.load(tmp_path / 'x').names == ['a', 'b', 'd']


@pytest.mark.parametrize('kind', ['exact', 'hnsw'])
def test_vectors_that_an_index_cannot_take(kind):
    """faiss pull request 5219: after a NaN the other images of a graph are not found any more."""
    made = index.create(ABOUT, 16, kind=kind)
    made.add(['a', 'b'], vectors(2))
    with pytest.raises(UserError, match='not finite'):
        made.add(['c'], np.full((1, 16), np.nan))
    with pytest.raises(UserError, match=r'the index has \[n, 16\]'):
        made.add(['c'], vectors(1)[:, :3])
    with pytest.raises(UserError, match=r'the index has \[n, 16\]'):
        made.search(vectors(1)[0], 1)
    for k in (0, None, 1.5):
        with pytest.raises(UserError, match='k='):
            made.search(vectors(1), k)
    assert made.names == ['a', 'b'] and made.search(vectors(2), 5)[1][0] == (1, 1.0)
    with pytest.raises(UserError, match="Did you mean 'cosine'"):
        index.create(ABOUT, 16, 'cosin')


def test_a_cosine_is_at_most_1_and_of_a_vector_and_itself_1():
    """faiss issue 915."""
    many = vectors(500)
    made = index.create(ABOUT, 16)
    made.add(list(map(str, range(500))), many)
    assert [found[0] for found in made.search(many * 3, 1)] == [(i, 1.0) for i in range(500)]


def test_recall_is_whole_where_images_are_the_same():
    """hnswlib issue 263, qdrant issue 1788: any 10 of 100 copies are the nearest."""
    made = index.create(ABOUT, 16, kind='hnsw')
    made.add(list(map(str, range(500))), np.repeat(vectors(5), 100, axis=0))
    assert made.recall() == 1


def test_images_without_finite_features_are_named_and_left_out(classifier, monkeypatch):
    def embedding(variables, images, endpoint):
        there = np.arange(len(images)) != 1
        return np.where(there[:, None], 1.0, np.nan) * np.ones((len(images), 3), np.float32)

    monkeypatch.setattr(classifier, 'embedding', embedding)
    source = search.whole_split(classifier.run, 'test').source.subset(range(3))
    (batch,) = classifier.embed_source(source, 'not finite')
    assert batch[0].tolist() == [0, 2] and batch[2] == {1: "the model's features are not finite"}


def test_what_is_no_index_is_not_overwritten(tmp_path):
    (tmp_path / 'photo.jpg').write_bytes(b'\xff\xd8')
    with pytest.raises(UserError, match='is not an index; choose another name'):
        index.check_replaceable(tmp_path / 'photo.jpg')
    made = index.create(ABOUT, 16)
    made.save(tmp_path / 'i')
    index.check_replaceable(tmp_path / 'i')
    index.check_replaceable(tmp_path / 'new')


def test_a_write_that_fails_leaves_the_old_index(tmp_path, monkeypatch):
    made = index.create(ABOUT, 16)
    made.add(['a'], vectors(1))
    made.save(tmp_path / 'x')
    before = (tmp_path / 'x').read_bytes()
    made.add(['b'], vectors(1, seed=1))

    def full(descriptor):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(UserError, match='No space left'):
        made.save(tmp_path / 'x')
    assert (tmp_path / 'x').read_bytes() == before
    assert os.listdir(tmp_path) == ['x']


def test_build_add_query_duplicates(workdir, photos, tmp_path):
    def run(*args, expect=0):
        done = run_module(
            'experiments.search', f'--workdir={workdir}', f'--index={tmp_path}/i', '--format=json',
            *args,
        )  # fmt: skip
        assert done.returncode == expect, done.stderr
        return json.loads(done.stdout)

    (tmp_path / 'broken.png').write_bytes(b'no')
    (photos / '1' / 'manifest.json').write_text('{"name": "of an app"}')  # these are no shards
    built = run('build', photos / '0', tmp_path / 'broken.png', expect=3)
    assert built['images'] == 6 and built['metric'] == 'cosine' and built['kind'] == 'exact'
    assert built['failed'] == [{'path': f'{tmp_path}/broken.png', 'error': 'not an image'}]
    assert run('add', photos)['new'] == 8
    assert run('add', photos / '1')['new'] == 0
    asked = [photos / '1' / '05.png', tmp_path / 'broken.png', 'test:7']
    found = run('query', *asked, '--top_k=3', f'--output={tmp_path}/page.html', expect=3)
    assert [r['path'] for r in found] == list(map(str, asked))
    for r, name in ((found[0], '05.png'), (found[2], '07.png')):
        assert set(r) == {'path', 'neighbours'} and len(r['neighbours']) == 3
        assert r['neighbours'][0]['path'] == f'{photos}/1/{name}'
        scores = [n['score'] for n in r['neighbours']]
        assert scores[0] == pytest.approx(1, abs=1e-4) and scores == sorted(scores)[::-1]
    assert found[1] == {'path': f'{tmp_path}/broken.png', 'neighbours': [], 'error': 'not an image'}
    page = (tmp_path / 'page.html').read_text()
    assert page.count('src="data:image') == 8 and 'http' not in page
    groups = run('duplicates')
    assert [
        {r['path'], *(n['path'] for n in r['neighbours'])} for r in groups
    ] == [  # the folder's own order: 0/, 1/, copies
        {f'{photos}/0/08.png', f'{photos}/copy of 08.bmp'},
        {f'{photos}/1/03.png', f'{photos}/copy of 03.bmp'},
    ]  # fmt: skip


def test_a_split_by_euclidean_distance_in_one_command(workdir, digits, classifier, tmp_path):
    done = run_module(
        'experiments.search', f'--workdir={workdir}', '--split=train', '--metric=euclidean', 'query',
        'test:0', 'test:1', '--top_k=6', f'--output={tmp_path}/figure.png', '--format=json',
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    train = arrays.digits('train').images
    distances = np.linalg.norm(
        classifier.embed(digits.images[:2])[:, None] - classifier.embed(train), axis=-1
    )
    for row, expected in zip(rows, distances, strict=True):
        scores = [n['score'] for n in row['neighbours']]
        np.testing.assert_allclose(scores, np.sort(expected)[:6], rtol=1e-3)
        ids = [int(n['path'].removeprefix('train:')) for n in row['neighbours']]
        np.testing.assert_allclose(expected[ids], scores, rtol=1e-3)
    assert Image.open(tmp_path / 'figure.png').size[0] > 700


def test_an_index_of_another_model_endpoint_or_preprocessing(classifier, digits, workdir, tmp_path):
    source = [search.whole_split(classifier.run, 'validation')]
    made, failed = search.build(classifier, source, endpoint='stage2')
    assert (
        len(made.names) == arrays.digits('validation').num_examples
        and not failed
        and made.names[5] == 'validation:5'
    )
    made.check(classifier)
    with pytest.raises(UserError, match='endpoint: stage2 in the index, features in the run'):
        made.check(classifier, 'features')
    made.check(Classifier.from_workdir(workdir, fold=False))
    last = Classifier.from_workdir(workdir, 'last')
    other = Classifier.from_workdir(workdir)
    if last.run.step != other.run.step:
        with pytest.raises(UserError, match='weights'):
            made.check(last)
    with other.run.config.unlocked():
        other.run.config.preprocess.mean = (0.4,)
    with pytest.raises(UserError, match='preprocessing'):
        list(search.query(other, made, source))
    made.made_by['weights'] = 'other'
    made.save(tmp_path / 'i')
    model = json.dumps({'name': 'resnet20', 'dtype': 'float32'})
    elsewhere = index.create(made.made_by | {'model': model}, 16)
    says = 'differ in their model: resnet20 in the index, lenet5 in the run'
    with pytest.raises(UserError, match=says) as error:
        elsewhere.check(classifier)
    assert '{' not in str(error.value) and '[' not in str(error.value)
    done = run_module(
        'experiments.search', f'--workdir={workdir}', f'--index={tmp_path}/i', 'query', 'test:0'
    )
    assert done.returncode == 2 and done.stdout == ''
    assert 'differ in their weights' in done.stderr and len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ('args', 'says'),
    [
        ([], 'build, add, query'),
        (['--index=i', 'qeury'], "Did you mean 'query'"),
        (['query', 'test:0'], '--index'),
        (['--index=i', 'query'], 'at least one image'),
        (['--index=i', 'build'], 'files, folders or globs'),
        (['--index=i', '--split=test', 'query', 'test:0'], 'either --index=FILE or --split'),
        (['--index=no/where/i', 'build', 'docs/digits'], 'there is no folder'),
        (['--index=i', 'duplicates', 'docs'], 'unexpected'),
        (['--where=size>1', 'duplicates', '--index=i'], 'leave out --where: `duplicates` does not'),
        (['evaluate', '--copies', 'docs', '--box=0,0,9,9'], 'leave out --box: `evaluate --copies`'),
        (['evaluate', '--copies', 'docs', '--noverify', '--inliers=9'], 'leave out --inliers'),
        (['evaluate', '--copies', 'docs', '--background=b'], 'leave out --background'),
        (['evaluate', '--copies', '--truth=t'], 'leave out --truth'),
    ],
)  # fmt: skip
def test_a_wrong_command_line(args, says):
    done = run_module('experiments.search', '--workdir=never-looked-at', *args)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stdout == '' and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert says in done.stderr


@pytest.mark.parametrize(
    ('word', 'says'),
    [
        ('test:360', '0 … 359'),
        ('no/*.png', 'no images match'),
        ('tests', 'the folder has no images'),
    ],
)
def test_images_that_are_not_there(classifier, word, says):
    with pytest.raises(UserError, match=says):
        search.named(classifier.run, [word])


@pytest.mark.parametrize('command', [('verify',), ('remove', 'x'), ('build', 'FOLDER')])
def test_an_option_of_a_model_that_is_not_named(command, tmp_path):
    (tmp_path / 'manifest.json').touch()
    (tmp_path / 'shard-0.parquet').touch()
    words = [str(tmp_path) if word == 'FOLDER' else word for word in command]
    done = run_module('experiments.search', '--index=i', '--checkpoint=last', *words)
    assert done.returncode == 2 and '--checkpoint needs --workdir' in done.stderr, done.stderr


def test_a_whitened_index_of_no_readable_image(classifier, tmp_path):
    (tmp_path / 'x.png').write_text('no image')
    images = search.named(classifier.run, tmp_path / 'x.png')
    with pytest.raises(UserError, match=r'no image could be read, for example .*x\.png'):
        search.build(classifier, images, whiten=8)


def test_a_home_that_is_not_there(workdir):
    done = run_module(
        'experiments.search', f'--workdir={workdir}', '--index=i', 'build', '~nobody-at-all/pics'
    )
    assert done.returncode == 2 and done.stderr.count('\n') == 1, done.stderr


def test_a_split_or_endpoint_that_is_not_there(classifier):
    with pytest.raises(UserError, match="Did you mean 'train'"):
        search.whole_split(classifier.run, 'tran')
    with pytest.raises(UserError, match="Did you mean 'features'"):
        search.build(classifier, search.named(classifier.run, ['test:1']), 'feature')


def test_without_faiss_one_line_says_what_to_install(workdir, tmp_path):
    (tmp_path / 'faiss.py').write_text("raise ImportError('not here')")
    done = run_module(
        'experiments.search', f'--workdir={workdir}', f'--index={tmp_path}/i', 'build',
        '--split=test', PYTHONPATH=str(tmp_path),
    )  # fmt: skip
    assert done.returncode == 2 and 'pip install' in done.stderr and '[search]' in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_examples_of_a_tfds_split_that_is_read_by_index(tmp_path):
    import jax
    from ml_collections import ConfigDict

    from tests.data.test_tfds import TinyPictures
    from vision.core.config import default_config
    from vision.core.mesh import make_mesh, put_replicated
    from vision.evaluation.run import Run
    from vision.models import create_model
    from vision.models.base import init_variables
    from vision.task import task_of

    TinyPictures(data_dir=tmp_path, file_format='array_record').download_and_prepare()
    config = default_config()
    config.data = ConfigDict(
        {'source': 'tfds', 'name': 'tiny_pictures', 'data_dir': str(tmp_path), 'in_memory': False}
    )
    config.preprocess.eval = 'decode|central_crop(8)'
    (tmp_path / 'dataset.json').write_text('{}')
    model, mesh = create_model('resnet20', num_classes=2, stage_sizes=(1, 1, 1)), make_mesh()
    variables = jax.jit(lambda: init_variables(model, (8, 8, 3), jax.random.key(0)))()
    variables = put_replicated(variables, mesh)
    run = Run(
        path=tmp_path, config=config, class_names=('even', 'odd'), image_shape=None,
        input_shape=(8, 8, 3), step=0, model=model, task=task_of(config, ('even', 'odd'), 2),
        variables=variables, mesh=mesh,
    )  # fmt: skip
    classifier, whole = Classifier(run), [search.whole_split(run, 'test')]
    made, failed = search.build(classifier, whole, endpoint='stem', metric='euclidean')
    assert not failed and len(made.names) == 53
    (found,) = search.query(classifier, made, search.named(run, ['test:7']), 1)
    assert found['path'] == 'test:7' and found['neighbours'][0]['path'] == 'test:7'
    show = display.Pictures(run)
    assert show.title('test:7') == ('even', 'odd')[show('test:7')[4, 4, 0] % 2]
    display.write_results(run, [found], made.metric, tmp_path / 'page.html')
    assert (tmp_path / 'page.html').read_text().count('<img') == 2


def test_every_duplicate_is_in_one_group_however_many_are_near(classifier, digits, tmp_path):
    """25 copies of one scan, and 40 scans that look different but whose vectors are as near."""
    Image.fromarray(digits.images[0, ..., 0]).save(tmp_path / '00.png')
    names = [str(tmp_path / '00.png')]
    for i in range(24):
        names.append(str(tmp_path / f'copy{i:02}.png'))
        (tmp_path / names[-1]).write_bytes((tmp_path / '00.png').read_bytes())
    others = [f'test:{i}' for i in range(1, 41)]
    about = fingerprint.made_by(classifier, 'features')
    made = index.create(about, 16)
    near = np.ones((1, 16), np.float32) + vectors(65, seed=3) * 1e-3
    made.add([names[0], *others, *names[1:]], near)
    groups = find_duplicates(made, classifier.run)
    members = [p for g in groups for p in (g['path'], *(n['path'] for n in g['neighbours']))]
    assert len(members) == len(set(members))
    (group,) = [g for g in groups if g['path'] == names[0]]
    assert {n['path'] for n in group['neighbours']} >= set(names[1:])


def test_duplicates_of_an_index_of_another_run(workdir, tmp_path):
    made = index.create(ABOUT, 16)
    made.add(['test:9998', 'test:9999'], np.ones((2, 16), np.float32))
    made.save(tmp_path / 'i')
    done = run_module(
        'experiments.search', f'--workdir={workdir}', f'--index={tmp_path}/i', 'duplicates'
    )
    assert done.returncode == 2 and 'differ in their model' in done.stderr, done.stderr


def made_of(run, names):
    """An index of images whose vectors are all nearly the same."""
    made = index.create(ABOUT, 16)
    made.add(list(map(str, names)), np.ones((1, 16)) + vectors(len(names), seed=5) * 1e-3)
    return find_duplicates(made, run)


def paths_of(group):
    return [group['path'], *(n['path'] for n in group['neighbours'])]


def test_files_that_changed_after_they_were_described_are_told(
    classifier, digits, tmp_path, caplog
):
    """tobi/qmd issue 961: results for such files would concern their old content."""
    folder = tmp_path / 'scans'
    folder.mkdir()
    for i, name in enumerate(('a.png', 'b.png')):
        Image.fromarray(digits.images[i, ..., 0]).save(folder / name)
    made, _ = search.build(classifier, search.named(classifier.run, folder))
    made.save(tmp_path / 'i')
    made = index.load(tmp_path / 'i')
    for ask in (search.add, lambda *args: list(search.query(*args))):
        ask(classifier, made, search.named(classifier.run, folder))
    assert caplog.text == ''
    os.utime(folder / 'b.png', ns=(made.read[1][-1] + 1,) * 2)
    for ask in (search.add, lambda *args: list(search.query(*args))):
        caplog.clear()
        ask(classifier, made, search.named(classifier.run, folder / 'a.png'))
        ask(classifier, made, search.named(classifier.run, folder / 'b.png'))
        assert 'images of the index that have changed since it was built: 1,' in caplog.text
        assert 'b.png' in caplog.text and 'a.png' not in caplog.text


def test_files_that_are_gone_are_no_duplicates(classifier, digits, tmp_path, caplog):
    """eldertek/duplicatefinder issue 183: a user who keeps the first file would keep nothing."""
    for name in ('a.png', 'b.bmp', 'c.tif'):
        Image.fromarray(digits.images[5, ..., 0]).save(tmp_path / name)
    names = sorted(tmp_path.iterdir())
    names[0].unlink()
    (group,) = made_of(classifier.run, names)
    assert paths_of(group) == list(map(str, names[1:]))
    assert 'images of the index that no longer exist: 1,' in caplog.text and 'a.png' in caplog.text
    names[1].write_bytes(b'no image any more')
    assert made_of(classifier.run, names) == []
    for threshold in (1.5, float('nan')):
        with pytest.raises(UserError, match=r'threshold=.* is not a cosine'):
            find_duplicates(index.create(ABOUT, 16), classifier.run, threshold)


def test_the_same_bytes_come_first_blank_images_too(classifier, digits, tmp_path):
    scan = Image.fromarray(digits.images[5, ..., 0])
    scan.save(tmp_path / 'a.png')
    scan.save(tmp_path / 'b.bmp')  # other bytes, so only a near duplicate
    (tmp_path / 'c.png').write_bytes((tmp_path / 'a.png').read_bytes())
    Image.new('L', (8, 8), 255).save(tmp_path / 'white.png')
    (tmp_path / 'white2.png').write_bytes((tmp_path / 'white.png').read_bytes())
    Image.new('L', (9, 8), 255).save(tmp_path / 'white3.png')
    Image.new('L', (8, 8), 0).save(tmp_path / 'black.png')
    groups = made_of(classifier.run, sorted(tmp_path.iterdir()))
    assert [[os.path.basename(p) for p in paths_of(g)] for g in groups] == [
        ['a.png', 'c.png', 'b.bmp'],
        ['white.png', 'white2.png', 'white3.png'],
    ]
    assert [group['neighbours'][0]['score'] for group in groups] == [1, 1]


@pytest.mark.parametrize('link', [os.symlink, os.link])
def test_links_to_a_file_are_one_named_by_its_real_path(classifier, digits, tmp_path, link):
    (tmp_path / 'real').mkdir()
    real = tmp_path / 'real' / 'z.png'
    Image.fromarray(digits.images[5, ..., 0]).save(real)
    link(real, tmp_path / 'a.png')
    os.symlink(tmp_path / 'real', tmp_path / 'folder')
    names = [tmp_path / 'a.png', tmp_path / 'folder' / 'z.png', real]
    assert made_of(classifier.run, names) == []
    (tmp_path / 'copy.png').write_bytes(real.read_bytes())
    (group,) = made_of(classifier.run, [*names, tmp_path / 'copy.png'])
    first = str(real) if link is os.symlink else str(tmp_path / 'a.png')
    assert paths_of(group) == [first, str(tmp_path / 'copy.png')]


def test_the_images_of_a_condition_are_those_of_the_present_index():
    made = index.create(ABOUT, 16)
    made.add(['/x/a.png', '/y/b.png'], vectors(2))
    assert made.choose("folder='/x'").tolist() == [True, False]
    made.remove(['/x/a.png'])
    made.add(['/x/c.png'], vectors(1))
    assert made.choose("folder='/x'").tolist() == [False, True]


def test_a_file_that_changes_while_another_is_written(tmp_path, monkeypatch):
    made = index.create(ABOUT, 16)
    made.add(['a'], vectors(1))
    made.save(tmp_path / 'x')
    one, other = index.load(tmp_path / 'x'), index.load(tmp_path / 'x')
    other.add(['b'], vectors(1))
    fsync = os.fsync

    def meanwhile(descriptor):
        monkeypatch.setattr(os, 'fsync', fsync)
        other.save(tmp_path / 'x')

    monkeypatch.setattr(os, 'fsync', meanwhile)
    with pytest.raises(UserError, match='changed by another process'):
        one.save(tmp_path / 'x')
    assert index.load(tmp_path / 'x').names == ['a', 'b'] and os.listdir(tmp_path) == ['x']


def test_replaced_images_keep_the_users_fields(classifier, photos, tmp_path):
    image = photos / '0' / '00.png'
    (tmp_path / 'own.csv').write_text(f'path,score\n{image},5\n')
    images = search.named(classifier.run, image)
    made, _ = search.build(classifier, images, own=fields.Own(tmp_path / 'own.csv'))
    search.add(classifier, made, images, replace=True)
    assert made.choose('score=5').tolist() == [True]
    # A file that does not suit is refused before anything is described or removed.
    (tmp_path / 'own.csv').write_text(f'path,score\n{image},many\n')
    with pytest.raises(UserError, match='--fields: '):
        search.add(None, made, images, True, fields.Own(tmp_path / 'own.csv'))
    (tmp_path / 'own.csv').write_text('path,score\nother.png,5\n')
    with pytest.raises(UserError, match='names none of the images'):
        search.add(None, made, images, True, fields.Own(tmp_path / 'own.csv'))
    assert made.choose('score=5').tolist() == [True]


def test_shards_of_another_model_than_the_one_that_is_named(workdir, tmp_path):
    about = {'format': 1, 'made_by': ABOUT, 'dimensions': 16, 'shards': 1}
    (tmp_path / 'manifest.json').write_text(json.dumps(about))
    (tmp_path / 'shard-00000.parquet').touch()
    index_flag = f'--index={tmp_path}/i'
    done = run_module(
        'experiments.search', f'--workdir={workdir}', index_flag, '--hnsw', 'build', tmp_path
    )
    assert done.returncode == 2 and 'differ in their model: m in' in done.stderr, done.stderr
    assert '--hnsw is --kind=hnsw now' in done.stderr
    done = run_module('experiments.search', '--endpoint=logits', index_flag, 'build', tmp_path)
    assert done.returncode == 2 and 'has the endpoint features' in done.stderr, done.stderr
