"""Trains the model that a config describes.

    python -m experiments.train --config=FILE[:ARGUMENT] --workdir=DIR [--config.KEY=VALUE …]

Examples:
    python -m experiments.train --config=configs/digits_lenet5.py --workdir=runs/digits
    python -m experiments.train --config=configs/digits_lenet5.py --explain=optimizer
    python -m experiments.train --config=configs/mnist_lenet5.py:quick --dry_run

The same command continues a run that was stopped. Exit code 3: some test images could not be read.
"""

import sys
from contextlib import ExitStack
from typing import Any

from absl import flags

from vision.core import cli
from vision.core.text import json_text

CONFIG = cli.define_config()
WORKDIR = flags.DEFINE_string(
    'workdir', None, 'Folder of the run: config, checkpoints, records, report.'
)
FORMAT = flags.DEFINE_enum('format', 'table', ['table', 'json'], 'How the figures are printed.')
cli.heading('Instead of training')
EXPLAIN = flags.DEFINE_string(
    'explain',
    None,
    'List the keys of a section (optimizer, training, …, all) with meaning and value.',
)
DRY_RUN = flags.DEFINE_bool(
    'dry_run', False, 'Measure size, cost, memory and time in a few steps; write nothing.'
)
cli.heading('Finding what is slow or wrong')
PROFILE = flags.DEFINE_string(
    'profile', None, 'START:STOP, steps to trace for TensorBoard or Perfetto.'
)
DEBUG = flags.DEFINE_list(
    'debug',
    [],
    'nans: stop at the first operation that returns NaN; no_jit: run operations one by one; '
    'transfers: refuse implicit transfers between host and device.',
)
cli.heading('Several processes')
join_others = cli.define_distributed()


def main(argv: list[str]) -> int:
    """Trains the model and prints its metrics; returns 3 if test images could not be read."""
    cli.refuse_arguments(argv)
    cli.require(config=CONFIG.value)
    if EXPLAIN.value is not None:
        _explain()
        return 0
    # Join the other processes before anything uses a device.
    if not DRY_RUN.value:
        cli.require(workdir=WORKDIR.value)
    join_others()
    from vision.core.progress import phase

    with phase('starting'):
        from vision.core import processes
        from vision.core.text import print_table
        from vision.training import train

    if DRY_RUN.value and processes.is_first():
        print('dry run: compiling, then timing a few steps', file=sys.stderr, flush=True)
    result = _dry_run() if DRY_RUN.value else _train(train)
    code = cli.ANSWERED_IN_PART if not DRY_RUN.value and _left_out(result) else 0
    # Only process 0 prints: JSON, the text of a dry run, or a table.
    if not processes.is_first():
        return code
    if FORMAT.value == 'json':
        print(json_text(result))
    elif DRY_RUN.value:
        from vision.studies.cost import dry_run_text

        print(dry_run_text(result))
    else:
        from vision.core.workdir import locate
        from vision.task import Task, read_task
        from vision.training.records import next_commands, results_table

        task = read_task(locate(WORKDIR.value))
        print_table(results_table(result, task.metrics, WORKDIR.value))
        if _left_out(result):
            print(f'test: {_left_out(result)} images could not be read and were left out.')
        if result:
            split = 'test' if 'test' in result else 'validation'
            predicts = type(task).probabilities is not Task.probabilities
            print(next_commands(WORKDIR.value, split, predicts), file=sys.stderr)
    return code


def _left_out(result: dict[str, Any]) -> int:
    return result.get('test', {}).get('corrupt', 0)


def _dry_run() -> dict[str, Any]:
    from vision.core.workdir import check_place
    from vision.studies.cost import dry_run
    from vision.training.setup import setup

    with ExitStack() as stack:
        _hooks(stack)  # raises UserError for flags that a run would refuse
    workdir = None if WORKDIR.value is None else check_place(WORKDIR.value)
    return dry_run(setup(CONFIG.value), workdir)


def _train(train: Any) -> dict[str, Any]:
    with ExitStack() as stack:
        return train(CONFIG.value, WORKDIR.value, _hooks(stack))


def _hooks(stack: ExitStack) -> list[Any]:
    """Returns the hooks of --profile and --debug; debugging is on until the stack is closed."""
    hooks: list[Any] = []
    if PROFILE.value is not None:
        from vision.training.diagnosis import profile

        hooks.append(profile(PROFILE.value, WORKDIR.value or '.'))
    if DEBUG.value:
        from vision.training.diagnosis import debugging

        hooks += stack.enter_context(debugging(DEBUG.value))
    return hooks


def _explain() -> None:
    from vision.core.text import print_table
    from vision.studies.config_help import explain, explain_table

    rows = explain(CONFIG.value, EXPLAIN.value)
    if FORMAT.value == 'json':
        print(json_text(rows))
    else:
        print_table(explain_table(rows))


if __name__ == '__main__':
    cli.run(main)
