"""One of the processes of a run: `accelerate launch -m peftbook.training SPEC.json`."""

from torch.distributed.elastic.multiprocessing.errors import record

from peftbook.training.launch import main

record(main)()
