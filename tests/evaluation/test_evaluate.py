"""Exactness of evaluation: each example once, for any batch size and number of devices."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from ml_collections import ConfigDict

from tests.processes import run_module
from tests.task.judged import task_of
from tests.tiers import quick
from tests.training.tiny import NET
from vision.core.mesh import make_mesh
from vision.data.arrays import from_arrays
from vision.evaluation.answers import Member, answer, check_count, make_step
from vision.preprocess.inputs import EvalBatches
from vision.task.metrics import figures as figures_of


class Table:
    """A model whose logits are written in the image: channel 0 of pixel (0, k) is logit k."""

    def apply(self, variables, images, train):
        return images[:, 0, :, 0] + variables['bias'], {}


def run(logits, labels, batch_size, bias=0.0):
    images = np.round(logits).astype(np.uint8)[:, None, :, None]
    names = tuple(str(i) for i in range(logits.shape[1]))
    source = from_arrays('table', images, labels, names)
    task, mesh = task_of(names, std=(1 / 255,)), make_mesh()  # logits in 0 … 255 as they are
    batches = EvalBatches(source, '', batch_size, mesh)
    member = Member(make_step(task, Table(), mesh), {'bias': jnp.float32(bias)}, batches)
    return figures_of(task, answer(task, [member], len(labels)))


@given(st.data())
def test_figures_are_what_numpy_says_whatever_the_batch_size(data):
    n, k = data.draw(st.integers(1, 40)), 7
    logits = data.draw(hnp.arrays(np.uint8, (n, k))).astype(np.float64)
    labels = data.draw(hnp.arrays(np.int64, n, elements=st.integers(0, k - 1)))
    got = run(logits, labels, data.draw(st.sampled_from([1, 4, 16])))
    order = np.argsort(-logits, axis=1, kind='stable')
    rank = (order == labels[:, None]).argmax(1)
    shifted = logits - logits.max(1, keepdims=True)
    loss = np.log(np.exp(shifted).sum(1)) - shifted[np.arange(n), labels]
    assert got['count'] == n
    assert got['top1'] == (rank == 0).mean()
    assert got['top5'] == (rank < 5).mean()
    np.testing.assert_allclose(got['loss'], loss.mean(), rtol=1e-5, atol=1e-5)


def test_a_model_of_nan_knows_nothing():
    got = run(np.zeros((5, 7)), np.zeros(5, int), 2, bias=np.nan)
    assert (got['top1'], got['top5']) == (0, 0)
    assert got['loss'] is None


def test_top5_is_none_under_five_classes():
    assert run(np.eye(4) * 9, np.arange(4), 4)['top5'] is None
    assert run(np.eye(5) * 9, np.arange(5), 4)['top5'] == 1


@pytest.mark.parametrize(
    ('ids', 'skipped'), [([0, 1, 2], 0), ([0, 1, 2, 2], 0), ([0, 1, 2, 3, 4], 0), ([0, 1, 1], 1)]
)
def test_a_wrong_count_is_loud(ids, skipped):
    with pytest.raises(RuntimeError, match='of 4'):
        check_count(np.array(ids), 4, skipped)


def test_the_right_count_is_silent():
    check_count(np.array([3, 1, 0, 2]), 4)
    check_count(np.array([3, 1, 0]), 4, skipped=1)


def test_a_lost_example_stops_an_evaluation():
    source = from_arrays('x', np.zeros((6, 1, 7, 1), np.uint8), np.zeros(6, int), tuple('abcdefg'))
    task, mesh = task_of('abcdefg'), make_mesh()
    short = list(EvalBatches(source, '', 2, mesh))[:-1]
    member = Member(make_step(task, Table(), mesh), {'bias': jnp.float32(0)}, short)
    with pytest.raises(RuntimeError, match='2 are missing'):
        answer(task, [member], 6)


def test_an_average_is_of_the_examples_that_every_member_could_read():
    labels = np.arange(6)
    images = (8 * np.eye(6, 7)).astype(np.uint8)[:, None, :, None]
    source, mesh = from_arrays('x', images, labels, tuple('abcdefg')), make_mesh()
    task = task_of('abcdefg', std=(1 / 255,))
    step = make_step(task, Table(), mesh, judge=False)
    members = []
    for unreadable in (1, 4):
        (batch,) = EvalBatches(source, '', 6, mesh)
        batch = {**batch, 'mask': batch['mask'].at[unreadable].set(0)}
        members.append(Member(step, {'bias': jnp.float32(0)}, [batch], lambda: 1))
    columns = answer(task, members, 6)
    assert columns['id'].tolist() == [0, 2, 3, 5]
    assert (columns['rank'] == 0).all()


CONFIG = """
from configs import digits_lenet5

def get_config():
    config = digits_lenet5.get_config()
    config.evals = {
        'held_out': {'split': 'validation'},
        'crops': {'protocol': 'ten_crop(36)'},
        'raw': {'weights': 'raw'},
    }
    return config
"""


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp('run')
    config = tmp_path_factory.mktemp('config') / 'digits_with_evals.py'
    config.write_text(CONFIG)
    done = run_module(
        'experiments.train',
        f'--config={config}',
        f'--config.model.name={NET}',
        '--config.preprocess.train=resize(32)|translate(3)',
        '--config.training.ema_decay=0.9',
        '--config.training.duration=40 steps',
        '--config.evaluation.batch_size=64',
        '--config.schedule.warmup=5 steps',
        f'--workdir={workdir}',
    )
    assert done.returncode == 0, done.stderr
    return workdir


@pytest.mark.slow
def test_the_figures_are_the_same_on_1_2_and_8_devices(trained):
    """The 360 test images of digits are a multiple of neither the batch nor the devices."""
    figures, predictions = [], []
    for devices in (1, 2, 8):
        done = run_module(
            'experiments.evaluate',
            f'--workdir={trained}',
            '--format=json',
            '--evals=all',
            devices=devices,
        )
        assert done.returncode == 0, done.stderr
        figures.append(json.loads(done.stdout))
        predictions.append((trained / 'report' / 'predictions_crops.jsonl').read_bytes())
    for other in figures[1:]:
        assert other == figures[0]
    assert all(other == predictions[0] for other in predictions[1:])
    assert {name: f['count'] for name, f in figures[0].items()} == {
        'crops': 360,
        'held_out': len(predictions_of(trained, 'held_out')),
        'raw': 360,
    }
    assert figures[0]['raw']['loss'] != figures[0]['crops']['loss']
    assert 0.5 < figures[0]['raw']['top1'] < 1
    assert (trained / 'report' / 'index.html').read_text().count('<section') == 3


def test_flags_that_equal_the_default_override_a_named_evaluation(trained):
    flags = ('--evals=held_out,raw', '--eval.split=test', '--eval.weights=None', '--format=json')
    done = run_module('experiments.evaluate', f'--workdir={trained}', '--noreport', *flags)
    assert done.returncode == 0, done.stderr
    held_out, raw = json.loads(done.stdout).values()
    assert held_out == raw and held_out['split'] == 'test' and 'weights' not in raw


def predictions_of(workdir, name):
    from vision.evaluation.predictions import read_predictions

    return read_predictions(workdir, name)


def test_one_evaluation_is_one_json_document(trained):
    done = run_module('experiments.evaluate', f'--workdir={trained}', '--format=json')
    figures = json.loads(done.stdout)
    assert set(figures) >= {'split', 'top1', 'top5', 'loss', 'count', 'checkpoint', 'intervals'}
    recorded = [json.loads(line) for line in (trained / 'metrics.jsonl').read_text().splitlines()]
    tested = next(r for r in recorded if 'test/top1' in r)
    for name in ('top1', 'top5', 'count', 'checkpoint'):
        assert figures[name] == tested[f'test/{name}']
    assert figures['loss'] == pytest.approx(tested['test/loss'], rel=1e-6)
    assert predictions_of(trained, 'test').correct.mean() == pytest.approx(figures['top1'])


def test_an_ensemble_of_one_run_twice_is_that_run(trained):
    from vision.evaluation.evals import evaluate_runs, named_entries
    from vision.evaluation.run import load_run

    entries = named_entries(load_run(trained).config, ['held_out'], ConfigDict())
    _, (alone,) = evaluate_runs([trained], entries)
    _, (twice,) = evaluate_runs([trained, trained], entries)
    np.testing.assert_allclose(twice.predictions['loss'], alone.predictions['loss'], atol=1e-5)
    assert twice.figures['top1'] == alone.figures['top1']


def test_predictions_of_another_evaluation_have_a_file_of_their_own(trained):
    from vision.evaluation.evals import evaluate_runs, named_entries
    from vision.evaluation.run import load_run

    config, files = load_run(trained).config, {}
    for changes, checkpoint in (({}, 'best'), ({}, 'last'), ({'split': 'test'}, 'best')):
        entries = named_entries(config, ['held_out'], ConfigDict(changes))
        _, (found,) = evaluate_runs([trained], entries, checkpoint)
        assert found.name == 'held_out'
        files[found.saved_as] = checkpoint
    assert list(files.values()) == ['best', 'last', 'best']
    assert [*files][:2] == ['held_out', 'held_out_last']


@pytest.mark.parametrize(
    ('flags', 'said'),
    [
        (['--split=tset'], "Did you mean 'test'"),
        (['--evals=crop'], "Did you mean 'crops'"),
        (['--eval.protocol=eleven_crop'], "Did you mean 'ten_crop'"),
        (['--eval.weights=averaged'], 'Known: ema, raw'),
        (['--eval.data.source=npz'], 'data.path'),
        (['--eval.ops=resize(9)'], '32x32'),
        (['--eval.data.path=photos'], "the source 'digits' of this run takes no path"),
        (['--split=test', '--eval.split=train'], 'either --split or --eval.split'),
        (['--workdir=/nowhere'], '/nowhere does not exist'),
    ],
)
def test_mistakes_are_one_line(trained, flags, said):
    done = run_module('experiments.evaluate', f'--workdir={trained}', *flags)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count('\n') == 1 and said in done.stderr and done.stdout == ''


def test_batch_sizes_do_not_matter(trained):
    from vision.core.config import complete_eval
    from vision.evaluation.evals import evaluate_entry
    from vision.evaluation.run import load_run

    run = load_run(trained)
    figures = []
    for batch_size in (7, 1000) if quick() else (7, 64, 360, 1000):
        run.config.evaluation.batch_size = batch_size
        figures.append(evaluate_entry([run], 'test', complete_eval({})).figures)
    for other in figures[1:]:
        assert other['loss'] == pytest.approx(figures[0]['loss'], rel=1e-6)
        assert (other['top1'], other['count']) == (figures[0]['top1'], 360)


def test_one_compilation_for_all_batches_of_an_evaluation(trained):
    from vision import data
    from vision.evaluation.run import load_run

    run = load_run(trained)
    step = make_step(run.task, run.model, run.mesh)
    source = data.load(run.config.data, 'test')
    for batch in EvalBatches(source, run.config.preprocess.eval, 100, run.mesh):
        jax.block_until_ready(step(run.variables, batch))
    assert step._cache_size() == 1
