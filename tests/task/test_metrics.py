"""Metrics equal scikit-learn's on the same predictions."""

import dataclasses

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import softmax
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

from tests.task.judged import figures_of, judged
from vision.evaluation import figures as beside
from vision.task import metrics
from vision.task.classification import confidence

pytestmark = pytest.mark.smoke


@st.composite
def predictions(draw):
    """Scores of up to 60 examples and 7 classes, with ties, absent classes and unpredicted classes."""
    n, k = draw(st.integers(1, 60)), draw(st.integers(2, 7))
    scores = draw(hnp.arrays(np.float32, (n, k), elements=st.integers(-8, 8)))
    labels = draw(hnp.arrays(np.int64, n, elements=st.integers(0, k - 1)))
    return labels, scores, judged(np.arange(n), labels, scores, 'abcdefg'[:k])


@given(predictions())
def test_accuracies_and_losses(drawn):
    labels, scores, got = drawn
    k, probabilities = scores.shape[1], softmax(scores.astype(np.float64), axis=1)
    figures = figures_of(got, resamples=1)
    assert figures['top1'] == sk.accuracy_score(labels, scores.argmax(1))
    assert figures['count'] == len(labels)
    if k >= 5:  # scikit-learn breaks ties towards the last class: nudge them apart
        apart = scores.astype(np.float64) - 1e-6 * np.arange(k)
        top5 = sk.top_k_accuracy_score(labels, apart, k=5, labels=np.arange(k))
        assert figures['top5'] == pytest.approx(top5, abs=1e-12)
    else:
        assert figures['top5'] is None
    loss = sk.log_loss(labels, probabilities, labels=np.arange(k))
    # Answers are float32: a few units in the last place of logits up to 8 and losses up to 18.
    assert figures['loss'] == pytest.approx(loss, rel=2e-6, abs=2e-6)
    brier = sk.brier_score_loss(labels, probabilities, labels=np.arange(k), scale_by_half=False)
    assert figures['brier'] == pytest.approx(brier, abs=2e-6)


@given(predictions())
def test_classes_and_confusion(drawn):
    labels, scores, got = drawn
    k = scores.shape[1]
    matrix = beside.confusion(got['label'], got['top_classes'][:, 0], k)
    cells = np.zeros((k, k), int)
    cells[matrix.rows, matrix.columns] = matrix.counts
    assert (matrix.counts > 0).all()
    np.testing.assert_array_equal(
        cells, sk.confusion_matrix(labels, scores.argmax(1), labels=np.arange(k))
    )
    each = beside.per_class(matrix)
    precision, recall, f1, support = sk.precision_recall_fscore_support(
        labels, scores.argmax(1), labels=np.arange(k), zero_division=np.nan
    )
    np.testing.assert_allclose(each.precision, precision)
    np.testing.assert_allclose(each.recall, recall)
    np.testing.assert_allclose(each.f1, f1)
    np.testing.assert_array_equal(each.support, support)
    present = np.isin(scores.argmax(1), labels)  # scikit-learn warns of classes without examples
    if present.all():
        expected = sk.balanced_accuracy_score(labels, scores.argmax(1))
        assert metrics.balanced_accuracy(got['label'], got.correct) == pytest.approx(expected)
    assert metrics.balanced_accuracy(got['label'], got.correct) == pytest.approx(np.nanmean(recall))


def test_a_million_classes_need_no_matrix_of_all_pairs():
    matrix = beside.confusion(np.array([999_999, 5]), np.array([5, 5]), 10**6)
    assert (matrix.rows.tolist(), matrix.columns.tolist()) == ([5, 999_999], [5, 5])
    assert beside.per_class(matrix).predicted[5] == 2 == beside.per_class(matrix).support.sum()


@pytest.mark.filterwarnings('error')
def test_what_is_not_finite_has_its_reason_and_no_interval():
    p = judged(range(3), [0, 1, 1], np.array([[0, -np.inf], [0, -np.inf], [3, 2]]), 'ab')
    got = figures_of(p)
    assert (got['loss'], got['not_finite']) == (None, {'loss': 'Infinity'})
    assert got['top1'] == 1 / 3 and 'loss' not in got['intervals'] and 'top1' in got['intervals']


@given(predictions(), st.integers(1, 20))
def test_calibration(drawn, bins):
    _, _, got = drawn
    sure = confidence(got.columns)
    r = beside.reliability(sure, got.correct, bins)
    accuracy, mean = calibration_curve(got.correct, sure, n_bins=bins)
    there = r.examples > 0
    np.testing.assert_allclose(r.accuracy[there], accuracy)
    np.testing.assert_allclose(r.confidence[there], mean)
    assert np.isnan(r.accuracy[~there]).all() and r.examples.sum() == len(got)
    gaps = np.abs(accuracy - mean) * r.examples[there] / len(got)
    ece = metrics.expected_calibration_error(sure, got.correct, bins)
    assert ece == pytest.approx(gaps.sum(), abs=1e-12)


def example(n=400, k=10, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(k, size=n)
    scores = rng.normal(size=(n, k)) + 2 * np.eye(k)[labels]
    return judged(np.arange(n), labels, scores, [str(i) for i in range(k)])


def intervals(p, **kwargs):
    values = {'top1': p.correct, 'loss': p['loss'], 'brier': p['squared_error']}
    values['ece'] = metrics.weighted_calibration_error(confidence(p.columns), p.correct)
    values['balanced_accuracy'] = metrics.weighted_balanced_accuracy(p['label'], p.correct)
    return beside.bootstrap(len(p), values, ['ece'], **kwargs)


def test_intervals_are_scipys_percentile_bootstrap():
    p = example()
    got = intervals(p, resamples=4000)
    for name, values in {'top1': p.correct, 'loss': p['loss'], 'brier': p['squared_error']}.items():
        theirs = scipy.stats.bootstrap(
            (values.astype(float),), np.mean, n_resamples=4000, method='percentile',
            rng=np.random.default_rng(1),
        ).confidence_interval  # fmt: skip
        np.testing.assert_allclose(got[name], theirs, rtol=0.03)
    paired = scipy.stats.bootstrap(
        (p['label'], p['top_classes'][:, 0]),
        lambda a, b: sk.balanced_accuracy_score(a, b),
        paired=True, vectorized=False, n_resamples=500, method='percentile',
        rng=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    np.testing.assert_allclose(got['balanced_accuracy'], paired, atol=0.01)


def test_the_mean_of_a_biased_metric_without_weights_is_resampled_as_it_is():
    values = {'m': np.arange(9.0)}
    assert beside.bootstrap(9, values, ['m']) == beside.bootstrap(9, values)


@pytest.mark.parametrize('right', ['never', 'as often as it says', 'always'])
def test_intervals_are_seeded_and_hold_the_figure(right):
    p = example()
    often = {'never': 0, 'as often as it says': confidence(p.columns), 'always': 1}[right]
    drawn = np.random.default_rng(0).random(len(p)) < often
    p = dataclasses.replace(p, columns={**p.columns, 'rank': np.where(drawn, 0, 2)})
    assert intervals(p, seed=3) == intervals(p, seed=3) != intervals(p, seed=4)
    figures = figures_of(p)
    for name, (low, high) in figures['intervals'].items():
        assert low <= figures[name] <= high, name


def test_one_example_and_one_class():
    p = judged([0], [0], np.zeros((1, 1)), ['only'])
    figures = figures_of(p)
    assert figures['top1'] == figures['balanced_accuracy'] == 1
    assert figures['loss'] == figures['ece'] == figures['brier'] == 0
    assert figures['intervals']['top1'] == [1, 1]


def test_a_model_of_nan_is_never_right_and_its_figures_are_json():
    import json

    p = judged(np.arange(3), np.zeros(3), np.full((3, 5), np.nan), 'abcde')
    figures = figures_of(p)
    assert figures['top1'] == figures['top5'] == 0
    for name in ('loss', 'ece', 'brier'):
        assert figures[name] is None and name not in figures['intervals']
    json.dumps(figures, allow_nan=False)


def test_extreme_scores_do_not_overflow():
    scores = np.array([[1e5, -1e5], [-1e5, 1e5]])
    p = judged(np.arange(2), [0, 0], scores, 'ab')
    np.testing.assert_allclose(p['loss'], [0, 2e5])
    np.testing.assert_allclose(p['squared_error'], [0, 2])
