"""The commands of ``dq-deploy``, a file each: its options, what it runs, and what it prints of the result.

Tables are for people, one JSON object is for machines. What a command needs is imported when it runs, so that help is quick and
``inspect`` works without torch.
"""

from .advise import advise
from .bench import bench
from .build_engine import build_engine
from .check import check
from .combine import combine
from .demo import demo
from .doctor import doctor
from .export import export
from .inspect import inspect
from .layers import layers
from .model_card import model_card
from .pipeline_folder import pipeline_folder
from .prove import prove
from .push import push
from .quantize import quantize
from .refit import refit
from .report import report
from .sample import sample
from .triton_repository import triton_repository

COMMANDS = (
    advise,
    quantize,
    refit,
    export,
    check,
    build_engine,
    combine,
    layers,
    bench,
    prove,
    sample,
    report,
    inspect,
    model_card,
    push,
    triton_repository,
    pipeline_folder,
    demo,
    doctor,
)
"""In the order of the work, in which help lists them."""
