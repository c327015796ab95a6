"""Prints what models cost: parameters, multiply-adds, activations and shapes.

    python -m experiments.models [MODEL] [--input=N] [--channels=N] [--num_classes=N]

Examples:
    python -m experiments.models                        a list of all models
    python -m experiments.models resnet50 --input=320   one model, stage by stage

Multiply-adds are the fused multiply-adds of convolutions and matrix products for one image in
evaluation; activations are the output values of these operations. Auxiliary heads are used in
training only; only 'parameters with auxiliary heads' includes them.
"""

from absl import flags

from vision.core import cli

FORMAT = flags.DEFINE_enum('format', 'table', ['table', 'json'], 'How the figures are printed.')
INPUT = flags.DEFINE_integer(
    'input', None, "Side of the image in pixels (default: the paper's).", 1
)
CHANNELS = flags.DEFINE_integer(
    'channels', None, "Channels of the image (default: the paper's).", 1
)
CLASSES = flags.DEFINE_integer('num_classes', None, "Number of classes (default: the paper's).", 1)


def main(argv: list[str]) -> None:
    """Prints the table of one model or of all models."""
    from vision.models import summary_tables

    options = (INPUT.value, CHANNELS.value, CLASSES.value)
    for line in summary_tables.describe(argv[1:], FORMAT.value, *options):
        print(line, flush=True)


if __name__ == '__main__':
    cli.run(main)
