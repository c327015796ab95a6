"""The throughput of classifying files is compared with the decoder's and the model's."""

import pytest

from benchmarks import predict as predict_lib
from benchmarks.input import make_jpegs
from vision.prediction import Classifier


def test_the_rate_of_predict_is_set_beside_its_halves(monkeypatch, digits_run):
    run = Classifier.from_workdir(digits_run).run
    monkeypatch.setattr(predict_lib, '_random_run', lambda name: run)
    monkeypatch.setattr(predict_lib, 'make_jpegs', lambda folder: make_jpegs(folder, 8))
    found = predict_lib.predict_speed('lenet5', rounds=1, images=40)
    decoder, model, predict = (found[key] for key in ('decoder', 'bare_model', 'predict'))
    assert found['of_slower'] == pytest.approx(predict / min(decoder, model))
    assert found['of_bound'] == pytest.approx(predict * (1 / decoder + 1 / model))
    assert {'one_image_cpu_ms', 'one_image_cpu_ms_8_threads'} < set(found)
