"""The time model: its operations are those of the byte model, and its laws are those of what they say they measure."""

import json
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from peftbook.core import specs
from peftbook.core.records import Record, Store
from peftbook.memory import Configuration, DecoderShape, Setup, training_step
from peftbook.memory.time_model import Curve, ProductLaw, Rates, layers_seconds, step_seconds
from peftbook.studies import activations, get_study
from peftbook.studies import step_seconds as study
from peftbook.training import calibration
from peftbook.training.probes import seconds as probes
from peftbook.training.products import half_products
from peftbook.training.random_model import random_ids, subject

pytestmark = [  # peft's calls of names that transformers is giving up
    pytest.mark.filterwarnings("ignore:.past_key_values. is deprecated:FutureWarning"),
]

SHAPE = DecoderShape(layers=4, hidden=64, ffn=160, heads=4, kv_heads=2, vocab=512, tied=True)
CPU = Setup(rank=4, length=6, batch=2, seq=24, device="cpu")
NOTHING = Curve((1.0,), (1e-300,))


def rates(each_flop: float = 0.0, each_byte: float = 0.0, curve: Curve = NOTHING, operation: float = 0.0) -> Rates:
    """Rates with a price for some things alone."""
    law, dtypes = ProductLaw(each_flop, each_byte), ("bf16", "fp32")
    laws, curves = dict.fromkeys(dtypes, law), dict.fromkeys(dtypes, curve)
    fused = dict.fromkeys(dtypes, (each_flop, each_flop))
    return Rates(laws, laws, fused, curves, curves, 0.0, 0.0, operation)


MACHINE = rates(1e-9, 1e-8, Curve((10.0, 1e4), (1e-6, 1e-4)), 1e-5)
SETUPS = {
    "lora": CPU, "full": replace(CPU, method="full"), "eager": replace(CPU, attention="eager"),
    "checkpointed": replace(CPU, checkpointing=True), "qlora": replace(CPU, quantised="nf4"),
    "prompt": replace(CPU, method="prompt"), "prefix": replace(CPU, method="prefix"),
    "labels": replace(CPU, labels=9, dtype="fp32", autocast=True, held=True),
}  # fmt: skip


@pytest.mark.parametrize("setup", SETUPS.values(), ids=SETUPS)
def test_at_a_second_a_flop_a_step_takes_as_many_seconds_as_the_byte_model_counts_flops(setup):
    """Every product is timed once: forward, backward, and again where layers are checkpointed."""
    step = training_step(SHAPE, setup)
    found = step_seconds(SHAPE, setup, rates(each_flop=1.0))
    assert sum(found.values()) == pytest.approx(sum(step.numbers(step.flops).values()), rel=1e-9)


@pytest.mark.parametrize("setup", SETUPS.values(), ids=SETUPS)
def test_many_steps_at_once_are_each_step(setup):
    """Arrays of rows and tokens give the seconds that each of them gives."""
    rows, tokens = np.array([1, 2, 5]), np.array([24, 31, 40])
    more = setup.symbols["k"] - setup.symbols["s"]
    symbols = {"b": rows, "s": tokens, "t": tokens + setup.symbols["t"] - 24, "k": tokens + more, "n": rows * 3}
    together = step_seconds(SHAPE, setup, MACHINE, symbols)
    for index in range(3):
        one = step_seconds(SHAPE, setup, MACHINE, {name: int(values[index]) for name, values in symbols.items()})
        for part, seconds in one.items():
            assert np.broadcast_to(together[part], 3)[index] == pytest.approx(float(seconds), rel=1e-9), part


def test_layers_that_are_alike_take_equally_long():
    """Each further layer adds the same seconds to every part."""
    found = [step_seconds(replace(SHAPE, layers=n, sliding=()), CPU, MACHINE) for n in (4, 5, 9)]
    for part in found[0]:
        each = found[1][part] - found[0][part]
        assert found[2][part] - found[1][part] == pytest.approx(4 * each, rel=1e-6, abs=1e-12), part


def test_a_pass_through_the_layers_leaves_out_the_head():
    """A step is its layers, its head and its optimiser: only the first are in a pass over what all rows share."""
    machine = rates(each_flop=1.0)
    wide = replace(SHAPE, vocab=4096)
    assert sum(layers_seconds(wide, CPU, machine, {}).values()) == sum(layers_seconds(SHAPE, CPU, machine, {}).values())
    head = 2 * 2 * 24 * 64 * SHAPE.vocab * 2  # forward, and the gradient of its input
    whole = sum(step_seconds(SHAPE, CPU, machine).values())
    assert whole - sum(layers_seconds(SHAPE, CPU, machine, {}).values()) == pytest.approx(head)


def test_with_fewer_threads_what_is_computed_takes_longer_and_starting_an_operation_does_not():
    """Products in proportion; of the elementwise operations what is more than the seconds of the fewest elements."""
    products, starting = rates(1e-9, 1e-8), rates(operation=1e-5)
    flat, rising = rates(curve=Curve((10.0, 1e9), (1e-6, 1e-6))), rates(curve=Curve((10.0, 1e4), (1e-6, 1e-4)))
    for machine, low, high in ((products, 1.7, 1.7), (starting, 1, 1), (flat, 1, 1), (rising, 1.01, 1.7)):
        alone, slower = (sum(step_seconds(SHAPE, CPU, one).values()) for one in (machine, machine.slowed(1.7)))
        assert low * (1 - 1e-9) <= float(slower / alone) <= high * (1 + 1e-9)
        assert machine.slowed(1.0) == machine


def test_a_curve_goes_through_its_points_and_on_in_proportion():
    """Between two points it is a power law, beyond the last one linear, and nothing takes no time."""
    curve = Curve((10.0, 1000.0), (1e-6, 1e-5))
    assert [float(curve(count)) for count in (0, 1, 10, 100, 1000, 5000)] == pytest.approx(
        [0.0, 1e-6, 1e-6, 1e-5 / np.sqrt(10), 1e-5, 5e-5]
    )


def test_rates_are_read_as_they_were_written():
    """Through JSON text."""
    assert Rates.from_json(json.loads(json.dumps(MACHINE.as_json()))) == MACHINE


def timed(store: Store, off: float) -> None:
    """Records of the whole study from a machine of one speed, whose steps all take `off` times what is predicted."""
    machine = rates(1e-10, curve=Curve((1.0,), (1e-9,)))
    for run in get_study("step_seconds").runs(store):
        ones = [Configuration.parse(text) for text in run.words("configurations")]
        seconds = [off * float(sum(step_seconds(one.shape, one.setup, machine).values())) for one in ones]
        fields = {"measurements": {"calibration_seconds": 5.0}, "per_example": {"step_seconds": seconds}}
        store.save(Record(key=run.key, spec=run, metrics_info={"rates": machine.as_json()}, **fields))


@pytest.mark.parametrize(("off", "outcome"), [(1.0, "reproduced"), (1.1, "reproduced"), (1.5, "refuted")])
def test_the_verdict_on_seconds_is_about_the_median_error(off, outcome, tmp_path):
    """Each record is predicted by its own rates; every configuration of the byte model's grid is there, enlarged."""
    store, one = Store(tmp_path), get_study("step_seconds")
    timed(store, off)
    known = one.quantities(store)
    assert one.verdict(store).outcome == outcome
    assert known["open_ratio"].n + known["held_out_ratio"].n == sum(map(len, activations.GRID.values()))
    assert known["held_out_ratio"].value == pytest.approx(1 / off, rel=1e-6)
    assert known["held_out_median_error"].value == pytest.approx(100 * abs(1 / off - 1), abs=1e-6)


def test_a_probe_times_every_configuration_and_keeps_the_machines_rates(monkeypatch):
    """Two small configurations: a median each, and rates from which the prediction can be computed again."""
    monkeypatch.setattr(probes, "calibrate", lambda platform: MACHINE)
    texts = tuple(Configuration(SHAPE, setup).text for setup in (CPU, replace(CPU, method="full")))
    settings = {"configurations": texts, "trials": 2}
    probe = specs.Probe(measure="seconds.steps", settings=settings, purpose="timing", machine="m")
    found = probes.steps(probe)
    assert len(found.per_example["step_seconds"]) == found.measurements["configurations"] == 2
    assert Rates.from_json(found.metrics_info["rates"]) == MACHINE
    ratios = list(study.ratios(Record(key=probe.key, spec=probe, **vars(found))))
    assert len(ratios) == 2 and min(ratios) > 0


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Two threads that share a core with other work wait for each other, which no rate foresees."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def here(one_thread) -> Rates:
    """This machine's rates."""
    return calibration.calibrate("cpu")


@pytest.mark.alone
@pytest.mark.plain
@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_a_step_takes_about_as_long_as_predicted(here, method):
    """To a factor of two and a half, which is what a machine with other work leaves of it."""
    shape = DecoderShape(layers=3, hidden=512, ffn=1408, heads=8, kv_heads=4, vocab=4096, tied=True)
    setup = Setup(
        method=method.removeprefix("q"), quantised="nf4" * (method == "qlora"), batch=2, seq=160, device="cpu"
    )
    tuned, ids = subject(shape, setup, 0), random_ids(shape, setup, 0)
    with half_products("cpu"):
        tuned.step(ids)
        measured = sorted(tuned.step(ids) for _ in range(5))[2]
    assert 0.4 < sum(map(float, step_seconds(shape, setup, here).values())) / measured < 2.5


@pytest.mark.alone
def test_waiting_for_a_core_is_not_counted(monkeypatch):
    """A call that lies waiting for most of its time takes what is left; without waiting it takes its time."""
    clock = [0.0]

    def work():
        time.sleep(0.02)
        clock[0] += 0.015

    assert calibration.seconds_of(work, torch.device("cpu")) == pytest.approx(0.02, rel=0.5)
    monkeypatch.setattr(calibration, "waited", lambda: clock[0])
    assert 0.005 <= calibration.seconds_of(work, torch.device("cpu")) < 0.015


def test_a_machine_is_measured_once(monkeypatch, tmp_path):
    """The second call reads what the first wrote; what a busy machine wrote is read until it is idle."""
    calls: list[str] = []
    idle = [False]
    monkeypatch.setenv("PEFTBOOK_CACHE", str(tmp_path))
    monkeypatch.setattr(calibration, "is_idle", lambda: idle[0])
    monkeypatch.setattr(calibration, "calibrate", lambda platform: calls.append(platform) or MACHINE)
    assert calibration.machine_rates() == calibration.machine_rates() == MACHINE
    assert calls == ["cpu"]
    idle[0] = True
    assert calibration.known_rates() is None
    assert calibration.machine_rates() == calibration.machine_rates() == MACHINE
    idle[0] = False
    assert calibration.machine_rates() == MACHINE
    assert calls == ["cpu", "cpu"]


class Clock:
    """Seconds that this process has computed, whatever computes beside it, and what is put on top of them."""

    def __init__(self):
        self.ahead = 0.0

    def monotonic(self) -> float:
        return time.process_time() + self.ahead

    perf_counter = monotonic


@pytest.mark.parametrize("speed", [0.3e9, 3e9])
def test_calibration_ends_in_time_on_a_slow_machine(monkeypatch, one_thread, speed):
    """Products in bfloat16 that take a hundred times as long are measured at smaller sizes, or once."""
    clock = Clock()

    def slow(x, w):
        clock.ahead += 2 * x.shape[0] * w.numel() / (speed if x.dtype == torch.bfloat16 else 100 * speed)

    monkeypatch.setattr(calibration, "layer", slow)
    monkeypatch.setattr(calibration, "time", clock)
    monkeypatch.setattr(calibration, "waited", lambda: 0.0)
    monkeypatch.setattr(calibration, "ELEMENTS", calibration.ELEMENTS[:4])
    monkeypatch.setattr(calibration, "BATCHED", calibration.BATCHED[:2])
    began = clock.monotonic()
    rates = calibration.calibrate("cpu")
    assert clock.ahead > 1 and clock.monotonic() - began < calibration.MOST_SECONDS
    assert rates.products["bf16"].each_flop == pytest.approx(1 / speed, rel=0.5)
    assert all(len(one.elements) >= 2 for one in rates.plain.values())
