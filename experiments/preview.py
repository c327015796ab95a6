"""Shows what a model would be fed, and what is wrong with the data.

python -m experiments.preview --config=configs/NAME.py[:ARG] [--output=DIR] [--config.a.b=VALUE …]

The page is DIR/index.html: copies, images that are blurred, dark, tiny or cannot be read, and what the model
is fed. Exit code 3: training would refuse the data; all that it would refuse is listed.
"""

import sys

from absl import flags

from vision.core import cli
from vision.core.text import json_text

CONFIG = cli.define_config()
OUTPUT = flags.DEFINE_string('output', 'runs/preview', 'The folder that the pictures go to.')
FORMAT = flags.DEFINE_enum('format', 'table', ['table', 'json'], 'what to print')


def main(argv: list[str]) -> int:
    """Writes the pictures and prints the summary."""
    cli.refuse_arguments(argv)
    cli.require(config=CONFIG.value)
    from vision.studies.input_preview import preview, text

    summary = preview(CONFIG.value, OUTPUT.value)
    # A file's name may be no UTF-8.
    sys.stdout.reconfigure(errors='backslashreplace')  # type: ignore[union-attr]
    if FORMAT.value == 'json':
        print(json_text(summary, ensure_ascii=False))
    else:
        print(text(summary))
        print(f'The page: {OUTPUT.value}/index.html')
    return cli.ANSWERED_IN_PART if summary['faults'] else 0


if __name__ == '__main__':
    cli.run(main)
