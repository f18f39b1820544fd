"""``python -m benchmarks.accuracy --help``."""

from .command import main

if __name__ == "__main__":
    main(prog_name="python -m benchmarks.accuracy")
