"""Figures: pure functions from records (or from nothing) to a matplotlib Figure, and the list of all of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from matplotlib.figure import Figure

from peftbook.errors import InputError
from peftbook.figures import (
    bill,
    block,
    costs,
    data,
    evidence,
    family,
    fit,
    limits,
    lora,
    lora_practice,
    machines,
    measuring,
    methods,
    notebooks,
    prompt,
    qlora,
    quantisation,
    restraint,
    retention,
    shipping,
)
from peftbook.figures.style import render_png, render_svg
from peftbook.records import Store, write_atomically
from peftbook.results import run_command, study_quantities
from peftbook.studies import (
    benchmark,
    capacity,
    codebooks,
    data_size,
    double_quant,
    expressiveness,
    forgetting,
    learning_rate,
    memory,
    merging,
    prompt_design,
    recovery,
    scaling,
    serving,
    sql,
    targets,
    throughput,
    two_rates,
    variants,
    weight_error,
)

__all__ = ["FIGURES", "Entry", "available", "png", "render_all", "runs", "svg"]


class Entry(NamedTuple):
    """A figure and what it needs.

    needs: the quantities, `study.name`, whose records it draws. With none it is computed and its function takes no
    argument; otherwise the function takes the store.
    """

    function: Callable[..., Figure]
    needs: tuple[str, ...] = ()


ARMS = ("untuned", "fewshot", "full", "lora", "qlora", "prompt")
FINAL = tuple(f"methods.{arm}_loss" for arm in ARMS)
SWEEP = tuple(f"methods.{arm}_best_rate" for arm in ARMS[2:])
COSTS = tuple(f"costs.{arm}_step_seconds" for arm in ARMS[2:])
BENCHMARK = tuple(f"benchmark.{arm.name}_loss" for arm in benchmark.COMPARISON.arms)
RATES = (
    *(f"learning_rate.{arm.name}_best_rate" for arm in learning_rate.SHORT.arms),
    *(f"learning_rate.{arm}_vertex" for arm in learning_rate.REPLICATED),
)
PROMPTS = tuple(f"prompt_length.{arm.name}_loss" for arm in prompt_design.COMPARISON.arms)
CODEBOOKS = tuple(f"codebooks_squared.{source}_best_mse_{codebooks.BLOCK}" for source in codebooks.SOURCES)
CORRELATIONS = tuple(f"weight_error.{source}_correlation_mse" for source in weight_error.SOURCES)
CONSTANTS = tuple(f"double_quant_bits.{source}_{block}_cost" for source in double_quant.SOURCES for block in (64, 256))
DATA = tuple(f"data_size.n{size}_{arm.name}_loss" for size in data_size.SIZES for arm in data_size.ARMS)
TARGETS = tuple(f"targets.{arm.name}_loss" for arm in targets.COMPARISON.arms)
GAPS = tuple(
    f"recovery.{model}_{arm.name}_loss" for model, one in recovery.COMPARISONS.items() for arm in one.arms
)  # fmt: skip
REQUANTISED = tuple(f"requantised.{model}_{arm}_requantised_lost" for model, arm in recovery.MERGED)
PATHS = tuple(f"forgetting.{arm}_prose_loss" for arm in forgetting.ARMS)
ENDS = tuple(f"forgetting.{arm}_{name}" for arm in forgetting.ARMS for name in ("validation_loss", "forgotten"))
DIRECTIONS = tuple(f"forgetting.{arm}_{name}" for arm in forgetting.ARMS for name in ("update_rank", "intruders"))
LATENCY = tuple(f"merging_latency.merged_over_base_forward_{dtype}_batch{batch}" for dtype, batch in merging.CONDITIONS)
RANK = tuple(f"rank.r{rank}_loss" for rank in learning_rate.RANKS)
SCALING = (*(f"scaling.{arm.name}_loss" for arm in scaling.COMPARISON.arms), "scaling.fixed_rate_difference")
SIZES = ("scaling_size.standard_exponent", "scaling_size.stabilised_exponent")
MAP = tuple(f"two_rates.{name}_best_rate" for name in two_rates.RATIOS)
VARIANTS = tuple(f"lora_plus.{arm.name}_steps" for arm in variants.COMPARISON.arms[1:])
DEPTHS = tuple(f"expressiveness.depth{depth}_lora_accuracy" for depth in expressiveness.DEPTHS)
BITS = tuple(f"capacity.{one.name}_bits" for series in capacity.SERIES.values() for one in series)
SERVED = tuple(f"serving.mixed_{count}_tokens_per_second" for count in serving.COUNTS)
THROUGHPUT = tuple(f"throughput.measured_{workers}" for workers in throughput.MEASURED)
BYTES = tuple(f"memory.{name}_tensor_peak_error" for name in memory.CASES)
SQL = tuple(f"sql_prompt.{arm.name}_execution_match" for arm in sql.COMPARISON.arms)
SPREAD = tuple(f"rouge_settings.{name}_spread" for name in ("lora", "lora_minus_prompt", "lora_minus_untuned"))
ENTRIES = (
    Entry(methods.test_scores, FINAL),
    Entry(methods.head_to_head, FINAL),
    Entry(methods.quality_against_parameters, FINAL),
    Entry(methods.learning_rate_curves, SWEEP),
    Entry(methods.prompt_rate_curve, ("methods.prompt_best_rate",)),
    Entry(methods.training_loss, FINAL[2:]),
    Entry(methods.lora_against_full, ("methods.lora_minus_full_loss",)),
    Entry(methods.qlora_against_lora, ("methods.qlora_minus_lora_loss",)),
    Entry(methods.rouge_against_bertscore, ("methods.lora_rougeL",)),
    Entry(data.token_strip),
    Entry(data.truncated_targets),
    Entry(data.nearest_neighbours),
    Entry(data.padding_waste),
    Entry(block.touched_block),
    Entry(family.numbers_by_method),
    Entry(family.work_against_count),
    Entry(family.loss_against_count, BENCHMARK),
    Entry(lora.low_rank_update),
    Entry(lora.parameters_against_rank),
    Entry(quantisation.quantisation_steps),
    Entry(quantisation.codebook_levels),
    Entry(quantisation.bin_mass),
    Entry(quantisation.outlier_error),
    Entry(quantisation.error_against_block),
    Entry(quantisation.error_against_bits),
    Entry(quantisation.bits_against_block),
    Entry(prompt.soft_prompt_position),
    Entry(prompt.parameters_against_length),
    Entry(costs.training_state),
    Entry(costs.memory_by_term),
    Entry(fit.memory_by_model),
    Entry(fit.memory_by_length),
    Entry(fit.memory_by_rank),
    Entry(fit.memory_by_rows),
    Entry(restraint.break_even),
    Entry(restraint.differences_seen, ("methods.fewshot_loss", "methods.lora_minus_full_loss")),
    Entry(machines.time_by_workers, ("throughput.runs",)),
    Entry(machines.runs_an_hour, THROUGHPUT),
    Entry(machines.memory_by_devices),
    Entry(machines.lost_work),
    Entry(costs.step_time, COSTS),
    Entry(costs.peak_memory, COSTS),
    Entry(bill.bytes_per_parameter),
    Entry(bill.step_timeline),
    Entry(bill.time_saved),
    Entry(bill.tasks_on_disk),
    Entry(evidence.standard_curve, ("standard.e2e_tokens", "standard.docstrings_tokens")),
    Entry(evidence.benchmark_losses, BENCHMARK),
    Entry(evidence.benchmark_scores, BENCHMARK),
    Entry(evidence.rate_curves, RATES),
    Entry(evidence.prompt_design_losses, PROMPTS),
    Entry(evidence.codebook_errors, CODEBOOKS),
    Entry(evidence.codebook_absolute_errors, CODEBOOKS),
    Entry(evidence.weight_error_scatter, CORRELATIONS),
    Entry(evidence.double_quantisation, CONSTANTS),
    Entry(evidence.examples_needed, ("data_size.fewshot_loss", *DATA)),
    Entry(evidence.target_matrices, TARGETS),
    Entry(evidence.recovery_gaps, GAPS),
    Entry(qlora.slowdown_against_tokens, ("step_seconds.held_out_ratio",)),
    Entry(qlora.memory_against_time, ("step_seconds.held_out_ratio",)),
    Entry(qlora.requantised_gains, REQUANTISED),
    Entry(evidence.forgetting_paths, PATHS),
    Entry(retention.forgetting_by_rate, ENDS),
    Entry(retention.update_directions, DIRECTIONS),
    Entry(retention.rank_room),
    Entry(evidence.subspace_overlap, ("subspace.small_large_first",)),
    Entry(evidence.merging_latency, LATENCY),
    Entry(shipping.rounded_updates, tuple(f"merging_quality.{name}" for name in shipping.MEASURED.values())),
    Entry(shipping.bytes_a_step),
    Entry(lora_practice.wrong_rate, RATES),
    Entry(lora_practice.rank_losses, RANK),
    Entry(lora_practice.scaling_gains, SCALING),
    Entry(lora_practice.update_sizes, SIZES),
    Entry(lora_practice.rate_map, MAP),
    Entry(lora_practice.variant_effects, VARIANTS),
    Entry(limits.accuracy_by_depth, DEPTHS),
    Entry(limits.stored_bits, BITS),
    Entry(limits.adapters_served, SERVED),
    Entry(limits.step_peaks, ("step_peaks.open_peak_ratio", "step_peaks.held_out_peak_ratio")),
    Entry(limits.step_times, ("step_seconds.open_ratio", "step_seconds.held_out_ratio")),
    Entry(limits.memory_errors, BYTES),
    Entry(measuring.rouge_by_setting, SPREAD),
    Entry(measuring.paired_intervals, FINAL[2:]),
    Entry(measuring.coverage_of_rules, ("coverage.own_quantiles_aimed_coverage",)),
    Entry(measuring.seeds_needed),
    Entry(measuring.verdict_rule),
    Entry(measuring.winners_curse),
    Entry(notebooks.cut_row),
    Entry(notebooks.scores_of_no_learning),
    Entry(notebooks.summary_baselines, FINAL),
    Entry(notebooks.sql_answers, SQL),
    Entry(notebooks.prompt_rates, PROMPTS),
    Entry(notebooks.notebook_memory),
)
FIGURES: dict[str, Entry] = {entry.function.__name__: entry for entry in ENTRIES}


def entry(name: str) -> Entry:
    """A figure by the name of its function. Raises InputError for an unknown one."""
    if name not in FIGURES:
        raise InputError(f"Unknown figure {name!r}: choose one of {', '.join(FIGURES)}.")
    return FIGURES[name]


def missing(name: str, store: Store) -> list[str]:
    """The quantities that the figure needs and the store lacks."""
    return [need for need in entry(name).needs if _quantity(need, store) is None]


def available(name: str, store: Store) -> bool:
    """Whether the records behind a figure are there."""
    return not missing(name, store)


def runs(name: str, store: Store) -> list[str]:
    """Keys of the runs behind a figure, each once."""
    found = [quantity.runs for need in entry(name).needs if (quantity := _quantity(need, store)) is not None]
    return list(dict.fromkeys(key for keys in found for key in keys))


def _quantity(name: str, store: Store) -> Any:
    study, _, key = name.partition(".")
    return study_quantities(study, store).get(key)


def _arguments(name: str, store: Store) -> tuple[Store, ...]:
    if lacking := missing(name, store):
        study = lacking[0].partition(".")[0]
        raise InputError(f"Figure {name!r} needs {lacking[0]!r}, which has no record yet: run `{run_command(study)}`.")
    return (store,) if entry(name).needs else ()


def svg(name: str, store: Store, mode: Literal["light", "dark"] = "light", **options: Any) -> bytes:
    """A figure by name as SVG. Raises InputError that says which command makes what it lacks."""
    return render_svg(entry(name).function, *_arguments(name, store), mode=mode, **options)


def png(name: str, store: Store, mode: Literal["light", "dark"] = "light", dpi: float = 200, **options: Any) -> bytes:
    """A figure by name as PNG. Raises InputError that says which command makes what it lacks."""
    return render_png(entry(name).function, *_arguments(name, store), mode=mode, dpi=dpi, **options)


def render_all(folder: Path, store: Store) -> list[Path]:
    """Write every figure whose records are there as `<name>.svg`, light; the same records give the same bytes."""
    written = []
    for name in FIGURES:
        if available(name, store):
            path = Path(folder) / f"{name}.svg"
            write_atomically(path, svg(name, store))
            written.append(path)
    return written
