"""Trains a model as a config says.

python -m experiments.train --config=configs/NAME.py[:ARG] --workdir=DIR [--config.a.b=VALUE …]

--explain=SECTION lists the keys of a section (optimizer, training, …, all) with their meaning and value.
--dry_run says what that would be (size, cost, memory, time) and stops. --profile=START:STOP traces
these steps for TensorBoard or Perfetto. --debug=nans,no_jit,transfers helps to find what is wrong.
"""

from contextlib import ExitStack
from typing import Any

from absl import flags

from vision.core import cli
from vision.core.text import json_text

CONFIG = cli.define_config()
WORKDIR = flags.DEFINE_string('workdir', None, 'The folder that the run lives in.')
DRY_RUN = flags.DEFINE_bool('dry_run', False, 'Say what the run would be, from three steps; stop.')
EXPLAIN = flags.DEFINE_string('explain', None, 'List the keys of a section, or all; stop.')
PROFILE = flags.DEFINE_string('profile', None, 'START:STOP, the steps to trace.')
DEBUG = flags.DEFINE_list('debug', [], 'nans, no_jit, transfers: see vision/training/diagnosis.py.')
FORMAT = flags.DEFINE_enum('format', 'table', ['table', 'json'], 'How the figures are printed.')
join_others = cli.define_distributed()


def main(argv: list[str]) -> int:
    """Trains, and prints the table of what came out; 3 if test images could not be read."""
    cli.refuse_arguments(argv)
    cli.require(config=CONFIG.value)
    if EXPLAIN.value is not None:
        _explain()
        return 0
    if not DRY_RUN.value:
        cli.require(workdir=WORKDIR.value)
    join_others()
    from vision.core import processes
    from vision.core.text import print_table

    result = _dry_run() if DRY_RUN.value else _train()
    code = cli.ANSWERED_IN_PART if not DRY_RUN.value and _left_out(result) else 0
    if not processes.is_first():
        return code
    if FORMAT.value == 'json':
        print(json_text(result))
    elif DRY_RUN.value:
        from vision.studies.cost import dry_run_text

        print(dry_run_text(result))
    else:
        from vision.core.workdir import locate
        from vision.task import read_task
        from vision.training.records import results_table

        metrics = read_task(locate(WORKDIR.value)).metrics
        print_table(results_table(result, metrics, WORKDIR.value))
        if _left_out(result):
            print(f'test: {_left_out(result)} images could not be read and were left out.')
    return code


def _left_out(result: dict[str, Any]) -> int:
    return result.get('test', {}).get('corrupt', 0)


def _dry_run() -> dict[str, Any]:
    from vision.core.workdir import check_place
    from vision.studies.cost import dry_run
    from vision.training.setup import setup

    with ExitStack() as stack:
        _hooks(stack)  # refuses what it would refuse of the run
    workdir = None if WORKDIR.value is None else check_place(WORKDIR.value)
    return dry_run(setup(CONFIG.value), workdir)


def _train() -> dict[str, Any]:
    from vision.training import train

    with ExitStack() as stack:
        return train(CONFIG.value, WORKDIR.value, _hooks(stack))


def _hooks(stack: ExitStack) -> list[Any]:
    """What --profile and --debug ask for; switched on until the stack is closed."""
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
