"""What importing the libraries puts off: walks of the collector, the compiler, and packages that nobody calls."""

from __future__ import annotations

import gc
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers.utils import import_utils

from peftbook import later

IMPORTS = """
import gc, sys
import peftbook.training, torch
walks = [generation["collections"] for generation in gc.get_stats()]
import transformers.modeling_utils
from transformers.loss.loss_for_object_detection import linear_sum_assignment
assert "scipy.optimize" not in sys.modules
assert gc.isenabled() and gc.get_freeze_count() > 100_000
assert walks[2] == gc.get_stats()[2]["collections"] == 0
own = torch.compile
import bitsandbytes
assert torch.compile is own and "torch._inductor.compile_fx" not in sys.modules
ops = sys.modules["bitsandbytes.backends.default.ops"]
x, code = torch.randn(4, 64), bitsandbytes.functional.create_dynamic_map()
held = bitsandbytes.functional.quantize_4bit(x, quant_type="nf4")
told = bitsandbytes.functional.dequantize_4bit(*held)
assert torch.allclose(x, told, atol=0.5) and "torch._inductor.compile_fx" not in sys.modules
assert linear_sum_assignment([[4, 1, 3], [2, 0, 5], [3, 2, 2]])[1].tolist() == [1, 0, 2]
from scipy.optimize import linear_sum_assignment as own
assert own([[1, 0], [0, 1]])[1].tolist() == [1, 0] and own is not linear_sum_assignment
print(ops._dequantize_4bit_compute.__name__, "ready")
import bert_score, rouge_score.rouge_scorer
assert not {"matplotlib", "mpl_toolkits", "nltk", "pandas"} & {*sys.modules}
stemming = rouge_score.rouge_scorer.RougeScorer(["rouge1"], use_stemmer=True)
assert stemming.score("they run", "they running")["rouge1"].fmeasure == 1 and "nltk" in sys.modules
assert bert_score.scorer.pd.Series([1, 2]).sum() == 3
"""


def test_neither_collector_nor_compiler_has_work_with_an_import():
    """The compiler is not loaded with bitsandbytes, nor by what that does on a CPU; nor what scores do not need, until
    it is called.
    """
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True)
    assert done.stdout == "_dequantize_4bit_compute ready\n"


def test_no_cycle_is_looked_for_inside_nor_what_is_made_there_ever_after():
    """Within another, the outer one decides; an error on the way leaves the collector as it was."""
    with later.uncollected():
        with later.uncollected():
            pass
        assert not gc.isenabled()
        made = [[] for _ in range(1000)]
    with pytest.raises(ImportError), later.uncollected():
        raise ImportError
    assert gc.isenabled() and not {id(one) for one in made} & {id(one) for one in gc.get_objects()}


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


def test_models_that_are_read_once_export_what_they_export():
    """By the same module without our part; each of the folders is remembered."""
    spec = importlib.util.spec_from_file_location("transformers.utils.import_utils_alone", import_utils.__file__)
    alone = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(alone)
    models = Path(import_utils.__file__).parents[1] / "models"
    assert import_utils.define_import_structure(models, "m") == alone.define_import_structure(models, "m")
    assert import_utils.create_import_structure_from_path.cache_info().currsize > 400
    for text in ("", "x = 1", "__all__ = ['a', 'b']\nx = 1\n", "\n__all__ = ['a']\n__all__ = [\n    'b',\n]\n"):
        assert import_utils.fetch__all__(text) == alone.fetch__all__(text)


def test_it_is_put_in_place_once():
    """Though several modules may ask for it; other modules are not its business."""
    later.put_off()
    (finder,) = [one for one in sys.meta_path if isinstance(one, later.Finder)]
    assert finder.find_spec("json") is None and finder.find_spec("torch.no") is None
