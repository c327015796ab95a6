"""The training loop, the one that every experiment uses.

A run is a function of its config: it may be killed anywhere and started again with the same
command, and ends in the same bits.
"""

import functools
import os
import shutil
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from vision.core import mesh as mesh_lib
from vision.core import processes
from vision.core import workdir as workdir_lib
from vision.core.checkpoints import Checkpoints, newest_step
from vision.core.errors import Stopped, UserError
from vision.core.processes import Interrupted, StopSignals
from vision.core.state import TrainState
from vision.data import identity
from vision.evaluation.answers import Member, answer, make_step
from vision.models.base import check_finite
from vision.preprocess import inputs
from vision.preprocess.device import Batch
from vision.task.metrics import figures
from vision.training.hooks import Display, EarlyStopping, Hook, Pictures
from vision.training.records import Clock, Interval, Recorder, Results, evaluations, newest, results
from vision.training.setup import Setup, normalised, setup
from vision.training.start import Start, check_start, first_state
from vision.training.step import make_train_step

_PARKED = 'interrupted'  # in the workdir
_WEIGHTS = ('params', 'batch_stats', 'ema_params', 'ema_batch_stats')


def train(config: ConfigDict, workdir: str | os.PathLike, hooks: Sequence[Hook] = ()) -> Results:
    """Trains as `config` says, in `workdir`; goes on where a run that is there has stopped.

    Args:
      config: as a file in `configs/` returns it.
      workdir: of this run; made if it is not there.
      hooks: what else shall hang on the loop, see `vision.training.hooks`.

    Returns:
      The task's metrics and `count`, by split, of the best checkpoint:
      'validation' and 'test', where there are such splits; with `corrupt`, how many test images could not
      be read, if any. Empty where `training.stop_after` ended the run before its time.

    Raises:
      UserError: a config, data or workdir that cannot be used, data that are not what the run was begun with, or a
        loss that is not finite.
      Stopped: SIGTERM or SIGINT came, and the checkpoint was written.
    """
    path = processes.together(lambda: workdir_lib.check_place(workdir))
    run = processes.together(lambda: setup(config))
    start = check_start(run, path)  # what is refused leaves no workdir behind
    workdir_lib.create(path)
    with workdir_lib.Lock(path):
        processes.on_first(lambda: workdir_lib.check_config(path, run.config))
        with Checkpoints(path, run.selection.rank, run.keep) as checkpoints:
            latest = checkpoints.latest_step()
            early_stopping = EarlyStopping(run.patience, run.selection.rank)
            early_stopping.replay(processes.on_first(lambda: evaluations(path, latest or 0)))
            ended = latest == run.total_steps or early_stopping.reached
            if ended and (run.test is None or _is_tested(path, latest)):
                _say(f'{path}: this run is finished; nothing was changed')
                best: int | None = checkpoints.find('best')
            else:
                best = _train(run, start, path, latest, ended, checkpoints, early_stopping, hooks)
            return {} if best is None else processes.on_first(lambda: results(path, best))


def _train(
    run: Setup,
    start: Start,
    path: Path,
    latest: int | None,
    ended: bool,
    checkpoints: Checkpoints,
    early_stopping: EarlyStopping,
    hooks: Sequence[Hook],
) -> int | None:
    """Goes on from step `latest` to the end, and tests the best checkpoint.

    Returns:
      The best checkpoint's step; None if the run was stopped before its end.
    """
    # Of a run that was stopped while a step was evaluated, that step is later than the last checkpoint.
    parked = path / _PARKED
    parked_step = newest_step(parked)
    evaluates_first = parked_step is not None and parked_step > (latest or 0)
    begun = parked_step if evaluates_first else latest
    run = normalised(run, workdir_lib.read_json(path, 'dataset.json') if begun else None)
    state = first_state(run, start)
    template = mesh_lib.abstract(state.eval_variables)
    interval = Interval()
    if begun is not None:
        if evaluates_first:
            with Checkpoints(parked, run.selection.rank, read_only=True) as only:
                state, saved = only.restore(begun, state)
        else:
            state, saved = checkpoints.restore(begun, state)
        weights = {kind: getattr(state, kind) for kind in _WEIGHTS}
        check_finite(weights, f'{path}, checkpoint {begun}')
        interval = Interval(saved, run.selection.name)
    # Not before: what is refused up to here leaves the workdir to whatever config comes next.
    workdir_lib.describe(path, run.config)
    if processes.is_first():
        identity.record(path, run.dataset, start.examples)
    evaluator = Evaluator(run)
    with Recorder(path, begun or 0) as recorder:
        if not ended and (evaluates_first or (begun or 0) < run.stop_step):
            display = Display(run.train.name, run.total_steps, run.task.metrics)
            pictures = Pictures(recorder, lambda: evaluator.first['validation'], run.task)
            hooks = (display, pictures, early_stopping, *hooks)
            _say(inputs.report(run.train, run.loading))
            with StopSignals(checkpoints.wait) as signals:
                ended = _loop(
                    run, state, interval, evaluator, checkpoints, parked, evaluates_first, recorder,
                    signals, hooks,
                )  # fmt: skip
        if not ended:
            return None
        best, last = checkpoints.find('best'), checkpoints.find('last')
        if run.test is not None:
            scores = evaluator('test', checkpoints.restore_variables(best, template))
            record = {f'test/{k}': v for k, v in scores.items()}
            recorder.write(last, record | {'test/checkpoint': best})
    return best


class Evaluator:
    """Evaluates the splits of a run: the step is compiled once, and each split put in place once.

    Attributes:
      first: by split, the first batch of its last evaluation and the answers to it.
    """

    def __init__(self, run: Setup):
        """Takes the run; compiles and reads nothing yet."""
        self._run = run
        self._step = make_step(run.task, run.model, run.mesh)
        self._batches: dict[str, inputs.EvalBatches] = {}
        self.first: dict[str, tuple[Batch, Batch]] = {}

    def __call__(self, split: str, variables: Any) -> dict[str, Any]:
        """Returns the task's metrics and `count` of 'validation' or 'test'.

        With `corrupt`, how many test images could not be read and were left out, where there are any.
        """
        run = self._run
        source = run.validation if split == 'validation' else run.test
        assert source is not None
        if split not in self._batches:
            self._batches[split] = inputs.EvalBatches(
                source,
                run.eval_ops,
                run.eval_batch_size,
                run.mesh,
                # The run is done: figures of most of its test split are worth more than none.
                skip_corrupt=split == 'test',
                max_corrupt=run.loading.max_corrupt,
            )
        batches = self._batches[split]
        self.first.pop(split, None)

        def step(variables: Any, batch: Batch) -> Batch:
            answers = self._step(variables, batch)
            self.first.setdefault(split, (batch, answers))
            return answers

        member = Member(step, variables, batches, batches.skipped)
        columns = answer(run.task, [member], source.num_examples)
        scores = figures(run.task, columns)
        if split == 'test' and (corrupt := batches.skipped()):
            scores['corrupt'] = corrupt
            name, reason = next(iter(batches.corrupt.items()))
            _say(
                f'{source.name}: {corrupt} images of {source.num_examples:,} could not be read and are left out of the '
                f'figures; the first is {name}: {reason}'
            )
        chosen = scores.get(run.selection.name)
        if split == 'validation' and chosen is None:
            raise UserError(
                f'training.best_by: {run.selection.name!r} is no number on {source.name}; '
                'select by another metric'
            )
        return scores


def _loop(
    run: Setup,
    state: TrainState,
    interval: Interval,
    evaluator: Evaluator,
    checkpoints: Checkpoints,
    parked: Path,
    evaluates_first: bool,
    recorder: Recorder,
    signals: StopSignals,
    hooks: Sequence[Hook],
) -> bool:
    """Takes the steps from `state.step` to `run.stop_step`; leaves a checkpoint of the last one.

    Args:
      parked: where the state is kept of a step whose evaluation is interrupted.
      evaluates_first: whether `state` comes from there.

    Returns:
      Whether that is the end of the run: it has taken all its steps, or a hook ended it.
    """
    start = int(state.step)
    train_step = make_train_step(run.recipe, run.mesh)
    batches = inputs.TrainBatches(run.train, run.loading, run.mesh, start)
    clock, metrics, reasons = Clock(), None, []
    with ExitStack() as stack:
        for hook in hooks:
            stack.enter_context(hook)
            hook.start(start)
        for step in range(start + (not evaluates_first), run.stop_step + 1):
            if step > start:
                for hook in hooks:
                    hook.before_step(step)
                with clock.waiting(metrics):
                    batch = next(batches)
                state, metrics = train_step(state, batch)
                interval.add(step, metrics)
                clock.step()
                if step == start + 1:
                    jax.block_until_ready(metrics)
                    clock.restart()  # no rate counts the compilation
                    signals.slow = False
                for hook in hooks:
                    hook.after_step(step, batch, metrics)

            end = step == run.total_steps
            signum = signals.asked(step, checkpoints.reached_preemption)
            logging = step > start and (end or run.log_every.due(step))
            evaluating = run.validation is not None and (end or run.eval_every.due(step))
            saving = run.checkpoint_every.due(step) or step == run.stop_step or signum is not None
            if signum is not None and not evaluating:
                signals.answer()
            if logging or evaluating or saving:
                batches.check()
                _check_finite(interval.read(), checkpoints, state)
            if logging:
                record = interval.record() | clock.lap(run.loading.batch_size)
                recorder.write(step, record)
                for hook in hooks:
                    hook.after_log(step, record, clock.seconds_left(run.total_steps - step))
            with clock.stopped():
                scores = None
                if evaluating:
                    keep = functools.partial(_park, parked, run, state, interval, checkpoints)
                    try:
                        with signals.interruptible(keep):
                            raw = None  # beside the average, which is selected by
                            if state.ema_params is not None:
                                raw = evaluator('validation', state.variables)
                            scores = evaluator('validation', state.eval_variables)
                    except Interrupted as e:
                        signals.answer()
                        keep()
                        kept = f'stopped in the evaluation of step {step}; its state is written'
                        raise Stopped(e.args[0], kept) from None
                    recorder.write(step, {f'validation/{k}': v for k, v in scores.items()})
                    reasons = [hook.after_evaluation(step, scores) for hook in hooks]
                    if raw is not None:
                        recorder.write(step, {f'validation_raw/{k}': v for k, v in raw.items()})
                    if run.recipe.plateau is not None:
                        cost = run.selection.cost(scores)
                        state = run.recipe.plateau.observe(state, scores, cost, run.mesh)
                if evaluating or saving:
                    signum = signum or signals.asked_alone
                    if signum is not None:
                        signals.answer()
                    checkpoints.save(state, interval.to_json(), scores)
                if step == start:
                    checkpoints.wait()
                    shutil.rmtree(parked, ignore_errors=True)
            if signum is not None:
                checkpoints.wait()
                raise Stopped(signum, f'stopped at step {step}; its checkpoint is written')
            if any(reasons):
                break
    checkpoints.wait()
    for reason in filter(None, reasons):
        _say(reason)
    return any(reasons) or run.stop_step == run.total_steps


def _park(
    parked: Path, run: Setup, state: TrainState, interval: Interval, checkpoints: Checkpoints
) -> None:
    """Keeps the state of a step whose evaluation is interrupted.

    It has no figures yet, and checkpoints cannot be given any later: it waits beside them, and the next start
    evaluates it first.
    """
    checkpoints.wait()
    if newest_step(parked) != int(state.step):  # else this is the second time
        parked.mkdir(exist_ok=True)
        with Checkpoints(parked, run.selection.rank) as only:
            only.save(state, interval.to_json())


def _check_finite(bad_step: int | None, checkpoints: Checkpoints, state: TrainState) -> None:
    if bad_step is not None:
        checkpoints.wait()
        good = _last_good(checkpoints, state)
        kept = 'there is none' if good is None else f'it is step {good}'
        raise UserError(
            f'the loss, a parameter or a statistic became NaN or infinite in step {bad_step}. The last good '
            f'checkpoint was kept: {kept}. Start again in another --workdir with a lower optimizer.lr or a longer '
            'schedule.warmup'
        )


def _last_good(checkpoints: Checkpoints, state: TrainState) -> int | None:
    """The newest checkpoint whose weights, and their average, are finite; or None."""
    template = mesh_lib.abstract(state.variables)
    for step in reversed(checkpoints.steps()):
        try:
            for weights in ('raw', None):
                found = checkpoints.restore_variables(step, template, weights)
                check_finite(found, f'step {step}')
            return step
        except UserError:
            continue
    return None


def _is_tested(path: Path, last: int | None) -> bool:
    """True if a run that has taken its last step has been tested too."""
    return processes.on_first(
        lambda: newest(workdir_lib.read_records(path), 'test', last) is not None
    )


def _say(text: str) -> None:
    if processes.is_first():
        print(text, file=sys.stderr)
