"""bitsandbytes is imported without the compiler; the functions that it compiles are compiled when they are called."""

from __future__ import annotations

import subprocess
import sys

import torch

from peftbook.training import later

IMPORTS = """
import sys
import peftbook.training, torch
own = torch.compile
import bitsandbytes
assert torch.compile is own and "torch._inductor.compile_fx" not in sys.modules
ops = sys.modules["bitsandbytes.backends.default.ops"]
x, code = torch.randn(4, 64), bitsandbytes.functional.create_dynamic_map()
held = bitsandbytes.functional.quantize_4bit(x, quant_type="nf4")
told = bitsandbytes.functional.dequantize_4bit(*held)
assert torch.allclose(x, told, atol=0.5) and "torch._inductor.compile_fx" not in sys.modules
print(ops._dequantize_4bit_compute.__name__, "ready")
"""


def test_the_compiler_is_not_loaded_with_bitsandbytes_nor_by_what_it_does_on_a_cpu():
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True)
    assert done.stdout == "_dequantize_4bit_compute ready\n"


def test_what_is_put_off_is_compiled_once_when_it_is_called_with_its_options(monkeypatch):
    """By the `torch.compile` that was there, which is there again afterwards."""
    asked = []

    def compile_now(function, **options):
        asked.append((function, options))
        return lambda *args: ("compiled", *args)

    def twice(x):
        """Twice."""
        return 2 * x

    monkeypatch.setattr(torch, "compile", compile_now)
    with later.compiled_when_called():
        put_off = torch.compile(twice, dynamic=False)
    assert torch.compile is compile_now and not asked
    assert put_off.__name__ == "twice" and put_off(3) == put_off(3) == ("compiled", 3)
    assert asked == [(twice, {"dynamic": False})]


def test_it_is_put_in_place_once():
    """Though several modules may ask for it; other modules are not its business."""
    later.compile_later()
    (finder,) = [one for one in sys.meta_path if isinstance(one, later.Finder)]
    assert finder.find_spec("json") is None and finder.find_spec(later.MODULE + ".no", None) is None
