"""What a training step holds in memory, computed from a model's settings: tables of terms, without torch.

    from peftbook.memory import Setup, read_shape, training_step
    training_step(read_shape("llama-2-7b"), Setup(method="lora", quantised="nf4")).peak()

A step is walked through on sizes instead of numbers: every operation of the forward pass notes what it reads, writes
and keeps for backward, by the rules of autograd; undoing them one by one gives what is there at every moment. Nothing
is fitted.
"""

from peftbook.memory.configuration import Configuration
from peftbook.memory.fit import Fit, bytes_of_text, fit
from peftbook.memory.setup import TARGETS, Setup
from peftbook.memory.shapes import SHAPES, DecoderShape, read_shape, shape_from_config
from peftbook.memory.step import Step, training_step

__all__ = [
    "SHAPES",
    "TARGETS",
    "Configuration",
    "DecoderShape",
    "Fit",
    "Setup",
    "Step",
    "bytes_of_text",
    "fit",
    "read_shape",
    "shape_from_config",
    "training_step",
]
