"""Options of the vectors: whitening, views, pooling and score normalization, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests import tiers
from vision.core.config import default_config
from vision.core.errors import UserError
from vision.core.mesh import make_mesh, put_replicated
from vision.evaluation.run import Run
from vision.models import create_model
from vision.models.base import init_variables
from vision.prediction import Classifier
from vision.search import describing, descriptors, index, search, shards
from vision.task import task_of

ABOUT = {'model': 'm', 'preprocessing': 'p', 'endpoint': 'features', 'weights': 'w'}


def vectors(count, size=12, seed=0):
    """Correlated vectors."""
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(9).normal(size=(size, size))
    return (rng.normal(size=(count, size)) @ mix + 1).astype(np.float32)


def cosines(a, b):
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    return a @ b.T


def test_whitened_components_are_uncorrelated_and_the_largest():
    x = vectors(300)
    whitening = descriptors.fit_whitening(x, 5)
    np.testing.assert_allclose(np.cov(whitening(x).T, bias=True), np.eye(5), atol=1e-3)
    np.testing.assert_allclose(whitening(x).mean(axis=0), 0, atol=1e-4)
    # The five directions with the most variance.
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    kept = np.linalg.qr(whitening.matrix)[0]
    variance = np.linalg.eigvalsh(np.cov(unit.T, bias=True))[-5:].sum()
    assert np.trace(kept.T @ np.cov(unit.T, bias=True) @ kept) == pytest.approx(variance, rel=1e-4)
    again = descriptors.Whitening.from_bytes(whitening.to_bytes(), 5)
    assert all(np.array_equal(a, b) for a, b in zip(whitening, again, strict=True))
    for size, some in ((13, x), (10, x[:8]), (1, np.ones((5, 12), np.float32))):
        with pytest.raises(UserError, match=f'--whiten={size}'):
            descriptors.fit_whitening(some, size)


@pytest.mark.parametrize('kind', ['exact', 'hnsw'])
def test_an_index_whitens_what_it_stores_and_what_it_is_asked(tmp_path, kind):
    x, asked = vectors(200), vectors(3, seed=1)
    made = index.create(ABOUT, 6, kind=kind)
    made.whitening = descriptors.fit_whitening(x, 6)
    made.add(list(map(str, range(200))), x)
    made.save(tmp_path / 'x')
    expected = cosines(made.whitening(asked), made.whitening(x))
    for read_only in (False, True):
        again = index.load(tmp_path / 'x', read_only)
        for row, found in zip(expected, again.search(asked, 5), strict=True):
            assert [i for i, _ in found] == np.argsort(-row)[:5].tolist()
            np.testing.assert_allclose([s for _, s in found], np.sort(row)[::-1][:5], atol=1e-4)
    with pytest.raises(UserError, match=r'the index has \[n, 12\]'):
        again.search(asked[:, :6], 1)
    # Vectors that are stored already are not whitened once more.
    again = index.load(tmp_path / 'x')
    again.remove(['7'])
    assert again.search(x[8:9], 1)[0] == [(7, 1.0)] and len(again) == 199


def test_scores_are_normalized_by_the_nearest_of_a_background():
    x, background = vectors(5), vectors(40, seed=2)
    expected = np.sort(cosines(x, background), axis=1)[:, -3:].mean(axis=1)
    np.testing.assert_allclose(descriptors.background_scores(x, background), expected, rtol=1e-5)
    few = np.sort(cosines(x, background[:2]), axis=1).mean(axis=1)
    np.testing.assert_allclose(descriptors.background_scores(x, background[:2]), few, rtol=1e-5)


def test_views_of_a_query():
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    one, flip, scales, every = (
        descriptors.views(n)(image) for n in ('one', 'flip', 'scales', 'all')
    )
    assert len(one) == 1 and one[0] is image and np.array_equal(flip[1], image[:, ::-1])
    assert [x.shape[0] * x.shape[1] / 2400 for x in scales] == pytest.approx([1, 0.5, 2], rel=0.07)
    assert np.array_equal(scales[1], image[6:-6, 9:-9])
    assert np.array_equal(scales[2][8:-8, 12:-12], image)
    np.testing.assert_allclose(scales[2][0, 0], image.mean(axis=(0, 1)), atol=1)
    assert len(every) == 6 == descriptors.number_of_views('all')
    assert np.array_equal(every[3], scales[1][:, ::-1])
    with pytest.raises(UserError, match='kind of views'):
        descriptors.views('both')
    groups = list(descriptors.grouped([np.ones((3, 2)), np.zeros((4, 2)), np.ones((2, 2))], 3))
    assert [len(g) for g in groups] == [1, 1, 1] and groups[2][0].tolist() == [
        [0, 0],
        [1, 1],
        [1, 1],
    ]


def test_options_from_one_end_to_the_other(workdir, tmp_path):
    """GeM, whitening, views and background on the digits run, each against NumPy."""
    classifier = Classifier(workdir)
    images = search.whole_split(classifier.run, 'test')
    some = images.source.subset(range(60))
    pixels = some.images
    # GeM of the feature maps.
    shape = (3, *classifier.run.input_shape)
    fed = jnp.asarray(np.random.default_rng(0).integers(0, 256, shape), jnp.float32)
    normalised = classifier._normalised(fed)
    _, ends = classifier.model.apply(classifier.variables, normalised, train=False)
    name = next(k for k, v in ends.items() if v.ndim == 4)
    maps = np.maximum(np.asarray(ends[name], np.float64), 1e-6)
    expected = (maps**3).mean(axis=(1, 2)) ** (1 / 3)
    found = classifier.embedding(classifier.variables, fed, f'{name}:gem')
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match='no positions to pool'):
        classifier.embedding_size('features:gem')
    # An index of whitened vectors, and queries of two views with normalized scores.
    named = search.Named(some, [f'test:{i}' for i in range(60)])
    made, _ = search.build(classifier, [named], whiten=8)
    other = search.Named(images.source.subset(range(60, 90)), [f'test:{i}' for i in range(60, 90)])
    background, _ = search.build(classifier, [other])
    plain, mirrored = (classifier.embed(x) for x in (pixels, pixels[:, :, ::-1]))
    whitening = descriptors.fit_whitening(plain, 8)
    asked = whitening((plain[:2] + mirrored[:2]) / 2)
    scores = cosines(asked, whitening(plain))
    rest = cosines(asked, whitening(classifier.embed(other.source.images)))
    scores -= np.sort(rest, axis=1)[:, -3:].mean(axis=1, keepdims=True)
    two = search.Named(images.source.subset(range(2)), ['test:0', 'test:1'])
    results = search.query(classifier, made, [two], 3, views='flip', background=background)
    for row, result in zip(scores, results, strict=True):
        assert [n['path'] for n in result['neighbours']] == [
            f'test:{i}' for i in np.argsort(-row)[:3]
        ]
        top = [n['score'] for n in result['neighbours']]
        np.testing.assert_allclose(top, np.sort(row)[::-1][:3], atol=2e-3)
    with pytest.raises(UserError, match='without --whiten'):
        next(search.query(classifier, made, [two], background=made))
    with pytest.raises(UserError, match='--metric=cosine'):
        search.build(classifier, [two], metric='euclidean', whiten=8)


@pytest.mark.parametrize(
    ('channels', 'decode'), tiers.split([(1, 'decode(1)'), (3, 'decode')], [(3, 'decode')])
)
def test_pictures_of_every_kind_have_the_vector_that_predict_computes(tmp_path, channels, decode):
    """Colour for a grey model, grey for a colour model, alpha, a palette, 16 bits, CMYK, EXIF."""
    run = small_run(tmp_path, channels, f'{decode}|resize(8)')
    paths = pictures(tmp_path / 'photos')
    classifier = Classifier(run)
    expected = classifier.embed(paths)
    images = search.named(run, paths)
    made, failed = search.build(classifier, images, metric='euclidean')
    assert not failed and len(np.unique(expected.round(4), axis=0)) > 4
    np.testing.assert_allclose(made.vectors(), expected, rtol=1e-4, atol=1e-5)
    for given in (images, paths):
        found = list(search.query(classifier, made, given, 1))
        assert [row['neighbours'][0]['score'] for row in found] == pytest.approx([0] * 8, abs=1e-3)
    describing.describe(classifier, images, tmp_path / 's')
    stored, _ = search.build(None, shards.open_shards(tmp_path / 's'), metric='euclidean')
    order = [stored.names.index(path) for path in paths]
    np.testing.assert_allclose(stored.vectors()[order], expected, rtol=5e-3, atol=1e-3)


def small_run(path, channels, ops):
    """A ResNet-20 of three blocks with drawn weights."""
    config = default_config()
    config.preprocess.eval = ops
    model = create_model('resnet20', num_classes=2, stage_sizes=(1, 1, 1))
    shape, mesh = (8, 8, channels), make_mesh()
    variables = jax.jit(lambda: init_variables(model, shape, jax.random.key(0)))()
    return Run(
        path=path, config=config, class_names=('a', 'b'), image_shape=None, input_shape=shape, step=0,
        model=model, task=task_of(config, ('a', 'b'), 2),
        variables=put_replicated(variables, mesh), mesh=mesh,
    )  # fmt: skip


def pictures(folder):
    """Writes one picture in eight ways."""
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 4), dtype=np.uint8)
    colour, alpha = Image.fromarray(pixels[..., :3]), Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = 6
    wide = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    for image, name, options in (
        (colour, 'colour.jpg', {'quality': 95}),
        (colour.convert('L'), 'grey.jpg', {'quality': 95}),
        (alpha, 'alpha.png', {}),
        (alpha.convert('LA'), 'grey_alpha.png', {}),
        (colour.convert('P'), 'palette.gif', {'transparency': 3}),
        (wide, '16_bit.png', {}),
        (colour.convert('CMYK'), 'cmyk.jpg', {}),
        (colour, 'turned.jpg', {'exif': exif}),
    ):
        image.save(folder / name, **options)
    return sorted(map(str, folder.iterdir()))
