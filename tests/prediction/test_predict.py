"""Predictions equal those of evaluation, for arrays and for files of every format."""

import csv
import dataclasses
import io
import json
import os

import jax
import numpy as np
import pytest
from jax import monitoring
from PIL import Image

from tests.processes import run_module
from vision.core.errors import UserError
from vision.data.source import BadImage, read_file
from vision.prediction import Classifier, explain, feed, formats
from vision.preprocess import device, opstring
from vision.search import display
from vision.task import Task


@pytest.fixture(scope='module')
def folder(tmp_path_factory, digits):
    """One scan in every common format, in folders whose names have spaces and Unicode."""
    root = tmp_path_factory.mktemp('images')
    (root / 'a folder' / 'größe').mkdir(parents=True)
    scan = Image.fromarray(digits.images[0, ..., 0])
    for ending in ('png', 'bmp', 'gif'):
        scan.save(root / f'scan.{ending}')
    scan.save(root / 'a folder' / 'scan.webp', lossless=True)
    scan.convert('RGB').save(root / 'a folder' / 'größe' / 'COLOUR.PNG')
    scan.resize((160, 160), Image.Resampling.BICUBIC).save(root / 'large.jpg', quality=95)
    (root / 'broken.png').write_bytes((root / 'scan.png').read_bytes()[:40])
    (root / 'text.jpg').write_text('no image')
    (root / 'notes.txt').write_text('passed over')
    return root


def test_probabilities_agree_with_evaluation(classifier, digits, workdir):
    from vision.core.config import complete_eval
    from vision.evaluation.evals import evaluate_entry
    from vision.evaluation.run import load_run

    probabilities = classifier(digits.images)
    assert probabilities.shape == (360, 10) and probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    scores = evaluate_entry([load_run(workdir)], 'test', complete_eval({})).figures
    assert (probabilities.argmax(1) == digits.labels).mean() == scores['top1']
    loss = -np.log(probabilities[np.arange(360), digits.labels].astype(np.float64)).mean()
    assert loss == pytest.approx(scores['loss'], rel=1e-4)


def test_any_number_of_images_and_none(classifier, digits):
    everything = classifier(digits.images)
    assert classifier(digits.images[:0]).shape == (0, 10)
    for n in (1, 3, 300):
        np.testing.assert_allclose(classifier(digits.images[:n]), everything[:n], atol=1e-6)


def test_files_get_the_pixels_that_evaluation_gets(classifier, digits, tmp_path):
    """A batch of scans gives bit-identical results from memory and from PNG files."""
    for i in range(64):
        Image.fromarray(digits.images[i, ..., 0]).save(tmp_path / f'{i:02}.png')
    from_files = list(classifier.classify_files([tmp_path], top_k=10))
    from_arrays = classifier(digits.images[:64])
    for prediction, row in zip(from_files, from_arrays, strict=True):
        assert [p['probability'] for p in prediction['predictions']] == sorted(map(float, row))[
            ::-1
        ]


@pytest.mark.parametrize(
    'images',
    [np.zeros((2, 8, 8, 1), np.float32), np.zeros((8, 8, 1), np.float32), np.zeros((2, 8, 8, 3), np.uint8)],
)  # fmt: skip
def test_other_arrays_are_refused(classifier, images):
    with pytest.raises(UserError, match='images'):
        classifier(images)


def test_threads_get_their_own_answers(classifier, digits):
    from concurrent.futures import ThreadPoolExecutor

    expected = classifier(digits.images[:128])
    with ThreadPoolExecutor(8) as pool:
        rows = list(pool.map(lambda i: classifier(digits.images[i : i + 16]), range(0, 128, 16)))
        asked = [classifier.embed, classifier.explain] * 4
        others = list(pool.map(lambda f: f(digits.images[:16]), asked))
    np.testing.assert_allclose(np.concatenate(rows), expected, atol=1e-6)
    for function, other in zip(asked, others, strict=True):
        np.testing.assert_allclose(other, function(digits.images[:16]), atol=1e-6)


def test_every_format_is_read_and_what_is_not_has_its_reason(workdir, folder, digits):
    done = run_module(
        'experiments.predict', f'--workdir={workdir}', '--format=json', '--top_k=2', folder
    )
    assert done.returncode == 3, done.stderr
    assert 'Traceback' not in done.stderr
    rows = {p['path'].removeprefix(f'{folder}/'): p for p in json.loads(done.stdout)}
    assert len(rows) == 8 and 'notes.txt' not in rows
    for bad in ('broken.png', 'text.jpg'):
        assert rows[bad]['error'] and rows[bad]['predictions'] == []
    expected = rows['scan.png']['predictions']
    for name in ('scan.bmp', 'scan.gif', 'a folder/scan.webp', 'a folder/größe/COLOUR.PNG'):
        assert rows[name]['predictions'] == expected, name
    assert rows['large.jpg']['predictions'][0]['index'] == digits.labels[0]
    assert set(expected[0]) == {'class', 'index', 'probability'}
    assert [len(p['predictions']) for p in rows.values() if not p['error']] == [2] * 6


def test_globs_jsonl_csv_and_table(workdir, folder):
    args = (f'--workdir={workdir}', f'{folder}/*.png', f'{folder}/nowhere.jpg')
    lines = run_module('experiments.predict', *args, '--format=jsonl').stdout.splitlines()
    assert [json.loads(line)['path'] for line in lines] == [
        f'{folder}/broken.png', f'{folder}/scan.png', f'{folder}/nowhere.jpg',
    ]  # fmt: skip
    table = list(
        csv.DictReader(io.StringIO(run_module('experiments.predict', *args, '--format=csv').stdout))
    )
    assert [row['rank'] for row in table] == ['', '1', '2', '3', '4', '5', '']
    assert sum(float(r['probability']) for r in table if r['rank']) <= 1.0001
    done = run_module('experiments.predict', *args, COLUMNS='400')
    assert done.returncode == 3
    assert 'no such file' in done.stdout and 'scan.png' in done.stdout
    assert 'no such file' not in done.stderr  # the row says it


def test_all_well_is_exit_code_0(workdir, folder):
    done = run_module('experiments.predict', f'--workdir={workdir}', folder / 'scan.png')
    assert done.returncode == 0, done.stderr


def test_nothing_to_predict_is_the_users_mistake(workdir, tmp_path):
    for args in ([], [tmp_path], [f'{tmp_path}/*.png']):
        done = run_module('experiments.predict', f'--workdir={workdir}', *args)
        assert done.returncode == 2 and done.stdout == '', args
        assert len(done.stderr.strip().splitlines()) == 1


def test_names_that_are_not_utf8(workdir, folder, tmp_path):
    """Such names do not stop `predict` on a strict stdout, and their bytes survive in JSON."""
    name = os.fsencode(tmp_path) + b'/\xff\xe9 caf\xc3\xa9.png'
    with open(name, 'wb') as file:
        file.write((folder / 'scan.png').read_bytes())
    done = run_module(
        'experiments.predict', f'--workdir={workdir}', tmp_path, '--format=json',
        PYTHONIOENCODING='utf-8:strict',
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert os.fsencode(json.loads(done.stdout)[0]['path']) == name


@pytest.mark.parametrize('encoding', ['utf-8', 'ascii'])
@pytest.mark.parametrize('form', ['json', 'jsonl', 'csv', 'table'])
def test_every_format_can_be_written_to_any_stdout(form, encoding):
    path = os.fsdecode(b'\xff caf\xc3\xa9.png')
    row = {'path': path, 'predictions': [], 'error': 'größe'}
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding, 'strict')
    assert formats.write([row], form, file) == 1
    file.flush()
    text = raw.getvalue().decode(encoding)
    assert '\\udcff' in text
    if form.startswith('json'):
        assert json.loads(text) in (row, [row])


def test_names_in_tables_are_on_one_line_and_leave_the_terminal_alone():
    path, text = 'a\nb\x1b[2J\u202egnp.png', io.StringIO()
    formats.write([{'path': path, 'predictions': [], 'error': None}], 'table', text)
    (line,) = (line for line in text.getvalue().splitlines() if '.png' in line)
    assert r'a\nb\x1b[2J\u202egnp.png' in line and '\x1b' not in text.getvalue()


@pytest.mark.skipif(not os.path.exists('/dev/zero'), reason='no devices')
def test_a_device_without_an_end_is_not_read():
    with pytest.raises(BadImage, match='is a device'):
        read_file('/dev/zero')


def test_probabilities_that_are_not_finite_are_the_rows_reason(classifier, digits, tmp_path):
    from vision.prediction import Classifier

    Image.fromarray(digits.images[0, ..., 0]).save(tmp_path / 'x.png')
    broken = jax.tree.map(lambda x: x * np.nan, classifier.run.variables)
    broken = Classifier(dataclasses.replace(classifier.run, variables=broken))
    text = io.StringIO()
    assert formats.write(broken.classify_files(tmp_path / 'x.png'), 'json', text) == 1
    (row,) = json.loads(text.getvalue())
    assert row['predictions'] == [] and 'not finite' in row['error']


def test_an_empty_and_a_streamed_document_are_json():
    for count in (0, 1, 3):
        rows = [
            {'path': f'{i}\x85\u2028\u2029', 'predictions': [], 'error': 'x'} for i in range(count)
        ]
        text = io.StringIO()
        assert formats.write(iter(rows), 'json', text) == count
        assert json.loads(text.getvalue()) == rows


def test_answers_come_before_all_images_were_read(classifier, digits, tmp_path, monkeypatch):
    """Predictions are streamed: a file written after the first answer is still read."""
    monkeypatch.setitem(classifier.run.config.evaluation, 'batch_size', 16)
    image = Image.fromarray(digits.images[0, ..., 0])
    image.save(tmp_path / 'one.png')
    (tmp_path / 'last.png').write_bytes(b'no image yet')
    answers = classifier.classify_files([tmp_path / 'one.png'] * 1000 + [tmp_path / 'last.png'])
    first = next(answers)
    image.save(tmp_path / 'last.png')
    *others, last = answers
    assert len(others) == 999
    assert first['error'] is None and last['error'] is None


def test_nothing_is_compiled_for_the_last_batch(classifier, digits, tmp_path):
    Image.fromarray(digits.images[0, ..., 0]).save(tmp_path / 'one.png')
    compiled = []

    def listen(event, seconds, **_):
        if event == '/jax/core/compile/backend_compile_duration':
            compiled.append(seconds)

    size = classifier.run.config.evaluation.batch_size
    monitoring.register_event_duration_secs_listener(listen)
    try:
        answers = classifier.classify_files([tmp_path / 'one.png'] * (3 * size + 1))
        next(answers)
        before = len(compiled)
        assert sum(1 for _ in answers) == 3 * size
        assert len(compiled) == before
        list(classifier.classify_files([tmp_path / 'one.png'] * (2 * size + 7)))
        assert len(compiled) == before
        jax.jit(lambda x: x + before)(1.0)  # from here on compilations are recorded
        assert len(compiled) > before
    finally:
        monitoring.unregister_event_duration_listener(listen)


def test_embeddings_are_the_endpoints(classifier, digits, tmp_path):
    """Embeddings are the model's endpoints for the preprocessed pixels, of arrays and files."""
    run = classifier.run
    images = digits.images[:8]
    for i, image in enumerate(images):
        Image.fromarray(image[..., 0]).save(tmp_path / f'{i}.png')
    fed = device.apply_ops(opstring.parse(run.config.preprocess.eval), images[0], jax.random.key(0))
    x = device.normalise(fed[None], run.config.preprocess.mean, run.config.preprocess.std)
    apply = jax.jit(lambda variables, x: run.model.apply(variables, x, train=False))
    logits, endpoints = apply(run.variables, x)
    vectors = classifier.embed(images)
    assert vectors.shape == (8, 84) and vectors.dtype == np.float32
    np.testing.assert_allclose(vectors[0], endpoints['features'][0], atol=1e-4)
    stage = classifier.embed(images, 'stage2')
    assert stage.shape == (8, 16)
    np.testing.assert_allclose(stage[0], endpoints['stage2'][0].mean((0, 1)), atol=1e-4)
    np.testing.assert_allclose(classifier.embed(images, 'logits')[0], logits[0], atol=1e-4)
    paths = sorted(tmp_path.iterdir())
    np.testing.assert_array_equal(classifier.embed(paths), vectors)
    np.testing.assert_array_equal(classifier(paths), classifier(images))
    assert classifier.embed(images[:0]).shape == (0, 84)
    with pytest.raises(UserError, match="Did you mean 'features'"):
        classifier.embed(images, 'feature')
    (tmp_path / '9.png').write_bytes(b'nothing')
    with pytest.raises(UserError, match=r'9\.png cannot be read: not an image'):
        classifier.embed([*paths, tmp_path / '9.png'])


def test_a_task_without_probabilities_embeds(classifier, digits):
    """A model that was trained without labels has embeddings, and no classes."""
    trained, names = classifier.run.task, ('loss', 'answers', 'metrics')
    plain = type('Plain', (Task,), {name: getattr(type(trained), name) for name in names})
    task = plain(trained.settings)
    unlabelled = Classifier(dataclasses.replace(classifier.run, task=task))
    assert classifier.classifies and not unlabelled.classifies
    images = digits.images[:8]
    np.testing.assert_allclose(unlabelled.embed(images), classifier.embed(images), atol=1e-6)
    with pytest.raises(UserError, match='the task Plain has no class probabilities'):
        unlabelled(images)


@pytest.mark.parametrize('name', ['page.jpg', 'no/where.html', '.'])
def test_pictures_that_cannot_be_written_are_one_line(classifier, tmp_path, name):
    with pytest.raises(UserError, match=r'--(output|explain)='):
        explain.explain_files(classifier, feed.files('docs/digits'), tmp_path / name)
    with pytest.raises(UserError, match='--output='):
        display.write_results(classifier.run, [], 'cosine', tmp_path / name)
    assert list(tmp_path.iterdir()) == []
