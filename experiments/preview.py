"""Shows the model's input images and the faults of the data.

    python -m experiments.preview --config=FILE[:ARGUMENT] [--output=DIR] [--config.KEY=VALUE …]

Examples:
    python -m experiments.preview --config=configs/digits_lenet5.py
    python -m experiments.preview --config=configs/folder_finetune.py --config.data.path=DIR

The page is index.html in --output. It shows the preprocessed images, copies, and images that are
blurred, dark, tiny or unreadable. Exit code 3: training would refuse the data; the page lists all
reasons.
"""

import sys

from absl import flags

from vision.core import cli
from vision.core.text import json_text

CONFIG = cli.define_config()
OUTPUT = flags.DEFINE_string('output', 'runs/preview', 'Folder for the page and its pictures.')
FORMAT = flags.DEFINE_enum('format', 'table', ['table', 'json'], 'How the summary is printed.')


def main(argv: list[str]) -> int:
    """Writes the page and prints the summary."""
    cli.refuse_arguments(argv)
    cli.require(config=CONFIG.value)
    from vision.core.progress import phase

    with phase('starting'):
        from vision.studies.input_preview import preview, text

    summary = preview(CONFIG.value, OUTPUT.value)
    # A file's name may not be UTF-8.
    sys.stdout.reconfigure(errors='backslashreplace')  # type: ignore[union-attr]
    if FORMAT.value == 'json':
        print(json_text(summary, ensure_ascii=False))
    else:
        print(text(summary))
        print(f'The page: {OUTPUT.value}/index.html')
    return cli.ANSWERED_IN_PART if summary['faults'] else 0


if __name__ == '__main__':
    cli.run(main)
