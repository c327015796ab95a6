"""Exports a classifier as a StableHLO program from uint8 images to probabilities, for JAX alone.

    python -m experiments.export --workdir=DIR|--pretrained=SOURCE --output=FILE [--nofold]

Examples:
    python -m experiments.export --workdir=runs/digits --output=digits.stablehlo
    python -m experiments.export --pretrained=efficientnet_lite0 --output=lite0.stablehlo

Before the file is moved into place, the probabilities of the exported model are compared with those
of the classifier: on images of the run's own data or, for pretrained weights, on drawn images. The
file runs on the JAX version that wrote it and on newer ones.
"""

from absl import flags

from vision.core import cli
from vision.core.text import json_text, output_file
from vision.prediction.model_flags import ModelFlags

MODEL = ModelFlags()
OUTPUT = flags.DEFINE_string('output', None, 'File to write.')
FOLD = flags.DEFINE_bool('fold', True, 'Fold BatchNorm into the convolutions, which is faster.')
FORMAT = flags.DEFINE_enum('format', 'table', ['table', 'json'], 'How the outcome is printed.')


def main(argv: list[str]) -> None:
    """Exports the classifier and prints what is in the file."""
    cli.refuse_arguments(argv)
    MODEL.check()
    cli.require(output=OUTPUT.value)
    path = output_file('output', OUTPUT.value)
    from vision.core.progress import phase

    with phase('starting'):
        from vision.prediction.stablehlo import export

        classifier = MODEL.load(FOLD.value)
    with phase('exporting and checking'):
        about = export(classifier, path)
    if FORMAT.value == 'json':
        print(json_text(about))
        return
    print(
        f'{about["output"]}: {about["bytes"]:,} bytes; uint8 [B, {", ".join(map(str, about["input"]))}] '
        f'-> float32 [B, {about["classes"]}]; {about["checked"]} images give the same probabilities '
        f'within {about["largest_difference"]:.1e}'
    )


if __name__ == '__main__':
    cli.run(main)
