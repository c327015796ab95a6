"""Trains every combination of a grid of values; the same command continues a stopped sweep.

    python -m experiments.sweep --config=FILE[:ARGUMENT] --workdir=DIR --grid=GRID [--config.KEY=…]

Examples:
    python -m experiments.sweep --config=configs/digits_lenet5.py --workdir=runs/lr \\
        --grid='optimizer.lr=0.1,0.03;seed=0,1,2'
    python -m experiments.sweep --config=configs/ablation.py:digits --workdir=runs/plain \\
        --grid='model.shortcut=A,none'

Each trial has a workdir in DIR. Exit code 3: some trials failed; their rows give the reasons.
"""

from absl import flags

from vision.core import cli
from vision.core.text import json_text

CONFIG = cli.define_config()
WORKDIR = flags.DEFINE_string('workdir', None, 'Folder for the workdirs of the trials.')
GRID = flags.DEFINE_string(
    'grid', None, "Values to combine, 'KEY=VALUE,VALUE;KEY=VALUE,…'; keys as in --config.KEY."
)
FORMAT = flags.DEFINE_enum('format', 'table', ['table', 'json'], 'How the table is printed.')


def main(argv: list[str]) -> int:
    """Trains the trials and prints their table."""
    cli.refuse_arguments(argv)
    cli.require(config=CONFIG.value, workdir=WORKDIR.value, grid=GRID.value)
    from vision.core.progress import phase
    from vision.core.text import print_table

    with phase('starting'):
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
