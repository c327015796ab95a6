"""Compares runs: their curves in one picture, their figures in one table, and whether they differ.

python -m experiments.compare RUN… [--output=compare.png] [--split=test] [--format=json]

McNemar's exact test is made of each two runs' answers for the same test examples.
"""

from absl import flags

from vision.core import cli
from vision.core.text import json_text, output_file

OUTPUT = flags.DEFINE_string('output', 'compare.png', 'The picture of the curves.')
SPLIT = flags.DEFINE_string('split', 'test', 'Whose examples the test takes.')
FORMAT = flags.DEFINE_enum('format', 'table', ['table', 'json'], 'what to print')


def main(argv: list[str]) -> None:
    """Compares, draws and prints."""
    path = output_file('output', OUTPUT.value, ['.png'])
    from vision.studies.comparison import compare, compare_tables, draw_curves

    result = compare(argv[1:], SPLIT.value)
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
