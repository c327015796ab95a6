"""Copies: each kind of copy is found where it lies, other photos are not, nothing is deleted."""

import csv
import io
import json
import os

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tests.processes import run_module
from vision.core.errors import UserError
from vision.search import copies, duplicates, explaining, groups, index, naming, search
from vision.search.copies import CopyDetector, Evidence, Limits
from vision.search.descriptions import Box
from vision.search.descriptors import fit_whitening
from vision.search.duplicates import find_duplicates, find_pairs
from vision.search.local_features import local_features, match

ABOUT = {'model': 'm', 'preprocessing': 'p', 'endpoint': 'features', 'weights': 'w'}
SIDE = 360  # pixels of the longer side of the photos, so that the tests are quick


@pytest.fixture(scope='module')
def photo(photos):
    """China, flower, astronaut, coffee and cat."""
    names = ('china', 'flower', 'astronaut', 'coffee', 'cat')
    return {name: reduced(image) for name, image in zip(names, photos, strict=True)}


def reduced(image):
    picture = Image.fromarray(image)
    picture.thumbnail((SIDE, SIDE))
    return np.asarray(picture)


def drawn(image, draw):
    picture = Image.fromarray(image)
    draw(ImageDraw.Draw(picture), *picture.size)
    return np.asarray(picture)


def compressed(image, quality):
    file = io.BytesIO()
    Image.fromarray(image).save(file, 'jpeg', quality=quality)
    return np.asarray(Image.open(file))


def screenshot(image, other):
    canvas = np.array(Image.fromarray(other).resize((500, 400)))
    small = np.asarray(Image.fromarray(image).resize((180, round(180 * len(image) / SIDE))))
    canvas[60 : 60 + len(small), 200:380] = small
    return canvas


def made_copies(image, other):
    """Copies of an image, each with the affine map from the image to the copy."""
    height, width = image.shape[:2]
    half = image[height // 4 : height // 4 * 3 + 20, width // 4 : width // 4 * 3 + 20]
    same = [[1, 0, 0], [0, 1, 0]]
    rng = np.random.default_rng(0)
    noisy = np.clip(image + rng.normal(0, 20, image.shape), 0, 255).astype(np.uint8)
    grey = np.repeat(image.mean(axis=-1, keepdims=True) * 0.6 + 60, 3, axis=-1).astype(np.uint8)
    sticker = drawn(image, lambda d, w, h: d.ellipse((20, 20, w // 2, h // 2), 'gold'))
    text = drawn(image, lambda d, w, h: d.text((5, h // 2), 'SALE 50 %', 'red', font_size=h // 5))
    return {
        'mirrored': (image[:, ::-1], [[-1, 0, width], [0, 1, 0]]),
        'upside down': (image[::-1, ::-1], [[-1, 0, width], [0, -1, height]]),
        'turned': (np.rot90(image), [[0, 1, 0], [-1, 0, width]]),
        'half': (half, [[1, 0, -(width // 4)], [0, 1, -(height // 4)]]),
        'mirrored half': (half[:, ::-1], [[-1, 0, width // 4 + half.shape[1]], [0, 1, -(height // 4)]]),
        'border': (np.pad(image, ((60, 60), (60, 60), (0, 0))), [[1, 0, 60], [0, 1, 60]]),
        'sticker': (sticker, same),
        'text': (text, same),
        'grey': (grey, same),
        'noise': (noisy, same),
        'compressed': (compressed(image, 10), same),
        'screenshot': (screenshot(image, other), [[0.5, 0, 200], [0, 0.5, 60]]),
    }  # fmt: skip


def test_every_kind_of_copy_is_found_where_it_lies(photo):
    """The map from photo to copy is known: corners of the photo land within 2 % of its width."""
    limits = Limits()
    one, other = local_features(photo['astronaut']), local_features(photo['china'])
    height, width = photo['astronaut'].shape[:2]
    corners = np.array([(0, 0, 1), (width, 0, 1), (0, height, 1), (width, height, 1)], float)
    for name, (image, expected) in made_copies(photo['astronaut'], photo['flower']).items():
        copy = local_features(np.ascontiguousarray(image))
        found = match(one, copy)
        assert found is not None and found.strength >= limits.inliers, name
        assert found.agreement >= limits.agreement, name
        moved, known = (corners @ np.transpose(m) for m in (found.map, expected))
        np.testing.assert_allclose(moved, known, atol=0.02 * width, err_msg=name)
        # The matched points obey the map, and the other direction finds the same.
        ones = np.concatenate([found.one, np.ones((found.inliers, 1))], axis=1)
        assert np.abs(ones @ found.map.T - found.other).max() < 6 / copy.scale, name
        back = match(copy, one)
        assert back is not None and back.agreement >= limits.agreement, name
        np.testing.assert_allclose(back.shared[::-1], found.shared, atol=0.05, err_msg=name)
        # Another photo is not found.
        wrong = match(other, copy, limits.inliers)
        assert wrong is None or wrong.agreement < limits.agreement, name


def test_how_much_two_images_share(photo):
    image = photo['cat']
    height, width = image.shape[:2]
    one = local_features(image)
    half = match(one, local_features(image[:, : width // 2]))
    np.testing.assert_allclose(half.shared, (0.5, 1), atol=0.02)
    framed = np.pad(image, ((height // 2, height // 2), (width // 2, width // 2), (0, 0)))
    np.testing.assert_allclose(match(one, local_features(framed)).shared, (1, 0.25), atol=0.02)
    same = match(one, one)
    np.testing.assert_allclose(same.shared, (1, 1), atol=1e-3)
    assert same.agreement > 0.99 and same.inliers > 100


def test_images_without_texture_have_no_match():
    blank = np.full((200, 300, 3), 80, np.uint8)
    ramp = np.repeat(np.linspace(0, 255, 300).astype(np.uint8)[None, :, None], 200, axis=0)
    tiny = np.random.default_rng(0).integers(0, 255, (8, 8, 1), np.uint8)
    for image in (blank, ramp, tiny):
        assert match(local_features(image), local_features(image)) is None


def test_hashes_of_turned_images_are_the_same_eight(photo):
    import imagehash

    image = photo['coffee']
    known = copies.look(image)
    own = imagehash.phash(Image.fromarray(image))
    assert bin(copies.hash_of(image) ^ int(str(own), 16)).count('1') <= 2
    for turned in (image[:, ::-1], image[::-1], np.rot90(image), np.rot90(image[:, ::-1])):
        turned = copies.look(np.ascontiguousarray(turned))
        distance = np.bitwise_count(turned.hashes[:, None] ^ known.hashes).min(axis=1)
        assert distance.max() <= 2
    other = copies.look(photo['cat'])
    assert np.bitwise_count(other.hashes[0] ^ known.hashes).min() > Limits().bits


@pytest.mark.parametrize('bits', [0, 7, 11])
def test_near_hashes_are_those_that_numpy_finds(bits):
    rng = np.random.default_rng(bits)
    hashes = rng.integers(0, 1 << 63, 150, np.uint64)
    # Others differ from the first ones by 0 … 14 bits.
    for i in range(75):
        flips = sum(1 << int(bit) for bit in rng.choice(64, i % 15, replace=False))
        hashes[75 + i] = hashes[i] ^ np.uint64(flips)
    turned = rng.integers(0, 1 << 63, (150, 7), np.uint64)
    looks = {
        i: copies.Look(np.array([h, *t]), np.ones(256), np.zeros(3), (1, 1))
        for i, (h, t) in enumerate(zip(hashes, turned, strict=True))
    }
    found = set(duplicates._near_hashes(looks, range(100), range(50, 150), bits))
    distances = np.bitwise_count(
        np.concatenate([hashes[:100, None], turned[:100]], axis=1)[:, :, None] ^ hashes[50:]
    ).min(axis=1)
    assert found == {(i, j + 50) for i, j in np.argwhere(distances <= bits).tolist()}


@pytest.fixture(scope='module')
def collection(photo, tmp_path_factory):
    """Files: four photos, and copies of the astronaut and of the cat below `copies`."""
    root = tmp_path_factory.mktemp('collection')
    (root / 'copies').mkdir()
    for number, name in enumerate(('astronaut', 'cat', 'china', 'coffee')):
        Image.fromarray(photo[name]).save(root / f'{name}.png')
        os.utime(root / f'{name}.png', (1e9, 1e9 + number))
    for name in ('astronaut', 'cat'):
        kinds = made_copies(photo[name], photo['flower'])
        for kind in ('mirrored', 'turned', 'half', 'border', 'sticker'):
            image = Image.fromarray(np.ascontiguousarray(kinds[kind][0]))
            image.save(root / 'copies' / f'{name} {kind}.png')
    return root


def indexed(*names):
    """An index of files with vectors that tell nothing, so that all files are candidates."""
    made = index.create(ABOUT, 16)
    rng = np.random.default_rng(0)
    made.add(list(map(str, names)), rng.normal(size=(len(names), 16)).astype(np.float32))
    return made


def everything(root):
    return {path: path.read_bytes() for path in root.rglob('*') if path.is_file()}


def test_groups_of_copies_and_what_could_be_deleted(collection, classifier, tmp_path):
    before = everything(collection)
    files = sorted(collection.rglob('*.png'))
    pairs = find_pairs(indexed(*files), classifier.run, Limits(neighbours=20))
    found = groups.groups_of(pairs)
    members = [{g['path'], *(n['path'] for n in g['neighbours'])} for g in found]
    assert members == [{str(f) for f in files if name in f.name} for name in ('astronaut', 'cat')]
    for group in found:
        # The copy with a border has the most pixels.
        assert group['keep'].endswith('border.png')
        assert {n['stage'] for n in group['neighbours']} == {'features'}
        assert all(0.5 < n['score'] < 1 and n['inliers'] >= 5 for n in group['neighbours'])
        assert all(row['keep'] != row['delete'] for row in group['delete'])
        whole = {os.path.basename(r['delete']): r['shared'] for r in group['delete']}
        assert all(shared > 0.97 for shared in whole.values())
    (oldest,) = [g for g in groups.groups_of(pairs, 'oldest') if 'cat' in g['path']]
    assert oldest['keep'] == f'{collection}/cat.png'
    # A copy that shows more than the kept photo is not listed.
    shared = {os.path.basename(r['delete']): r['shared'] for r in oldest['delete']}
    assert shared['cat half.png'] > 0.97 and 'cat border.png' not in shared
    # The lists.
    groups.write_deletable(found, tmp_path / 'list.csv')
    groups.write_deletable(found, tmp_path / 'list.json')
    rows = list(csv.DictReader((tmp_path / 'list.csv').open()))
    listed = json.loads((tmp_path / 'list.json').read_text())
    assert [r['delete'] for r in rows] == [r['delete'] for r in listed] != []
    assert not {r['delete'] for r in rows} & {r['keep'] for r in rows}
    # The pictures.
    explaining.write_explanation(classifier.run, pairs, found, tmp_path / 'why.html')
    explaining.write_explanation(classifier.run, pairs, found[:1], tmp_path / 'why.png')
    page = (tmp_path / 'why.html').read_text()
    assert page.count('src="data:image') == 10 and 'mirrored' in page and 'http' not in page
    picture = np.asarray(Image.open(tmp_path / 'why.png'))
    assert picture.shape[0] > 5 * 300 and picture.std() > 30
    assert everything(collection) == before


def test_between_two_indexes_only_pairs_of_both(collection, photo, classifier):
    first = sorted((collection / 'copies').iterdir())
    second = [collection / 'cat.png', collection / 'china.png']
    args = indexed(*first), classifier.run
    (group,) = find_duplicates(*args, limits=Limits(neighbours=20), against=indexed(*second))
    members = {group['path'], *(n['path'] for n in group['neighbours'])}
    assert members == {str(second[0]), *(str(f) for f in first if f.name.startswith('cat'))}
    for n in group['neighbours']:
        assert (n['path'] == str(second[0])) != (n['copy_of'] == str(second[0]))
    # The copy with a border is larger, so it is not listed; files of the second index never are.
    listed = {os.path.basename(row['delete']) for row in group['delete']}
    assert listed == {f'cat {k}.png' for k in ('mirrored', 'turned', 'half', 'sticker')}
    assert {row['keep'] for row in group['delete']} == {str(second[0])}


def test_exact_copies_in_another_index(photo, classifier, tmp_path):
    """A file of both indexes is not its own copy; a copy of it is listed, however old it is."""
    Image.fromarray(photo['cat']).save(tmp_path / 'a.png')
    for name in ('b.png', 'c.png'):
        (tmp_path / name).write_bytes((tmp_path / 'a.png').read_bytes())
    os.utime(tmp_path / 'a.png', (1, 1))
    os.symlink('c.png', tmp_path / 'link.png')
    a, b, c, link = (tmp_path / f'{name}.png' for name in ('a', 'b', 'c', 'link'))
    for keep in groups.KEEP:
        found = find_duplicates(indexed(a, b, link), classifier.run, against=indexed(c), keep=keep)
        (group,) = found
        assert [row['delete'] for row in group['delete']] == [str(a), str(b)]
        assert {row['keep'] for row in group['delete']} == {str(c)}
    same = indexed(a, b, c)
    assert find_duplicates(same, classifier.run, against=same) == []
    assert find_duplicates(indexed(a, b), classifier.run, against=indexed(link)) != []
    with pytest.raises(UserError, match="'newest'"):
        find_duplicates(same, classifier.run, keep='newest')


def test_two_indexes_with_different_whitenings_are_refused(photo, classifier, tmp_path):
    Image.fromarray(photo['cat']).save(tmp_path / 'a.png')
    one, other = indexed(tmp_path / 'a.png'), indexed(tmp_path / 'a.png')
    other.whitening = fit_whitening(np.random.default_rng(0).normal(size=(40, 16)), 16)
    with pytest.raises(UserError, match='different whitenings'):
        find_duplicates(one, classifier.run, against=other)


def test_only_a_copy_of_what_is_kept_could_be_deleted(tmp_path):
    """Two halves of a photo are in one group; neither replaces the other."""
    names = [str(tmp_path / f'{i}.png') for i in range(4)]
    for i, name in enumerate(names):
        Image.new('RGB', (10 + i, 10)).save(name)
        os.utime(name, (i, i))
    half = Evidence('features', 0.8, 0.5, 20)
    compare = copies.Comparison(lambda name: np.asarray(Image.open(name)))
    edges = {(0, 2): half, (1, 2): half}
    pairs = groups.Pairs(names, [0, 1, 2, 3], [0, 1, 2, 2], 4, False, edges, compare)
    for keep, kept, lost in (('largest', {3}, {0, 1, 2}), ('oldest', {0, 1}, {2, 3})):
        (group,) = groups.groups_of(pairs, keep)
        assert {row['delete'] for row in group['delete']} == {names[i] for i in lost}
        assert group['keep'] == names[min(kept)]
        for row in group['delete']:
            one, other = names.index(row['keep']), names.index(row['delete'])
            assert pairs.evidence(one, other) is not None and one in kept


def test_scores_of_a_new_photo(photo):
    """Verified copies are above ½, everything else is below."""
    images = list(photo.values())
    names = list(photo)
    search_none = CopyDetector(images.__getitem__, lambda vectors, k: [])
    hashes = np.array([copies.hash_of(image) for image in images], np.uint64)
    by_hash = CopyDetector(images.__getitem__, lambda vectors, k: [], hashes)
    no_vectors = np.zeros((0, 4), np.float32)
    for kind, (image, _) in made_copies(photo['cat'], photo['china'][:, ::-1]).items():
        image = np.ascontiguousarray(image)
        found = search_none(image, no_vectors, range(5))
        assert sorted(f.position for f in found) == [0, 1, 2, 3, 4]
        scores = [f.evidence.score for f in found]
        assert scores == sorted(scores)[::-1]
        good = {names[f.position] for f in found if f.evidence.score > 0.5}
        assert 'cat' in good and good <= {'cat', 'china'}, (kind, good)
        assert ('china' in good) == (kind == 'screenshot')
        if kind in ('mirrored', 'turned', 'upside down', 'compressed'):
            (found,) = by_hash(image, no_vectors)
            assert names[found.position] == 'cat' and found.evidence.bits <= 8
    # Nearest vectors are candidates, with the best cosine of several vectors of the query.
    made = index.create(ABOUT, 4)
    made.add(names, np.eye(5, 4, dtype=np.float32) + 0.1)
    detector = CopyDetector(images.__getitem__, made.search, limits=Limits(neighbours=2))
    found = detector(images[0], np.eye(4, dtype=np.float32)[:2])
    assert {f.position for f in found} >= {0, 1} and found[0].position == 0
    assert max(f.evidence.cosine for f in found) == found[0].evidence.cosine > 0.9


@pytest.mark.parametrize(
    ('limit', 'value'),
    [('bits', 12), ('bits', -2), ('neighbours', -1), ('inliers', 3), ('agreement', 1.1),
     ('agreement', float('nan')), ('cosine', 2)],
)  # fmt: skip
def test_limits_that_make_no_sense(limit, value):
    with pytest.raises(UserError, match=str(value)):
        Limits(**{limit: value})


def test_a_part_of_a_picture_is_looked_for(classifier, digits):
    made, _ = search.build(classifier, [search.whole_split(classifier.run, 'test')])
    scan = np.kron(digits.images[3], np.ones((4, 4, 1), np.uint8))
    canvas = np.zeros((60, 80, 1), np.uint8)
    canvas[20:52, 40:72] = scan
    picture = Image.fromarray(canvas[..., 0])
    file = io.BytesIO()
    picture.save(file, 'png')
    asked = [picture, file.getvalue()]
    found = list(search.query(classifier, made, asked, 3, box=Box(40, 20, 32, 32)))
    (whole,) = search.query(classifier, made, Image.fromarray(scan[..., 0]), 3)
    assert [r['path'] for r in found] == ['image 0', 'image 1'] and whole['path'] == 'image 0'
    for result in found:
        assert result['neighbours'] == whole['neighbours']
    for box in (Box(49, 0, 32, 32), Box(0, 0, 0, 3), Box(-1, 0, 8, 8)):
        with pytest.raises(UserError, match=r'is not within image 0, which has 80 x 60 pixels'):
            list(search.query(classifier, made, picture, box=box))
    # One array, several arrays, and paths.
    (one,) = search.query(classifier, made, digits.images[5], 1)
    assert one['neighbours'][0]['path'] == 'test:5'
    two = search.query(classifier, made, digits.images[5:7], 1)
    assert [r['neighbours'][0]['path'] for r in two] == ['test:5', 'test:6']
    (lost,) = search.query(classifier, made, 'no/such.png')
    assert lost['error'] == 'no such file' and lost['path'] == 'no/such.png'


@pytest.mark.parametrize(
    'text', ['', '1,2,3', '1,2,3,4,5', '1,2,3.5,4', '1,2,0,4', '-1,0,3,3', 'x']
)
def test_a_box_that_is_none(text):
    with pytest.raises(UserError, match=r'--box=.*x,y,width,height'):
        naming.parse_box(text)
    assert naming.parse_box('1, 2,30,40') == (1, 2, 30, 40)


@pytest.mark.slow
def test_the_command(classifier, workdir, collection, tmp_path):
    made, _ = search.build(classifier, search.named(classifier.run, collection))
    made.save(tmp_path / 'i')
    before = everything(collection)

    def run(*args, expect=0):
        done = run_module(
            'experiments.search', f'--workdir={workdir}', f'--index={tmp_path}/i', '--format=json',
            *args,
        )  # fmt: skip
        assert done.returncode == expect, done.stderr
        if expect:
            assert len(done.stderr.strip().splitlines()) == 1 and not done.stdout
        return done.stderr if expect else json.loads(done.stdout)

    found = run(
        'duplicates', '--neighbours=20', f'--deletable={tmp_path}/list.csv',
        f'--explain={tmp_path}/why.html', f'--output={tmp_path}/page.html',
    )  # fmt: skip
    assert len(found) == 2 and (tmp_path / 'why.html').stat().st_size > 50_000
    assert len((tmp_path / 'list.csv').read_text().splitlines()) == 11
    assert run('duplicates', f'--against={tmp_path}/i') == []
    for args, says in (
        (['--bits=12', 'duplicates'], 'bits=12'),
        (['--deletable=list.txt', 'duplicates'], 'list.txt'),
        (['--explain=why.gif', 'duplicates'], 'why.gif'),
        (['--against=no/index', 'duplicates'], 'no/index'),
        (['query', 'test:0', '--box=0,0,9,9'], 'is not within test:0, which has 8 x 8 pixels'),
        (['query', 'test:0', '--box=0,0'], 'x,y,width,height'),
    ):
        assert says in run(*args, expect=2)
    assert everything(collection) == before
