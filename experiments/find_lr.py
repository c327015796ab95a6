"""Suggests a learning rate by a range test, which raises it step by step until the loss explodes.

    python -m experiments.find_lr --config=FILE[:ARGUMENT] [--steps=150] [--config.KEY=VALUE …]

Examples:
    python -m experiments.find_lr --config=configs/digits_lenet5.py
    python -m experiments.find_lr --config=configs/digits_lenet5.py --config.optimizer.name=adamw
"""

from absl import flags

from vision.core import cli
from vision.core.text import json_text, output_file

CONFIG = cli.define_config()
OUTPUT = flags.DEFINE_string(
    'output', 'find_lr.png', 'Picture of the loss over the learning rate, a .png file.'
)
STEPS = flags.DEFINE_integer(
    'steps', 150, 'Steps in which the learning rate goes through its range.', 20
)
FORMAT = flags.DEFINE_enum('format', 'table', ['table', 'json'], 'How the suggestion is printed.')


def main(argv: list[str]) -> None:
    """Takes the steps, draws the losses and prints the suggestion."""
    cli.refuse_arguments(argv)
    cli.require(config=CONFIG.value)
    path = output_file('output', OUTPUT.value, ['.png'])
    from vision.core.progress import phase

    with phase('starting'):
        from vision.studies import lr_range
        from vision.training.setup import setup

    result = lr_range.find_lr(setup(CONFIG.value), STEPS.value)
    with phase('drawing'):
        lr_range.draw(result, path, f'{CONFIG.value.model.name}, {CONFIG.value.optimizer.name}')
    if FORMAT.value == 'json':
        print(json_text(result | {'picture': str(path)}))
        return
    rate, lowest = result['suggestion'], result['lowest']
    print(f'--config.optimizer.lr={rate:.2g} (the loss falls most steeply there)')
    print(
        f'The loss is lowest at {lowest:.2g}; higher learning rates are too high. Picture: {path}'
    )


if __name__ == '__main__':
    cli.run(main)
