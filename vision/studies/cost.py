"""A run before it is one: size, cost, memory, and time from three steps."""

import time
from pathlib import Path
from typing import Any

import jax

from vision.core import config as config_lib
from vision.core.errors import UserError
from vision.core.progress import progress_bar
from vision.models.summary import count
from vision.preprocess import inputs
from vision.preprocess.ops.registry import describe_place
from vision.training.setup import Setup
from vision.training.start import check_start, first_state
from vision.training.step import make_train_step

STEPS = 3  # timed, after the first


def dry_run(run: Setup, workdir: Path | None = None) -> dict[str, Any]:
    """Does all that a run does before its first record, and writes nothing.

    It also reads the first batch of each split that is evaluated.

    Args:
      run: as `setup` returns it.
      workdir: that the run would have.

    Returns:
      `config` (resolved), `model`, `input_shape`, `parameters`, `gmacs` (fused multiply-adds of one
      image in evaluation, in 1e9), `ops` (where those of train and eval run, and why), `examples` of
      train, `batch_size`, `devices`, `steps`,
      `state_bytes` and `step_bytes` (of each device: the state, and the most that a step holds with
      it; None where the backend does not tell), `compile_seconds`, `step_seconds` and
      `estimated_seconds` of all steps, without evaluations.

    Raises:
      UserError: what would be refused of a run, or too many images of the first batches cannot be read.
    """
    first = check_start(run, workdir)
    _check_validation(run)
    state = first_state(run, first)
    train_step = make_train_step(run.recipe, run.mesh)
    batches = inputs.TrainBatches(run.train, run.loading, run.mesh, 0)
    batch = next(batches)
    began = time.perf_counter()
    with progress_bar() as start:
        start('compiling', 1)
        compiled = jax.jit(train_step, donate_argnums=0).lower(state, batch).compile()
    compile_seconds = time.perf_counter() - began
    memory = compiled.memory_analysis()
    state_bytes = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state))
    state, metrics = compiled(state, batch)
    jax.block_until_ready(metrics)
    began = time.perf_counter()
    for _ in range(STEPS):
        state, metrics = compiled(state, next(batches))
    jax.block_until_ready(metrics)
    step_seconds = (time.perf_counter() - began) / STEPS
    batches.check()
    summary = count(run.config.model.name, run.model, run.input_shape)
    return {
        'config': run.config.to_dict(),
        'model': run.config.model.name,
        'input_shape': list(run.input_shape),
        'parameters': summary.parameters_with_aux,
        'gmacs': summary.macs / 1e9,
        'ops': {
            name: describe_place(run.config.preprocess[name], run.train.images is not None)
            for name in ('train', 'eval')
        },
        'examples': run.train.num_examples,
        'batch_size': run.config.training.batch_size,
        'devices': run.mesh.size,
        'steps': run.total_steps,
        'state_bytes': state_bytes,
        'step_bytes': None if memory is None else _bytes(memory),
        'compile_seconds': compile_seconds,
        'step_seconds': step_seconds,
        'estimated_seconds': run.total_steps * step_seconds,
    }


def _check_validation(run: Setup) -> None:
    """Reads the first batch of validation; UserError where too many of its images cannot be read."""
    source = run.validation
    if source is None:
        return
    size = run.eval_batch_size
    first = source.subset(range(min(size, source.num_examples))) if source.indexed else source
    batches = inputs.EvalBatches(first, run.eval_ops, size, run.mesh, skip_corrupt=True)
    next(iter(batches))
    if batches.skipped() > run.loading.max_corrupt * source.num_examples:
        name, reason = next(iter(batches.corrupt.items()))
        raise UserError(
            f'{source.name}: {batches.skipped()} of the first images cannot be read, as {name}: {reason}'
        )


def dry_run_text(result: dict[str, Any]) -> str:
    """The result of `dry_run` as text."""
    shape = ' x '.join(map(str, result['input_shape']))
    epochs = result['steps'] * result['batch_size'] / result['examples']
    rate = result['batch_size'] / result['step_seconds']
    memory = f'{_mib(result["state_bytes"])} of state'
    if result['step_bytes'] is not None:
        memory += f', {_mib(result["step_bytes"])} within a step'
    rows = {
        'model': f'{result["model"]}, {shape} in, {result["parameters"]:,} parameters, '
        f'{result["gmacs"]:.4g} GMACs an image',
        'data': f'{result["examples"]:,} training examples',
        'ops': f'of training {result["ops"]["train"]}; of evaluation {result["ops"]["eval"]}',
        'length': f'{result["steps"]:,} steps of {result["batch_size"]:,} images, '
        f'{epochs:.4g} epochs',
        'memory': f'{memory}, on each of {result["devices"]} device(s)',
        'speed': f'{result["step_seconds"]:.3g} s a step, {rate:,.0f} images/s; '
        f'compiled in {result["compile_seconds"]:.1f} s',
        'time': f'about {_duration(result["estimated_seconds"])}, without evaluations',
    }
    figures = '\n'.join(f'{name:>8}  {text}' for name, text in rows.items())
    return f'{config_lib.to_json(result["config"])}\n{figures}\nNothing was written.'


def _bytes(memory: Any) -> int:
    """The most that one device holds in a step; what is donated counts once."""
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes
    return held + memory.temp_size_in_bytes - memory.alias_size_in_bytes


def _mib(size: int) -> str:
    return f'{size / 2**20:,.1f} MiB'


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f'{seconds:.0f} s'
    return f'{seconds / 60:.0f} min' if seconds < 5400 else f'{seconds / 3600:.1f} h'
