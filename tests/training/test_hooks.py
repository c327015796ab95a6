"""Hooks of the loop: when they are called, and that they do not slow the loop down."""

import json
from fractions import Fraction

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.task.judged import RANK
from tests.training.tiny import tiny_config
from vision.core.checkpoints import Checkpoints
from vision.core.errors import UserError
from vision.core.workdir import read_records
from vision.training import train
from vision.training.diagnosis import NoTransfers, profile
from vision.training.hooks import EarlyStopping, Hook, captioned


class Witness(Hook):
    """Records its calls."""

    def __init__(self):
        self.told = []

    def __exit__(self, *_):
        self.told.append('exit')

    def start(self, step):
        self.told.append(('start', step))

    def before_step(self, step):
        self.told.append(('before', step))

    def after_step(self, step, batch, metrics):
        assert batch['image'].shape[0] == 32 and 'loss' in metrics
        self.told.append(('after', step))

    def after_log(self, step, record, seconds_left):
        self.told.append(('log', step, record['train/loss']))

    def after_evaluation(self, step, scores):
        self.told.append(('evaluation', step, scores['top1']))


class NoReads(NoTransfers):
    """Guards a step against reads from the device, and records those that happen.

    On the CPU the transfer guard permits reads, since they copy nothing.
    """

    def __init__(self, monkeypatch):
        from jax._src.array import ArrayImpl

        super().__init__()
        value, self.within, self.reads = ArrayImpl._value, False, []

        def watched(array):
            if self.within:
                self.reads.append(array.shape)
            return value.fget(array)

        monkeypatch.setattr(ArrayImpl, '_value', property(watched))

    def before_step(self, step):
        super().before_step(step)
        self.within = step > 1  # the first is compiled, and shown

    def after_step(self, step, batch, metrics):
        self.within = False
        super().after_step(step, batch, metrics)


@pytest.fixture(scope='module')
def witnessed(tmp_path_factory):
    """The workdir of a run of 12 steps, and its witness; two steps are profiled."""
    workdir, witness = tmp_path_factory.mktemp('witnessed'), Witness()
    hooks = [witness, profile('9:10', str(workdir))]
    train(tiny_config(training__stop_after='12 steps'), workdir, hooks)
    return workdir, witness


def test_hooks_are_called_at_their_points(witnessed):
    workdir, witness = witnessed
    records = read_records(workdir)
    losses = {r['step']: r['train/loss'] for r in records if 'train/loss' in r}
    top1 = next(r['validation/top1'] for r in records if 'validation/top1' in r)
    expected = [('start', 0)]
    for step in range(1, 13):
        expected += [('before', step), ('after', step)]
        expected += [('log', step, losses[step])] if step in (6, 12) else []
        expected += [('evaluation', step, top1)] if step == 8 else []
    assert witness.told == [*expected, 'exit']


def test_the_loop_never_waits_for_the_device_but_to_write_something_down(tmp_path, monkeypatch):
    guard = NoReads(monkeypatch)
    train(tiny_config(), tmp_path, [guard])
    assert guard.reads == []
    # The guard itself detects a read.
    guard.within = True
    float(jax.numpy.ones(()) + 1)
    assert guard.reads == [()]


def test_evaluation_compiles_nothing_for_the_last_batch_nor_the_second_time(tmp_path):
    # 180 and 360 scans in batches of 100: the last ones are padded.
    compiled = []

    class Count(Hook):
        def before_step(self, step):
            compiled.append(('step', step))

    def listen(event, seconds, **_):
        if event == '/jax/core/compile/backend_compile_duration':
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        train(tiny_config(seed=1), tmp_path, [Count()])
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    second_evaluation = compiled.index(('step', 17)), compiled.index(('step', 18))
    between = compiled[compiled.index(('step', 9)) : second_evaluation[1]]
    assert [e for e in between if isinstance(e, str)] == []
    assert any(isinstance(e, str) for e in compiled)


def test_early_stopping_ends_a_run_that_stays_ended(tmp_path, capsys):
    # Learning rate 0: no evaluation is better than the first, at step 8.
    config = tiny_config(optimizer__lr=0.0, training__patience='16 steps')
    config.training.duration, config.model.norm = '80 steps', False
    results = train(config, tmp_path)
    assert 'stopped early at step 24' in capsys.readouterr().err
    assert results['test']['count'] == 360
    with Checkpoints(tmp_path, RANK, read_only=True) as checkpoints:
        assert checkpoints.find('last') == 24
    before = (tmp_path / 'metrics.jsonl').read_bytes()
    assert train(config, tmp_path) == results
    assert 'finished' in capsys.readouterr().err
    assert (tmp_path / 'metrics.jsonl').read_bytes() == before
    # With more patience the run continues.
    config.training.patience = '24 steps'
    train(config, tmp_path)
    assert 'stopped early at step 32' in capsys.readouterr().err


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1), st.integers(1, 5))
def test_early_stopping_is_a_function_of_what_was_recorded(scores, patience):
    """The run stops at the first evaluation beyond its patience, also when it is replayed."""
    hook, told = EarlyStopping(Fraction(patience * 10), RANK), []
    for i, (top1, loss) in enumerate(scores, 1):
        told.append(hook.after_evaluation(10 * i, {'top1': top1, 'loss': loss}) is not None)
    for i in range(1, len(scores) + 1):
        ranks = [(top1, -loss) for top1, loss in scores[:i]]
        assert told[i - 1] == (i - 1 - ranks.index(max(ranks)) >= patience)
    again = EarlyStopping(Fraction(patience * 10), RANK)
    again.replay([(10 * i, {'top1': t, 'loss': s}) for i, (t, s) in enumerate(scores, 1)])
    assert again.reached == told[-1]


def test_a_trace_is_written_of_the_steps_asked_for(witnessed):
    names = [p.name for p in (witnessed[0] / 'plugins' / 'profile').rglob('*.*')]
    assert any(name.endswith('.xplane.pb') for name in names)  # TensorBoard
    assert 'perfetto_trace.json.gz' in names


@pytest.mark.parametrize('text', ['', '5', '7:6', '0:3', 'a:b', '-1:4'])
def test_a_profile_that_is_none(text, tmp_path):
    with pytest.raises(UserError, match='START:STOP'):
        profile(text, str(tmp_path))


def test_a_profile_of_steps_that_are_not_taken_says_so(tmp_path, caplog):
    with profile('20:30', str(tmp_path)):
        pass
    assert [r.getMessage() for r in caplog.records] == [
        '--profile=20:30: 0 of these 11 steps were taken and traced'
    ]


def test_tensorboard_shows_validation_images_with_their_labels(witnessed):
    accumulator = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    events = accumulator.EventAccumulator(str(witnessed[0]))
    events.Reload()
    shown = events.Images('validation/images')
    assert [e.step for e in shown] == [8]
    # 32 pictures of 96 pixels and a line, in 4 rows of 8.
    assert (shown[0].width, shown[0].height) == (8 * 97 + 1, 4 * (96 + 15 + 1) + 1)
    scalars = set(events.Tags()['scalars'])
    assert {'train/loss', 'train/lr', 'train/grad_norm', 'train/param_norm'} <= scalars
    assert {'images_per_second', 'data_wait', 'validation/top1'} <= scalars


def test_a_caption_is_cut_and_the_image_kept():
    image = np.full((24, 30, 1), 200, np.uint8)
    sheet = captioned(image, 'a very long name of a class ' * 9, (1, 2, 3))
    assert sheet.shape == (24 * 4 + 15, 30 * 4, 3)
    assert (sheet[:96] == 200).all() and (sheet[-1, -1] == (1, 2, 3)).all()


def test_records_are_json_of_numbers(witnessed):
    for line in (witnessed[0] / 'metrics.jsonl').read_text().splitlines():
        assert all(v is None or isinstance(v, int | float) for v in json.loads(line).values())
