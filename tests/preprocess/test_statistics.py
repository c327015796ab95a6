"""Mean and standard deviation of a data set: exact, and used wherever the run's model is used."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from vision.core.errors import UserError
from vision.core.mesh import make_mesh
from vision.data import arrays
from vision.evaluation.run import load_run
from vision.prediction import Classifier
from vision.preprocess.device import normalise
from vision.preprocess.pipeline import eval_batches
from vision.preprocess.statistics import channel_statistics
from vision.training import train


def test_arrays_are_exact_and_batches_do_not_matter():
    source = arrays.digits('train')
    mean, std = channel_statistics(source, '', 64, make_mesh())
    pixels = source.images.astype(np.float64) / 255
    np.testing.assert_allclose((mean[0], std[0]), (pixels.mean(), pixels.std()), rtol=1e-12)
    assert (mean, std) == channel_statistics(source, '', 1000, make_mesh())


def test_files_are_seen_after_the_ops_of_evaluation_and_the_unreadable_left_out(jpegs, tmp_path):
    ops = 'decode|resize_small(40)|central_crop(32)'
    images = np.concatenate([b['image'] for b in eval_batches(jpegs, ops, batch_size=30)])
    broken = tmp_path / 'broken.jpg'
    broken.write_bytes(b'no image')
    source = dataclasses.replace(jpegs, paths=(str(broken), *jpegs.paths[1:]))
    mean, std = channel_statistics(source, ops, 16, make_mesh())
    pixels = images[1:].reshape(-1, 3).astype(np.int64)
    exact = pixels.sum(0) / len(pixels) / 255
    np.testing.assert_allclose(mean, exact, rtol=1e-15)
    np.testing.assert_allclose(std, pixels.std(0) / 255, rtol=1e-12)


def test_equal_pixels_are_refused():
    blank = arrays.from_arrays('blank', np.full((4, 8, 8, 1), 7, np.uint8), np.zeros(4, int), 'a')
    with pytest.raises(UserError, match='all pixels of channel 0 are equal'):
        channel_statistics(blank, '', 4, make_mesh())


def test_a_run_computes_them_once_and_keeps_them(tmp_path, monkeypatch):
    from tests.training.tiny import tiny_config
    from vision.preprocess import statistics

    config = tiny_config(training__duration='6 steps', training__eval_every='6 steps')
    config.preprocess.normalise, config.training.stop_after = 'dataset', '3 steps'
    workdir = tmp_path / 'run'
    train(config, workdir)
    # The first run records them in the workdir.
    source = arrays.digits('train')
    expected = channel_statistics(source, config.preprocess.eval, 256, make_mesh())
    kept = json.loads((workdir / 'dataset.json').read_text())
    assert (tuple(kept['mean']), tuple(kept['std'])) == expected
    assert json.loads((workdir / 'config.json').read_text())['preprocess']['mean'] == [0.3]

    monkeypatch.setattr(
        statistics, 'channel_statistics', None
    )  # the second run reads the recorded values
    # The resumed run and the loaded run use the recorded values.
    config.training.stop_after = None
    train(config, workdir)
    run = load_run(workdir, 'last')
    assert (run.config.preprocess.mean, run.config.preprocess.std) == expected

    # Prediction normalises by them.
    images = np.kron(arrays.digits('test').images[:4], np.ones((1, 4, 4, 1), np.uint8))
    run.config.preprocess.eval = ''
    apply = jax.jit(lambda v, x: run.model.apply(v, x, train=False)[0])
    logits = apply(run.variables, normalise(images, *expected))
    run = dataclasses.replace(run, image_shape=(32, 32, 1))
    probabilities = Classifier(run, fold=False)(images)
    np.testing.assert_allclose(
        probabilities, np.exp(logits) / np.exp(logits).sum(-1, keepdims=True), atol=1e-5
    )
