"""Trains every combination of a grid of values; the same command goes on where it stopped.

python -m experiments.sweep --config=configs/NAME.py[:ARG] --workdir=DIR --grid='optimizer.lr=0.1,0.03;seed=0,1,2'

Each trial has a workdir in DIR. Exit code 3: some trials failed; their rows say why.
"""

from absl import flags

from vision.core import cli
from vision.core.text import json_text

CONFIG = cli.define_config()
WORKDIR = flags.DEFINE_string('workdir', None, 'The folder that the trials go to.')
GRID = flags.DEFINE_string('grid', None, "'key=value,value;key=value,…', keys as in --config.key.")
FORMAT = flags.DEFINE_enum('format', 'table', ['table', 'json'], 'what to print')


def main(argv: list[str]) -> int:
    """Runs the trials and prints their table."""
    cli.refuse_arguments(argv)
    cli.require(config=CONFIG.value, workdir=WORKDIR.value, grid=GRID.value)
    from vision.core.text import print_table
    from vision.studies.sweeps import sweep, sweep_tables

    result = sweep(CONFIG.value, GRID.value, WORKDIR.value)
    if FORMAT.value == 'json':
        print(json_text(result))
    else:
        for table in sweep_tables(result):
            print_table(table)
    return cli.ANSWERED_IN_PART if any(row['error'] for row in result['trials']) else 0


if __name__ == '__main__':
    cli.run(main)
