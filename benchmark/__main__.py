"""`python -m benchmark` is `beyond`."""

from benchmark.cli import main

if __name__ == "__main__":
    main()
