"""TensorFlow, imported when it is first needed, silent, and kept off the accelerator."""

import functools
import os
import re
from types import ModuleType


@functools.cache
def tf_cpu() -> ModuleType:
    """Returns `tensorflow`, which sees no accelerator: those belong to JAX.

    Raises:
      RuntimeError: TensorFlow was used before and holds an accelerator already.
    """
    # TensorFlow prints a traceback for each image that cannot be decoded, though it is caught. JAX
    # has set the level to 1 for itself by now.
    if os.environ.get('TF_CPP_MIN_LOG_LEVEL', '1') == '1':
        os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'
    # oneDNN announces itself on stderr, and its sums depend on the machine.
    os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')
    import tensorflow as tf

    for kind in ('GPU', 'TPU'):
        tf.config.set_visible_devices([], kind)
    tf.get_logger().setLevel('ERROR')
    return tf


def first_line(error: Exception) -> str:
    """What an error says, without TensorFlow's names of nodes and ops around it."""
    text = (str(error) or type(error).__name__).strip().split('\n')[0].strip('\'"')
    return re.sub(r'\{\{.*?\}\}\s*|\s*\[(\[|Op).*', '', text)
