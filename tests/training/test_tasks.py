"""User-defined tasks: several forward passes, extra state, and errors."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiers import split
from tests.training.tiny import tiny_config
from vision.core.errors import UserError
from vision.evaluation.run import load_run
from vision.task import Metric, Outcome, Task
from vision.task.classification import Classification
from vision.training import train


@dataclasses.dataclass(frozen=True)
class Teacher(Classification):
    """Classification with a second loss towards a teacher, an average of the parameters."""

    pull: float = 0.1

    def init(self, model, variables, key):
        return {'params': variables['params'], 'steps': jnp.zeros((), jnp.int32)}

    def loss(self, apply, examples, extra, key):
        objective, outcome = super().loss(apply, examples, extra, key)
        taught, _, _ = apply(examples['image'], key, params=extra['params'], train=False)
        mine, _, stats = apply(examples['image'], key, batch_stats=outcome.batch_stats)
        distance = jnp.sum((mine - taught) ** 2, axis=-1) * examples['mask']
        params = jax.lax.stop_gradient(apply.params)
        moved = jax.tree.map(
            lambda t, p: (1 - self.pull) * t + self.pull * p, extra['params'], params
        )
        sums = {**outcome.sums, 'distance': jnp.sum(distance)}
        return objective + 1e-3 * jnp.sum(distance) / examples['count'], Outcome(
            sums, stats, {'params': moved, 'steps': extra['steps'] + 1}
        )


class NoMetrics(Task):
    def loss(self, apply, examples, extra, key):
        return 0.0, Outcome({}, {})

    def answers(self, outputs, endpoints, batch):
        return {}


@dataclasses.dataclass(frozen=True)
class OnlyALoss(Classification):
    def loss(self, apply, examples, extra, key):
        return super().loss(apply, examples, extra, key)[0], {'loss': 1.0}


@dataclasses.dataclass(frozen=True)
class Backwards(Classification):
    """A task whose first metric is better if lower, and differs at every evaluation."""

    @property
    def metrics(self):
        doubt = Metric(lambda c: 1 - c['top_probabilities'][:, 0], 'doubt', 'of the answer', False)
        return {**super().metrics, 'doubt': doubt}


def with_task(name, **changes):
    arguments = changes.pop('task', {})
    config = tiny_config(**changes)
    with config.unlocked():
        config.task = {'name': f'{__name__}:{name}', **arguments}
    return config


def records(workdir):
    return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


def state_of(workdir, config):
    """Returns the last checkpoint on disk: the model, and the rest of the training state."""
    import orbax.checkpoint as ocp

    step = max(int(p.name) for p in (workdir / 'checkpoints').iterdir() if p.name.isdecimal())
    model, training = (
        ocp.StandardCheckpointer().restore(workdir / 'checkpoints' / str(step) / item)
        for item in ('model', 'training')
    )
    return model, {**training, 'rng': jax.random.key_data(training['rng'])}


@pytest.mark.parametrize('accumulate', split([1, 2], [2]))
def test_what_a_task_adds_to_the_state_is_saved_and_a_stopped_run_ends_in_the_same_bits(
    tmp_path, accumulate
):
    config = with_task('Teacher', training__accumulate=accumulate)
    train(config, tmp_path / 'whole')
    config.training.stop_after = '12 steps'
    train(config, tmp_path / 'halves')
    config.training.stop_after = None
    train(config, tmp_path / 'halves')
    whole, halves = (state_of(tmp_path / name, config) for name in ('whole', 'halves'))
    jax.tree.map(np.testing.assert_array_equal, whole, halves)
    assert whole[1]['extra']['steps'] == 24 * accumulate
    teacher, own = (jax.tree.leaves(tree['params']) for tree in (whole[1]['extra'], whole[0]))
    assert not all(map(np.array_equal, teacher, own))
    logged = [r for r in records(tmp_path / 'whole') if 'train/distance' in r]
    assert len(logged) == 4 and all(r['train/distance'] > 0 for r in logged)


def test_the_metric_that_is_named_selects_and_is_everywhere(tmp_path):
    config = with_task('Backwards', training__best_by='doubt', training__keep=10)
    results = train(config, tmp_path)
    by_step = {
        r['step']: r['validation/doubt'] for r in records(tmp_path) if 'validation/doubt' in r
    }
    assert len(by_step) == 3 and results['validation']['doubt'] == min(by_step.values())
    assert by_step[load_run(tmp_path, 'best').step] == min(by_step.values())


@pytest.mark.parametrize(
    ('task', 'changes', 'says'),
    [
        (
            {'name': 'clasification'},
            {},
            "unknown task 'clasification'.*Did you mean 'classification'",
        ),
        ({'name': 'classification', 'groups': 2}, {}, "argument of task 'classification' 'groups'"),
        ({'name': 'multilabel'}, {}, "one label per example.*task.name='classification'"),
        ({'name': f'{__name__}:Nothing'}, {}, "has no 'Nothing'"),
        ({'name': f'{__name__}:NoMetrics'}, {}, 'lacks metrics'),
        ({'name': f'{__name__}:Teacher', 'pull': 'far'}, {}, "pull='far' is not of type float"),
        (
            {'name': 'classification'},
            {'training__best_by': 'top2'},
            "best_by 'top2'.*Did you mean 'top1'",
        ),
    ],
)
def test_what_cannot_be_is_one_line_before_anything_is_made(tmp_path, task, changes, says):
    config = tiny_config(**changes)
    with config.unlocked():
        config.task = task
    with pytest.raises(UserError, match=says) as error:
        train(config, tmp_path / 'run')
    assert '\n' not in str(error.value) and not (tmp_path / 'run').exists()


def test_views_need_a_task_that_takes_them(tmp_path):
    with pytest.raises(
        UserError, match=r'data.views=2: the task Classification supports one view per image'
    ):
        train(tiny_config(data__views=2), tmp_path / 'run')


def test_a_loss_that_returns_something_else_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r'must return .* vision.task.Outcome\), not dict'):
        train(with_task('OnlyALoss'), tmp_path / 'run')
    assert not (tmp_path / 'run').exists()
