"""Configs that do not fit the data or the model are refused in one line before compilation."""

import jax
import pytest
from ml_collections import ConfigDict

from configs import digits_lenet5
from tests.training.tiny import tiny_config
from vision.core.errors import UserError
from vision.models import create_model
from vision.training.setup import setup


@pytest.mark.parametrize(
    ('changes', 'says'),
    [
        ({'model.num_classes': 9}, r'model.num_classes=9: digits\S* has 10 classes'),
        ({'loss.class_weights': (1.0,) * 9}, '9 values for 10 classes'),
        ({'freeze': 'layer1'}, "freeze: 'layer1' matches no parameter of the model"),
        ({'weight_decay_pattern': 'weight$'}, "weight_decay_pattern: 'weight.' matches no"),
        (
            {
                'optimizer.name': 'adamw',
                'optimizer.weight_decay': 0.1,
                'weight_decay': 0.0,
                'weight_decay_pattern': 'weight$',
            },
            "weight_decay_pattern: 'weight.' matches no",
        ),
        ({'training.batch_size': 64, 'training.accumulate': 3}, 'in each of 3 parts'),
        ({'training.polyak_from': '60 epochs', 'training.ema_decay': 0.0}, 'the whole run has'),
        ({'schedule.warmup': '90 epochs'}, 'the whole run has'),
        ({'schedule.name': 'cosin'}, "Did you mean 'cosine'"),
        ({'schedule.name': 'step', 'schedule.at': ('-1 epochs',)}, 'negative'),
        ({'optimizer.name': 'adamw', 'optimizer.weight_decay': 0.1}, 'given twice'),
        ({'optimizer.name': 'sdg'}, "Did you mean 'sgd'"),
        ({'optimizer.clip_norm': 0.0}, 'above 0'),
        ({'seed': 2**32}, 'seed'),
        ({'training.duration': '-2 epochs'}, 'negative'),
        ({'model.name': 'vgg_a'}, 'dense_evaluation=False'),
        ({'training.best_by': 'top11'}, "Did you mean 'top1'"),
        ({'evals': {'crops': {'protocol': 'ten_crops'}}}, "Did you mean 'ten_crop'"),
        ({'preprocess.train': 'resize(28)'}, 'LeNet5 takes images of 32x32, not 28x28'),
        ({'preprocess.eval': 'resize(28)'}, 'LeNet5 takes images of 32x32, not 28x28'),
        ({'model.dtype': 'float64'}, 'dtype float64 is not supported'),
    ],
)
def test_a_config_that_makes_no_sense(changes, says, monkeypatch):
    create_model('lenet5')  # its modules are imported as they are
    monkeypatch.setattr(jax, 'jit', lambda *_, **__: pytest.fail('compiles'))
    config = digits_lenet5.get_config()
    for key, value in changes.items():
        section, _, name = key.rpartition('.')
        with config.unlocked():
            (config[section] if section else config)[name] = value
    with pytest.raises(UserError, match=says) as error:
        setup(config)
    assert '\n' not in str(error.value)


def test_more_logits_than_classes_are_allowed():
    config = digits_lenet5.get_config()
    config.model.num_classes = 12
    assert setup(config).model.num_classes == 12


@pytest.mark.parametrize('held', [{'freeze': 'backbone'}, {'lr_factors': (('backbone', 0.1),)}, {}])
def test_a_backbone_that_is_held_back_from_random_values_is_told(held, caplog):
    for init_from in (None, 'weights'):
        setup(tiny_config(init_from=init_from, **held))
    assert caplog.text.count('starts from random values') == bool(held)


def test_a_metric_that_this_data_cannot_have_is_refused_before_the_run():
    config = tiny_config(training__best_by='top5')
    config.data = ConfigDict(
        {'source': 'synthetic', 'num_classes': 4, 'image_size': 32, 'channels': 1}
    )
    with pytest.raises(UserError, match=r"best_by: 'top5' is undefined on synthetic:train"):
        setup(config)
    config.data.num_classes = 5
    assert setup(config).selection.name == 'top5'
