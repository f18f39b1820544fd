"""Named methods, ``quantize --method NAME``: one file each.

To add one: write a file with a ``Method`` in it, and put that into ``METHODS``. The command line, the documentation and the accuracy
harness read the list.
"""

from .dilatequant import DILATEQUANT
from .matgptq import MATGPTQ
from .method import Method
from .quest import QUEST, QUEST_PAPER
from .vidit_q import VIDIT_Q
from .vqdm import VQDM

METHODS: dict[str, Method] = {method.name: method for method in (DILATEQUANT, QUEST, QUEST_PAPER, VIDIT_Q, VQDM, MATGPTQ)}

__all__ = ["DILATEQUANT", "MATGPTQ", "METHODS", "QUEST", "QUEST_PAPER", "VIDIT_Q", "VQDM", "Method"]
