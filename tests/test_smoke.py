"""The six steps of the job and search, each once, on small data in one process."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.training.tiny import tiny_config
from vision.data import arrays
from vision.evaluation.evals import evaluate_runs, named_entries
from vision.evaluation.report import write_report
from vision.models.summary import summarise
from vision.prediction import Classifier
from vision.training import train

pytestmark = pytest.mark.smoke


def lenet():
    """LeNet-5 on digits for 100 steps."""
    overrides = {'training__duration': '100 steps', 'training__eval_every': '50 steps'}
    return tiny_config(model__name='lenet5', **overrides)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """Workdir and results."""
    workdir = tmp_path_factory.mktemp('smoke')
    return workdir, train(lenet(), workdir)


def test_a_model_is_chosen_and_trained(trained):
    workdir, results = trained
    assert summarise('lenet5').parameters == 61_706
    losses = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    losses = [record['train/loss'] for record in losses if 'train/loss' in record]
    assert losses[-1] < 0.5 * losses[0]
    assert results['test']['top1'] > 0.8 and results['test']['count'] == 360


def test_a_finished_run_changes_nothing(trained):
    workdir, results = trained
    before = (workdir / 'metrics.jsonl').read_bytes()
    assert train(lenet(), workdir) == results
    assert (workdir / 'metrics.jsonl').read_bytes() == before


def test_it_is_evaluated_and_reported(trained):
    from ml_collections import ConfigDict

    workdir, results = trained
    entries = named_entries(lenet(), None, ConfigDict())
    runs, (evaluation,) = evaluate_runs([workdir], entries)
    assert evaluation.figures['top1'] == results['test']['top1']
    assert '<section' in write_report(runs, [evaluation]).read_text()


def test_files_are_classified_and_their_neighbours_found(trained, tmp_path):
    classifier, test = Classifier.from_workdir(trained[0]), arrays.digits('test')
    for i in range(8):
        Image.fromarray(test.images[i, ..., 0]).save(tmp_path / f'{i}.png')
    (tmp_path / 'broken.png').write_bytes(b'no image')
    rows = list(classifier.classify_files([tmp_path]))
    expected = classifier(test.images[:8]).argmax(1)
    assert [row['predictions'][0]['index'] for row in rows[:8]] == expected.tolist()
    assert rows[8]['error'] == 'not an image' and rows[8]['predictions'] == []
    vectors = classifier.embed(test.images)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    scores = vectors @ vectors.T - 2 * np.eye(len(vectors))
    assert (test.labels[scores.argmax(1)] == test.labels).mean() > 0.8
