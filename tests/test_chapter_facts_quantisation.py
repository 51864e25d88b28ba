"""What the chapters on quantisation and on bases say about libraries and the book's model, held against what is there.

When one of these fails, the library has changed: reread the sentence in the chapter.
"""

from __future__ import annotations

import inspect
from pathlib import Path

import bitsandbytes.functional as bnb
import peft.tuners.lora as peft_lora
import torch
from bitsandbytes.nn import Linear4bit
from safetensors import safe_open
from scipy import special
from transformers import BitsAndBytesConfig, GPTQConfig
from transformers.integrations.finegrained_fp8 import FP8Linear, FP8LinearFunction
from transformers.integrations.nvfp4 import NVFP4Linear
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

from peftbook.scratch.codebooks import round_trip
from peftbook.training.models import prepare_embedded


def default(function, name: str):
    """The default of a parameter."""
    return inspect.signature(function).parameters[name].default


def test_no_door_defaults_to_the_format_of_qlora():
    """FP4 at every one; double quantisation at the layer alone."""
    assert default(bnb.quantize_4bit, "quant_type") == default(Linear4bit, "quant_type") == "fp4"
    assert default(bnb.quantize_4bit, "compress_statistics") is False
    assert default(Linear4bit, "compress_statistics") is True
    config = BitsAndBytesConfig()
    assert config.bnb_4bit_quant_type == "fp4" and config.bnb_4bit_use_double_quant is False


def test_fp4_of_bitsandbytes_is_not_e2m1():
    """Its magnitudes are those that the chapter prints."""
    levels = bnb.get_4bit_type("fp4", device="cpu").unique()
    torch.testing.assert_close(levels[levels >= 0] * 12, torch.tensor([0, 0.0625, 2, 3, 4, 6, 8, 12]))


def test_constants_are_quantised_by_the_dynamic_map_after_their_mean():
    """The paper says FP8; the library takes the mean off and stores a signed dynamic code in blocks of 256."""
    w = torch.randn(64 * 600, generator=torch.Generator().manual_seed(0))
    _, state = bnb.quantize_4bit(w, quant_type="nf4", compress_statistics=True)
    absmax = w.view(-1, 64).abs().amax(1)
    torch.testing.assert_close(state.offset, absmax.mean())
    assert state.state2.blocksize == 256 and state.absmax.dtype == torch.uint8
    torch.testing.assert_close(state.state2.code, bnb.create_dynamic_map(signed=True))


def test_the_formula_gives_the_table_but_for_its_float32_grid():
    """Probabilities in double precision leave less than 2e-7; equation 4 of the paper starts at minus infinity."""
    delta, table = 0.9677083, bnb.get_4bit_type("nf4", device="cpu").double()
    positive = [special.ndtri(delta - (delta - 0.5) * j / 8) / special.ndtri(delta) for j in range(8)]
    negative = [-special.ndtri(delta - (delta - 0.5) * j / 7) / special.ndtri(delta) for j in range(7)]
    formula = torch.tensor(sorted([*negative, 0.0, *positive]))
    assert 0 < (formula - table).abs().max() < 2e-7
    assert special.ndtri(0) + special.ndtri(1 / 17) == -float("inf")


def test_the_comment_over_the_table_says_that_bins_are_equal():
    """The chapter quotes it as an example of the error."""
    assert "equal probability mass" in inspect.getsource(bnb.get_4bit_type)


def test_the_book_s_base_was_quantised_before():
    """Its linear layers are Q4_1 bit for bit; scaled, the two constants of a block are rounded to float16 anew."""
    with safe_open(prepare_embedded() / "model.safetensors", "pt") as file:
        names = [name for name in file.offset_keys() if name.endswith("_proj.weight")]
        for name in (names[0], names[len(names) // 2], names[-1]):
            w = file.get_tensor(name)
            assert torch.equal(round_trip(w, "q4_1", 32), w)
            w = w / w.square().mean().sqrt()
            assert 0 < (round_trip(w, "q4_1", 32) - w).square().mean() < 1e-5


def trainable(name: str) -> bool:
    """What a quantiser of transformers says of itself, without a model."""
    quantizer = AUTO_QUANTIZER_MAPPING[name]
    return quantizer.is_trainable.fget(object.__new__(quantizer))


def test_transformers_trains_over_the_bases_of_the_table():
    """Those with a property that hangs on other packages or settings are read in their source."""
    for name in ("bitsandbytes_4bit", "gptq", "hqq", "fp8"):
        assert trainable(name)
    for name in ("fbgemm_fp8", "mxfp4", "nvfp4"):
        assert not trainable(name)
    awq, compressed = (inspect.getsource(AUTO_QUANTIZER_MAPPING[name]) for name in ("awq", "compressed-tensors"))
    assert 'version("gptqmodel")) >= version.parse("5.0.0")' in awq
    assert "return not self.use_fp8_kernel" in compressed
    loads_only = {name for name in ("awq", "compressed-tensors") if AUTO_QUANTIZER_MAPPING[name].requires_calibration}
    assert loads_only == {"awq", "compressed-tensors"}
    for name in ("bitsandbytes_4bit", "gptq", "hqq", "fp8", "fbgemm_fp8", "mxfp4", "nvfp4"):
        assert not AUTO_QUANTIZER_MAPPING[name].requires_calibration
    assert "auto_trainable" in (GPTQConfig.__doc__ or "")


def test_fp8_has_a_backward_pass_and_nvfp4_a_layer_that_peft_does_not_know():
    """peft wraps what is a linear layer of torch."""
    assert issubclass(FP8Linear, torch.nn.Linear) and "_dequantize_fp8_weight" in inspect.getsource(
        FP8LinearFunction.backward
    )
    assert not issubclass(NVFP4Linear, torch.nn.Linear)


def test_peft_merges_into_some_bases_and_not_into_others():
    """Layers of packages that are not installed are read in their source; QA-LoRA is GPTQ's alone."""
    sources = {
        name: (Path(peft_lora.__file__).parent / f"{name}.py").read_text() for name in ("gptq", "awq", "hqq", "bnb")
    }
    assert {name for name, text in sources.items() if "def merge(" in text} == {"hqq", "bnb"}
    assert {name for name, text in sources.items() if "use_qalora" in text} == {"gptq"}
