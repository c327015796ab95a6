"""Looks for a learning rate: the rate grows from step to step until the loss explodes.

python -m experiments.find_lr --config=configs/NAME.py[:ARG] [--output=find_lr.png] [--config.a.b=VALUE …]
"""

from absl import flags

from vision.core import cli
from vision.core.text import json_text, output_file

CONFIG = cli.define_config()
OUTPUT = flags.DEFINE_string('output', 'find_lr.png', 'The picture.')
STEPS = flags.DEFINE_integer('steps', 150, 'Of the whole range.', 20)
FORMAT = flags.DEFINE_enum('format', 'table', ['table', 'json'], 'what to print')


def main(argv: list[str]) -> None:
    """Runs the test, draws it and prints the suggestion."""
    cli.refuse_arguments(argv)
    cli.require(config=CONFIG.value)
    path = output_file('output', OUTPUT.value, ['.png'])
    from vision.studies import lr_range
    from vision.training.setup import setup

    result = lr_range.find_lr(setup(CONFIG.value), STEPS.value)
    lr_range.draw(result, path, f'{CONFIG.value.model.name}, {CONFIG.value.optimizer.name}')
    if FORMAT.value == 'json':
        print(json_text(result | {'picture': str(path)}))
        return
    rate, lowest = result['suggestion'], result['lowest']
    print(f'--config.optimizer.lr={rate:.2g} (the loss falls most steeply there)')
    print(f'The loss is lowest at {lowest:.2g}; beyond that is too much. Picture: {path}')


if __name__ == '__main__':
    cli.run(main)
