"""A short run on the digits, and its classifier."""

import pytest

from tests.conftest import run_module
from vision.data import arrays
from vision.prediction import Classifier


@pytest.fixture(scope='session')
def workdir(tmp_path_factory):
    path = tmp_path_factory.mktemp('run')
    done = run_module(
        'experiments.train', '--config=configs/digits_lenet5.py', f'--workdir={path}',
        '--config.training.duration=15 epochs',
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return path


@pytest.fixture(scope='session')
def classifier(workdir):
    return Classifier.from_workdir(workdir)


@pytest.fixture(scope='session')
def digits():
    return arrays.digits('test')
