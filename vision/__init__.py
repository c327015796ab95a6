"""Image classification in JAX. Importing it sets nothing: see `vision.core.startup`."""

import vision.models.cpu.startup  # noqa: F401 - fast forms for CPUs: see vision/models/cpu
