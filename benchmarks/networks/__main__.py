"""``python -m benchmarks.networks --help``, and ``python -m benchmarks.networks train --help``."""

import sys

if __name__ == "__main__":
    if sys.argv[1:2] == ["train"]:
        from .training_command import main as train

        train(sys.argv[2:], prog_name="python -m benchmarks.networks train")
    else:
        from .command import main

        main(prog_name="python -m benchmarks.networks")
