"""The smallest differences that count, one for each quantity. An exception has its reason beside it, in its study.

Loss on the task that a model is tuned on: 0.02 nats per token. Perplexity is then 2 % higher, every right token on
average 2 % less likely, and an answer of thirty-five tokens half as likely. It is the narrowest margin that studies of
such a loss had; those that let LoRA replace full fine-tuning, or four bits sixteen, had 0.05.

Where a claim allows the margin itself ("at most 0.02 worse"), the margin lies inside the claim: a difference that is
surely against it and smaller shows as reproduced or undecided, never as a direction. Such verdicts say so.
"""

from __future__ import annotations

LOSS = 0.02  # nats per token
ROUGE = 0.01  # of ROUGE-L, which is at most 1
ANSWERS = 0.05  # of all answers: one in twenty
SHARE = 0.05  # of a time, of bytes, or of what an adapter gains: below that nobody would choose by it
