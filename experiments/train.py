"""Trains a model as a config says.

python -m experiments.train --config=configs/NAME.py[:ARG] --workdir=DIR [--config.a.b=VALUE …]
"""

from absl import flags

from vision.core import cli

CONFIG = cli.define_config()
WORKDIR = flags.DEFINE_string('workdir', None, 'The folder that the run lives in.')


def main(argv: list[str]) -> None:
    """Trains, and prints the table of what came out."""
    cli.refuse_arguments(argv)
    cli.require(config=CONFIG.value, workdir=WORKDIR.value)
    from rich.console import Console

    from vision.training import train
    from vision.training.display import results_table

    Console().print(results_table(train(CONFIG.value, WORKDIR.value), WORKDIR.value))


if __name__ == '__main__':
    cli.run(main)
