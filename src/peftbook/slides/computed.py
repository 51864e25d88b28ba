"""Charts of what is computed: sizes, counts, errors and times that follow from shapes and rates, without any run."""

from __future__ import annotations

from dataclasses import replace

from peftbook.evidence.chart import Chart, Series
from peftbook.figures import bill, costs, family, lora, machines, prompt, quantisation, restraint
from peftbook.memory import SHAPES, training_step
from peftbook.methods import arm_looks
from peftbook.records import Store
from peftbook.slides.charts import chart

SHORT_NUMBERS = '[>=1000000000]0,,," bn";[>=1000000]0,," M";#,##0'


@chart
def parameter_counts(store: Store) -> Chart:
    """LoRA's trained parameters against rank for four sets of target layers of SmolLM2-135M; computed."""
    ranks = [float(2**k) for k in range(9)]
    looks = dict(zip(reversed(lora.TARGETS), ("lora", "qlora", "prompt", "fewshot"), strict=True))
    series = [
        Series(name, [r * lora.parameters_per_rank(lora.TARGETS[name]) for r in ranks], look, ranks)
        for name, look in looks.items()
    ]
    return Chart(series, "Rank r", "Trained parameters", log={"x": 4, "y": 10}, number_format="#,##0", x_format="0",
                 x_range=(1, 256), y_range=(1e4, 1e8))  # fmt: skip


@chart
def training_state(store: Store) -> Chart:
    """Gigabytes that training keeps for Llama-2-7B, activations not counted; computed."""
    arms = ["full", "lora", "qlora", "prompt"]
    parts = {"weights": "untuned", "gradients": "qlora", "optimiser": "lora"}
    series = [
        Series(part.capitalize(), [round(costs.state_bytes(arm)[part] / 1e9, 3) for arm in arms], look)
        for part, look in parts.items()
    ]
    labels = [arm_looks()[arm].label for arm in arms]
    return Chart(series, "", "GB kept in training", labels, horizontal=True, stacked=True, number_format="0")


@chart
def trained_numbers(store: Store) -> Chart:
    """Numbers that each method trains on Llama-2-7B; computed."""
    counts = family.trained_parameters(SHAPES["llama-2-7b"])
    shown = [name for name in family.MEMBERS if counts[name] and name not in ("dora", "adalora")]
    members = [family.MEMBERS[name] for name in shown]
    names = [", ".join(filter(None, (member.label, member.setting))) for member in members]
    labels = [f"{label}: {counts[name]:,}" for label, name in zip(names, shown, strict=True)]
    series = Series("Trained numbers", [float(counts[name]) for name in shown])
    return Chart([series], "", "Trained numbers of Llama-2-7B", labels, log={"y": 10}, y_range=(100, 1e10),
                 horizontal=True, number_format=SHORT_NUMBERS, gap=35,
                 point_looks=[member.tone for member in members])  # fmt: skip


@chart
def time_ratio(store: Store) -> Chart:
    """Time of LoRA's step over that of full fine-tuning, computed for two cards."""
    tokens = [float(2**power) for power in range(4, 17)]
    lines = {"A100": ("a100", "lora"), "H100": ("h100", "qlora")}
    series = [
        Series(label, [bill.time_ratio(count, bill.balance(card)) for count in tokens], look, tokens)
        for label, (card, look) in lines.items()
    ]
    series.append(Series("operations alone", [2 / 3] * 2, "full", [tokens[0], tokens[-1]], marks=False))
    return Chart(series, "Tokens in a step", "LoRA's time / full fine-tuning's", log={"x": 4}, number_format="0.0",
                 x_format="#,##0", x_range=(16, 65536), y_range=(0, 0.8))  # fmt: skip


@chart
def codebook_errors(store: Store) -> Chart:
    """Mean squared error of normal weights against block size, four codebooks; computed."""
    blocks = [float(block) for block in quantisation.BLOCKS]
    looks = {"NF4": "lora", "INT4": "full", "FP4 (bnb)": "qlora", "FP4 (E2M1)": "prompt"}
    books = quantisation.codebooks()
    series = [
        Series(name, [quantisation.mean_squared_error(books[name], int(block)) for block in blocks], look, blocks)
        for name, look in looks.items()
    ]
    return Chart(series, "Block size", "Mean squared error / variance", log={"x": 4}, number_format="0.00",
                 x_format="0", x_range=(16, 4096), y_range=(0, None))  # fmt: skip


@chart
def stored_bits(store: Store) -> Chart:
    """Bits of a stored weight against block size, with 32-bit and with doubly quantised constants; computed."""
    blocks = [16.0, 32.0, 64.0, 128.0, 256.0, 512.0]
    series = [
        Series(label, [quantisation.bits_per_parameter(int(block), double) for block in blocks], look, blocks)
        for double, label, look in ((False, "32-bit constants", "qlora"), (True, "double quantisation", "lora"))
    ]
    return Chart(series, "Weights that share a constant (block size)", "Bits per stored weight", log={"x": 2},
                 number_format="0.0", x_format="0", x_range=(16, 512), y_range=(4, 6))  # fmt: skip


@chart
def prompt_parameters(store: Store) -> Chart:
    """Trained numbers against virtual tokens, beside two adapters of the same model; computed."""
    lengths = [1.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0]
    series = [Series("Soft prompt", [float(prompt.prompt_parameters(int(n))) for n in lengths], "prompt", lengths)]
    for name, rank, look in (("q and v", 1, "qlora"), ("all linear", 16, "lora")):
        count = float(rank * lora.parameters_per_rank(lora.TARGETS[name]))
        series.append(Series(f"LoRA, {name}, r = {rank}", [count] * 2, look, [1.0, 200.0], marks=False))
    return Chart(series, "Virtual tokens", "Trained numbers", log={"x": 10, "y": 10}, number_format="#,##0",
                 x_format="0", x_range=(1, 1000), y_range=(100, 1e7))  # fmt: skip


@chart
def devices(store: Store) -> Chart:
    """Peak on each device for Llama-2-70B in shards; computed."""
    devices = [float(count) for count in machines.DEVICES]
    series = []
    for label, (setup, look, _) in machines.BY_DEVICES.items():
        steps = [training_step(SHAPES["llama-2-70b"], replace(setup, devices=int(count))) for count in devices]
        series.append(Series(label, [step.peak().total / 1e9 for step in steps], look, devices))
    return Chart(series, "Devices that share the model", "GB on each at the peak", log={"x": 2, "y": 10},
                 number_format="#,##0", x_format="0", x_range=(1, 32), y_range=(1, 10_000))  # fmt: skip


@chart
def break_even(store: Store) -> Chart:
    """Requests after which tuning has cost less than examples in the prompt; computed."""
    extra = [10.0, 100.0, 1000.0, 10_000.0]
    looks = dict(zip(restraint.TRAINED, ("lora", "qlora", "prompt"), strict=True))
    series = [
        Series(name, [restraint.requests_to_earn_back(runs * restraint.RUN_TOKENS, k) for k in extra], looks[name],
               extra)
        for name, runs in restraint.TRAINED.items()
    ]  # fmt: skip
    return Chart(series, "Tokens that the examples add to a request", "Requests until tuning has paid",
                 log={"x": 10, "y": 10}, number_format="#,##0", x_format="#,##0", x_range=(10, 10_000),
                 y_range=(1, 1e7))  # fmt: skip
