"""GGUF files: transformers reads back what peft computes, and base and adapter give it by llama.cpp's rule."""

from __future__ import annotations

import copy
import json
import shlex
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from tiny import SEVEN, gguf_from_arrays, real_tokenizer, tiny_llama
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaTokenizer,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.tokenization_utils_base import generate_merges

from peftbook import cli
from peftbook.core import specs
from peftbook.core.base_models import model_named
from peftbook.core.errors import InputError
from peftbook.methods.untuned import Untuned
from peftbook.scratch.codebooks import quantise_dense
from peftbook.training.models import SMALL_FOLDER, Loaded, load_model
from peftbook.training.products import TORCH_DTYPES
from peftbook.views.export import gguf_adapter, gguf_model, gguf_tokenizer

pytestmark = [
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`"),
]

TEXT = "In 1906 the café’s 12 rooms had\n\n  no 3-phase current: déjà vu, 東京!"
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "vocab_size": 320, "max_position_embeddings": 512, "initializer_range": 0.1,
         "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
SHAPES = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "tied": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True)),
    "every head its own keys": lambda: LlamaForCausalLM(LlamaConfig(**SIZES | {"num_key_value_heads": 4})),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZES, head_dim=32, sliding_window=128)),
}


@pytest.fixture(autouse=True, scope="module")
def quick_gguf() -> Iterator[None]:
    """For gguf itself and for transformers, which reads by it."""
    with gguf_from_arrays():
        yield


def byte_level(**settings) -> PreTrainedTokenizerFast:
    """A small byte-level tokenizer, trained on this file."""
    tokenizer = Tokenizer(models.BPE(**settings))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<unk>", "<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train([__file__], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def sentencepiece() -> LlamaTokenizer:
    """A small tokenizer as Llama 2 has it: merges by scores, bytes for what is unknown."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train([__file__], trainers.BpeTrainer(vocab_size=300))
    layout = json.loads(trained.to_str())["model"]
    made = ["".join(pair) for pair in layout["merges"]]
    letters = [token for token in layout["vocab"] if len(token) == 1]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *made, *letters]
    vocabulary = {token: row for row, token in enumerate(dict.fromkeys(tokens))}
    scores = {token: -float(place) for place, token in enumerate(made)}
    return LlamaTokenizer(vocab=vocabulary, merges=generate_merges(vocabulary, scores))


def small_llamas() -> PreTrainedTokenizerFast:
    """The tokenizer of the small Llama that ships with the book."""
    return AutoTokenizer.from_pretrained(SMALL_FOLDER)


def saved_base(folder: Path, shape: str = "llama") -> specs.Model:
    """A tiny model with a tokenizer of its own in a folder."""
    torch.manual_seed(0)
    SHAPES[shape]().eval().save_pretrained(folder)
    tokenizer = byte_level()
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    tokenizer.save_pretrained(folder)
    return model_named(str(folder))


def saved_adapter(folder: Path, base: specs.Model, config=None) -> Path:
    """An adapter that holds something, as after training."""
    config = copy.deepcopy(config) or LoraConfig(r=4, lora_alpha=6, target_modules=list(SEVEN))
    tuned = get_peft_model(load_model(base).model, config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, value in tuned.named_parameters():
            if "lora_B" in name:
                value.copy_(0.1 * torch.randn(value.shape, generator=generator))
    tuned.save_pretrained(folder)
    return folder


def logits(model) -> torch.Tensor:
    """Of two rows of ids."""
    ids = torch.randint(3, 300, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(input_ids=ids).logits.float()


def read_back(file: Path):
    """The model in a GGUF file as transformers reads it."""
    return AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    ).eval()


def rounded(model, dtype: str):
    """The model with its matrices rounded to a type."""
    with torch.no_grad():
        for value in model.parameters():
            if value.dim() > 1:
                value.copy_(value.to(TORCH_DTYPES[dtype]).float())
    return model


def test_peft_alone_loads_an_adapter_on_a_small_llama(tmp_path):
    """No hub has its name: the folder of its base is named, and outputs are those of the adapter as it was saved."""
    from peft import AutoPeftModelForCausalLM

    from peftbook.core.base_models import SMALL_FOLDERS
    from peftbook.studio.model_card import base_named

    torch.manual_seed(0)
    tuned = get_peft_model(load_model(specs.SMALL_LLAMA).model, LoraConfig(init_lora_weights=False)).eval()
    tuned.save_pretrained(tmp_path)
    for name, text in base_named(specs.SMALL_LLAMA, tmp_path, SMALL_FOLDERS[specs.SMALL_MODEL]).items():
        (tmp_path / name).write_text(text)
    again, ids = (
        AutoPeftModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval(),
        torch.tensor([[1, 2, 3]]),
    )
    torch.testing.assert_close(again(ids).logits, tuned(ids).logits)


def test_an_adapter_names_its_base_by_id_and_revision(tmp_path):
    """Not by the folder of the cache that it was loaded from; a run beside it knows the base too."""
    from peftbook.studio.model_card import base_named

    LoraConfig(base_model_name_or_path="/home/me/.cache/snapshots/x").save_pretrained(tmp_path)
    hub = specs.Model(name="org/model", revision="abc")
    (tmp_path / "adapter_config.json").write_text(base_named(hub, tmp_path)["adapter_config.json"])
    assert gguf_adapter.base_of(tmp_path) == hub
    base = saved_base(tmp_path / "base")
    run = specs.Run(model=base, task=specs.Task(name="files", data_sha256="a" * 64), method=Untuned())
    (tmp_path / "run.json").write_text(run.canonical())
    assert gguf_adapter.base_of(tmp_path) == base
    shutil.copy(tmp_path / "base/config.json", tmp_path / "base/other.json")
    with pytest.raises(InputError, match="was changed"):
        gguf_adapter.base_of(tmp_path)


def test_interleaved_rows_are_turned_alike():
    """Halves turned together and then interleaved are neighbours turned together: llama.cpp's order, of each head."""
    heads, width = 3, 8
    x = torch.randn(heads * width)
    cos, sin = torch.randn(2, width // 2)
    halves = x.view(heads, 2, width // 2)
    first, second = halves[:, 0], halves[:, 1]
    turned = torch.stack([first * cos - second * sin, second * cos + first * sin], 1).reshape(-1)
    pairs = gguf_model.interleaved(x, heads).view(heads, width // 2, 2)
    theirs = torch.stack([pairs[..., 0] * cos - pairs[..., 1] * sin, pairs[..., 1] * cos + pairs[..., 0] * sin], -1)
    torch.testing.assert_close(gguf_model.interleaved(turned, heads), theirs.reshape(-1))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_a_merged_file_computes_what_peft_merged(shape, dtype, tmp_path):
    """Read by transformers: the logits of peft's merged model, rounded once to the type of the file."""
    base = saved_base(tmp_path / "base", shape)
    adapter = saved_adapter(tmp_path / "adapter", base)
    file = tmp_path / "merged.gguf"
    written = gguf_model.write_model(gguf_adapter.merge(adapter, base), file, dtype, base)
    assert written.file_bytes == file.stat().st_size
    tuned = PeftModel.from_pretrained(load_model(base).model, adapter).eval()
    beside = logits(tuned)
    merged = tuned.merge_and_unload()
    torch.testing.assert_close(logits(merged), beside, atol=1e-4, rtol=0)
    torch.testing.assert_close(logits(read_back(file)), logits(rounded(merged, dtype)), atol=1e-5, rtol=0)
    assert (beside - logits(load_model(base).model)).abs().max() > 0.1
    with gguf_reader(file) as reader:
        assert ("output.weight" in {tensor.name for tensor in reader.tensors}) == (shape != "tied")


class gguf_reader:  # noqa: N801
    """The file, read; its memory map is given back."""

    def __init__(self, file: Path, mode: str = "r"):
        self.reader = gguf.GGUFReader(file, mode)

    def __enter__(self):
        return self.reader

    def __exit__(self, *_):
        del self.reader


def field(file: Path, name: str):
    """A value of a file's metadata."""
    with gguf_reader(file) as reader:
        return reader.fields[name].contents()


def applied(base: Path, adapter: Path, out: Path) -> Path:
    """What llama.cpp computes with both: W + alpha / rank · B A, the rank read off B, in a copy of the base's file."""
    shutil.copy(base, out)
    with gguf_reader(adapter) as reader:
        factors = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    alpha = field(adapter, "adapter.lora.alpha")
    with gguf_reader(out, "r+") as reader:
        for tensor in reader.tensors:
            if (A := factors.pop(f"{tensor.name}.lora_a", None)) is not None:
                B = factors.pop(f"{tensor.name}.lora_b")
                tensor.data[:] += np.float32(alpha / B.shape[1]) * (B @ A)
    assert not factors
    return out


VARIANTS = {
    "all": LoraConfig(r=4, lora_alpha=6, target_modules=list(SEVEN)),
    "rsLoRA": LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj", "v_proj"], use_rslora=True),
    "patterns": LoraConfig(
        r=4, lora_alpha=6, target_modules=["q_proj", "k_proj", "down_proj"], rank_pattern={"k_proj": 2},
        alpha_pattern={"layers.1.self_attn.q_proj": 20},
    ),
    "one layer and the head": LoraConfig(
        r=2, lora_alpha=2, target_modules=r"lm_head|model\.layers\.1\..*\.(k_proj|up_proj)"
    ),
}  # fmt: skip


@pytest.mark.parametrize("shape", ["llama", "mistral"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_an_adapters_file_beside_its_bases_computes_what_peft_does(shape, variant, tmp_path):
    """By llama.cpp's rule: one alpha, the rank of each pair; rsLoRA's factor and patterns are in it."""
    base = saved_base(tmp_path / "base", shape)
    adapter = saved_adapter(tmp_path / "adapter", base, VARIANTS[variant])
    gguf_model.write_model(load_model(base), tmp_path / "base.gguf", "fp32", base)
    gguf_adapter.write_adapter(adapter, tmp_path / "adapter.gguf", "fp32", base)
    found = logits(read_back(applied(tmp_path / "base.gguf", tmp_path / "adapter.gguf", tmp_path / "both.gguf")))
    tuned = PeftModel.from_pretrained(load_model(base).model, adapter).eval()
    torch.testing.assert_close(found, logits(tuned), atol=1e-4, rtol=0)
    names = ("general.type", "general.architecture", "adapter.type", "general.base_model.0.version")
    assert [field(tmp_path / "adapter.gguf", name) for name in names] == ["adapter", "llama", "lora", base.revision]


def test_qlora_is_merged_into_the_values_that_it_was_trained_over(tmp_path):
    """`rounded` is the base of the studio's own merge; without it the weights stay what they were."""
    base = saved_base(tmp_path / "base")
    adapter = saved_adapter(tmp_path / "adapter", base)
    plain = load_model(base).model
    with torch.no_grad():
        quantise_dense(plain, "nf4")
    expected = logits(PeftModel.from_pretrained(plain, adapter).eval())
    torch.testing.assert_close(logits(gguf_adapter.merge(adapter, base, "nf4").model), expected, atol=1e-4, rtol=0)
    assert (logits(gguf_adapter.merge(adapter, base).model) - expected).abs().max() > 1e-2


@pytest.mark.parametrize("rope", ["llama3", "linear"])
def test_divisors_of_positions_are_those_of_transformers(rope, tmp_path):
    """Rates over divisors are the rates that the model turns by; a plain model has none in its file."""
    settings = {"rope_type": rope, "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64}  # fmt: skip
    model = LlamaForCausalLM(LlamaConfig(**SIZES, rope_parameters=settings))
    loaded = Loaded(model, byte_level())
    gguf_model.write_model(loaded, tmp_path / "model.gguf", "fp32", specs.Model(name="some/model", revision=""))
    with gguf_reader(tmp_path / "model.gguf") as reader:
        (divisors,) = (np.array(tensor.data) for tensor in reader.tensors if tensor.name == "rope_freqs.weight")
    rates = 5e5 ** -(np.arange(0, 16, 2) / 16)
    np.testing.assert_allclose(rates / divisors, model.model.rotary_emb.inv_freq.numpy(), rtol=1e-5)
    assert divisors.max() == pytest.approx(8, rel=1e-4)
    assert "rope_freqs.weight" not in gguf_model.model_tensors(SHAPES["llama"]())


def test_a_window_of_attention_is_the_longest_context(tmp_path):
    """llama.cpp's llama has no window: within it the two compute the same."""
    base = saved_base(tmp_path / "base", "mistral")
    gguf_model.write_model(load_model(base), tmp_path / "base.gguf", "fp16", base)
    assert field(tmp_path / "base.gguf", "llama.context_length") == 128
    assert field(tmp_path / "base.gguf", "llama.attention.key_length") == 32
    assert field(tmp_path / "base.gguf", "general.name") == "base"


@pytest.mark.parametrize("make", [byte_level, sentencepiece, small_llamas])
def test_a_tokenizer_comes_back(make, tmp_path):
    """The same ids for the same texts, special tokens and template too."""
    tokenizer = make()
    tokenizer.add_tokens(["<think>"])
    tokenizer.chat_template = "{{ bos_token }}{% for message in messages %}{{ message.content }}</s>{% endfor %}"
    model = LlamaForCausalLM(LlamaConfig(**SIZES | {"vocab_size": len(tokenizer) + 5}))
    gguf_model.write_model(Loaded(model, tokenizer), tmp_path / "model.gguf", "fp16", specs.Model())
    again = AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    for text in (TEXT, " leading", "</s>a<think>b", "import gguf\n\tdef  test_a():"):
        assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    chat = [{"role": "user", "content": TEXT}]
    assert again.apply_chat_template(chat) == tokenizer.apply_chat_template(chat)
    assert (again.bos_token_id, again.eos_token_id) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    tokens = field(tmp_path / "model.gguf", "tokenizer.ggml.tokens")
    assert tokens[-1] == f"[PAD{len(tokens) - 1}]" and len(tokens) == len(tokenizer) + 5


@pytest.mark.parametrize(
    ("splitter", "whole", "name"),
    [
        (pre_tokenizers.ByteLevel(add_prefix_space=False), False, "gpt-2"),
        ([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)], False, "smollm"),
        ("llama-bpe", True, "llama-bpe"),
        ("tekken", True, "tekken"),
        ("llama-bpe", False, None),
        ("qwen2", True, None),
        (pre_tokenizers.ByteLevel(add_prefix_space=True), False, None),
        ([pre_tokenizers.Digits(False), pre_tokenizers.ByteLevel(add_prefix_space=False)], False, None),
        (pre_tokenizers.Whitespace(), False, None),
    ],
)
def test_how_texts_are_cut_is_named_or_refused(splitter, whole, name):
    """A file that names another way would give other tokens, in silence."""
    from tokenizers import Regex
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    if isinstance(splitter, str):
        regex = Regex(GGUF_PRE_TOKENIZER_SPLITS[splitter])
        cut = pre_tokenizers.Split(regex, behavior="isolated")
        splitter = [cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    tokenizer = byte_level(ignore_merges=whole).backend_tokenizer
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splitter) if isinstance(splitter, list) else splitter
    layout = json.loads(tokenizer.to_str())
    if name is None:
        with pytest.raises(InputError, match=r"cuts texts by .*convert_hf_to_gguf"):
            gguf_tokenizer.split_name(layout)
    else:
        assert gguf_tokenizer.split_name(layout) == name


def test_merges_that_scores_cannot_say_are_refused():
    """Sentencepiece knows the scores of tokens alone: every pair that makes one, and these one after the other."""
    vocabulary = {token: row for row, token in enumerate(("a", "b", "c", "ab", "bc", "abc"))}
    whole = [("a", "b"), ("b", "c"), ("ab", "c"), ("a", "bc")]
    assert gguf_tokenizer.scores_of(whole, vocabulary) == {"ab": 0.0, "bc": -1.0, "abc": -2.0}
    for merges in (whole[:3], [whole[2], *whole[:2], whole[3]]):
        with pytest.raises(InputError, match="No score says in what order"):
            gguf_tokenizer.scores_of(merges, vocabulary)


@pytest.mark.model
def test_the_embedded_models_tokenizer_and_template_come_back(tmp_path):
    """Ids and prompts of the book's runs are those of the file."""
    tokenizer = real_tokenizer()
    loaded = Loaded(tiny_llama(vocabulary=len(tokenizer)), tokenizer)
    gguf_model.write_model(loaded, tmp_path / "model.gguf", "bf16", specs.Model())
    again = AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    chat = [{"role": "user", "content": TEXT}]
    assert again(TEXT)["input_ids"] == tokenizer(TEXT)["input_ids"]
    assert again.apply_chat_template(chat, add_generation_prompt=True) == tokenizer.apply_chat_template(
        chat, add_generation_prompt=True
    )


@pytest.mark.model
@pytest.mark.slow
def test_an_embedded_model_with_an_adapter(tmp_path, capsys):
    """The command, on the folder that train leaves: the logits of peft, and from both files by llama.cpp's rule."""
    base = model_named(specs.SMALL_MODEL)
    adapter = saved_adapter(tmp_path / "out/adapter", base)
    files = [tmp_path / f"{name}.gguf" for name in ("merged", "alone", "base")]
    assert cli.main(["export", str(adapter.parent), "--merged", "--gguf", str(files[0]), "--dtype", "fp32"]) == 0
    assert cli.main(["export", str(adapter.parent), "--gguf", str(files[1]), "--dtype", "fp32"]) == 0
    shown = [line for line in capsys.readouterr().out.splitlines() if " tensors, " not in line]
    assert shown[:2] == [f"llama-server -m {files[0]}", f"llama-server -m BASE.gguf --lora {files[1]}"]
    once = shlex.split(shown[2].replace(" BASE.gguf", f" {files[2]} --dtype fp32"))  # the command that the line gives
    assert once[:3] == ["BASE.gguf,", "once:", "peftbook"]
    assert cli.main(once[3:]) == 0
    assert f"llama-server -m {files[2]}" in capsys.readouterr().out
    tuned = logits(PeftModel.from_pretrained(load_model(base).model, adapter).eval())
    torch.testing.assert_close(logits(read_back(files[0])), tuned, atol=2e-3, rtol=0)
    both = applied(files[2], files[1], tmp_path / "both.gguf")
    torch.testing.assert_close(logits(read_back(both)), tuned, atol=2e-3, rtol=0)


REFUSED = {
    "PROMPT_TUNING": (PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2), "PROMPT_TUNING.*train LoRA"),
    "PREFIX_TUNING": (PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2), "PREFIX_TUNING.*train LoRA"),
    "IA3": (IA3Config(target_modules=["k_proj"], feedforward_modules=[]), "IA3 is no LoRA.*add --merged"),
    "DoRA": (LoraConfig(target_modules=["q_proj"], use_dora=True), "DoRA.*add --merged"),
    "saved": (LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"]), "replaces lm_head.*add --merged"),
    "PiSSA": (LoraConfig(target_modules=["q_proj"], init_lora_weights="pissa"), "starts at 'pissa'.*add --merged"),
    "OLoRA": (LoraConfig(target_modules=["q_proj"], init_lora_weights="olora"), "starts at 'olora'.*add --merged"),
    "aLoRA": (
        LoraConfig(target_modules=["q_proj"], alora_invocation_tokens=[5], task_type="CAUSAL_LM"),
        "more than factors .*add --merged",
    ),
    "embedding": (LoraConfig(target_modules=["embed_tokens"]), "lora_embedding_A.*add --merged"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_a_gguf_adapter_cannot_hold_is_refused(kind, tmp_path):
    """One sentence that says what to do, and no file; what can be merged computes as peft does."""
    base = saved_base(tmp_path / "base")
    config, words = REFUSED[kind]
    adapter = saved_adapter(tmp_path / "adapter", base, config)
    with pytest.raises(InputError, match=words):
        gguf_adapter.write_adapter(adapter, tmp_path / "out.gguf", "fp16", base)
    assert not list(tmp_path.glob("*.gguf")) and not list(tmp_path.glob(".*"))
    if config.is_prompt_learning or kind == "aLoRA":
        with pytest.raises(InputError, match=r"stands before the text|cannot be merged"):
            gguf_adapter.merge(adapter, base)
    else:
        gguf_model.write_model(gguf_adapter.merge(adapter, base), tmp_path / "out.gguf", "fp32", base)
        tuned = PeftModel.from_pretrained(load_model(base).model, adapter).eval()
        torch.testing.assert_close(logits(read_back(tmp_path / "out.gguf")), logits(tuned), atol=1e-4, rtol=0)


def test_factors_of_a_matrix_that_is_two_are_refused(tmp_path):
    """A tied head cannot move without the embedding."""
    base = saved_base(tmp_path / "base", "tied")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapter = saved_adapter(tmp_path / "adapter", base, LoraConfig(target_modules=["lm_head"]))
    for write in (lambda: gguf_adapter.merge(adapter, base), lambda: write_alone(adapter, base, tmp_path)):
        with pytest.raises(InputError, match="one matrix"):
            write()


def write_alone(adapter: Path, base: specs.Model, folder: Path) -> None:
    """The adapter alone, into a folder."""
    gguf_adapter.write_adapter(adapter, folder / "out.gguf", "fp16", base)


def test_an_adapter_of_another_base_is_refused(tmp_path):
    """In both forms: peft itself warns at most where no name is the same."""
    base = saved_base(tmp_path / "base")
    wider = tmp_path / "wider"
    LlamaForCausalLM(LlamaConfig(**SIZES | {"hidden_size": 128})).save_pretrained(wider)
    byte_level().save_pretrained(wider)
    adapter = saved_adapter(tmp_path / "adapter", base)
    with pytest.raises(InputError, match="cannot be merged"):
        gguf_adapter.merge(adapter, model_named(str(wider)))
    with pytest.raises(InputError, match="has another shape"):
        write_alone(adapter, model_named(str(wider)), tmp_path)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES)), "architecture 'qwen2'.*convert_hf_to_gguf"),
        (lambda: LlamaForCausalLM(LlamaConfig(**SIZES, attention_bias=True)), "has biases"),
        (lambda: LlamaForCausalLM(LlamaConfig(**SIZES, hidden_act="gelu")), "activation 'gelu'"),
        (
            lambda: LlamaForCausalLM(
                LlamaConfig(**SIZES, rope_parameters={"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0})
            ),
            "turns positions by 'yarn'",
        ),
    ],
)
def test_other_models_are_refused(model, words, tmp_path):
    """They would load, and compute something else."""
    with pytest.raises(InputError, match=words):
        gguf_model.write_model(Loaded(model(), byte_level()), tmp_path / "out.gguf", "fp16", specs.Model())
    assert not list(tmp_path.iterdir())
    model().save_pretrained(tmp_path / "no-tokenizer")
    with pytest.raises(InputError, match=words):  # before anything is loaded
        gguf_model.load_base(model_named(str(tmp_path / "no-tokenizer")))


def test_a_value_that_float16_cannot_hold_leaves_no_file(tmp_path):
    """Named, with the type that holds it; what was half-written is gone."""
    loaded = Loaded(SHAPES["llama"](), byte_level())
    with torch.no_grad():
        loaded.model.model.layers[1].mlp.up_proj.weight[0, 0] = 1e5
    with pytest.raises(InputError, match=r"blk\.1\.ffn_up\.weight.*choose --dtype bf16"):
        gguf_model.write_model(loaded, tmp_path / "out.gguf", "fp16", specs.Model())
    assert not list(tmp_path.iterdir())
    gguf_model.write_model(loaded, tmp_path / "out.gguf", "bf16", specs.Model())


def test_a_tokenizer_larger_than_the_embedding_is_refused(tmp_path):
    """It is another model's."""
    model = LlamaForCausalLM(LlamaConfig(**SIZES | {"vocab_size": 64}))
    with pytest.raises(InputError, match="the embedding 64 rows"):
        gguf_model.write_model(Loaded(model, byte_level()), tmp_path / "out.gguf", "fp16", specs.Model())


def test_the_command_refuses_in_a_sentence(tmp_path, capsys):
    """Exit status 2, before anything is loaded."""
    base = saved_base(tmp_path / "base")
    adapter = saved_adapter(tmp_path / "adapter", base)
    out = str(tmp_path / "out.gguf")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled/adapter_config.json").write_text(json.dumps(config))
    shutil.copytree(adapter, tmp_path / "moved")
    config["base_model_name_or_path"] = "/gone/base"
    (tmp_path / "moved/adapter_config.json").write_text(json.dumps(config))
    there = tmp_path / "there.gguf"
    there.touch()
    for words, reason in (
        ([str(adapter), "--gguf", str(there)], "exists"),
        (["--gguf", out], "Nothing to write"),
        (["--model", str(tmp_path / "base"), "--merged", "--gguf", out], "Nothing to write"),
        ([str(adapter), "--rounded", "nf4", "--gguf", out], "add --merged"),
        ([str(tmp_path / "base"), "--gguf", out], "a whole model, with its tokenizer, is named by --model"),
        ([str(tmp_path / "none"), "--gguf", out], "no adapter_config.json"),
        ([str(tmp_path / "pickled"), "--gguf", out], "pickle is never loaded"),
        ([str(tmp_path / "moved"), "--gguf", out], "names the base '/gone/base', which is not here"),
        ([str(adapter), "--model", "nowhere", "--gguf", out], "neither a folder nor a hub id"),
    ):
        assert cli.main(["export", *words]) == 2
        assert reason in capsys.readouterr().err
    assert cli.main(["export", str(tmp_path / "moved"), "--model", str(tmp_path / "base"), "--gguf", out]) == 0
    assert there.stat().st_size == 0
