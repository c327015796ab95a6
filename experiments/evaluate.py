"""Evaluates a trained run on one split, every example once.

python -m experiments.evaluate --workdir=DIR [--split=test] [--checkpoint=best|last|STEP]
"""

import json

from absl import flags

from vision.core import cli

WORKDIR = flags.DEFINE_string('workdir', None, 'The folder of the run.')
SPLIT = flags.DEFINE_string('split', 'test', 'train, validation or test.')
CHECKPOINT = flags.DEFINE_string('checkpoint', 'best', 'best, last or a step.')
SKIP_CORRUPT = flags.DEFINE_bool('skip_corrupt', False, 'Leave out images that cannot be read.')
FORMAT = flags.DEFINE_enum('format', 'table', ['table', 'json'], 'How the figures are printed.')


def main(argv: list[str]) -> None:
    """Evaluates, and prints the figures."""
    cli.refuse_arguments(argv)
    cli.require(workdir=WORKDIR.value)
    from vision.evaluation.run import evaluate_run, load_run

    metrics = evaluate_run(
        load_run(WORKDIR.value, CHECKPOINT.value), SPLIT.value, SKIP_CORRUPT.value
    )
    if FORMAT.value == 'json':
        print(json.dumps(metrics))
        return
    from rich.console import Console

    from vision.evaluation.tables import metrics_table

    title = f'{WORKDIR.value}, step {metrics["checkpoint"]}'
    Console().print(metrics_table({metrics['split']: metrics}, title))
    if metrics['corrupt']:
        print(f'{metrics["corrupt"]} images could not be read and were left out.')


if __name__ == '__main__':
    cli.run(main)
