"""`python -m peftbook.cli`."""

import sys

from peftbook.cli import main

sys.exit(main())
