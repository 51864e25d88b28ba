"""In which type runs are computed: measured on a CPU, by capability on a GPU, as asked where a user asks."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest
import torch

from peftbook.core import specs
from peftbook.core.errors import InputError
from peftbook.runtime import precision
from peftbook.runtime.precision import Products, chosen_dtype, gpu_dtype


@pytest.fixture
def unknown_machine(monkeypatch, tmp_path):
    """A cache in which nothing is known of this machine."""
    monkeypatch.setenv("PEFTBOOK_CACHE", str(tmp_path))
    precision.products_here.cache_clear()
    precision.gpu_capability.cache_clear()
    yield tmp_path
    precision.products_here.cache_clear()
    precision.gpu_capability.cache_clear()


@pytest.mark.parametrize(("bf16", "fp32", "wanted"), [(400e9, 100e9, "bf16"), (8e9, 70e9, "fp32"), (1e9, 1e9, "fp32")])
def test_a_cpu_computes_in_what_it_multiplies_faster(unknown_machine, monkeypatch, bf16, fp32, wanted):
    """Where both are as fast, float32 has the better arithmetic."""
    monkeypatch.setattr(precision, "measure_products", lambda: Products(bf16, fp32))
    assert chosen_dtype() == chosen_dtype("auto", "cpu") == wanted


def test_what_is_asked_for_is_taken_without_a_measurement(unknown_machine, monkeypatch):
    """And every name but auto is one that a run knows."""
    monkeypatch.setattr(precision, "measure_products", lambda: pytest.fail("measured"))
    for name in specs.Run.model_fields["dtype"].annotation.__args__:
        assert chosen_dtype(name, "cuda") == name


def test_an_unknown_type_is_refused_by_name():
    """With the choice."""
    with pytest.raises(InputError, match=r"'bf15': choose auto, fp32, bf16, fp16"):
        chosen_dtype("bf15")


@pytest.mark.parametrize(
    ("name", "capability", "wanted"),
    [("P100", (6, 0), "fp32"), ("V100", (7, 0), "fp16"), ("T4", (7, 5), "fp16"), ("A100", (8, 0), "bf16"),
     ("RTX 3090", (8, 6), "bf16"), ("H100", (9, 0), "bf16"), ("B200", (10, 0), "bf16")],
)  # fmt: skip
def test_a_gpu_computes_in_what_its_tensor_cores_have(unknown_machine, monkeypatch, name, capability, wanted):
    """By its compute capability, which a made-up device says."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert chosen_dtype("auto", "cuda") == gpu_dtype(*capability) == wanted


def test_a_gpu_that_is_not_there_is_one_sentence(unknown_machine, monkeypatch):
    """With the platform to use."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="use platform 'cpu' here"):
        chosen_dtype("auto", "cuda")


def test_a_machine_is_measured_once(unknown_machine, monkeypatch):
    """A later process reads what the first one kept; a file that is broken is measured again."""
    monkeypatch.setattr(precision, "measure_products", lambda: Products(3.0, 2.0))
    assert precision.products_here() == Products(3.0, 2.0)
    precision.products_here.cache_clear()
    monkeypatch.setattr(precision, "measure_products", lambda: Products(1.0, 2.0))
    assert precision.products_here() == Products(3.0, 2.0)
    precision.products_here.cache_clear()
    precision.machine_file("products").write_text("{")
    assert precision.products_here() == Products(1.0, 2.0)


def test_a_processor_that_plays_a_plainer_one_is_another_machine(unknown_machine, monkeypatch):
    """What was measured with all instructions says nothing of fewer."""
    for name in precision.INSTRUCTION_SETS:
        monkeypatch.delenv(name, raising=False)
    whole = precision.machine_file("products")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert precision.machine_file("products") != whole


def test_a_process_without_torch_asks_another_one(unknown_machine):
    """The type is known to pages and commands that never load torch."""
    code = (
        "import sys\nfrom peftbook.runtime.precision import chosen_dtype\nfound = chosen_dtype()\n"
        "assert 'torch' not in sys.modules\nprint(found)"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    kept = Products(**json.loads(precision.machine_file("products").read_text()))
    assert printed == ("bf16" if kept.native else "fp32")


@pytest.mark.plain
def test_a_processor_without_bf16_is_found_out_in_a_moment(monkeypatch):
    """Of a product that takes a second at full size only small ones are made; threads are as before."""
    own, threads = torch.nn.functional.linear, torch.get_num_threads()

    def slow(x, w):
        if x.dtype == torch.bfloat16:
            until = time.thread_time() + 2 * x.shape[0] * w.numel() / 0.5e9
            while time.thread_time() < until:
                pass
        return own(x, w)

    monkeypatch.setattr(torch.nn.functional, "linear", slow)
    began = time.thread_time()
    products = precision.measure_products()
    assert time.thread_time() - began < 0.5
    assert not products.native and products.bf16 < 1e9 < products.fp32
    assert torch.get_num_threads() == threads


@pytest.mark.plain
def test_a_processor_that_plays_a_plainer_one_computes_in_float32():
    """In this very process, where it does: nothing that may choose computes in what its instructions lack."""
    limits = precision.instruction_limits()
    if "AVX2" in limits:
        assert not precision.measure_products().native
    assert bool(limits) is any(name in limits for name in precision.INSTRUCTION_SETS)
