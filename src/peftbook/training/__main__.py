"""One of the processes of a run: `accelerate launch -m peftbook.training SPEC.json`."""

from peftbook.runtime.processes import fast_exit
from peftbook.training.launch import main

with fast_exit():
    main()
