"""Compares runs: draws their curves, prints their metrics and tests whether the runs differ.

    python -m experiments.compare RUN RUN… [--output=compare.png] [--split=test]

Examples:
    python -m experiments.compare runs/a runs/b
    python -m experiments.compare runs/sweep/*/ --output=sweep.png --format=json

McNemar's exact test compares the predictions of each pair of runs for the same examples.
"""

from absl import flags

from vision.core import cli
from vision.core.text import json_text, output_file

OUTPUT = flags.DEFINE_string('output', 'compare.png', 'Picture of the curves, a .png file.')
SPLIT = flags.DEFINE_string('split', 'test', "Split whose examples McNemar's test uses.")
FORMAT = flags.DEFINE_enum('format', 'table', ['table', 'json'], 'How the figures are printed.')


def main(argv: list[str]) -> None:
    """Compares the runs, draws their curves and prints their metrics."""
    path = output_file('output', OUTPUT.value, ['.png'])
    from vision.core.progress import phase

    with phase('starting'):
        from vision.studies.comparison import compare, compare_tables, draw_curves

    result = compare(argv[1:], SPLIT.value)
    with phase('drawing'):
        draw_curves(argv[1:]).savefig(path)
    if FORMAT.value == 'json':
        print(json_text(result | {'picture': str(path)}))
        return
    from vision.core.text import print_table

    for table in compare_tables(result):
        print_table(table)
    print(f'Picture: {path}')


if __name__ == '__main__':
    cli.run(main)
