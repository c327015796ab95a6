"""Flags of the commands that take a trained run or pretrained weights."""

from typing import TYPE_CHECKING

from absl import flags

from vision.core.errors import UserError

if TYPE_CHECKING:
    from vision.prediction.classifier import Classifier


class ModelFlags:
    """The flags --workdir and --checkpoint, --pretrained and --model, which name a classifier."""

    def __init__(self) -> None:
        """Defines the flags."""
        self.workdir = flags.DEFINE_string('workdir', None, 'Folder of the run.')
        self.checkpoint = flags.DEFINE_string(
            'checkpoint', 'best', "The run's checkpoint: best, last or a step."
        )
        self.pretrained = flags.DEFINE_string(
            'pretrained',
            None,
            'Weights to use instead of a run: efficientnet_lite0 (lite1, lite2), FILE.safetensors, FILE.pth or hf:org/name.',
        )
        self.model = flags.DEFINE_string(
            'model', None, 'Model of --pretrained, where the weights do not tell.'
        )

    @property
    def named(self) -> bool:
        """True if a run or weights are named."""
        return self.workdir.value is not None or self.pretrained.value is not None

    def check(self, required: bool = True) -> None:
        """Raises UserError unless one model is named, and no flag is without effect.

        Args:
          required: False for a command that can do without a model.
        """
        both_or_none = (self.workdir.value is None) == (self.pretrained.value is None)
        if both_or_none and (required or self.named):
            raise UserError('give either --workdir=DIR or --pretrained=SOURCE; see --help')
        for flag, other in ((self.model, self.pretrained), (self.checkpoint, self.workdir)):
            if flag.present and other.value is None:
                raise UserError(f'--{flag.name} needs --{other.name}')

    def load(self, fold: bool = True, classify: bool = True) -> 'Classifier':
        """Loads the classifier; see `Classifier.from_pretrained` for the arguments.

        Raises:
          UserError: the run or the weights cannot be read.
        """
        from vision.prediction.classifier import Classifier

        if self.pretrained.value is not None:
            return Classifier.from_pretrained(
                self.pretrained.value, self.model.value, fold, classify
            )
        assert self.workdir.value is not None  # see `check`
        return Classifier.from_workdir(self.workdir.value, self.checkpoint.value, fold)
