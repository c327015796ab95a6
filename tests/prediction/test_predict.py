"""Predictions are the evaluation's, for arrays and for files of every kind."""

import csv
import io
import json

import numpy as np
import pytest
from PIL import Image

from tests.conftest import run_module
from vision.core.errors import UserError
from vision.data import arrays
from vision.prediction import Classifier


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
    path = tmp_path_factory.mktemp('run')
    done = run_module(
        'experiments.train', '--config=configs/digits_lenet5.py', f'--workdir={path}',
        '--config.training.duration=15 epochs',
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return path


@pytest.fixture(scope='module')
def classifier(workdir):
    return Classifier.from_workdir(workdir)


@pytest.fixture(scope='module')
def digits():
    return arrays.digits('test')


@pytest.fixture(scope='module')
def folder(tmp_path_factory, digits):
    """One scan in every format that people have, in a tree with spaces and Unicode."""
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
    from vision.evaluation.run import evaluate_run, load_run

    probabilities = classifier(digits.images)
    assert probabilities.shape == (360, 10) and probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    scores = evaluate_run(load_run(workdir))
    assert (probabilities.argmax(1) == digits.labels).mean() == scores['top1']
    loss = -np.log(probabilities[np.arange(360), digits.labels].astype(np.float64)).mean()
    assert loss == pytest.approx(scores['loss'], rel=1e-4)


def test_any_number_of_images_and_none(classifier, digits):
    everything = classifier(digits.images)
    assert classifier(digits.images[:0]).shape == (0, 10)
    for n in (1, 3, 300):
        np.testing.assert_allclose(classifier(digits.images[:n]), everything[:n], atol=1e-6)


def test_files_get_the_pixels_that_evaluation_gets(classifier, digits, tmp_path):
    """To the bit: the same batch of scans, from memory and from PNG files."""
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
    [np.zeros((2, 8, 8, 1), np.float32), np.zeros((8, 8, 1), np.uint8), np.zeros((2, 8, 8, 3), np.uint8)],
)  # fmt: skip
def test_other_arrays_are_refused(classifier, images):
    with pytest.raises(UserError, match='images'):
        classifier(images)


def test_threads_get_their_own_answers(classifier, digits):
    from concurrent.futures import ThreadPoolExecutor

    expected = classifier(digits.images[:128])
    with ThreadPoolExecutor(8) as pool:
        rows = list(pool.map(lambda i: classifier(digits.images[i : i + 16]), range(0, 128, 16)))
    np.testing.assert_allclose(np.concatenate(rows), expected, atol=1e-6)


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


def test_all_well_is_exit_code_0(workdir, folder):
    done = run_module('experiments.predict', f'--workdir={workdir}', folder / 'scan.png')
    assert done.returncode == 0, done.stderr


def test_nothing_to_predict_is_the_users_mistake(workdir, tmp_path):
    for args in ([], [tmp_path], [f'{tmp_path}/*.png']):
        done = run_module('experiments.predict', f'--workdir={workdir}', *args)
        assert done.returncode == 2 and done.stdout == '', args
        assert len(done.stderr.strip().splitlines()) == 1
