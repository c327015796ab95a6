"""Mistakes in user-defined tasks, metrics and updates: one line that names the method, exit code 2."""

import dataclasses
import sys

import jax
import numpy as np
import pytest

from tests.task.judged import judged
from tests.training.test_step import Linear, batch
from vision.core import cli
from vision.core.config import default_config
from vision.core.errors import UserError
from vision.core.mesh import make_mesh
from vision.evaluation.answers import make_step
from vision.task.metrics import check_metrics, figures
from vision.training.setup import make_recipe
from vision.training.step import trace

FILE = """
import jax.numpy as jnp
from vision.task import Metric, Outcome
from vision.task.classification import Classification as C

def task(name, **methods):
    globals()[name] = type(name, (C,), methods)

def loss(change):
    return lambda self, *arguments: change(*C.loss(self, *arguments))

def raises(self, *arguments):
    raise ValueError('boom\\nand more')

def misshapen(self, apply, examples, extra, key):
    return examples['image'] @ jnp.zeros(7), None

task('Scalar', loss=loss(lambda value, outcome: value))
task('Vector', loss=loss(lambda value, outcome: (value[None], outcome)))
task('Whole', loss=loss(lambda value, outcome: (1, outcome)))
task('Sums', loss=loss(lambda value, outcome: (value, outcome._replace(sums=[1.0]))))
task('Rows', loss=loss(lambda value, outcome: (value, outcome._replace(sums={'loss': value, 'x': jnp.ones(4)}))))
task('Taken', loss=loss(lambda value, outcome: (value, outcome._replace(sums={'loss': value, 'lr': value}))))
task('Stats', loss=loss(lambda value, outcome: (value, outcome._replace(batch_stats=None))))
task('Extra', loss=loss(lambda value, outcome: (value, outcome._replace(extra=value))))
task('Drifts', init=lambda self, model, variables, key: {'seen': jnp.zeros((), jnp.int32)},
     loss=loss(lambda value, outcome: (value, outcome._replace(extra={'seen': 0.5 * value}))))
task('Raises', loss=raises)
task('Misshapen', loss=misshapen)
task('NoImage', prepare=lambda self, batch, key=None: {'mask': batch['mask']})
task('Nothing', prepare=lambda self, batch, key=None: None)
task('TooFew', prepare=lambda self, batch: batch)
task('Text', init=lambda self, model, variables, key: {'a': 'text'})
task('NoColumns', answers=lambda self, outputs, endpoints, batch: outputs)
task('OneRow', answers=lambda self, outputs, endpoints, batch: {'loss': outputs.sum()})
task('Endpoint', answers=lambda self, outputs, endpoints, batch: {'x': endpoints['feature']})
task('NoDict', metrics=[Metric])
task('Empty', metrics={})
task('NoMetric', metrics={'a': len})

class NoTask:
    loss = answers = metrics = None

def only_the_gradient(state, examples, gradient_of):
    return gradient_of(state.params, examples)[0]

def another_tree(state, examples, gradient_of):
    return {}, gradient_of(state.params, examples)[1]

def other_shapes(state, examples, gradient_of):
    gradient, outcome = gradient_of(state.params, examples)
    return {k: {n: x[:1] for n, x in v.items()} for k, v in gradient.items()}, outcome

def no_outcome(state, examples, gradient_of):
    return gradient_of(state.params, examples)[0], {}

def raising(state, examples, gradient_of):
    return state.parameters
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / 'own_tasks.py').write_text(FILE)
    (tmp_path / 'own_broken.py').write_text('import math\nx = math.tau +\n')
    (tmp_path / 'own_failing.py').write_text('x = undefined\n')
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in ('own_tasks', 'own_broken', 'own_failing'):
        sys.modules.pop(name, None)


def said(capsys, function):
    """Returns the error line of a command that calls a failing function."""
    try:
        function()
    except Exception as e:
        assert cli._end(e) == cli.USER_MISTAKE, e
    line = capsys.readouterr().err
    assert line.count('\n') == 1 and line.startswith('error: ')
    return line


@pytest.mark.parametrize(
    ('task', 'says'),
    [
        ('own_tasks:Scalar', 'Scalar.loss must return a pair (value, vision.task.Outcome), not float32[]'),
        ('own_tasks:Vector', 'Vector.loss must return a float scalar to minimise, not float32[1]'),
        ('own_tasks:Whole', 'Whole.loss must return a float scalar to minimise, not int'),
        ('own_tasks:Sums', "Sums.loss: the sums of its Outcome must include 'loss'"),
        ('own_tasks:Rows', "Rows.loss: the sum 'x' must be a scalar, not float32[4]"),
        ('own_tasks:Taken', "Taken.loss: the name of the sum 'lr' is reserved"),
        ('own_tasks:Stats', "Stats.loss: batch_stats of its Outcome must have the structure, shapes"),
        ('own_tasks:Extra', "Extra.loss: extra of its Outcome must have the structure, shapes"),
        ('own_tasks:Drifts', "Drifts.loss: extra of its Outcome must have the structure, shapes and types"),
        ('own_tasks:Raises', 'own_tasks.py, line 13, in raises: ValueError: boom and more'),
        ('own_tasks:Misshapen', 'own_tasks.py, line 16, in misshapen: TypeError: '),
        ('own_tasks:NoImage', "NoImage.prepare must return a dict with 'image' and 'mask', not dict (mask)"),
        ('own_tasks:Nothing', "Nothing.prepare must return a dict with 'image' and 'mask', not NoneType"),
        ('own_tasks:TooFew', 'TooFew.prepare must take'),
        ('own_tasks:Text', 'Text.init must return a tree of arrays, or None'),
        ('own_tasks:NoColumns', 'NoColumns.answers must return a dict of arrays [4, …], one row per example, not float32[4, 3]'),
        ('own_tasks:OneRow', 'OneRow.answers must return a dict of arrays [4, …], one row per example, not loss: float32[]'),
        ('own_tasks:Endpoint', "in <lambda>: KeyError: 'feature'"),
        ('own_tasks:NoDict', 'NoDict.metrics must be a dict of metrics'),
        ('own_tasks:Empty', 'Empty.metrics must be a dict of metrics'),
        ('own_tasks:NoMetric', "NoMetric.metrics: 'a' must be a vision.task.Metric"),
        ('own_tasks:NoTask', "task 'own_tasks:NoTask' must be a subclass of vision.task.Task"),
        ('own_broken:X', "cannot import 'own_broken' (invalid syntax (own_broken.py, line 2))"),
        ('own_failing:X', "cannot import 'own_failing' (own_failing.py, line 1, in <module>: NameError: name 'undefined'"),
    ],
)  # fmt: skip
def test_a_wrong_task(folder, capsys, task, says):
    assert says in said(capsys, lambda: go({'name': task}, {'name': 'gradient'}))


@pytest.mark.parametrize(
    ('update', 'says'),
    [
        ('only_the_gradient', 'the update only_the_gradient must return a pair'),
        ('another_tree', 'the update another_tree must return a gradient with the structure and shapes of the parameters'),
        ('other_shapes', 'the update other_shapes must return a gradient with the structure and shapes of the parameters'),
        ('no_outcome', 'the update no_outcome must return a pair (value, vision.task.Outcome), not dict ()'),
        ('raising', "in raising: AttributeError: 'TrainState' object has no attribute 'parameters'"),
    ],
)  # fmt: skip
def test_a_wrong_update(folder, capsys, update, says):
    update = {'name': f'own_tasks:{update}'}
    assert says in said(capsys, lambda: go({'name': 'classification'}, update))


def go(task, update):
    """Traces a user-defined task and update as `setup` does."""
    config, model, mesh = default_config(), Linear(), make_mesh()
    with config.unlocked():
        config.task, config['update'] = task, update
    recipe = make_recipe(config, model, 'abc', 10)
    trace(recipe, (2, 2, 1), mesh, batch())
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), batch()['image'], train=False))
    jax.eval_shape(make_step(recipe.task, model, mesh), variables, batch())


@pytest.mark.parametrize(
    ('of', 'says'),
    [
        (lambda c: c['loss'][1:], "metric 'x' must return a number, None, or one number per example, [3], not float32[2]"),
        (lambda c: 'high', "metric 'x' must return a number, None, or one number per example, [3], not str"),
        (lambda c: c['loss'][:, None], 'not float32[3, 1]'),
    ],
)  # fmt: skip
def test_a_wrong_metric(capsys, of, says):
    p = judged([0, 1, 2], [0, 1, 2], np.eye(3), 'abc')

    metrics = {'x': dataclasses.replace(p.task.metrics['loss'], of=of)}
    task = type('Own', (type(p.task),), {'metrics': metrics})(p.task.settings)
    assert says in said(capsys, lambda: figures(task, p.columns))


@pytest.mark.parametrize(
    ('of', 'error', 'says'),
    [
        (lambda c: c['rnk'] < 1, UserError, "unknown column in metric 'x': 'rnk'. Did you mean 'rank'?"),
        (lambda c: np.maen(c['loss']), AttributeError, "module 'numpy' has no attribute 'maen'"),
        (lambda c: lss, NameError, "name 'lss' is not defined"),  # noqa: F821
    ],
)  # fmt: skip
def test_a_metric_that_names_what_is_not_there_is_refused_before_the_run(of, error, says):
    with pytest.raises(error) as raised:
        before_the_run(of)
    assert says in str(raised.value)


def needs_21(columns):
    np.argpartition(np.eye(len(columns['loss'])), 20)


def needs_two_classes(columns):
    for label in np.unique(columns['label'])[1:]:
        last = label
    return last


def needs_an_answer(columns):
    best = None
    for row in np.flatnonzero(columns['loss'] > 0):
        best = columns['loss'][row]
    return best.item()


def looks_up(columns):
    return {0: 1.0}[int(columns['rank'].max()) + 1]


def takes_what_there_is(columns):
    try:
        return columns['no such']
    except KeyError:
        return 1 / columns.get('no', 0)


@pytest.mark.parametrize(
    'of', [needs_21, needs_two_classes, needs_an_answer, looks_up, takes_what_there_is]
)
def test_a_metric_that_zeros_do_not_suit_is_not_refused(of):
    before_the_run(of)


def before_the_run(of):
    p = judged([0, 1, 2], [0, 1, 2], np.eye(3), 'abc')
    metrics = {'x': dataclasses.replace(p.task.metrics['loss'], of=of)}
    check_metrics(type('Own', (type(p.task),), {'metrics': metrics})(p.task.settings), p.columns)
