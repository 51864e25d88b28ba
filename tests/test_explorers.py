"""Interactive figures: the page's script computes what the package computes, from numbers of a few kilobytes."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch
from py_mini_racer import MiniRacer

from peftbook.memory import SHAPES
from peftbook.scratch.codebooks import codebook
from peftbook.scratch.nf4 import dequantize_blocks, quantize_blocks
from peftbook.views import figures
from peftbook.views.site import explorers

SCRIPT = Path(__file__).resolve().parents[1] / "book/assets/js/explorers.js"


@pytest.fixture(scope="module")
def ask():
    """Call a function of the script."""
    engine = MiniRacer()
    engine.eval(SCRIPT.read_text(encoding="utf-8").replace("export function", "function"))
    for kind, numbers in explorers.KINDS.items():
        engine.eval(f"const of_{kind} = {json.dumps(numbers())};")

    def asked(call: str):
        return json.loads(engine.eval(f"JSON.stringify({call})"))

    return asked


@pytest.mark.parametrize("label", explorers.CODEBOOKS)
@pytest.mark.parametrize("outlier", [0.3, 2.5, 11.9])
def test_the_quantiser_snaps_as_the_scratch_code_does(ask, label, outlier):
    """One block: the same values after quantisation."""
    weights = torch.tensor([outlier, *explorers.quantiser_numbers()["weights"][1:]])
    levels = codebook(explorers.CODEBOOKS[label])
    expected = dequantize_blocks(*quantize_blocks(weights, levels, explorers.BLOCK), levels, explorers.BLOCK)
    snapped = ask(f"quantised({weights.tolist()}, of_quantiser.levels['{label}'])")
    torch.testing.assert_close(torch.tensor(snapped), expected, atol=2e-5, rtol=1e-5)


def test_ranks_are_counted_and_spectra_summed(ask):
    """r (d_in + d_out) of every matrix; a flat spectrum leaves out its share of directions."""
    for name, label in explorers.MODELS.items():
        shape = SHAPES[name]
        count = ask(f"parameters(of_rank.models['{label}'], of_rank.targets['all'], 7)")
        assert count == 7 * shape.layers * sum(d_in + d_out for d_in, d_out in shape.linears.values())
    assert ask("left(200, 50, 0)") == pytest.approx(0.75)
    assert ask("left(200, 200, 1.3)") == pytest.approx(0)


@pytest.mark.parametrize("kind", explorers.KINDS)
def test_an_explorer_is_small_and_has_a_picture_behind_it(kind):
    """Kilobytes, a picture for readers without scripts, and no way out of its JSON."""
    shown = explorers.explore(kind, figures.lora.low_rank_update, name="one", alt="A.", caption="B.")
    assert shown.html.count("<img ") == 2 and f'data-explorer="{kind}"' in shown.html
    numbers = shown.html.partition('<script type="application/json">')[2].partition("</script>")[0]
    assert json.loads(numbers) == json.loads(json.dumps(explorers.KINDS[kind]()))
    assert len(gzip.compress(numbers.encode())) + len(gzip.compress(SCRIPT.read_bytes())) < 15_000
