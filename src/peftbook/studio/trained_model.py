"""Models of finished jobs: load base and adapter, merge them into one dense model, answer, and cache those in use."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import psutil

from peftbook.core import specs
from peftbook.core.base_models import check_model
from peftbook.core.errors import InputError
from peftbook.runtime.hardware import platform_here
from peftbook.scratch.codebooks import quantise_dense
from peftbook.studio.playground import Sampling
from peftbook.studio.store import Job, Studio
from peftbook.tasks import TaskData, TaskExample
from peftbook.training.encode import encode_prompt
from peftbook.training.execute import few_shots
from peftbook.training.forward import apply_method
from peftbook.training.generate import continuation, sampler
from peftbook.training.models import Loaded, load_model
from peftbook.training.restored import load_run, restore, share_weights

MAX_PROMPT_TOKENS = 4096
MODELS = 4  # cached; models on one base share its tensors
SPARE = 0.15  # of the memory: with less available no second model is cached


def load_trained(studio: Studio, job: Job) -> Loaded:
    """The model of a finished job as it was evaluated, ready to generate. Raises what `Studio.adapter` does."""
    folder = None if job.run.budget is None else studio.adapter(job)
    return load_run(job.run, folder, platform_here(job.run.platform))


def merge(studio: Studio, job: Job) -> Loaded:
    """One dense float32 model that computes what the job's model does. Raises InputError where peft cannot merge.

    A base in 4 bits becomes the values that its codes stand for; the merged weights are not rounded again, nor are
    those of a base in bfloat16, which is widened first.
    """
    run = job.run
    if not run.method.packed:
        loaded = load_trained(studio, job)
        model: Any = loaded.model.float()
        try:
            merged = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
        except (NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(
                f"peft cannot merge {run.method.label} ({error}): download the adapter instead."
            ) from error
        return Loaded(merged, loaded.tokenizer)
    folder = studio.adapter(job)
    check_model(run.model)
    loaded = load_model(run.model, None, platform_here(run.platform), run.dtype, run.weights)
    method: Any = run.method
    quantise_dense(loaded.model.float(), method.quant, double_quant=method.double_quant)
    tuned: Any = apply_method(loaded.model, run.method, run.seed, loaded.tokenizer)
    restore(tuned, run.method, folder)
    return Loaded(tuned.eval().merge_and_unload(), loaded.tokenizer)


def answer_ids(
    loaded: Loaded, task: TaskData, text: str, how: Sampling, run: specs.Run | None, platform: str
) -> Iterator[int]:
    """The token ids of an answer to a text, as a job's run writes them, or a model without training.

    Raises InputError for a text that is too long.
    """
    pick = sampler(how.temperature, how.top_p, how.seed)
    shots, dtype = (few_shots(task, run), run.evaluation.generation_dtype) if run else ((), "fp32")
    prompt = encode_prompt(loaded.tokenizer, task, question(task, text), shots)
    positions = getattr(loaded.model.config, "max_position_embeddings", None) or MAX_PROMPT_TOKENS
    most = min(MAX_PROMPT_TOKENS, positions - how.max_new_tokens)
    if len(prompt) > most:
        raise InputError(f"The text has {len(prompt):,} tokens, and {most:,} fit before the answer: shorten it.")
    return continuation(loaded.model, prompt, pick, dtype=dtype, platform=platform)


def question(task: TaskData, text: str) -> TaskExample:
    """The test row whose input a text is, turns and all; another text after what the system says to all
    training rows, if it says the same to all.
    """
    if row := next((row for row in task.splits["test"] if row.input == text), None):
        return row
    return TaskExample("typed", text, "", turns=(("system", task.system), ("user", text)) if task.system else ())


class ModelCache:
    """The models that were used last, trained or untuned, as far as they fit into memory."""

    def __init__(self, studio: Studio):
        self.studio = studio
        self.loaded: OrderedDict[str, Loaded] = OrderedDict()

    def of_job(self, job: Job) -> Loaded:
        """The model that a job trained, or the untuned one that it measured."""
        if job.run.budget is None and not getattr(job.run.method, "quant", ""):
            return self.as_it_comes(job.run.model, platform_here(job.run.platform), job.run.weights)

        def load() -> Loaded:
            found = load_trained(self.studio, job)
            if job.run.method.shares_base:
                base = self.as_it_comes(job.run.model, platform_here(job.run.platform), job.run.weights)
                share_weights(found.model, base.model)
            return found

        return self._cached(f"{job.project}/{job.key}", load)

    def as_it_comes(self, model: specs.Model, platform: str, weights: str = "fp32") -> Loaded:
        """A model without training. weights: the type in which a job holds it."""

        def load() -> Loaded:
            check_model(model)
            found = load_model(model, None, platform, weights=weights)
            return Loaded(found.model.eval().requires_grad_(False), found.tokenizer)

        return self._cached(f"{platform}/{weights}/{model.name}/{model.revision}", load)

    def _cached(self, key: str, load: Callable[[], Loaded]) -> Loaded:
        if key not in self.loaded:
            memory = psutil.virtual_memory()
            while self.loaded and (len(self.loaded) >= MODELS or memory.available < SPARE * memory.total):
                self.loaded.popitem(last=False)
                memory = psutil.virtual_memory()
            self.loaded[key] = load()
        self.loaded.move_to_end(key)
        return self.loaded[key]
