"""Evaluations by entry: views, scales, ensembles and other data sets, against NumPy."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from scipy.special import softmax

from vision.core.config import complete_eval, default_config
from vision.core.errors import UserError
from vision.core.mesh import make_mesh
from vision.evaluation.evals import evaluate_entry, named_entries, predict_run
from vision.evaluation.run import Run
from vision.task import task_of
from vision.task.classification import TOP

K = 7


class Corner:
    """Logits are the first K pixels of the image's first row, so crops and mirror images differ."""

    def apply(self, variables, images, train):
        return images[:, 0, :K, 0] * variables['factor'], {}


def make_run(path, names, factor=1.0, ops='', batch_size=8, input_shape=(8, 8, 1), std=8 / 255):
    config = default_config()
    config.data = ConfigDict(
        {'source': 'npz', 'path': str(path / 'data.npz'), 'class_names': names}
    )
    config.preprocess.eval = ops
    config.preprocess.std = (std,)  # logits in 0 … 32
    config.evaluation.batch_size = batch_size
    return Run(
        path=path, config=config, class_names=names, image_shape=(10, 12, 1),
        input_shape=input_shape, step=7, model=Corner(),
        task=task_of(config, names, len(names)), variables={'factor': jnp.float32(factor)}, mesh=make_mesh(),
    )  # fmt: skip


NAMES = tuple('abcdefg')


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """21 images of 10 x 12 in an npz file: the folder, the images, the labels."""
    path = tmp_path_factory.mktemp('data')
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (21, 10, 12, 1), np.uint8)
    labels = rng.integers(K, size=21)
    np.savez(path / 'data.npz', x_test=images, y_test=labels, x_train=images, y_train=labels)
    return path, images, labels


def evaluate(runs, **entry):
    runs = runs if isinstance(runs, list) else [runs]
    return evaluate_entry(runs, 'test', complete_eval(ConfigDict(entry)))


def probabilities(image, factor=1.0):
    return softmax(image[0, :K, 0].astype(np.float64) / 8 * factor)


def check(evaluation, expected, labels):
    """Compares the recorded columns of each example with its K probabilities [N, K]."""
    p = evaluation.predictions
    np.testing.assert_array_equal(p['label'], labels)
    top = np.argsort(-expected, axis=1, kind='stable')[:, :TOP]
    rows = np.arange(len(labels))
    np.testing.assert_allclose(
        p['top_probabilities'], np.take_along_axis(expected, top, 1), rtol=1e-4, atol=1e-7
    )
    np.testing.assert_allclose(p['loss'], -np.log(expected[rows, labels]), rtol=1e-4, atol=1e-5)
    errors = np.square(expected - np.eye(K)[labels]).sum(1)
    np.testing.assert_allclose(p['squared_error'], errors, rtol=1e-4, atol=1e-6)
    assert evaluation.figures['count'] == len(labels)
    assert evaluation.figures['top1'] == (expected.argmax(1) == labels).mean()


def ten_crops(image, size):
    h, w = image.shape[:2]
    t, left = (h - size) // 2, (w - size) // 2
    corners = [(0, 0), (0, w - size), (h - size, 0), (h - size, w - size), (t, left)]
    crops = [image[y : y + size, x : x + size] for y, x in corners]
    return crops + [crop[:, ::-1] for crop in crops]


@pytest.mark.parametrize('batch_size', [3, 25])
def test_one_view(data, batch_size):
    path, images, labels = data
    run = make_run(path, NAMES, ops='central_crop(8)', batch_size=batch_size)
    evaluation = evaluate(run)
    check(evaluation, np.stack([probabilities(i[1:9, 2:10]) for i in images]), labels)
    answers = predict_run(run).predictions
    for name, column in evaluation.predictions.columns.items():
        np.testing.assert_allclose(column, answers[name], rtol=1e-5)


@pytest.mark.parametrize('batch_size', [8, 70])
def test_ten_crops_are_averaged_as_probabilities(data, batch_size):
    path, images, labels = data
    run = make_run(path, NAMES, ops='central_crop(8)', batch_size=batch_size)
    expected = [np.mean([probabilities(c) for c in ten_crops(i, 8)], axis=0) for i in images]
    evaluation = evaluate(run, ops='ten_crop(8)')
    check(evaluation, np.stack(expected), labels)
    by_name = evaluate(run, protocol='ten_crop(10)')  # the images' shorter side is 10
    np.testing.assert_array_equal(by_name.predictions['loss'], evaluation.predictions['loss'])


def test_144_crops_go_through_the_model_in_one_batch(data):
    run = make_run(data[0], NAMES, ops='central_crop(8)', batch_size=144)
    shapes = []

    class Counted(Corner):
        def apply(self, variables, images, train):
            shapes.append(images.shape)
            return super().apply(variables, images, train)

    object.__setattr__(run, 'model', Counted())
    evaluate(run, protocol='crops_144')
    assert set(shapes) == {(144 * run.mesh.size, 8, 8, 1)}


def test_an_ensemble_averages_probabilities(data):
    path, images, labels = data
    runs = [make_run(path, NAMES, factor, ops='central_crop(8)') for factor in (1.0, -0.3, 0.1)]
    crops = [i[1:9, 2:10] for i in images]
    expected = np.mean([[probabilities(c, f) for c in crops] for f in (1.0, -0.3, 0.1)], axis=0)
    evaluation = evaluate(runs)
    check(evaluation, expected, labels)
    assert evaluation.figures['models'] == [str(path)] * 3
    runs[1] = make_run(path, tuple('abcdefz'), ops='central_crop(8)')
    with pytest.raises(UserError, match='have different classes'):
        evaluate(runs)


def test_logits_of_other_classes_are_left_out(data, tmp_path):
    """A data set with three of the classes, in another order."""
    path, images, _ = data
    own = ('f', 'b', 'd')
    labels = np.arange(21) % 3
    np.savez(tmp_path / 'other.npz', x_test=images, y_test=labels)
    run = make_run(path, NAMES, ops='central_crop(8)')
    entry = {'data': {'path': str(tmp_path / 'other.npz'), 'class_names': own}}
    p = evaluate(run, **entry).predictions
    kept = [5, 1, 3]
    expected = softmax(images[:, 1, [2 + k for k in kept], 0] / 8.0, axis=1)
    np.testing.assert_allclose(
        p['loss'], -np.log(expected[np.arange(21), labels]), rtol=1e-4, atol=1e-5
    )
    assert p.class_names == own
    everything = evaluate(run, **entry, classes='all').predictions
    assert everything.class_names == NAMES
    np.testing.assert_array_equal(everything['label'], np.array(kept)[labels])


def test_data_that_have_changed_are_refused(data, tmp_path):
    path, images, labels = data
    run = make_run(path, NAMES, ops='central_crop(8)')
    run.config.data.class_names = tuple('abcdefz')
    with pytest.raises(UserError, match=r"lost 'g' and has 'z' now"):
        evaluate(run)
    run.config.data.class_names = tuple('bacdefg')
    with pytest.raises(UserError, match='in another order'):
        predict_run(run)
    np.savez(path / 'wide.npz', x_test=images[:, :, :11], y_test=labels)
    run.config.data.class_names = NAMES
    run.config.data.path = str(path / 'wide.npz')
    for call in (evaluate, predict_run):
        with pytest.raises(UserError, match=r'\[10, 11, 1\].*trained on \[10, 12, 1\]'):
            call(run)


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    """A folder with a test split of seven pictures of three shapes."""
    root = tmp_path_factory.mktemp('photos')
    rng = np.random.default_rng(1)
    for i in range(7):
        for split in ('train', 'test'):
            folder = root / split / NAMES[i]
            folder.mkdir(parents=True)
            shape = [(16, 80), (90, 16), (16, 48)][i % 3]
            Image.fromarray(rng.integers(0, 256, (*shape, 3), np.uint8)).save(folder / 'x.png')
    return root


def photo_run(root, **kwargs):
    run = make_run(root, NAMES, ops='decode|resize(8)', input_shape=(8, 8, 3), **kwargs)
    run.config.data = ConfigDict({'source': 'folder', 'path': str(root)})
    object.__setattr__(run, 'image_shape', None)
    return run


@pytest.mark.parametrize('batch_size', [2, 9])
def test_dense_passes_take_whole_images_and_their_mirror_images(photos, batch_size):
    expected = []
    for i in range(7):
        image = np.asarray(Image.open(photos / 'test' / NAMES[i] / 'x.png'))
        h, w = (16 + (n - 16) // 32 * 32 for n in image.shape[:2])  # 80, 80 and 48
        top, left = (image.shape[0] - h) // 2, (image.shape[1] - w) // 2
        image = image[top : top + h, left : left + w]
        expected.append((probabilities(image) + probabilities(image[:, ::-1])) / 2)
    evaluation = evaluate(photo_run(photos, batch_size=batch_size), protocol='dense(16)')
    check(evaluation, np.stack(expected), np.arange(7))
    assert [p.split('/')[-2] for p in evaluation.predictions.paths] == list(NAMES)


def test_several_scales_weigh_the_same(photos):
    run = photo_run(photos)
    both = evaluate(run, protocol='dense(16, 24)').predictions
    single = [evaluate(run, protocol=f'dense({s})').predictions for s in (16, 24)]
    mean = np.exp(-np.stack([p['loss'] for p in single])).mean(0)
    np.testing.assert_allclose(np.exp(-both['loss']), mean, rtol=1e-5)


def test_all_images_of_a_folder_are_evaluated_once(photos, tmp_path, caplog):
    run = photo_run(photos)
    run.config.data.validation = 0
    parts = [evaluate(run, split=split) for split in ('train', 'test')]
    for entry in ({}, {'data': {'source': 'folder', 'path': str(photos)}}):
        whole = evaluate(run, split='all', **entry)
        assert whole.figures['count'] == 14 and whole.figures['split'] == 'all'
        paths = [path for part in parts for path in part.predictions.paths]
        assert list(whole.predictions.paths) == paths
        losses = np.concatenate([part.predictions['loss'] for part in parts])
        np.testing.assert_allclose(whole.predictions['loss'], losses, rtol=1e-5)
    # A part of the classes as a folder without splits.
    only = evaluate(run, data={'source': 'folder', 'path': str(photos / 'test')}, split='all')
    assert only.figures['count'] == 7 and 'automatic split' not in caplog.text
    # Each split must be the one that the run recorded.
    recorded = {'class_names': NAMES, 'num_examples': {'train': 7, 'test': 6}}
    (tmp_path / 'dataset.json').write_text(json.dumps(recorded))
    object.__setattr__(run, 'path', tmp_path)
    with pytest.raises(UserError, match='test had 6 examples and has 7'):
        evaluate(run, split='all')


def test_images_that_cannot_be_read(photos, tmp_path):
    import shutil

    root = tmp_path / 'photos'
    shutil.copytree(photos, root)
    broken = root / 'test' / 'c' / 'x.png'
    broken.write_bytes(broken.read_bytes()[:60])
    run = photo_run(root)
    for entry in ({}, {'protocol': 'dense(16)'}, {'protocol': 'dense(16, 24)'}):
        with pytest.raises(UserError, match=r'c/x.png: truncated PNG.*--skip_corrupt'):
            evaluate(run, **entry)
        evaluation = evaluate_entry([run], 'test', complete_eval(ConfigDict(entry)), True)
        assert evaluation.figures['count'] == 6 and evaluation.figures['corrupt'] == 1
        assert list(evaluation.predictions.ids) == [0, 1, 3, 4, 5, 6]
        assert 'truncated' in evaluation.corrupt[str(broken)]
    lines = ['path,label,split', *(f'{broken},c,test' for _ in range(2))]
    lines += [f'{path},{path.parent.name},test' for path in sorted((root / 'test').rglob('*.png'))]
    (tmp_path / 'twice.csv').write_text('\n'.join(lines))
    twice = {'data': {'source': 'list', 'path': str(tmp_path / 'twice.csv')}}
    evaluation = evaluate_entry([run], 'test', complete_eval(ConfigDict(twice)), True)
    assert (evaluation.figures['count'], evaluation.figures['corrupt']) == (6, 3)


def test_dense_passes_turn_on_a_models_dense_evaluation(photos):
    class Switch(Corner):
        dense_evaluation = False

        def clone(self, dense_evaluation):
            switched = Switch()
            switched.dense_evaluation = dense_evaluation
            return switched

        def apply(self, variables, images, train):
            return super().apply(variables, images * self.dense_evaluation, train)

    run = photo_run(photos)
    object.__setattr__(run, 'model', Switch())
    assert len(set(evaluate(run, protocol='dense(16)').predictions['loss'])) > 1
    np.testing.assert_allclose(evaluate(run).predictions['loss'], np.log(K), rtol=1e-6)


class Shade:
    """Predicts odd if a picture is bright; the shade in TinyPictures is the picture's number."""

    def apply(self, variables, images, train):
        shade = jnp.round(images.mean((1, 2, 3)))  # rounded, to be independent of the order of sums
        return jnp.stack([0 * shade, shade - 26], axis=1), {}


@pytest.mark.parametrize('file_format', ['tfrecord', 'array_record'])
def test_a_tfds_data_set_whole_and_its_pictures(tmp_path, file_format):
    import tensorflow_datasets as tfds_lib

    from tests.data.test_tfds import COUNT, TinyPictures
    from vision.preprocess.inputs import examples

    TinyPictures(data_dir=tmp_path, file_format=file_format).download_and_prepare(
        download_config=tfds_lib.download.DownloadConfig(num_shards=3, max_shard_size=1 << 20)
    )
    ops = 'decode|central_crop(8)'
    run = make_run(tmp_path, ('even', 'odd'), ops=ops, input_shape=(8, 8, 3), std=1 / 255)
    run.config.data = ConfigDict(
        {'source': 'tfds', 'name': 'tiny_pictures', 'data_dir': str(tmp_path)}
    )
    object.__setattr__(run, 'image_shape', None)
    object.__setattr__(run, 'model', Shade())
    evaluation = evaluate(run)
    p, whole = evaluation.predictions, evaluate(run, protocol='dense(8)').predictions
    np.testing.assert_array_equal(p.ids, np.arange(COUNT))
    np.testing.assert_array_equal(whole['label'], p['label'])
    np.testing.assert_allclose(whole['loss'], p['loss'], rtol=1e-5, atol=1e-6)
    found = dict(examples(evaluation.source, [5, 40, COUNT]))
    assert set(found) == {5, 40}
    for example, image in found.items():
        shade = int(image[4, 4, 0])
        assert p['label'][example] == shade % 2
        assert p['top_classes'][example, 0] == (shade > 26)


def test_a_class_without_examples_and_a_single_example(data, tmp_path):
    path, images, _ = data
    run = make_run(path, NAMES, ops='central_crop(8)')
    np.savez(tmp_path / 'one.npz', x_test=images[:1], y_test=[4])
    entry = {'data': {'path': str(tmp_path / 'one.npz'), 'class_names': NAMES}}
    figures = evaluate(run, **entry).figures
    assert figures['count'] == 1 and figures['balanced_accuracy'] == figures['top1']
    json.dumps(figures, allow_nan=False)


def config_with(**evals):
    config = default_config()
    config.evals = ConfigDict(evals)
    return config


def test_entries_by_name():
    config = config_with(crops={'protocol': 'ten_crop'}, v={'split': 'validation'})
    assert list(named_entries(config, ['all'], ConfigDict())) == ['crops', 'v']
    chosen = named_entries(config, ['v'], ConfigDict({'weights': 'raw'}))
    assert (chosen['v'].split, chosen['v'].weights) == ('validation', 'raw')
    assert config.evals.v.get('weights') is None
    assert list(named_entries(config, None, ConfigDict())) == ['test']
    ad_hoc = {'data': {'name': 'imagenet_v2/top:3'}, 'protocol': 'dense(256, 384)'}
    (name,) = named_entries(config, None, ConfigDict(ad_hoc))
    assert name == 'imagenet_v2_top_3_test_dense_256__384'


@pytest.mark.parametrize(
    ('one', 'other'),
    [
        ({'data': {'path': '/a/photos'}}, {'data': {'path': '/b/photos'}}),
        ({'data': {'name': 'first/x'}}, {'data': {'name': 'second/x'}}),
        ({'data': {'fold': '1/5'}}, {'data': {'fold': '2/5'}}),
        ({'ops': 'decode|flip_lr'}, {'ops': 'flip_lr'}),
        ({'classes': 'all'}, {'classes': 'data'}),
    ],
)
def test_different_evaluations_never_share_a_name(one, other):
    names = [*named_entries(default_config(), None, ConfigDict(one))]
    again = [*named_entries(default_config(), None, ConfigDict(one))]
    others = [*named_entries(default_config(), None, ConfigDict(other))]
    assert names == again and names != others


@pytest.mark.parametrize(
    ('entry', 'message'),
    [
        ({'splt': 'test'}, "did you mean 'split'|Did you mean 'split'"),
        ({'weights': 'emma'}, "Did you mean 'ema'"),
        ({'protocol': 'ten_crop', 'ops': 'decode'}, 'not both'),
        ({'split': 3}, 'wrong type'),
        ({'classes': 'some'}, 'Known: all, data'),
    ],
)
def test_entries_that_make_no_sense(entry, message):
    from vision.core.config import check

    with pytest.raises(UserError, match=message):
        check(config_with(x=entry))


def test_names_become_files():
    with pytest.raises(UserError, match='letters, digits'):
        named_entries(config_with(**{'a/b': {}}), ['all'], ConfigDict())


def test_evaluations_and_protocols_that_do_not_exist(data):
    with pytest.raises(UserError, match="Did you mean 'crops'"):
        named_entries(config_with(crops={}), ['crop'], ConfigDict())
    with pytest.raises(UserError, match='has no evals'):
        named_entries(config_with(), ['all'], ConfigDict())
    run = make_run(data[0], NAMES, ops='central_crop(8)')
    with pytest.raises(UserError, match="Did you mean 'ten_crop'"):
        evaluate(run, protocol='ten_crops')
