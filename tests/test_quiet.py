"""What libraries write beside our own lines, and the pause of the garbage collector while they are imported."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from peftbook.core.quiet import gc_paused

IMPORTS = """
import logging, warnings
from peftbook.core.quiet import quieten_libraries
quieten_libraries()
import bitsandbytes
from tqdm import TqdmWarning
logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
logger.warning("Failed to load CPU gemm_4bit_forward from kernels-community: %s", "no network")
warnings.warn("IProgress not found. Please update jupyter and ipywidgets.", TqdmWarning)
logger.warning("news of a kernel")
warnings.warn("news of a library")
"""


def test_known_messages_of_libraries_are_dropped_and_unknown_ones_show():
    """Those of an import, too."""
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True)
    assert done.stdout == "" and done.stderr == "news of a kernel\n<string>:11: UserWarning: news of a library\n"


def test_nothing_is_collected_in_a_pause_nor_what_was_made_there_ever_after():
    """Inside another pause the outer one decides; an error leaves the collector as it was."""
    with gc_paused():
        with gc_paused():
            pass
        assert not gc.isenabled()
        made = [[] for _ in range(1000)]
    with pytest.raises(ImportError), gc_paused():
        raise ImportError
    assert gc.isenabled() and not {id(one) for one in made} & {id(one) for one in gc.get_objects()}
