"""One of the processes of a run: `accelerate launch -m peftbook.training SPEC.json`."""

from peftbook.processes import leave
from peftbook.training.launch import main

main()
leave()
