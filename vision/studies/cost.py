"""Dry run of a config: size and cost of the model, memory, and time estimated from three steps."""

import time
from pathlib import Path
from typing import Any

import jax

from vision.core.durations import steps_in
from vision.core.errors import UserError
from vision.core.progress import phase
from vision.models.summary import count
from vision.preprocess import inputs
from vision.preprocess.ops.registry import describe_place
from vision.training.setup import Setup
from vision.training.start import check_start, first_state, warn_of_selection
from vision.training.step import make_train_step

STEPS = 3  # timed steps, after a first one that is not timed


def dry_run(run: Setup, workdir: Path | None = None) -> dict[str, Any]:
    """Checks a run, compiles its training step and times it, without writing anything.

    It also reads the first batch of the validation split.

    Args:
      run: the run, as `setup` returns it.
      workdir: the workdir that the run would use.

    Returns:
      `config` (resolved), `model`, `input_shape`, `parameters`, `gmacs` (1e9 fused multiply-adds of
      one image in evaluation), `ops` (where the ops of train and eval run, and why), `examples`
      (number of training examples), `batch_size`, `devices`, `steps`, `state_bytes` (memory of the
      training state on one device), `step_bytes` (peak memory of a step on one device, including
      the state; None if the backend does not report it), `compile_seconds`, `step_seconds`, and
      `estimated_seconds` of all steps without evaluations.

    Raises:
      UserError: training would refuse the run, or too many images of the first batches cannot be
        read.
    """
    # Make the same preparations as a training run.
    first = check_start(run, workdir)
    warn_of_selection(run)
    _check_validation(run)
    state = first_state(run, first)
    train_step = make_train_step(run.recipe, run.mesh)
    batches = inputs.TrainBatches(run.train, run.loading, run.mesh, 0)
    batch = next(batches)
    # Compile the step ahead of time, which gives its memory use.
    began = time.perf_counter()
    with phase('compiling'):
        compiled = jax.jit(train_step, donate_argnums=0).lower(state, batch).compile()
    compile_seconds = time.perf_counter() - began
    memory = compiled.memory_analysis()
    state_bytes = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state))
    # Time a few steps after the first, including the loading of their batches.
    with phase(f'timing {STEPS} steps'):
        state, metrics = compiled(state, batch)
        jax.block_until_ready(metrics)
        began = time.perf_counter()
        for _ in range(STEPS):
            state, metrics = compiled(state, next(batches))
        jax.block_until_ready(metrics)
        step_seconds = (time.perf_counter() - began) / STEPS
    # Refuse the run if too many of the images could not be read; then count the model's operations.
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


@phase('reading the validation split')
def _check_validation(run: Setup) -> None:
    """Reads the first validation batch; raises UserError if too many images cannot be read."""
    source = run.validation
    if source is None:
        return
    # A subset of the first batch's size, where the source has random access.
    size = run.eval_batch_size
    first = source.subset(range(min(size, source.num_examples))) if source.indexed else source
    batches = inputs.EvalBatches(first, run.eval_ops, size, run.mesh, skip_corrupt=True)
    next(iter(batches))
    if batches.skipped() > run.loading.max_corrupt * source.num_examples:
        name, reason = next(iter(batches.corrupt.items()))
        raise UserError(
            f'{source.name}: {batches.skipped()} of the first images cannot be read, '
            f'for example {name}: {reason}'
        )


def dry_run_text(result: dict[str, Any]) -> str:
    """Returns the result of `dry_run` as text, a line for each figure, without the config."""
    shape = ' x '.join(map(str, result['input_shape']))
    epochs = result['steps'] * result['batch_size'] / result['examples']
    throughput = result['batch_size'] / result['step_seconds']
    memory = f'parameters, optimizer and statistics {_mib(result["state_bytes"])}'
    if result['step_bytes'] is not None:
        memory += f', peak of a step {_mib(result["step_bytes"])}'
    train, evaluation = result['ops']['train'], result['ops']['eval']
    exact = steps_in(
        result['config']['training']['duration'], result['batch_size'], result['examples']
    )
    whole = '' if exact == result['steps'] else ' (rounded to whole steps)'
    # Each row is a name and a sentence; the names are right-aligned.
    rows = {
        'model': f'{result["model"]}, input {shape}, {result["parameters"]:,} parameters, '
        f'{result["gmacs"]:.4g} GMACs per image',
        'data': f'{result["examples"]:,} training examples',
        'ops': f'training and evaluation {train}'
        if train == evaluation
        else f'training {train}; evaluation {evaluation}',
        'length': f'{result["steps"]:,} steps of {result["batch_size"]:,} images, '
        f'{epochs:.4g} epochs{whole}',
        'memory': f'{memory}, on each of {result["devices"]} device(s)',
        'speed': f'{result["step_seconds"]:.3g} s per step, {throughput:,.0f} images/s; '
        f'compiled in {result["compile_seconds"]:.1f} s',
        'time': f'about {_duration(result["estimated_seconds"])}, plus '
        f'{_duration(result["compile_seconds"])} to compile; without evaluations',
    }
    figures = '\n'.join(f'{name:>8}  {text}' for name, text in rows.items())
    return f'{figures}\nNothing was written. --explain=all lists the keys of the config.'


def _bytes(memory: Any) -> int:
    """Returns the peak memory of a step on one device; donated buffers count once."""
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes
    return held + memory.temp_size_in_bytes - memory.alias_size_in_bytes


def _mib(size: int) -> str:
    return f'{size / 2**20:,.1f} MiB'


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f'{seconds:.0f} s'
    return f'{seconds / 60:.0f} min' if seconds < 5400 else f'{seconds / 3600:.1f} h'
