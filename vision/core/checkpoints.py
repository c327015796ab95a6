"""Checkpoints of a run, written and restored with Orbax's CheckpointManager.

A checkpoint has the items `model` (params and batch_stats), `ema` (the same two, if the run keeps a
moving average), `training` (step, optimizer state, rng) and `loop` (JSON with the counters of the
training loop). Because they are separate, prediction reads only the weights.
"""

import json
import os
import re
import shutil
import tempfile
import weakref
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint import checkpoint_managers as policies

from vision.core import mesh as mesh_lib
from vision.core import processes
from vision.core import workdir as workdir_lib
from vision.core.errors import UserError, unknown
from vision.core.state import TrainState
from vision.core.text import json_text

# Drop Orbax's log lines: Orbax reports every save and warns of options that are set on purpose. It
# raises its failures as exceptions.
logging.get_absl_logger().addFilter(lambda record: 'orbax' not in record.pathname)

_SUMS = 'checksums.json'  # inside a checkpoint: the CRC-32 of each file
_PLAIN = re.compile(r'[\w./+=,@-]+', re.ASCII)  # paths that Orbax's globbing takes literally

Rank = Callable[[dict[str, Any]], tuple[float, ...]]


class Checkpoints:
    """The checkpoints of one workdir, written asynchronously and atomically.

    The newest N checkpoints and the best one are kept.
    """

    def __init__(self, workdir: Path, rank: Rank, keep: int = 1, read_only: bool = False):
        """Opens `workdir/checkpoints`.

        Args:
          workdir: the run's folder.
          rank: maps a checkpoint's validation metrics to a sort key; the greatest is the best.
          keep: number of newest checkpoints to keep, in addition to the best on validation.
          read_only: True for evaluation and prediction; safe while the run is still training.

        Raises:
          UserError: `read_only` is set and the workdir has no checkpoints.
        """
        self._directory, self._rank, self._read_only = workdir / 'checkpoints', rank, read_only
        if read_only and not self._directory.is_dir():
            raise UserError(f'{workdir} has no checkpoints')
        alias = self._alias()
        if not read_only:
            processes.on_first(lambda: _prepare(self._directory))
        # Keep the newest N and the best. Orbax's `max_to_keep` with `best_fn` would delete the
        # newest checkpoint if it is not among the best.
        policy = policies.AnyPreservationPolicy(
            [
                policies.LatestN(keep),
                policies.BestN(get_metric_fn=rank, n=1, keep_checkpoints_without_metrics=False),
            ]
        )
        options = ocp.CheckpointManagerOptions(
            read_only=read_only,
            create=not read_only,
            cleanup_tmp_directories=not read_only,
            best_fn=rank,
            preservation_policy=None if read_only else policy,
        )
        # Orbax reads the metrics of all checkpoints when it opens the folder: check them first.
        _check_metrics(self._directory)
        handlers = {name: ocp.StandardCheckpointHandler() for name in ('model', 'ema', 'training')}
        self._manager = ocp.CheckpointManager(
            alias,
            options=options,
            item_handlers=handlers | {'loop': ocp.JsonCheckpointHandler()},
        )

    def _alias(self) -> Path:
        """Returns the folder, or a symbolic link to it if its path has special characters.

        Orbax finds its files with `epath.Path.glob`, which interprets `[`, `*` and `?` in the
        folder's own path as a pattern (etils/epath/gpath.py). It writes a checkpoint to `run[1]`
        but cannot find it again.
        """
        if _PLAIN.fullmatch(str(self._directory)):
            return self._directory
        # Try folders that are writable on most machines. The link is removed with this object.
        for place in (tempfile.gettempdir(), '/tmp', '/dev/shm'):
            if not _PLAIN.fullmatch(place):
                continue
            with suppress(OSError):
                folder = Path(tempfile.mkdtemp(prefix='checkpoints-', dir=place))
                weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
                os.symlink(self._directory, folder / 'checkpoints')
                return folder / 'checkpoints'
        raise UserError(
            f'{self._directory}: a path with such characters needs a symbolic link in TMPDIR or '
            '/tmp, which cannot be created there; choose a --workdir of letters and digits'
        )

    def __enter__(self) -> 'Checkpoints':
        return self

    def __exit__(self, exc_type: object, *_) -> None:
        if exc_type is None:
            self.wait()
            with self._explained():
                self._manager.close()
        else:  # report the exception of the block, not a failure that it causes here
            with suppress(Exception):
                self._manager.close()

    def save(self, state: TrainState, loop: dict, metrics: dict[str, float] | None = None) -> None:
        """Starts writing a checkpoint; returns as soon as the state may be changed.

        Args:
          state: saved under its step.
          loop: JSON values of the training loop.
          metrics: the validation metrics of that step, if it was evaluated.

        Raises:
          UserError: this checkpoint or the previous one could not be written, for example because
            the disk is full.
          RuntimeError: Orbax refused to save, because this step or a later one exists.
        """
        step = int(state.step)
        # Save the moving average as a separate item, so that prediction can read only this item.
        items = {
            'model': ocp.args.StandardSave(state.variables),
            'training': ocp.args.StandardSave(_training(state)),
            'loop': ocp.args.JsonSave(loop),
        }
        if state.ema_params is not None:
            items['ema'] = ocp.args.StandardSave(state.eval_variables)
        # Orbax also waits for the previous checkpoint; waiting here writes its checksums, too.
        self.wait()
        with self._explained():
            saved = self._manager.save(step, args=ocp.args.Composite(**items), metrics=metrics)
        # Orbax returns False without a reason.
        if not saved:
            raise RuntimeError(f'{self._directory}: Orbax did not save step {step}')

    def reached_preemption(self, step: int) -> bool:
        """True if all processes must stop after this step, because one of them received SIGTERM.

        Must be called at every step on every process.
        """
        return self._manager.reached_preemption(step)

    def wait(self) -> None:
        """Waits until all saved checkpoints are complete on disk, with their checksums."""
        with self._explained():
            self._manager.wait_until_finished()
            if not self._read_only and processes.is_first():
                # Only a complete checkpoint gets checksums.
                for step in self.steps():
                    _seal(self._directory / str(step))

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Converts any exception during writing to a UserError of one line.

        The exceptions come from Orbax's threads and from several libraries.
        """
        try:
            yield
        except Exception as e:
            reason = str(e).strip().splitlines()[0].split('": ')[-1] if str(e).strip() else repr(e)
            steps = self.steps()
            kept = f'the last complete one is step {steps[-1]}' if steps else 'there is no other'
            raise UserError(
                f'{self._directory}: a checkpoint could not be written ({reason}); {kept}. '
                'Free some disk space and start the same command again'
            ) from e

    def steps(self) -> list[int]:
        """The steps of all complete checkpoints, in order."""
        return sorted(s for s in self._manager.all_steps() if _complete(self._directory / str(s)))

    def latest_step(self) -> int | None:
        """The step of the newest complete checkpoint, or None if there is none."""
        steps = self.steps()
        return steps[-1] if steps else None

    def best_step(self) -> int | None:
        """The step of the best checkpoint on the validation split; the latest of equally good ones.

        None if no checkpoint was evaluated.
        """
        # Rank the evaluated checkpoints; the step breaks ties.
        scored = []
        for step in self.steps():
            with self._damage_named(step):
                metrics = self._manager.metrics(step)
                scored += [(self._rank(metrics), step)] if metrics else []
        return max(scored)[1] if scored else None

    def find(self, which: str | int) -> int:
        """Returns the step that 'best', 'last' or a number refers to.

        If no checkpoint was evaluated, 'best' is the last one.

        Raises:
          UserError: there is no complete checkpoint, or none of that step.
        """
        steps, which = self.steps(), str(which)
        if not steps:
            raise UserError(f'{self._directory} holds no complete checkpoint')
        # Resolve the names, then check a number.
        if which == 'last':
            return steps[-1]
        if which == 'best':
            best = self.best_step()
            return steps[-1] if best is None else best
        if not which.isdecimal() or int(which) not in steps:
            raise UserError(
                f'--checkpoint={which}: choose best, last or one of {", ".join(map(str, steps))}'
            )
        return int(which)

    def restore(self, step: int, state: TrainState) -> tuple[TrainState, dict]:
        """Restores a checkpoint onto the devices of `state`.

        Args:
          step: one of `steps()`.
          state: a state with the shapes, dtypes and shardings of the result.

        Returns:
          The state and the JSON values that were saved with it.

        Raises:
          UserError: the checkpoint belongs to another model or optimizer.
        """
        items = {'model': state.variables, 'training': _training(state)}
        if state.ema_params is not None:
            items['ema'] = state.eval_variables
        got, loop = self._restore(step, items)
        # A run without a moving average has no item `ema`.
        ema = got.get('ema', {'params': None, 'batch_stats': None})
        return TrainState(
            **got['training'],
            **got['model'],
            ema_params=ema['params'],
            ema_batch_stats=ema['batch_stats'],
        ), loop

    def restore_variables(self, step: int, variables: dict, weights: str | None = None) -> dict:
        """Restores the variables for evaluation.

        Args:
          step: one of `steps()`.
          variables: params and batch_stats as arrays or ShapeDtypeStructs with shardings.
          weights: 'ema' for the moving average, 'raw' for the trained parameters, None for the
            moving average if there is one.

        Raises:
          UserError: the checkpoint belongs to another model, or has no moving average.
        """
        averaged = (self._directory / str(step) / 'ema').is_dir()
        if weights not in (None, 'ema', 'raw'):
            raise unknown('weights', weights, ['ema', 'raw'])
        # Without a moving average, None selects the trained parameters, but 'ema' is an error.
        if weights == 'ema' and not averaged:
            raise UserError(
                f'{self._directory / str(step)} has no moving average of the weights: '
                'the run was trained with training.ema_decay=0'
            )
        name = 'ema' if averaged and weights != 'raw' else 'model'
        return self._restore(step, {name: variables})[0][name]

    def _restore(self, step: int, items: dict[str, Any]) -> tuple[dict[str, Any], dict]:
        """Checks and restores items of a checkpoint; returns them and the JSON item `loop`."""
        abstract = mesh_lib.abstract(items)
        with self._damage_named(step):
            _check_sums(self._directory / str(step), {*items, 'loop', 'metrics'})
            # Compare shapes first: Orbax casts a wrong dtype silently.
            metadata = self._manager.item_metadata(step)
            for name, tree in abstract.items():
                _check_same(metadata[name], tree, f'{self._directory / str(step)} ({name})')
            args = {name: ocp.args.StandardRestore(tree) for name, tree in abstract.items()}
            got = self._manager.restore(
                step, args=ocp.args.Composite(**args, loop=ocp.args.JsonRestore())
            )
        return {name: got[name] for name in items}, got['loop']

    @contextmanager
    def _damage_named(self, step: int) -> Iterator[None]:
        """Converts a library's exception for a damaged checkpoint to a UserError of one line.

        The message names the previous complete checkpoint.
        """
        try:
            yield
        # A UserError already has its one-line message.
        except UserError:
            raise
        except Exception as e:
            reason = (str(e) or type(e).__name__).strip().splitlines()[0]
            # Offer the newest earlier checkpoint.
            before = [s for s in self.steps() if s < step]
            other = (
                f'the previous one is step {before[-1]}: choose it with '
                f'--checkpoint={before[-1]}, or remove the damaged folder to resume from there'
                if before
                else 'there is no earlier one'
            )
            raise UserError(
                f'{self._directory / str(step)} is damaged ({reason:.160}); {other}'
            ) from e


def _training(state: TrainState) -> dict[str, Any]:
    """The item `training` of a checkpoint."""
    items = {'step': state.step, 'opt_state': state.opt_state, 'rng': state.rng}
    return items if state.extra is None else items | {'extra': state.extra}


def _complete(directory: Path) -> bool:
    """True if Orbax finished the checkpoint, which then has metadata.

    Orbax itself counts every folder whose name is a number.
    """
    return (directory / '_CHECKPOINT_METADATA').exists()


def _check_metrics(directory: Path) -> None:
    """Raises UserError if the metrics of any checkpoint are damaged."""
    for path in sorted(directory.glob('[0-9]*/metrics/metrics')):
        try:
            if not isinstance(json.loads(path.read_bytes()), dict):
                raise ValueError('it holds no object')
        except ValueError as e:
            raise UserError(
                f'{path.parents[1]} is damaged (metrics: {e}); remove this folder to use the '
                'other checkpoints'
            ) from None
        except FileNotFoundError:  # Orbax is removing this checkpoint
            continue


def _files(directory: Path) -> Iterator[tuple[str, Path]]:
    """Yields the relative name and the path of each file of a checkpoint, except the checksums."""
    for path in sorted(directory.rglob('*')):
        # The prefix also covers a temporary checksum file that a kill left behind.
        if path.is_file() and not path.name.startswith(_SUMS):
            yield path.relative_to(directory).as_posix(), path


def _seal(directory: Path) -> None:
    """Writes the checksums of a complete checkpoint, unless it has them.

    Orbax keeps no checksums of the values.
    """
    if (directory / _SUMS).exists():
        return
    with suppress(FileNotFoundError):  # Orbax is removing this checkpoint
        sums = {name: zlib.crc32(path.read_bytes()) for name, path in _files(directory)}
        workdir_lib.write_text(directory / _SUMS, json_text(sums))


def _check_sums(directory: Path, items: Collection[str]) -> None:
    """Checks the files of these items, and those outside any item, against the checksums.

    Raises:
      ValueError: a file is missing or has changed; names the first one.
    """
    path = directory / _SUMS
    # No checksums: an older version wrote the checkpoint, or a kill came before they were written.
    if not path.exists():
        return
    sums, files = json.loads(path.read_bytes()), dict(_files(directory))
    for name, known in sums.items():
        if '/' in name and name.partition('/')[0] not in items:
            continue
        if name not in files:
            raise ValueError(f'{name} is missing')
        if zlib.crc32(files[name].read_bytes()) != known:
            raise ValueError(f'the bytes of {name} changed after it was written')


def newest_step(workdir: Path) -> int | None:
    """The step of the newest complete checkpoint of a workdir.

    None if there is no checkpoint or no such folder. Only the folder is listed; no
    `CheckpointManager` is opened.
    """
    directory = workdir / 'checkpoints'
    # A complete checkpoint is a folder whose name is a number and that contains metadata.
    found = directory.iterdir() if directory.is_dir() else ()
    return max((int(p.name) for p in found if p.name.isdecimal() and _complete(p)), default=None)


def _prepare(directory: Path) -> None:
    """Creates the folder and removes empty numbered subfolders, in which Orbax saves nothing."""
    directory.mkdir(exist_ok=True)
    for path in directory.iterdir():
        if path.name.isdecimal() and path.is_dir() and not any(path.iterdir()):
            path.rmdir()


def _check_same(metadata: Any, tree: Any, where: str) -> None:
    """Raises UserError naming the first leaves in which a checkpoint differs from a PyTree."""

    def shapes(tree: Any) -> dict[str, tuple]:
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {_name(path): _stored(x) for path, x in leaves}

    there, here = shapes(getattr(metadata, 'tree', metadata)), shapes(tree)
    # List missing leaves first, then surplus ones, then those of another shape or dtype.
    phrases = [f'{k} is missing there' for k in here if k not in there]
    phrases += [f'{k} is surplus there' for k in there if k not in here]
    phrases += [
        f'{k} is {there[k][1]}{list(there[k][0])} there and {here[k][1]}{list(here[k][0])} here'
        for k in here
        if k in there and there[k] != here[k]
    ]
    if phrases:
        more = f' (and {len(phrases) - 3} more)' if len(phrases) > 3 else ''
        raise UserError(f'{where} is of another model: {"; ".join(phrases[:3])}{more}')


def _stored(leaf: Any) -> tuple[tuple[int, ...], str]:
    """The shape and dtype of a leaf on disk, where a PRNG key is stored as uint32 words."""
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.eval_shape(jax.random.key_data, leaf)
    return tuple(leaf.shape), str(leaf.dtype)


def _name(path: tuple) -> str:
    """The path of a leaf as text: 'params/conv1/kernel'.

    A part of the path may be a dict key, an attribute or a position.
    """
    return '/'.join(str(getattr(k, 'key', getattr(k, 'name', getattr(k, 'idx', k)))) for k in path)
