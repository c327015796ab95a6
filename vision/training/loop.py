"""The training loop that every experiment uses.

The result of a run depends only on its config. A run may be killed at any moment. The same command
then resumes it, and the result has the same bits as that of an uninterrupted run.
"""

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import count
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
from vision.core.progress import in_notebook, progress_bar
from vision.data import identity
from vision.evaluation.answers import Member, answer, make_step
from vision.models.base import check_finite
from vision.preprocess import inputs
from vision.preprocess.device import Batch
from vision.task.metrics import figures
from vision.training.calls import Calls
from vision.training.hooks import Display, EarlyStopping, Hook, Pictures, needs_every_step
from vision.training.records import Clock, Interval, Recorder, Results, evaluations, newest, results
from vision.training.setup import Setup, normalised, setup
from vision.training.start import Start, check_start, first_state, warn_of_selection
from vision.training.step import Metrics

_WEIGHTS = ('params', 'batch_stats', 'ema_params', 'ema_batch_stats')


def train(config: ConfigDict, workdir: str | os.PathLike, hooks: Sequence[Hook] = ()) -> Results:
    """Trains the model of a config in a workdir, or resumes the run that the workdir holds.

    Args:
      config: a config as the files in `configs/` return it.
      workdir: folder of the run, created if missing.
      hooks: user-defined hooks, called after the built-in ones; see `vision.training.hooks`.

    Returns:
      A dict from each split that exists, 'validation' and 'test', to the metrics of the best
      checkpoint and `count`, the number of examples. If test images were unreadable, 'test' also
      has their number, `corrupt`. The dict is empty if `training.stop_after` stopped the run before
      its end.

    Raises:
      UserError: the config, data or workdir is invalid, the data differ from those that the run was
        started with, or the loss is not finite.
      Stopped: SIGTERM or SIGINT was received, and a checkpoint has been written.
    """
    # Check everything before the workdir is created, so that a refused run does not create one.
    path = processes.together(lambda: workdir_lib.check_place(workdir))
    run = processes.together(lambda: setup(config))
    start = check_start(run, path)

    # Restore the last state, train to the end or to `stop_step`, and test the best checkpoint.
    workdir_lib.create(path)
    with workdir_lib.Lock(path):
        processes.on_first(lambda: workdir_lib.check_config(path, run.config))
        # All processes read and write checkpoints; only the first process writes other files.
        with Checkpoints(path, run.selection.rank, run.keep) as checkpoints:
            loop = Loop(run, path, checkpoints)
            if loop.is_finished():
                _print(f'{path}: this run is finished; nothing was changed')
            else:
                loop.restore(start)
                loop.train(hooks)
            if not loop.ended:
                return {}
            best = checkpoints.find('best')
            return processes.on_first(lambda: results(path, best))


class Loop:
    """One run, from restoring its state to testing its best checkpoint.

    The function `train` calls `restore` and then `Loop.train`. Each step takes a batch and updates
    the state; then the loop logs, evaluates and saves if that is due. On accelerators, the steps up
    to the next of these events may be one call of the device (`vision.training.calls`).

    Attributes:
      run: the setup. If the config normalises by the data's statistics, `restore` adds the mean and
        standard deviation.
      ended: whether all steps are done or a hook has ended the run.
      state: the `TrainState` after the last step.
    """

    def __init__(self, run: Setup, path: Path, checkpoints: Checkpoints):
        """Reads the progress of the run from the workdir."""
        self.run, self._path, self._checkpoints = run, path, checkpoints
        self._latest = latest = checkpoints.latest_step()
        # Early stopping is rebuilt from the recorded evaluations.
        self._early_stopping = EarlyStopping(run.patience, run.selection.rank)
        self._early_stopping.replay(processes.on_first(lambda: evaluations(path, latest or 0)))
        self.ended = latest == run.total_steps or self._early_stopping.reached
        # If a signal interrupted an evaluation, the state of that step was saved outside of the
        # checkpoints. The step is then later than the last checkpoint, and the run resumes with its
        # evaluation.
        self._interrupted = path / workdir_lib.INTERRUPTED
        interrupted_step = newest_step(self._interrupted)
        self._resumes_evaluation = interrupted_step is not None and interrupted_step > (latest or 0)
        self._start_step = (interrupted_step if self._resumes_evaluation else latest) or 0
        self._interval = Interval()
        self._metrics: Metrics | None = None
        self._earlier: Metrics | None = None
        self._reasons: list[str] = []  # why hooks ended the run

    def is_finished(self) -> bool:
        """Returns True if the run has ended and its test split, if any, has been evaluated."""
        if not self.ended or self.run.test is None:
            return self.ended
        path, last = self._path, self._latest
        return processes.on_first(
            lambda: newest(workdir_lib.read_records(path), 'test', last) is not None
        )

    def restore(self, start: Start) -> None:
        """Makes the initial state or restores the last one, and writes the run's description."""
        path, resumed = self._path, self._start_step > 0
        # A resumed run keeps the mean and standard deviation of its `dataset.json`.
        known = workdir_lib.read_json(path, 'dataset.json') if resumed else None
        self.run = run = normalised(self.run, known)
        self.state = first_state(run, start)
        self._template = mesh_lib.abstract(self.state.eval_variables)
        if resumed:
            self._read_checkpoint()
        # Describe the run last. If anything above fails, the workdir has no config yet and can be
        # used with another one.
        workdir_lib.describe(path, run.config)
        if processes.is_first():
            identity.record(path, run.dataset, start.examples)
        self._evaluator = Evaluator(run)

    def _read_checkpoint(self) -> None:
        """Restores the state of step `_start_step` and the metrics accumulated up to it."""
        step, selection = self._start_step, self.run.selection
        if self._resumes_evaluation:
            with Checkpoints(self._interrupted, selection.rank, read_only=True) as only:
                self.state, saved = only.restore(step, self.state)
        else:
            self.state, saved = self._checkpoints.restore(step, self.state)
        # NaN weights can give finite logits on a CPU, so the weights themselves are checked.
        weights = {kind: getattr(self.state, kind) for kind in _WEIGHTS}
        check_finite(weights, f'{self._path}, checkpoint {step}')
        self._interval = Interval(saved, selection.name)

    def train(self, hooks: Sequence[Hook]) -> None:
        """Takes the remaining steps up to `run.stop_step`, and tests the model if the run ends."""
        run, evaluator = self.run, self._evaluator
        with Recorder(self._path, self._start_step) as self._recorder:
            if not self.ended and (self._resumes_evaluation or self._start_step < run.stop_step):
                # Built-in hooks come before user-defined ones.
                display = Display(run.train.name, run.total_steps, run.task.metrics)
                pictures = Pictures(self._recorder, lambda: evaluator.first, run.task)
                self._hooks = (display, pictures, self._early_stopping, *hooks)
                _print(inputs.report(run.train, run.loading))
                warn_of_selection(run)
                with StopSignals(self._checkpoints.wait) as self._signals:
                    self._take_steps()
            if self.ended and run.test is not None:
                self._test()

    def _take_steps(self) -> None:
        """Takes steps until `run.stop_step` or a hook ends the run, and saves a checkpoint."""
        run, start = self.run, self._start_step
        self._calls = Calls(run, start)
        self._clock = Clock()
        with ExitStack() as stack:
            for hook in self._hooks:
                stack.enter_context(hook)
                hook.start(start)
            # After an interrupted evaluation, first evaluate step `start`.
            step = start
            if self._resumes_evaluation:
                self._finish_step(step)
            while step < run.stop_step and not self._reasons:
                last = self._last_of_call(step + 1)
                self._take_call(step + 1, last)
                self._finish_step(last)
                step = last
        # Report the end only when the checkpoint is on disk.
        self._checkpoints.wait()
        for reason in self._reasons:
            _print(reason)
        self.ended = bool(self._reasons) or run.stop_step == run.total_steps

    def _last_of_call(self, first: int) -> int:
        """Returns the last step of the call that begins with step `first`."""
        run = self.run
        # The first step includes the compilation, and the second one is timed.
        if first <= self._start_step + 2 or any(map(needs_every_step, self._hooks)):
            return first
        # A call ends with the next event.
        events = (run.log_every, run.eval_every, run.checkpoint_every)
        ends = [event.after(first - 1) for event in events]
        return min(run.stop_step, first + self._calls.most - 1, *ends)

    def _take_call(self, first: int, last: int) -> None:
        """Takes the steps `first` to `last`; nothing is read back from the device."""
        calls, count = self._calls, last - first + 1
        for hook in self._hooks:
            hook.before_step(first)
        # Wait for the data while the device may still run the last call.
        with self._clock.waiting(self._metrics):
            loaded = calls.load(first, count)
        # At most two calls of several steps wait on the device, so that a signal takes effect soon.
        if count > 1 and self._earlier is not None:
            jax.block_until_ready(self._earlier)
        self.state, metrics, of_last = calls.take(self.state, loaded, count)
        self._interval.add(first, metrics, count)
        self._clock.step(count)
        # The first step includes the compilation, which is excluded from the throughput. The calls
        # after it are short, so a signal takes effect at the end of a call.
        if first == self._start_step + 1:
            jax.block_until_ready(of_last)
            self._signals.slow = False
        elif first == self._start_step + 2 and calls.most > 1:
            jax.block_until_ready(of_last)
            calls.choose(self._clock.elapsed)
        batch = calls.batch(loaded, count)
        for hook in self._hooks:
            hook.after_step(last, batch, of_last)
        if first == self._start_step + 1:  # the hooks have imported and compiled, too
            self._clock.restart()
        self._earlier, self._metrics = self._metrics, of_last

    def _finish_step(self, step: int) -> None:
        """Logs, evaluates and saves after a step if each is due, and stops after a signal."""
        run, signals = self.run, self._signals
        # Find the events that are due. Every process gets the same signal for the same step.
        end = step == run.total_steps
        signum = signals.asked(step, self._checkpoints.reached_preemption)
        logging = step > self._start_step and (end or run.log_every.due(step))
        evaluating = run.validation is not None and (end or run.eval_every.due(step))
        saving = run.checkpoint_every.due(step) or step == run.stop_step or signum is not None
        # If an evaluation is due, the signal may interrupt the evaluation and is answered later.
        if signum is not None and not evaluating:
            signals.answer()
        # Before a state is logged, evaluated or saved, read its metrics, which must be finite.
        if logging or evaluating or saving:
            self._calls.batches.check()
            self._check_finite()
        if logging:
            self._log(step)
        # Evaluation and saving are excluded from the throughput.
        with self._clock.stopped():
            scores = self._evaluate(step) if evaluating else None
            if evaluating or saving:
                signum = signum or signals.asked_alone
                if signum is not None:
                    signals.answer()
                self._checkpoints.save(self.state, self._interval.to_json(), scores)
            if step == self._start_step:  # the interrupted evaluation now has its checkpoint
                self._checkpoints.wait()
                shutil.rmtree(self._interrupted, ignore_errors=True)
        if signum is not None:
            self._checkpoints.wait()
            raise Stopped(
                signum,
                f'stopped at step {step}; its checkpoint is written; the same command continues',
            )

    def _log(self, step: int) -> None:
        """Writes the record of the interval that ends with `step`."""
        record = self._interval.record() | self._clock.lap(self.run.loading.batch_size)
        with self._clock.stopped():
            self._recorder.write(step, record)
        self._calls.choose(self._clock.seconds_left(1))
        seconds_left = self._clock.seconds_left(self.run.total_steps - step)
        for hook in self._hooks:
            hook.after_log(step, record, seconds_left)

    def _evaluate(self, step: int) -> dict[str, Any]:
        """Returns the validation metrics of the weights.

        With a moving average, these are the metrics of the averaged weights, and the metrics of the
        raw weights are recorded, too.
        """
        state, raw = self.state, None
        # A signal interrupts the evaluation, and the next start repeats the evaluation.
        try:
            with self._signals.interruptible(self._save_interrupted):
                if state.ema_params is not None:
                    raw = self._evaluator('validation', state.variables)
                scores = self._evaluator('validation', state.eval_variables)
        except Interrupted as e:
            self._signals.answer()
            self._save_interrupted()
            kept = f'stopped in the evaluation of step {step}; its state is written'
            raise Stopped(e.args[0], kept) from None
        # Record the metrics, and ask the hooks whether to end the run.
        self._recorder.write(step, {f'validation/{k}': v for k, v in scores.items()})
        answers = [hook.after_evaluation(step, scores) for hook in self._hooks]
        self._reasons = [reason for reason in answers if reason]
        if raw is not None:
            self._recorder.write(step, {f'validation_raw/{k}': v for k, v in raw.items()})
        # The plateau schedule may lower the learning rate.
        if (plateau := self.run.recipe.plateau) is not None:
            cost = self.run.selection.cost(scores)
            self.state = plateau.observe(state, scores, cost, self.run.mesh)
        return scores

    def _save_interrupted(self) -> None:
        """Saves the state of a step whose evaluation was interrupted.

        Orbax cannot add metrics to a checkpoint later, so this state is saved in a separate folder.
        The next start first evaluates this state and then saves it as a checkpoint.
        """
        self._checkpoints.wait()
        if newest_step(self._interrupted) != int(self.state.step):  # may be called twice
            self._interrupted.mkdir(exist_ok=True)
            with Checkpoints(self._interrupted, self.run.selection.rank) as only:
                only.save(self.state, self._interval.to_json())

    def _check_finite(self) -> None:
        """Reads the pending metrics; raises UserError if one is NaN or infinite."""
        bad_step = self._interval.read()
        if bad_step is not None:
            self._checkpoints.wait()
            good = self._last_good()
            kept = 'There is no good checkpoint'
            if good is not None:
                kept = f'The last good checkpoint is step {good}'
            raise UserError(
                'the loss, a parameter or a running statistic became NaN or infinite in step '
                f'{bad_step}. {kept}. Start again in another --workdir with a lower optimizer.lr '
                'or a longer schedule.warmup'
            )

    def _last_good(self) -> int | None:
        """Returns the newest checkpoint with finite raw and averaged weights, or None."""
        # Search backwards from the newest checkpoint.
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
        """Evaluates the best checkpoint on the test split, unless a signal stops it."""
        best, last = self._checkpoints.find('best'), self._checkpoints.find('last')
        # Restore the weights of the best checkpoint, averaged if the run has a moving average.
        variables = self._checkpoints.restore_variables(best, self._template)
        with StopSignals() as signals:
            # All processes stop after the same batch.
            def stop_if_asked(batch: int) -> None:
                signum = signals.asked(last + batch, self._checkpoints.reached_preemption)
                if signum is not None:
                    signals.answer()
                    raise Stopped(signum, 'stopped in the final test; the same command repeats it')

            scores = self._evaluator('test', variables, stop_if_asked)
        record = {f'test/{k}': v for k, v in scores.items()}
        self._recorder.write(last, record | {'test/checkpoint': best})


class Evaluator:
    """Evaluates the splits of a run.

    The step is compiled once, and the batches of each split are prepared once.

    Attributes:
      first: first batch of the last evaluation, and the task's answers to it.
    """

    first: tuple[Batch, Batch]

    def __init__(self, run: Setup):
        """Stores the run; compiling and reading wait for the first evaluation."""
        self._run = run
        self._step = make_step(run.task, run.model, run.mesh)
        self._batches: dict[str, inputs.EvalBatches] = {}

    def __call__(
        self, split: str, variables: Any, after_batch: Callable[[int], None] = lambda batch: None
    ) -> dict[str, Any]:
        """Returns the task's metrics and `count` of the split 'validation' or 'test'.

        Unreadable test images are left out, and their number is returned as `corrupt`.
        `after_batch` is called with the number of each batch, from 1.
        """
        run, source = self._run, self._run.sources[split]
        # Prepare the batches at the first evaluation of the split.
        if split not in self._batches:
            self._batches[split] = inputs.EvalBatches(
                source,
                run.eval_ops,
                run.eval_batch_size,
                run.mesh,
                # Test the readable images even if others are unreadable, so that a finished run
                # has test metrics.
                skip_corrupt=split == 'test',
                max_corrupt=run.loading.max_corrupt,
            )
        batches, first = self._batches[split], list[tuple[Batch, Batch]]()

        # Keep the first batch for the pictures in TensorBoard.
        def step(variables: Any, batch: Batch) -> Batch:
            answers = self._step(variables, batch)
            if not first:
                first.append((batch, answers))
            return answers

        member = Member(step, variables, batches, batches.skipped)
        with progress_bar(processes.is_first()) as start:
            move, numbers = start(f'evaluating {source.name}', source.num_examples), count(1)

            def progress(done: int) -> None:
                move(done)
                after_batch(next(numbers))

            answers = answer(run.task, [member], source.num_examples, progress=progress)
        scores = figures(run.task, answers)
        self.first = first[0]
        # Report unreadable test images. Refuse a selection metric that is undefined on the data.
        if split == 'test' and (corrupt := batches.skipped()):
            scores['corrupt'] = corrupt
            name, reason = next(iter(batches.corrupt.items()))
            _print(
                f'{source.name}: {corrupt} of {source.num_examples:,} images could not be read and '
                f'are left out of the metrics; the first is {name}: {reason}'
            )
        if split == 'validation' and scores.get(run.selection.name) is None:
            raise UserError(
                f'training.best_by: {run.selection.name!r} is undefined on {source.name}; '
                'select by another metric'
            )
        return scores


def _print(text: str) -> None:
    """Prints a line on the first process only: on stderr, or on stdout in a notebook."""
    if processes.is_first():
        print(text, file=sys.stdout if in_notebook() else sys.stderr)
