"""Multi-label metrics equal scikit-learn's; losses equal the sum of the binary losses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics as sk

from vision.core.config import default_config
from vision.core.errors import UserError
from vision.core.mesh import make_mesh
from vision.evaluation.answers import Labels, make_step
from vision.task import Apply, Settings, make_task
from vision.task.metrics import figures
from vision.task.multilabel import average_precisions

LOSS = {**default_config().loss.to_dict(), 'name': 'sigmoid_cross_entropy'}


def task(k=5, loss=LOSS, **arguments):
    settings = Settings(tuple('abcdefg'[:k]), k, loss=loss)
    return make_task({'name': 'multilabel', **arguments}, settings)


def columns(n=200, k=5, seed=0):
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, k)) < np.linspace(0.1, 0.6, k)).astype(np.float32)
    logits = (rng.normal(size=(n, k)) + 2 * labels - 1).round(1).astype(np.float32)  # with ties
    answers = jax.jit(task(k).answers)(logits, {}, {'label': jnp.asarray(labels)})
    return {**jax.device_get(answers), 'id': np.arange(n)}, logits


@pytest.mark.parametrize('threshold', [0.3, 0.5])
def test_the_figures_are_scikit_learns(threshold):
    c, _ = columns()
    labels, p = c['label'], c['probabilities']
    got = figures(task(threshold=threshold), c)
    for average, ap, f1 in (('macro', 'map', 'f1'), ('micro', 'map_micro', 'f1_micro')):
        assert got[ap] == pytest.approx(sk.average_precision_score(labels, p, average=average))
        assert got[f1] == pytest.approx(sk.f1_score(labels, p >= threshold, average=average))
    expected = [sk.log_loss(labels[:, k], p[:, k].astype(float)) for k in range(5)]
    assert got['loss'] == pytest.approx(sum(expected), rel=1e-5)
    assert got['count'] == 200


def test_a_class_without_examples_counts_in_no_mean_over_classes():
    c, _ = columns()
    c = {**c, 'label': c['label'] * [1, 1, 0, 1, 1]}
    others = [0, 1, 3, 4]
    got = figures(task(), c)
    theirs = sk.average_precision_score(c['label'][:, others], c['probabilities'][:, others])
    assert got['map'] == pytest.approx(theirs)
    assert np.isnan(average_precisions(c['label'], c['probabilities'])[2])


def test_a_model_of_nan_has_no_figures_and_no_traceback():
    answers = task(3).answers(jnp.full((4, 3), jnp.nan), {}, {'label': jnp.ones((4, 3))})
    got = figures(task(3), {**jax.device_get(answers), 'id': np.arange(4)})
    assert got['map'] is None and got['loss'] is None and got['f1'] == 0


def test_several_views_are_averaged_as_probabilities():
    logits = np.random.default_rng(0).normal(size=(3, 8, 5)).astype(np.float32) * 4
    combined = task().combine(logits, np.full(3, 1 / 3, np.float32))
    mean = (1 / (1 + np.exp(-logits.astype(np.float64)))).mean(0)
    np.testing.assert_allclose(jax.nn.sigmoid(combined), mean, rtol=1e-5)
    far = task().combine(jnp.full((2, 1, 5), 200.0), jnp.array([0.5, 0.5]))
    np.testing.assert_allclose(far, 200, rtol=1e-4)


class Table:
    """A model whose logits are written in the image: channel 0 of pixel (0, k) is logit k."""

    def apply(self, variables, images, train):
        return images[:, 0, :, 0], {}


def test_classes_that_a_data_set_lacks_are_absent_labels_not_absent_classes():
    """Another data set has the second and the fourth of four classes, and all four are compared."""
    t = task(4)
    step = make_step(t, Table(), make_mesh(), Labels(None, np.array([1, 3]), 4))
    batch = {
        'image': jnp.arange(8, dtype=jnp.uint8).reshape(2, 1, 4, 1),
        'label': jnp.array([[1.0, 0.0], [0.0, 1.0]]),
        'id': jnp.arange(2),
        'mask': jnp.ones(2),
    }
    columns = step({}, batch)
    assert columns['label'].tolist() == [[0, 1, 0, 0], [0, 0, 0, 1]]
    assert columns['probabilities'].shape == (2, 4)


class Constant:
    """A model whose logits are its parameters."""

    def apply(self, variables, images, **_):
        return (jnp.broadcast_to(variables['params'], (len(images), 5)), {}), {}


def test_the_objective_is_the_mean_over_examples_of_the_sum_over_classes():
    c, logits = columns(n=4)
    batch = {
        'image': jnp.zeros((4, 2, 2, 1), jnp.uint8),
        'label': jnp.asarray(c['label']),
        'mask': jnp.array([1.0, 1, 0, 1]),
    }
    t = task(loss={**LOSS, 'label_smoothing': 0.2})
    examples = t.prepare(batch, jax.random.key(0))
    objective, outcome = t.loss(Apply(Constant(), logits[0], {}), examples, None, jax.random.key(0))
    y = 0.8 * c['label'] + 0.1
    p = 1 / (1 + np.exp(-logits[0].astype(np.float64)))
    each = -(y * np.log(p) + (1 - y) * np.log(1 - p)).sum(1)[[0, 1, 3]]
    assert float(objective) == pytest.approx(each.mean(), rel=1e-5)
    assert float(outcome.sums['loss']) == pytest.approx(each.sum(), rel=1e-5)


def test_every_class_above_the_threshold_is_named_the_likeliest_first():
    p = np.array([0.2, 0.9, 0.5, 0.6, 0.1])
    assert task().named(p, top_k=1).tolist() == [1, 3, 2]
    assert task(threshold=0.95).named(p, top_k=5).tolist() == []


def test_records_are_read_back():
    c, _ = columns(n=6)
    t = task()
    records = [t.record(c, i) for i in range(6)]
    back = t.from_records(records)
    np.testing.assert_array_equal(back['label'], c['label'])
    np.testing.assert_allclose(back['probabilities'], c['probabilities'])


@pytest.mark.parametrize(
    ('loss', 'arguments', 'says'),
    [
        ({'name': 'softmax_cross_entropy'}, {}, "loss.name='sigmoid_cross_entropy'"),
        ({'name': 'focal'}, {}, 'one class per example'),
        ({'class_weights': (1.0,) * 5}, {}, 'supports no class weights'),
        ({}, {'threshold': 1.5}, r'threshold=1.5 must be in \(0, 1\)'),
        ({}, {'threshold': 'half'}, 'not of type float'),
        ({}, {'limit': 1}, "argument of task 'multilabel' 'limit'"),
    ],
)
def test_what_makes_no_sense_is_refused(loss, arguments, says):
    with pytest.raises(UserError, match=says):
        _ = task(loss={**LOSS, **loss}, **arguments).criterion
