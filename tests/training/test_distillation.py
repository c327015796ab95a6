"""Distillation: the loss against NumPy, the teacher's state, resuming, and errors."""

import dataclasses
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training.test_tasks import records, state_of
from tests.training.tiny import tiny_config
from vision.core.config import complete_eval, default_config
from vision.core.errors import UserError
from vision.evaluation.evals import evaluate_entry
from vision.evaluation.run import Run, load_run
from vision.task.base import Apply, Settings, make_task
from vision.task.classification import Classification
from vision.task.multilabel import MultiLabel
from vision.training import train
from vision.training.distillation import Distillation

CLASSES = ('a', 'b', 'c', 'd')
SHAPE = (4, 4, 3)
RNG = np.random.default_rng(0)


class Linear(nn.Module):
    """Logits that are linear in the pixels."""

    @nn.compact
    def __call__(self, images, train):
        features = images.reshape(len(images), -1)
        return nn.Dense(4, name='head')(features), {'features': features}


def settings(mean=(0.5,), std=(0.25,), **changes):
    loss = default_config().loss.to_dict()
    return dataclasses.replace(Settings(CLASSES, 4, mean, std, loss=loss), **changes)


def params():
    kernel, bias = RNG.normal(size=(48, 4)), RNG.normal(size=4)
    return {'head': {'kernel': jnp.float32(kernel), 'bias': jnp.float32(bias)}}


def teacher_of(task, class_names=CLASSES, input_shape=SHAPE):
    """Returns a teacher that was not read from a workdir."""
    variables = {'params': params(), 'batch_stats': {}}
    return Run(
        Path('teacher'), None, class_names, None, input_shape, 0, Linear(), task, variables, None
    )


def taught_by(teacher, **arguments):
    """Returns the task with a teacher in place of the one that it would read."""
    task = Distillation(settings(mixup=0.4), teacher=str(Path(__file__).parent), **arguments)
    vars(task)['_run'] = teacher
    return task


def softmax(x):
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def by_hand(kind, logits, taught, targets, mask, weight, t):
    """Touvron et al. 2021, equations 2 and 3: the mean loss, and its gradient by the logits."""
    p = softmax(logits)
    loss = -(targets * np.log(p)).sum(1)
    if kind == 'hard':
        answer = np.eye(4)[taught.argmax(1)]
        other, slope = -(answer * np.log(p)).sum(1), p - answer
    else:
        q, s = softmax(taught / t), softmax(logits / t)
        other, slope = t**2 * (q * (np.log(q) - np.log(s))).sum(1), t * (s - q)
    mean = ((1 - weight) * loss + weight * other) @ mask / mask.sum()
    gradient = ((1 - weight) * (p - targets) + weight * slope) * mask[:, None] / mask.sum()
    return mean, gradient, other @ mask


@pytest.mark.parametrize(
    ('kind', 'weight', 't', 'mean'),
    [('hard', 0.5, 3.0, (0.5,)), ('soft', 0.1, 3.0, (0.1, 0.2, 0.3))],
)
def test_the_loss_and_its_gradient_are_the_papers(kind, weight, t, mean):
    """On mixed images, also for a teacher with another normalization than the student's."""
    std = (0.25,) if mean == (0.5,) else (0.2, 0.3, 0.4)
    teacher = teacher_of(Classification(settings(mean, std)))
    task = taught_by(teacher, kind=kind, weight=weight, temperature=t)
    batch = {
        'image': jnp.asarray(RNG.integers(0, 256, (6, *SHAPE)), jnp.uint8),
        'label': jnp.array([0, 1, 2, 3, 0, 1]),
        'id': jnp.arange(6),
        'mask': jnp.array([1.0, 1, 1, 1, 1, 0]),
    }
    examples, student = task.prepare(batch, jax.random.key(3)), params()

    def objective(params):
        apply = Apply(Linear(), params, {})
        return task.loss(apply, examples, teacher.variables, jax.random.key(0))

    step = jax.jit(jax.value_and_grad(objective, has_aux=True))
    (value, outcome), gradient = step(student)
    # The same pixels, mixed before or after any normalization.
    images, targets = (np.asarray(examples[k], np.float64) for k in ('image', 'targets'))
    assert 0 < targets[1].max() < 1
    pixels = images * 0.25 + 0.5
    head = jax.tree.map(np.float64, student['head'])
    theirs = jax.tree.map(np.float64, teacher.variables['params']['head'])
    logits = images.reshape(6, -1) @ head['kernel'] + head['bias']
    seen = ((pixels - mean) / std).reshape(6, -1)
    taught = seen @ theirs['kernel'] + theirs['bias']
    mask = np.asarray(batch['mask'], np.float64)
    expected, slope, other = by_hand(kind, logits, taught, targets, mask, weight, t)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(outcome.sums['distillation'], other, rtol=1e-5)
    np.testing.assert_allclose(gradient['head']['bias'], slope.sum(0), rtol=1e-4, atol=1e-6)
    kernel = images.reshape(6, -1).T @ slope
    np.testing.assert_allclose(gradient['head']['kernel'], kernel, rtol=1e-3, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, outcome.extra, teacher.variables)


@pytest.mark.parametrize(
    ('teacher', 'says'),
    [
        (teacher_of(Classification(settings()), class_names=('a', 'b')), '2 classes .a, b. and the'),
        (teacher_of(Classification(settings()), ('a', 'b', 'd', 'c')), 'the same, in the same order'),
        (teacher_of(MultiLabel(settings())), 'was trained for the task MultiLabel'),
    ],
)  # fmt: skip
def test_a_teacher_that_answers_something_else_is_refused(teacher, says):
    with pytest.raises(UserError, match=says) as error:
        taught_by(teacher).init(Linear(), None, None)
    assert '\n' not in str(error.value)


def test_a_teacher_that_cannot_take_the_images_is_refused():
    task = taught_by(teacher_of(Classification(settings())))
    with pytest.raises(UserError, match='images of 4x4x3 and does not take 4x4x1: '):
        task._teach(jnp.zeros((2, 4, 4, 1)), task._run.variables)
    surplus = dataclasses.replace(task.settings, num_outputs=5)
    with pytest.raises(UserError, match=r'model.num_classes=5: distillation needs as many outputs'):
        dataclasses.replace(task, settings=surplus).init(Linear(), None, None)


@pytest.mark.parametrize(
    ('arguments', 'says'),
    [
        ({}, "missing 1 required positional argument: 'teacher'"),
        ({'teacher': 'x', 'kind': 'medium'}, "kind='medium' is not one of 'hard', 'soft'"),
        ({'teacher': 'x', 'weight': 1.5}, r'weight=1.5 must be in \[0, 1\]'),
        ({'teacher': 'x', 'temperature': 0.0}, 'temperature=0.0 must be above 0'),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments, says):
    with pytest.raises(UserError, match=says):
        make_task({'name': 'distillation', **arguments}, settings())


def distilled(teacher, task=None, **changes):
    config = tiny_config(**changes)
    with config.unlocked():
        config.task = {'name': 'distillation', 'teacher': str(teacher), **(task or {})}
    return config


def test_a_missing_teacher_is_one_line_before_anything_is_made(tmp_path):
    (tmp_path / 'teacher').mkdir()
    with pytest.raises(
        UserError, match=r'task.teacher=.*techer: no such .* did you mean .*teacher'
    ):
        train(distilled(tmp_path / 'techer'), tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


@pytest.fixture(scope='module')
def teacher(tmp_path_factory):
    """A trained run."""
    workdir = tmp_path_factory.mktemp('teacher')
    train(tiny_config(), workdir)
    return workdir


@pytest.mark.slow
@pytest.mark.parametrize('accumulate', [1, 2])
def test_a_stopped_run_ends_in_the_same_bits_and_its_teacher_is_unchanged(
    tmp_path, teacher, accumulate
):
    config = distilled(
        teacher, {'kind': 'soft'}, training__accumulate=accumulate, preprocess__mixup=0.2
    )
    train(config, tmp_path / 'whole')
    config.training.stop_after = '12 steps'
    train(config, tmp_path / 'halves')
    config.training.stop_after = None
    # A resumed run has the teacher's weights in its checkpoint and reads only its model.
    elsewhere = teacher.rename(tmp_path / 'elsewhere')
    with pytest.raises(UserError, match=r'task.teacher=.*: no such file or workdir'):
        train(config, tmp_path / 'halves')
    elsewhere.rename(teacher)
    checkpoints = (teacher / 'checkpoints').rename(tmp_path / 'checkpoints')
    with pytest.raises(UserError, match='checkpoint'):
        train(config, tmp_path / 'another')
    assert not (tmp_path / 'another').exists()
    train(config, tmp_path / 'halves')
    checkpoints.rename(teacher / 'checkpoints')
    whole, halves = (state_of(tmp_path / name, config) for name in ('whole', 'halves'))
    jax.tree.map(np.testing.assert_array_equal, whole, halves)
    expected = jax.device_get(load_run(teacher).variables)
    jax.tree.map(np.testing.assert_array_equal, whole[1]['extra'], expected)
    own = jax.tree.leaves(whole[0]['params'])
    assert not all(map(np.array_equal, own, jax.tree.leaves(expected['params'])))
    assert all(
        r['train/distillation'] > 0 for r in records(tmp_path / 'whole') if 'train/loss' in r
    )
    # Evaluation does not need the teacher.
    elsewhere = teacher.rename(tmp_path / 'elsewhere')
    found = evaluate_entry([load_run(tmp_path / 'whole')], 'test', complete_eval({}))
    assert found.figures['count'] == 360
    elsewhere.rename(teacher)


@pytest.mark.slow
def test_a_student_on_other_data_or_images_is_refused(tmp_path, teacher):
    other = {'source': 'synthetic', 'num_examples': 64, 'num_classes': 3, 'image_size': 8}
    config = distilled(teacher)
    with config.unlocked():
        config.data = {**other, 'channels': 1}
    with pytest.raises(UserError, match=r'has 10 classes \(0, 1, 2, …\) and the data 3'):
        train(config, tmp_path / 'run')
    config = distilled(teacher, model__name='resnet20', preprocess__train='resize(28)')
    config.preprocess.eval = 'resize(28)'
    with pytest.raises(UserError, match='of 32x32x1 and does not take 28x28x1: Net takes images'):
        train(config, tmp_path / 'run')
    assert not (tmp_path / 'run').exists()
