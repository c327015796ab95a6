"""The training loop, the one that every experiment uses.

A run is a function of its config: it may be killed anywhere and started again with the same
command, and ends in the same bits.
"""

import os
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from vision.core import config as config_lib
from vision.core import mesh as mesh_lib
from vision.core import workdir as workdir_lib
from vision.core.checkpoints import Checkpoints
from vision.core.errors import Stopped, UserError
from vision.core.state import TrainState
from vision.evaluation.evaluate import evaluate, make_eval_step
from vision.preprocess import inputs
from vision.training import plateau
from vision.training import recorder as recorder_lib
from vision.training.display import Display
from vision.training.init_from import init_from
from vision.training.interval import Clock, Interval
from vision.training.recorder import Recorder
from vision.training.setup import Setup, normalised, setup
from vision.training.signals import StopSignals
from vision.training.step import init_state, make_train_step

Results = dict[str, dict[str, Any]]


def train(config: ConfigDict, workdir: str | os.PathLike) -> Results:
    """Trains as `config` says, in `workdir`; goes on where a run that is there has stopped.

    Args:
      config: as a file in `configs/` returns it.
      workdir: of this run; made if it is not there.

    Returns:
      Metrics as `vision.evaluation.evaluate` has them, by split, of the best checkpoint:
      'validation' and 'test', where there are such splits. Empty where `training.stop_after`
      ended the run before its time.

    Raises:
      UserError: a config, data or workdir that cannot be used, or a loss that is not finite.
      Stopped: SIGTERM or SIGINT came, and the checkpoint was written.
    """
    config_lib.check(config)
    config = config_lib.resolve(config)
    run = setup(config)  # what is refused leaves no workdir behind
    path = workdir_lib.create(workdir)
    with StopSignals() as signals, workdir_lib.Lock(path):
        workdir_lib.claim(path, run.config)
        with Checkpoints(path, keep=config.training.keep) as checkpoints:
            latest = checkpoints.latest_step()
            if latest == run.total_steps and _is_finished(path, run):
                print(f'{path}: this run is finished; nothing was changed', file=sys.stderr)
                return _results(path, checkpoints.find('best'))
            known = None if latest is None else workdir_lib.read_json(path, 'dataset.json')
            run = normalised(run, known)
            workdir_lib.describe(path, run.dataset)
            state = init_state(run.model, run.optimizer, config, run.input_shape, run.mesh)
            template = mesh_lib.abstract(state.eval_variables)
            interval = Interval()
            if latest is None and config.init_from is not None:
                state = init_from(config.init_from, config.model.name, state)
            if latest is not None:
                state, saved = checkpoints.restore(latest, state)
                interval = Interval(saved)
            evaluator = Evaluator(run)
            with Recorder(path, latest or 0) as recorder:
                if (latest or 0) < run.stop_step:
                    _loop(run, state, interval, evaluator, checkpoints, recorder, signals)
                if run.stop_step < run.total_steps:
                    return {}
                best = checkpoints.find('best')
                if run.test is not None:
                    scores = evaluator('test', checkpoints.restore_variables(best, template))
                    record = {f'test/{k}': v for k, v in scores.items()}
                    recorder.write(run.total_steps, record | {'test/checkpoint': best})
                return _results(path, best)


def _loop(
    run: Setup,
    state: TrainState,
    interval: Interval,
    evaluator: 'Evaluator',
    checkpoints: Checkpoints,
    recorder: Recorder,
    signals: StopSignals,
) -> None:
    """Takes the steps from `state.step` to `run.stop_step`; leaves a checkpoint of the last one."""
    start = int(state.step)
    train_step = make_train_step(run.model, run.optimizer, run.schedule, run.config, run.mesh)
    batches = inputs.train_batches(run.train, run.config, run.mesh, start)
    clock = Clock()
    with Display(run.total_steps, start) as display:
        display.start(run.train.name, start)
        if (report := inputs.cache_report(run.train, run.config)) is not None:
            display.say(report)
        for step in range(start + 1, run.stop_step + 1):
            with clock.waiting():
                batch = next(batches)
            state, metrics = train_step(state, batch)
            interval.add(step, metrics)
            clock.step()
            display.advance(step)
            if step == start + 1:
                jax.block_until_ready(metrics)
                clock.restart()  # no rate counts the compilation
            if step == 1:
                recorder.images('train/images', _first_images(batch), 0)

            end, stopping = step == run.total_steps, signals.received is not None
            logging = end or run.log_every.due(step)
            evaluating = run.validation is not None and (end or run.eval_every.due(step))
            saving = run.checkpoint_every.due(step) or step == run.stop_step
            if logging or evaluating or saving or stopping:
                _check_finite(interval.read(), checkpoints)
            if logging:
                record = interval.record() | clock.lap(run.config.training.batch_size)
                recorder.write(step, record)
                display.interval(step, record, clock.seconds_left(run.total_steps - step))
            with clock.stopped():
                scores = None
                if evaluating:
                    scores = evaluator('validation', state.eval_variables)
                    recorder.write(step, {f'validation/{k}': v for k, v in scores.items()})
                    display.evaluated(step, 'validation', scores)
                    if state.ema_params is not None:  # beside the average, which is selected by
                        raw = evaluator('validation', state.variables)
                        recorder.write(step, {f'validation_raw/{k}': v for k, v in raw.items()})
                    state = plateau.observe(state, scores, run.config.schedule, run.mesh)
                if evaluating or saving or stopping:
                    checkpoints.save(state, interval.to_json(), scores)
            if stopping and signals.received is not None:
                checkpoints.wait()
                raise Stopped(
                    signals.received, f'stopped at step {step}; its checkpoint is written'
                )
    checkpoints.wait()


def _first_images(batch: inputs.Batch) -> np.ndarray:
    """Up to 64 images of a batch, of those that this process holds."""
    return np.asarray(batch['image'].addressable_shards[0].data[:64])


def _check_finite(bad_step: int | None, checkpoints: Checkpoints) -> None:
    if bad_step is not None:
        checkpoints.wait()
        good = checkpoints.latest_step()
        kept = 'there is none' if good is None else f'it is step {good}'
        raise UserError(
            f'the loss or a parameter became NaN or infinite in step {bad_step}. The last good '
            f'checkpoint was kept: {kept}. Try a lower optimizer.lr or a longer schedule.warmup'
        )


class Evaluator:
    """Evaluates a run's splits; the step is compiled once and a split is put in place once."""

    def __init__(self, run: Setup):
        self._run = run
        self._eval_step = make_eval_step(run.model, run.config, run.mesh)
        self._batches: dict[str, inputs.EvalBatches] = {}

    def __call__(self, split: str, variables: Any) -> dict[str, Any]:
        """Returns the metrics of 'validation' or 'test', as `evaluate` has them."""
        run = self._run
        source = run.validation if split == 'validation' else run.test
        assert source is not None
        if split not in self._batches:
            self._batches[split] = inputs.EvalBatches(
                source,
                run.config.preprocess.eval,
                run.config.evaluation.batch_size,
                run.mesh,
                max_corrupt=run.config.data.max_corrupt,
            )
        batches = self._batches[split]
        return evaluate(
            self._eval_step,
            variables,
            batches,
            source.num_examples,
            len(source.class_names),
            batches.corrupt,
        )


def _is_finished(path: Path, run: Setup) -> bool:
    """Whether a run that has taken its last step has been tested too."""
    return run.test is None or recorder_lib.newest(recorder_lib.read(path), 'test') is not None


def _results(path: Path, best: int) -> Results:
    """What was recorded of the best checkpoint."""
    records = recorder_lib.read(path)
    found = {
        'validation': recorder_lib.newest(records, 'validation', best),
        'test': recorder_lib.newest(records, 'test'),
    }
    return {split: metrics for split, metrics in found.items() if metrics is not None}
