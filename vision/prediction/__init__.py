"""Step 6, predict: classify new images with a trained run."""

from vision.prediction.classifier import Classifier

__all__ = ['Classifier']
