"""Workdirs of commit c2452e1 can still be evaluated, used for prediction, exported and resumed.

`fixtures/workdirs_c2452e1.tar.gz` has two runs of a small ResNet on digits with parameter averaging
(JAX 0.10.2): one is finished, one was stopped at step 25 of 40. It also has the results of that
commit: probabilities and features of the first 32 test images, and the variables of the stopped run
after it was resumed. The runs' `environment.json` has the commands that trained them.
"""

import json
import tarfile
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.processes import run_module
from vision.data import arrays
from vision.evaluation.run import load_run
from vision.prediction import Classifier

ARCHIVE = Path(__file__).parent / 'fixtures' / 'workdirs_c2452e1.tar.gz'


@pytest.fixture
def old(tmp_path):
    """The folder with `finished`, `stopped` and `expected.npz`."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter='data')
    return tmp_path


def flags(workdir):
    """Returns the flags that the run was started with, except `training.stop_after`."""
    words = json.loads((workdir / 'environment.json').read_text())['command'][3:]
    return [word for word in words if 'stop_after' not in word]


@pytest.mark.parametrize('name', ['finished', 'stopped'])
def test_it_is_predicted_with(old, name):
    expected = np.load(old / 'expected.npz')
    classifier = Classifier.from_workdir(old / name, 'last')
    images = arrays.digits('test').images[:32]
    np.testing.assert_allclose(classifier(images), expected[f'{name}_probabilities'], atol=1e-5)
    np.testing.assert_allclose(classifier.embed(images), expected[f'{name}_features'], atol=1e-4)


@pytest.mark.slow
def test_it_is_evaluated_searched_exported_and_finished(old):
    workdir = f'--workdir={old}/finished'
    records = [json.loads(s) for s in (old / 'finished/metrics.jsonl').read_text().splitlines()]
    recorded = next(r for r in records if 'test/top1' in r)
    done = run_module('experiments.evaluate', workdir, '--format=json')
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures['top1'] == recorded['test/top1'] and figures['count'] == recorded['test/count']
    assert figures['loss'] == pytest.approx(recorded['test/loss'], rel=1e-5)
    done = run_module(
        'experiments.search', workdir, '--split=train', '--format=json', 'query', 'test:0'
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]['neighbours']
    done = run_module('experiments.export', workdir, f'--output={old}/model', '--format=json')
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)['largest_difference'] < 1e-4
    done = run_module('experiments.train', *flags(old / 'finished'), workdir)
    assert done.returncode == 0 and 'finished; nothing was changed' in done.stderr, done.stderr


def test_the_stopped_one_goes_on_to_where_it_would_have_been(old):
    """With the random numbers of that commit: those on the device have changed (CHANGELOG.md)."""
    workdir = old / 'stopped'
    recorded = (workdir / 'dataset.json').read_bytes()
    done = run_module('tests.train_as_c2452e1', *flags(workdir), f'--workdir={workdir}')
    assert done.returncode == 0, done.stderr
    assert 'resuming from step 25' in done.stderr
    # `dataset.json` is written once, at that time without digests.
    assert (workdir / 'dataset.json').read_bytes() == recorded
    expected = np.load(old / 'expected.npz')
    variables = jax.tree_util.tree_leaves_with_path(load_run(workdir, 'last', 'raw').variables)
    for path, leaf in variables:
        # Rounding depends on the processor and the version of XLA.
        key = f'continued{jax.tree_util.keystr(path)}'
        np.testing.assert_allclose(leaf, expected[key], atol=1e-4)
