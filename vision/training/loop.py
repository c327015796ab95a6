"""The training loop, the one that every experiment uses.

A run is a function of its config: it may be killed anywhere and started again with the same
command, and ends in the same bits.
"""

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
from vision.core.progress import in_notebook
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
from vision.training.step import Metrics, make_train_step

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
            loop = Loop(run, path, checkpoints)
            if loop.is_finished():
                _say(f'{path}: this run is finished; nothing was changed')
            else:
                loop.restore(start)
                loop.go_on(hooks)
            if not loop.ended:
                return {}
            best = checkpoints.find('best')
            return processes.on_first(lambda: results(path, best))


class Loop:
    """A run on its way: it is restored, and takes steps, logs, evaluates and saves, until it ends or is stopped.

    Attributes:
      run: with the statistics of its data once it is restored.
      ended: whether it has taken all its steps, or a hook has ended it.
      state: of the last step.
    """

    def __init__(self, run: Setup, path: Path, checkpoints: Checkpoints):
        """Looks how far the run in the workdir `path` has come."""
        self.run, self._path, self._checkpoints = run, path, checkpoints
        self._latest = latest = checkpoints.latest_step()
        self._early_stopping = EarlyStopping(run.patience, run.selection.rank)
        self._early_stopping.replay(processes.on_first(lambda: evaluations(path, latest or 0)))
        self.ended = latest == run.total_steps or self._early_stopping.reached
        # Of a run that was stopped while a step was evaluated, that step is later than the last checkpoint.
        self._parked = path / _PARKED
        parked_step = newest_step(self._parked)
        self._evaluates_first = parked_step is not None and parked_step > (latest or 0)
        self._begun = (parked_step if self._evaluates_first else latest) or 0
        self._interval = Interval()
        self._metrics: Metrics | None = None
        self._reasons: list[str] = []  # why hooks ended the run

    def is_finished(self) -> bool:
        """True if the run has ended, and has been tested where there is a test split."""
        if not self.ended or self.run.test is None:
            return self.ended
        path, last = self._path, self._latest
        return processes.on_first(
            lambda: newest(workdir_lib.read_records(path), 'test', last) is not None
        )

    def restore(self, start: Start) -> None:
        """Makes the state of step 0 or reads that of the last step, and writes what the run is."""
        path, begun = self._path, self._begun
        known = workdir_lib.read_json(path, 'dataset.json') if begun else None
        self.run = run = normalised(self.run, known)
        self.state = first_state(run, start)
        self._template = mesh_lib.abstract(self.state.eval_variables)
        if begun:
            self._read_checkpoint()
        # Not before: what is refused up to here leaves the workdir to whatever config comes next.
        workdir_lib.describe(path, run.config)
        if processes.is_first():
            identity.record(path, run.dataset, start.examples)
        self._evaluator = Evaluator(run)

    def _read_checkpoint(self) -> None:
        step, selection = self._begun, self.run.selection
        if self._evaluates_first:
            with Checkpoints(self._parked, selection.rank, read_only=True) as only:
                self.state, saved = only.restore(step, self.state)
        else:
            self.state, saved = self._checkpoints.restore(step, self.state)
        weights = {kind: getattr(self.state, kind) for kind in _WEIGHTS}
        check_finite(weights, f'{self._path}, checkpoint {step}')
        self._interval = Interval(saved, selection.name)

    def go_on(self, hooks: Sequence[Hook]) -> None:
        """Takes the steps that are left, up to where this start shall stop; tests a run that has ended."""
        run, evaluator = self.run, self._evaluator
        with Recorder(self._path, self._begun) as self._recorder:
            if not self.ended and (self._evaluates_first or self._begun < run.stop_step):
                display = Display(run.train.name, run.total_steps, run.task.metrics)
                pictures = Pictures(self._recorder, lambda: evaluator.first, run.task)
                self._hooks = (display, pictures, self._early_stopping, *hooks)
                _say(inputs.report(run.train, run.loading))
                with StopSignals(self._checkpoints.wait) as self._signals:
                    self._take_steps()
            if self.ended and run.test is not None:
                self._test()

    def _take_steps(self) -> None:
        """Takes the steps up to `run.stop_step`, or up to one that ends the run; leaves a checkpoint of the last."""
        run, start = self.run, self._begun
        self._train_step = make_train_step(run.recipe, run.mesh)
        self._batches = inputs.TrainBatches(run.train, run.loading, run.mesh, start)
        self._clock = Clock()
        with ExitStack() as stack:
            for hook in self._hooks:
                stack.enter_context(hook)
                hook.start(start)
            for step in range(start + (not self._evaluates_first), run.stop_step + 1):
                if step > start:
                    self._take_step(step)
                self._follow(step)
                if self._reasons:
                    break
        self._checkpoints.wait()
        for reason in self._reasons:
            _say(reason)
        self.ended = bool(self._reasons) or run.stop_step == run.total_steps

    def _take_step(self, step: int) -> None:
        for hook in self._hooks:
            hook.before_step(step)
        with self._clock.waiting(self._metrics):
            batch = next(self._batches)
        self.state, metrics = self._train_step(self.state, batch)
        self._interval.add(step, metrics)
        self._clock.step()
        if step == self._begun + 1:
            jax.block_until_ready(metrics)
            self._clock.restart()  # no rate counts the compilation
            self._signals.slow = False
        for hook in self._hooks:
            hook.after_step(step, batch, metrics)
        self._metrics = metrics

    def _follow(self, step: int) -> None:
        """Does what is due after a step: logs, evaluates, saves, stops."""
        run, signals = self.run, self._signals
        end = step == run.total_steps
        signum = signals.asked(step, self._checkpoints.reached_preemption)
        logging = step > self._begun and (end or run.log_every.due(step))
        evaluating = run.validation is not None and (end or run.eval_every.due(step))
        saving = run.checkpoint_every.due(step) or step == run.stop_step or signum is not None
        if signum is not None and not evaluating:
            signals.answer()
        if logging or evaluating or saving:
            self._batches.check()
            self._check_finite()
        if logging:
            self._log(step)
        with self._clock.stopped():
            scores = self._evaluate(step) if evaluating else None
            if evaluating or saving:
                signum = signum or signals.asked_alone
                if signum is not None:
                    signals.answer()
                self._checkpoints.save(self.state, self._interval.to_json(), scores)
            if step == self._begun:  # it has a checkpoint now
                self._checkpoints.wait()
                shutil.rmtree(self._parked, ignore_errors=True)
        if signum is not None:
            self._checkpoints.wait()
            raise Stopped(signum, f'stopped at step {step}; its checkpoint is written')

    def _log(self, step: int) -> None:
        record = self._interval.record() | self._clock.lap(self.run.loading.batch_size)
        self._recorder.write(step, record)
        seconds_left = self._clock.seconds_left(self.run.total_steps - step)
        for hook in self._hooks:
            hook.after_log(step, record, seconds_left)

    def _evaluate(self, step: int) -> dict[str, Any]:
        """Evaluates the weights on the validation split: their average, and where there is one also themselves."""
        state, raw = self.state, None
        try:
            with self._signals.interruptible(self._park):
                if state.ema_params is not None:
                    raw = self._evaluator('validation', state.variables)
                scores = self._evaluator('validation', state.eval_variables)
        except Interrupted as e:
            self._signals.answer()
            self._park()
            kept = f'stopped in the evaluation of step {step}; its state is written'
            raise Stopped(e.args[0], kept) from None
        self._recorder.write(step, {f'validation/{k}': v for k, v in scores.items()})
        answers = [hook.after_evaluation(step, scores) for hook in self._hooks]
        self._reasons = [reason for reason in answers if reason]
        if raw is not None:
            self._recorder.write(step, {f'validation_raw/{k}': v for k, v in raw.items()})
        if (plateau := self.run.recipe.plateau) is not None:
            cost = self.run.selection.cost(scores)
            self.state = plateau.observe(state, scores, cost, self.run.mesh)
        return scores

    def _park(self) -> None:
        """Keeps the state of a step whose evaluation is interrupted.

        It has no figures yet, and checkpoints cannot be given any later: it waits beside them, and the next start
        evaluates it first.
        """
        self._checkpoints.wait()
        if newest_step(self._parked) != int(self.state.step):  # else this is the second time
            self._parked.mkdir(exist_ok=True)
            with Checkpoints(self._parked, self.run.selection.rank) as only:
                only.save(self.state, self._interval.to_json())

    def _check_finite(self) -> None:
        """Reads the metrics of the steps since the last time; UserError if one is no number."""
        bad_step = self._interval.read()
        if bad_step is not None:
            self._checkpoints.wait()
            good = self._last_good()
            kept = 'there is none' if good is None else f'it is step {good}'
            raise UserError(
                f'the loss, a parameter or a statistic became NaN or infinite in step {bad_step}. The last good '
                f'checkpoint was kept: {kept}. Start again in another --workdir with a lower optimizer.lr or a longer '
                'schedule.warmup'
            )

    def _last_good(self) -> int | None:
        """The newest checkpoint whose weights, and their average, are finite; or None."""
        for step in reversed(self._checkpoints.steps()):
            try:
                for weights in ('raw', None):
                    found = self._checkpoints.restore_variables(step, self._template, weights)
                    check_finite(found, f'step {step}')
                return step
            except UserError:
                continue
        return None

    def _test(self) -> None:
        """Evaluates the best checkpoint on the test split."""
        best, last = self._checkpoints.find('best'), self._checkpoints.find('last')
        scores = self._evaluator('test', self._checkpoints.restore_variables(best, self._template))
        record = {f'test/{k}': v for k, v in scores.items()}
        self._recorder.write(last, record | {'test/checkpoint': best})


class Evaluator:
    """Evaluates the splits of a run: the step is compiled once, and each split put in place once.

    Attributes:
      first: the first batch of the last evaluation, and the answers to it.
    """

    first: tuple[Batch, Batch]

    def __init__(self, run: Setup):
        """Takes the run; compiles and reads nothing yet."""
        self._run = run
        self._step = make_step(run.task, run.model, run.mesh)
        self._batches: dict[str, inputs.EvalBatches] = {}

    def __call__(self, split: str, variables: Any) -> dict[str, Any]:
        """Returns the task's metrics and `count` of 'validation' or 'test'.

        With `corrupt`, how many test images could not be read and were left out, where there are any.
        """
        run, source = self._run, self._run.sources[split]
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
        batches, first = self._batches[split], list[tuple[Batch, Batch]]()

        def step(variables: Any, batch: Batch) -> Batch:
            answers = self._step(variables, batch)
            if not first:
                first.append((batch, answers))
            return answers

        member = Member(step, variables, batches, batches.skipped)
        scores = figures(run.task, answer(run.task, [member], source.num_examples))
        self.first = first[0]
        if split == 'test' and (corrupt := batches.skipped()):
            scores['corrupt'] = corrupt
            name, reason = next(iter(batches.corrupt.items()))
            _say(
                f'{source.name}: {corrupt} images of {source.num_examples:,} could not be read and are left out of the '
                f'figures; the first is {name}: {reason}'
            )
        if split == 'validation' and scores.get(run.selection.name) is None:
            raise UserError(
                f'training.best_by: {run.selection.name!r} is no number on {source.name}; '
                'select by another metric'
            )
        return scores


def _say(text: str) -> None:
    if processes.is_first():
        print(text, file=sys.stdout if in_notebook() else sys.stderr)
