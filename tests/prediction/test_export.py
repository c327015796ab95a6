"""An exported program gives the model's probabilities with nothing but JAX and NumPy."""

import dataclasses
import json
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.conftest import REPO, run_module
from tests.models.common import NARROW, narrow_model
from vision.core.errors import UserError
from vision.prediction import Classifier, stablehlo

PAGE = (REPO / 'docs' / 'models.md').read_text()


@pytest.fixture(scope='module')
def exported(workdir, tmp_path_factory):
    path = tmp_path_factory.mktemp('export') / 'digits.stablehlo'
    done = run_module(
        'experiments.export', f'--workdir={workdir}', f'--output={path}', '--format=json'
    )
    assert done.returncode == 0, done.stderr
    return path, json.loads(done.stdout)


def test_says_what_was_checked(exported):
    path, about = exported
    assert about['bytes'] == path.stat().st_size
    assert about['checked'] == 64 and about['largest_difference'] < 1e-4
    assert about['platforms'] == ['cpu', 'cuda', 'tpu'] and about['input'] == [32, 32, 1]
    assert os.listdir(path.parent) == [path.name]


def test_the_documents_script_reads_it_with_jax_and_numpy_alone(exported, classifier, tmp_path):
    """The script runs in another folder, so that nothing of this project can be imported."""
    script = next(b for b in re.findall(r'```python\n(.*?)```', PAGE, re.S) if 'deserialize' in b)
    assert len(script.strip().splitlines()) <= 15
    modules = set(re.findall(r'^(?:import|from) (\w+)', script, re.M))
    assert modules == {'jax', 'numpy'}
    images = stablehlo.real_images(classifier, 5)
    np.save(tmp_path / 'images.npy', images)
    (tmp_path / 'digits.stablehlo').symlink_to(exported[0])
    program = re.sub(r"open\('[^']*'", "open('digits.stablehlo'", script)
    check = (
        "\nimport sys; assert 'flax' not in sys.modules and 'vision' not in sys.modules\n"
        "np.save('answers.npy', np.asarray(model.call(np.load('images.npy'))))\n"
    )
    done = subprocess.run(
        [sys.executable, '-I', '-c', program + check], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    ours = jax.jit(classifier.probabilities)(classifier.variables, images)
    np.testing.assert_allclose(np.load(tmp_path / 'answers.npy'), ours, atol=1e-5)


@pytest.mark.parametrize('batch', [1, 7, 64])
def test_any_batch_size(exported, classifier, batch):
    from jax import export as jax_export

    program = jax_export.deserialize(bytearray(exported[0].read_bytes()))
    images = np.random.default_rng(0).integers(0, 256, (batch, 32, 32, 1), dtype=np.uint8)
    answers = np.asarray(program.call(images))
    assert answers.shape == (batch, 10) and answers.dtype == np.float32
    ours = jax.jit(classifier.probabilities)(classifier.variables, images)
    np.testing.assert_allclose(answers, ours, atol=1e-5)


def test_a_model_whose_answers_are_not_finite_is_refused(classifier):
    other = Classifier(classifier.run)
    other.variables = jax.tree.map(lambda x: x * 1e30, other.variables)  # finite, as they are read
    with pytest.raises(UserError, match='not finite'):
        stablehlo._difference(other, b'', np.full((1, 32, 32, 1), 255, np.uint8))


def test_a_program_that_differs_is_not_put_in_place(classifier, monkeypatch, tmp_path):
    other = Classifier(classifier.run)
    other.variables = jax.tree.map(lambda x: x * 1.5, other.variables)
    wrong = stablehlo.serialise(other)
    monkeypatch.setattr(stablehlo, 'serialise', lambda c: wrong)
    with pytest.raises(RuntimeError, match='differs'):
        stablehlo.export(classifier, tmp_path / 'x')
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize('output', ['', 'nowhere/x'])
def test_where_it_cannot_go(tmp_path, output):
    done = run_module('experiments.export', '--workdir=x', f'--output={tmp_path}/{output}')
    assert done.returncode == 2 and '--output' in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


# Drawn weights of these answer nearly the same for all images. `test_packaged` exports an
# EfficientNet with trained weights.
_CONSTANT = ('efficientnet_b0', 'resnet50d')


@pytest.mark.slow
@pytest.mark.parametrize('name', [name for name in NARROW if name not in _CONSTANT])
def test_each_family_comes_back_from_a_file(classifier, name, tmp_path):
    from jax import export as jax_export

    model, variables = narrow_model(name, (32, 32, 1))
    run = dataclasses.replace(classifier.run, model=model, variables=variables)
    about = stablehlo.export(Classifier(run), tmp_path / 'x')
    assert about['largest_difference'] < 1e-4
    program = jax_export.deserialize(bytearray((tmp_path / 'x').read_bytes()))
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 1), dtype=np.uint8)
    answers = np.asarray(program.call(images))
    plain = Classifier(run, fold=False)
    ours = np.asarray(jax.jit(plain.probabilities)(plain.variables, images))
    np.testing.assert_allclose(answers, ours, atol=1e-4)
    assert np.ptp(ours, axis=0).max() > 1e-3  # images get answers of their own


def test_a_model_that_computes_in_bfloat16(classifier, tmp_path):
    run = classifier.run
    half = dataclasses.replace(run, model=run.model.clone(dtype=jnp.bfloat16))
    about = stablehlo.export(Classifier(half), tmp_path / 'x')
    assert about['largest_difference'] < 0.05 and os.listdir(tmp_path) == ['x']
