"""Fast forms of layers on CPUs, and the start-up settings that go with them.

`fast` registers the forms with `vision.models.layers`, `startup` the settings with `vision.core.startup`. Two lines outside
this folder import them, in `vision/models/layers.py` and `vision/__init__.py`. Delete the folder and the two lines, and
every layer is XLA's own.
"""
