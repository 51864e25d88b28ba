"""Training, generation and scoring: the only modules that import transformers, peft, bitsandbytes and bert_score."""
