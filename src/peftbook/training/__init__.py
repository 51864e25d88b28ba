"""Training, generation and scoring: the only modules that import transformers, peft, bitsandbytes and bert_score."""

from peftbook.training.later import compile_later

compile_later()
