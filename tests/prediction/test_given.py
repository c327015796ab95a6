"""Images in every accepted form get the pixels of evaluation; others are refused in one line."""

import io
import logging
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from tests.prediction.fuzz import photo_classifier
from vision.core.errors import UserError
from vision.data.source import FileSource
from vision.prediction.given import Given, gather
from vision.preprocess import example, opstring, pipeline

OPS = 'decode|resize_small(36)|central_crop(32)'


@pytest.fixture(scope='module')
def photo():
    """A classifier of photos of any size."""
    return photo_classifier()


@pytest.fixture(scope='module')
def files(tmp_path_factory, photos):
    """Files of photos of several sizes, which different decoders read."""
    folder = tmp_path_factory.mktemp('photos')
    exif = Image.Exif()
    exif[0x0112] = 6
    for i, pixels in enumerate(photos[:4]):
        Image.fromarray(pixels).save(folder / f'{i}.jpg', quality=90)
    Image.fromarray(photos[4]).save(folder / '4.png')
    Image.fromarray(photos[3]).save(folder / '5.jpg', exif=exif)
    Image.fromarray(photos[2]).convert('CMYK').save(folder / '6.jpg')
    Image.fromarray(photos[2]).convert('L').save(folder / '7.jpg')
    return sorted(folder.iterdir())


def source(paths):
    return FileSource('files', (), tuple(map(str, paths)), np.full(len(paths), -1, np.int32))


@pytest.mark.parametrize(
    'ops',
    [
        OPS,
        "decode|resize_small(40, 'bicubic')|central_crop(32)",
        'decode(channels=1)|resize(28, 28)',
        'decode|random_resized_crop(32)',
    ],
)
def test_few_images_get_the_pixels_of_many(files, ops):
    """The pixels are bit-identical whether tf.data or the call itself decodes the images."""
    many = files * 9  # too many to be decoded without tf.data
    batches = pipeline.eval_batches(source(many), ops, batch_size=len(many))
    assert len(many) > pipeline._FEW
    expected = next(iter(batches))['image'][: len(files)]
    few = next(iter(pipeline.eval_batches(source(files), ops, batch_size=len(files))))
    np.testing.assert_array_equal(few['image'], expected)
    as_bytes = Given([path.read_bytes() for path in files])
    few = next(iter(pipeline.eval_batches(as_bytes, ops, batch_size=len(files))))
    np.testing.assert_array_equal(few['image'], expected)


def test_one_image_and_several_in_every_form(photo, files):
    path = files[4]
    expected = photo(files)
    forms = {
        'text': str(path), 'path': path, 'bytes': path.read_bytes(), 'PIL': Image.open(path),
        'array': np.asarray(Image.open(path)), 'bytearray': bytearray(path.read_bytes()),
        'path as bytes': os.fsencode(path), 'open file': open(path, 'rb'),  # noqa: SIM115
        'BytesIO': io.BytesIO(path.read_bytes()), 'array of text': np.array(str(path)),
    }  # fmt: skip
    for name, form in forms.items():
        one = photo(form)
        assert one.shape == (1, 10), name
        np.testing.assert_allclose(one[0], expected[4], atol=1e-6, err_msg=name)
        if hasattr(form, 'seek') and name != 'PIL':
            form.seek(0)
        assert [c for c, _ in photo.predict(form, top_k=3)] == [
            str(c) for c in np.argsort(-expected[4])[:3]
        ], name
        if hasattr(form, 'seek') and name != 'PIL':
            form.seek(0)
    assert photo.embed(path).shape == (1, 64) and photo.explain(path).shape == (1, 32, 32)
    together = photo(list(forms.values()))
    np.testing.assert_allclose(together, np.repeat(expected[4:5], len(forms), 0), atol=1e-6)
    pictures = [files[0], files[1].read_bytes(), *map(Image.open, files[2:])]
    np.testing.assert_allclose(photo(pictures), expected, atol=1e-6)


def test_arrays_are_read_as_lossless_files_of_them(photo, photos, tmp_path):
    rgb = photos[4]
    alpha = np.dstack([rgb, np.full(rgb.shape[:2], 128, np.uint8)])
    arrays = [rgb, rgb[..., 0], rgb[..., :1], alpha, rgb[:50, :70]]
    for i, array in enumerate(arrays):
        Image.fromarray(array[..., 0] if array.shape[2:] == (1,) else array).save(
            tmp_path / f'{i}.png'
        )
    expected = photo(sorted(tmp_path.iterdir()))
    np.testing.assert_array_equal(photo(arrays), expected)
    np.testing.assert_array_equal(photo(np.stack([rgb, rgb])), photo([tmp_path / '0.png'] * 2))
    np.testing.assert_allclose(photo(rgb[..., 0])[0], expected[1], atol=1e-6)


def test_a_run_on_arrays_takes_images_of_any_size_but_arrays_of_its_own(
    classifier, digits, tmp_path
):
    scan = digits.images[0]
    picture = Image.fromarray(scan[..., 0])
    picture.save(tmp_path / 'x.png')
    expected = classifier(digits.images[:1])[0]
    for form in (
        scan,
        scan[..., 0],
        picture,
        picture.convert('RGB'),
        (tmp_path / 'x.png').read_bytes(),
    ):
        np.testing.assert_allclose(classifier(form)[0], expected, atol=1e-6)
    large = picture.resize((160, 160), Image.Resampling.BICUBIC)
    assert classifier.predict([large, scan])[0][0][0] == str(digits.labels[0])
    with pytest.raises(UserError, match='trained on'):
        classifier([scan, scan[:4]])


def test_names_and_probabilities(classifier, digits):
    probabilities = classifier(digits.images[:2])
    one = classifier.predict(digits.images[0], top_k=2)
    assert [name for name, _ in one] == [str(c) for c in np.argsort(-probabilities[0])[:2]]
    # Programs for one image and for two may round differently.
    likeliest = sorted(probabilities[0].tolist(), reverse=True)[:2]
    assert [p for _, p in one] == pytest.approx(likeliest, abs=1e-6)
    assert all(type(name) is str and type(p) is float for name, p in one)
    both = classifier.predict(digits.images[:2])
    assert [len(names) for names in both] == [5, 5]
    assert [name for name, _ in both[0][:2]] == [name for name, _ in one]
    assert [p for _, p in both[0]] == sorted(probabilities[0].tolist(), reverse=True)[:5]
    assert classifier.predict([digits.images[0]], top_k=2) == [one]
    assert classifier.predict([]) == [] and classifier([]).shape == (0, 10)
    assert len(classifier.predict(digits.images[0], top_k=np.int64(99))) == 10
    for top_k in (0, -1, None, 2.5, '3'):
        for call in (classifier.predict, classifier.classify_files):
            with pytest.raises(UserError, match=f'top_k={top_k!r}'):
                list(call('docs/digits/three.png', top_k=top_k))


def test_probabilities_that_are_not_finite_name_no_class(photo, photos, monkeypatch):
    monkeypatch.setattr(photo, '_probabilities', lambda source: np.full((1, 10), np.nan))
    with pytest.raises(UserError, match=r'image 0: .*not finite'):
        photo.predict(photos[0])


def test_text_that_is_no_path_is_a_short_line(photo):
    with pytest.raises(UserError, match='URLs are not fetched, download the image first'):
        photo('https://example.org/a.png')
    with pytest.raises(UserError) as e:
        photo('data:image/png;base64,' + 'A' * 100_000)
    assert len(str(e.value)) < 200


@pytest.mark.parametrize(
    'images',
    [
        None, 3, {'a': 1}, [None], [[1, 2]], object(), np.float32(1), np.zeros(5, np.uint8),
        np.zeros((1, 2, 3, 4, 5), np.uint8), np.zeros((9, 9, 3)), np.zeros((9, 9, 3), np.int64),
        io.FileIO(os.devnull, 'w'), np.zeros((9, 9, 3), bool), np.zeros((9, 9, 7), np.uint8), np.zeros((0, 9, 3), np.uint8),
        [np.zeros((1, 9, 9, 3), np.uint8)], b'no image', [b''], io.StringIO('x'), np.array(None), ['/no/where.png'], Image.new('RGB', (0, 0)),
    ],
    ids=lambda x: type(x).__name__,
)  # fmt: skip
def test_what_is_no_image_is_one_line(photo, images):
    for call in (photo, photo.predict, photo.embed):
        with pytest.raises(UserError) as e:
            call(images)
        assert '\n' not in str(e.value) and str(e.value)


def test_one_path_is_one_image_in_every_call(photo, files, tmp_path):
    expected = next(photo.classify_files([files[0]]))
    for path in (str(files[0]), files[0], os.fsencode(files[0])):
        (row,) = photo.classify_files(path)
        assert row == expected and row['path'] == str(files[0])
    assert len(list(photo.classify_files(iter(files)))) == len(files)
    (row,) = photo.classify_files(np.array(str(files[0])).item())
    for what in ([files[0], None], np.array(0), files[0].read_bytes(), open(files[0], 'rb')):  # noqa: SIM115
        with pytest.raises(UserError, match='is not a path'):
            list(photo.classify_files(what))
    missing = [os.fsdecode(b'no\xe9.png'), 'a\0*.png', 'x' * 5000]
    assert all(row['error'] for row in photo.classify_files(missing))
    with pytest.raises(UserError, match='no such file'):
        photo(missing[0])


def test_one_path_is_one_workdir(workdir):
    import vision
    from vision.prediction import Classifier
    from vision.search import search

    for path in (str(workdir), workdir, os.fsencode(workdir)):
        assert vision.load(path).path == Path(workdir)
        run = Classifier.from_workdir(path).run
    assert Classifier(workdir).class_names == run.class_names
    assert Classifier.from_workdir(workdir, run.step).run.step == run.step
    with pytest.raises(UserError, match='--checkpoint=None: choose best'):
        Classifier.from_workdir(workdir, None)
    assert Classifier.from_pretrained(Path(workdir)).class_names == run.class_names
    (found,) = search.named(run, 'test:3')
    assert list(found.names) == ['test:3']
    (found,) = search.named(run, Path('a.png'))
    assert list(found.names) == ['a.png']


def test_loading_says_nothing(workdir, caplog, capfd, recwarn):
    from vision.prediction import Classifier

    Classifier.from_workdir(workdir)
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == []
    assert capfd.readouterr() == ('', '') and len(recwarn) == 0


def test_one_image_a_call_takes_little_time_of_the_cpu(photo, photos, tmp_path):
    """At most 15 ms for a 500 × 375 JPEG in addition to the model, and nothing is traced again."""
    path = tmp_path / 'x.jpg'
    Image.fromarray(photos[3]).resize((500, 375)).save(path, quality=90)
    data = path.read_bytes()
    array = np.asarray(Image.open(path))
    fed = np.zeros((1, 32, 32, 3), np.uint8)
    model = jax.jit(photo.probabilities)

    def milliseconds(call, *arguments):
        times = []
        for _ in range(12):
            started = time.process_time()
            call(*arguments)
            times.append(1e3 * (time.process_time() - started))
        return sorted(times)[3]

    own = milliseconds(lambda: np.asarray(model(photo.variables, fed)))
    calls = [photo, photo.predict, photo.embed, lambda x: list(photo.classify_files(x))]
    for call in calls[:3]:
        call(path), call(data), call(array)
    traced = example._shared.cache_info().misses
    for call in calls:
        assert milliseconds(call, path) < own + 15
    assert milliseconds(photo, data) < own + 15 and milliseconds(photo, array[5:]) < own + 15
    with ThreadPoolExecutor(8) as pool:
        expected = photo(path)
        started = time.process_time()
        for row in pool.map(photo, [path] * 80):
            np.testing.assert_array_equal(row, expected)
        assert 1e3 * (time.process_time() - started) / 80 < own + 15
    assert example._shared.cache_info().misses == traced


def test_op_strings_are_read_by_several_threads_at_once():
    """The parser of Python 3.11 is not thread-safe with such strings."""
    texts = [f'decode|resize({i}, {i})|central_crop({i})' for i in range(1, 2000)]
    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            parsed = list(pool.map(opstring.parse, texts))
    finally:
        sys.setswitchinterval(switch)
    assert ['|'.join(map(str, ops)) for ops in parsed] == texts


def test_a_pillow_image_whose_file_is_cut_off_is_one_line(photo, files):
    data = files[4].read_bytes()
    with pytest.raises(UserError, match='image 0 cannot be read: truncated PNG'):
        photo(Image.open(io.BytesIO(data[: len(data) // 2])))


@pytest.mark.parametrize('mode', ['LA', 'La'])
def test_transparent_grey_pixels_are_white(mode):
    source, one = gather(Image.new('LA', (2, 2), (0, 0)).convert(mode), 3)
    assert one and (source.read([0])[0][0] == 255).all()


def test_columns_and_tensors_of_paths_are_lists_of_paths(files):
    pandas, tf = pytest.importorskip('pandas'), pytest.importorskip('tensorflow')
    paths = [str(path) for path in files[:2]]
    for column in (pandas.Series(paths), tf.constant(paths), np.array(paths, object)):
        source, one = gather(column, 3)
        assert source.paths == tuple(paths) and not one
    source, one = gather(tf.constant(paths[0]), 3)
    assert source.paths == (paths[0],) and one
