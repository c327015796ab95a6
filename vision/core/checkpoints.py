"""Checkpoints: Orbax's CheckpointManager, and what it must be told.

A checkpoint has the items `model` (params and batch_stats), `ema` (the same, where there is a
moving average), `training` (step, optimizer, rng) and `loop` (JSON: the loop's own few numbers),
so that prediction reads the model and nothing else.
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

# Orbax tells of every save, and warns of options that are meant; what goes wrong it raises.
logging.get_absl_logger().addFilter(lambda record: 'orbax' not in record.pathname)

_SUMS = 'checksums.json'  # in a checkpoint: CRC-32 by file
_PLAIN = re.compile(r'[\w./+=,@-]+', re.ASCII)  # paths that Orbax takes as they are

Rank = Callable[[dict[str, Any]], tuple[float, ...]]


class Checkpoints:
    """The checkpoints of one workdir: asynchronous, atomic; the last N and the best are kept."""

    def __init__(self, workdir: Path, rank: Rank, keep: int = 1, read_only: bool = False):
        """Opens `workdir/checkpoints`.

        Args:
          workdir: of the run.
          rank: of the validation metrics of a checkpoint; the greatest is the best.
          keep: how many of the newest are kept, beside the best on the validation split.
          read_only: for evaluation and prediction, also while the run goes on.

        Raises:
          UserError: read_only and there is no checkpoint.
        """
        self._directory, self._rank, self._read_only = workdir / 'checkpoints', rank, read_only
        if read_only and not self._directory.is_dir():
            raise UserError(f'{workdir} has no checkpoints')
        alias = self._alias()
        if not read_only:
            processes.on_first(lambda: _prepare(self._directory))
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
        _check_metrics(self._directory)
        handlers = {name: ocp.StandardCheckpointHandler() for name in ('model', 'ema', 'training')}
        self._manager = ocp.CheckpointManager(
            alias,
            options=options,
            item_handlers=handlers | {'loop': ocp.JsonCheckpointHandler()},
        )

    def _alias(self) -> Path:
        """The folder, or a link to it where its path has more than letters and digits.

        Orbax finds its files by `epath.Path.glob`, which takes the folder's own `[`, `*` and `?` for a pattern
        (etils/epath/gpath.py): a checkpoint in `run[1]` is written and never found again.
        """
        if _PLAIN.fullmatch(str(self._directory)):
            return self._directory
        for place in (tempfile.gettempdir(), '/tmp', '/dev/shm'):
            if not _PLAIN.fullmatch(place):
                continue
            with suppress(OSError):
                folder = Path(tempfile.mkdtemp(prefix='checkpoints-', dir=place))
                weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
                os.symlink(self._directory, folder / 'checkpoints')
                return folder / 'checkpoints'
        raise UserError(
            f'{self._directory}: a path with such characters needs a link in TMPDIR or /tmp, and none can be made there; '
            'take a --workdir of letters and digits'
        )

    def __enter__(self) -> 'Checkpoints':
        return self

    def __exit__(self, exc_type: object, *_) -> None:
        if exc_type is None:
            self.wait()
            with self._explained():
                self._manager.close()
        else:  # what failed first is what is told
            with suppress(Exception):
                self._manager.close()

    def save(self, state: TrainState, loop: dict, metrics: dict[str, float] | None = None) -> None:
        """Starts writing a checkpoint; returns as soon as the state may be changed.

        Args:
          state: of the step that it names.
          loop: JSON beside it.
          metrics: the validation metrics of that step, if it was evaluated.

        Raises:
          UserError: this one or the one before could not be written (the disk is full, say).
          RuntimeError: Orbax refused it (a step that is there already, or an earlier one).
        """
        step = int(state.step)
        items = {
            'model': ocp.args.StandardSave(state.variables),
            'training': ocp.args.StandardSave(_training(state)),
            'loop': ocp.args.JsonSave(loop),
        }
        if state.ema_params is not None:
            items['ema'] = ocp.args.StandardSave(state.eval_variables)
        self.wait()  # as Orbax does, for the one before
        with self._explained():
            saved = self._manager.save(step, args=ocp.args.Composite(**items), metrics=metrics)
        if not saved:
            raise RuntimeError(f'{self._directory}: Orbax did not save step {step}')

    def reached_preemption(self, step: int) -> bool:
        """True if all processes shall stop after this step, because one was sent SIGTERM.

        To be asked at every step, on every process.
        """
        return self._manager.reached_preemption(step)

    def wait(self) -> None:
        """Returns when all that was saved is complete on disk, with its checksums."""
        with self._explained():
            self._manager.wait_until_finished()
            if not self._read_only and processes.is_first():
                for step in self.steps():
                    _seal(self._directory / str(step))

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turns what goes wrong in writing into one line: it comes out of threads and libraries."""
        try:
            yield
        except Exception as e:
            reason = str(e).strip().splitlines()[0].split('": ')[-1] if str(e).strip() else repr(e)
            steps = self.steps()
            kept = f'the last complete one is step {steps[-1]}' if steps else 'there is no other'
            raise UserError(
                f'{self._directory}: a checkpoint could not be written ({reason}); {kept}. '
                'Make room and start the same command again'
            ) from e

    def steps(self) -> list[int]:
        """The steps of all complete checkpoints, in order."""
        return sorted(s for s in self._manager.all_steps() if _complete(self._directory / str(s)))

    def latest_step(self) -> int | None:
        """The step of the newest complete checkpoint, or None."""
        steps = self.steps()
        return steps[-1] if steps else None

    def best_step(self) -> int | None:
        """The step of the best checkpoint on the validation split, of equals the latest; or None."""
        scored = []
        for step in self.steps():
            with self._damage_named(step):
                metrics = self._manager.metrics(step)
                scored += [(self._rank(metrics), step)] if metrics else []
        return max(scored)[1] if scored else None

    def find(self, which: str | int) -> int:
        """Returns the step that 'best', 'last' or a number names.

        'best' is the last one where no checkpoint was evaluated.

        Raises:
          UserError: there is none, or not that one.
        """
        steps, which = self.steps(), str(which)
        if not steps:
            raise UserError(f'{self._directory} holds no complete checkpoint')
        if which == 'last':
            return steps[-1]
        if which == 'best':
            best = self.best_step()
            return steps[-1] if best is None else best
        if not which.isdecimal() or int(which) not in steps:
            raise UserError(
                f'--checkpoint={which}: there are best, last and {", ".join(map(str, steps))}'
            )
        return int(which)

    def restore(self, step: int, state: TrainState) -> tuple[TrainState, dict]:
        """Reads a checkpoint onto the devices of `state`.

        Args:
          step: one of `steps()`.
          state: a state of the same shapes, laid out as the result shall be.

        Returns:
          The state and the JSON that was saved with it.

        Raises:
          UserError: the checkpoint is another model's or optimizer's.
        """
        items = {'model': state.variables, 'training': _training(state)}
        if state.ema_params is not None:
            items['ema'] = state.eval_variables
        got, loop = self._restore(step, items)
        ema = got.get('ema', {'params': None, 'batch_stats': None})
        return TrainState(
            **got['training'],
            **got['model'],
            ema_params=ema['params'],
            ema_batch_stats=ema['batch_stats'],
        ), loop

    def restore_variables(self, step: int, variables: dict, weights: str | None = None) -> dict:
        """Reads what is evaluated.

        Args:
          step: one of `steps()`.
          variables: params and batch_stats as arrays or ShapeDtypeStructs with shardings.
          weights: 'ema', the moving average; 'raw', as trained; None: the average if there is one.

        Raises:
          UserError: the checkpoint is another model's, or has no moving average.
        """
        averaged = (self._directory / str(step) / 'ema').is_dir()
        if weights not in (None, 'ema', 'raw'):
            raise unknown('weights', weights, ['ema', 'raw'])
        if weights == 'ema' and not averaged:
            raise UserError(
                f'{self._directory / str(step)} has no moving average of the weights: '
                'the run was trained with training.ema_decay=0'
            )
        name = 'ema' if averaged and weights != 'raw' else 'model'
        return self._restore(step, {name: variables})[0][name]

    def _restore(self, step: int, items: dict[str, Any]) -> tuple[dict[str, Any], dict]:
        abstract = mesh_lib.abstract(items)
        with self._damage_named(step):
            _check_sums(self._directory / str(step), {*items, 'loop', 'metrics'})
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
        """Turns what a damaged checkpoint leads libraries to into one line, which offers the one before."""
        try:
            yield
        except UserError:
            raise
        except Exception as e:
            reason = (str(e) or type(e).__name__).strip().splitlines()[0]
            before = [s for s in self.steps() if s < step]
            other = (
                f'the one before it is step {before[-1]}: name it with --checkpoint={before[-1]}, or remove the damaged '
                'folder, and a run goes on from there'
                if before
                else 'there is none before it'
            )
            raise UserError(
                f'{self._directory / str(step)} is damaged ({reason:.160}); {other}'
            ) from e


def _training(state: TrainState) -> dict[str, Any]:
    items = {'step': state.step, 'opt_state': state.opt_state, 'rng': state.rng}
    return items if state.extra is None else items | {'extra': state.extra}


def _complete(directory: Path) -> bool:
    """Orbax counts any folder with a number for a name; one that it finished has its metadata."""
    return (directory / '_CHECKPOINT_METADATA').exists()


def _check_metrics(directory: Path) -> None:
    """Raises UserError where a checkpoint's metrics are damaged: Orbax reads those of all when it opens the folder."""
    for path in sorted(directory.glob('[0-9]*/metrics/metrics')):
        try:
            if not isinstance(json.loads(path.read_bytes()), dict):
                raise ValueError('it holds no object')
        except ValueError as e:
            raise UserError(
                f'{path.parents[1]} is damaged (metrics: {e}); remove this folder, and the other checkpoints can be used'
            ) from None
        except FileNotFoundError:  # it is one that Orbax removes
            continue


def _files(directory: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(directory.rglob('*')):
        if path.is_file() and not path.name.startswith(_SUMS):  # nor what a kill left of it
            yield path.relative_to(directory).as_posix(), path


def _seal(directory: Path) -> None:
    """Writes the checksums of a complete checkpoint, unless it has them: of values Orbax keeps none."""
    if (directory / _SUMS).exists():
        return
    with suppress(FileNotFoundError):  # it is one that Orbax removes
        sums = {name: zlib.crc32(path.read_bytes()) for name, path in _files(directory)}
        workdir_lib.write_text(directory / _SUMS, json_text(sums))


def _check_sums(directory: Path, items: Collection[str]) -> None:
    """Raises ValueError naming the first file of these items, or beside them, that is not as it was written."""
    path = directory / _SUMS
    if not path.exists():  # of an older version, or killed before they were written
        return
    sums, files = json.loads(path.read_bytes()), dict(_files(directory))
    for name, known in sums.items():
        if '/' in name and name.partition('/')[0] not in items:
            continue
        if name not in files:
            raise ValueError(f'{name} is missing')
        if zlib.crc32(files[name].read_bytes()) != known:
            raise ValueError(f'{name} has other bytes than were written')


def newest_step(workdir: Path) -> int | None:
    """The step of the newest complete checkpoint of a workdir, which need not exist; or None."""
    directory = workdir / 'checkpoints'
    found = directory.iterdir() if directory.is_dir() else ()
    return max((int(p.name) for p in found if p.name.isdecimal() and _complete(p)), default=None)


def _prepare(directory: Path) -> None:
    """Makes the folder, and removes empty numbered ones: Orbax would save nothing below them."""
    directory.mkdir(exist_ok=True)
    for path in directory.iterdir():
        if path.name.isdecimal() and path.is_dir() and not any(path.iterdir()):
            path.rmdir()


def _check_same(metadata: Any, tree: Any, where: str) -> None:
    """Raises UserError naming the first leaves in which a checkpoint differs from a tree."""

    def shapes(tree: Any) -> dict[str, tuple]:
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {_name(path): _stored(x) for path, x in leaves}

    there, here = shapes(getattr(metadata, 'tree', metadata)), shapes(tree)
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
    """Shape and type as they are on disk: a key is its uint32 words."""
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.eval_shape(jax.random.key_data, leaf)
    return tuple(leaf.shape), str(leaf.dtype)


def _name(path: tuple) -> str:
    """'params/conv1/kernel', whether a key is a dict's, a field's or a position."""
    return '/'.join(str(getattr(k, 'key', getattr(k, 'name', getattr(k, 'idx', k)))) for k in path)
