"""`python -m peftbook`."""

import sys

from peftbook.cli import main

sys.exit(main())
