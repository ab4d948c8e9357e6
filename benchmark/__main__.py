"""`python -m benchmark`, and the `beyond` command: nothing is imported before Ctrl-C is taken care of."""


def run() -> None:
    """Run `beyond`; an interrupt is one line and exit status 130, also while packages are still imported."""
    try:
        from benchmark.cli import main

        main()
    except KeyboardInterrupt:
        import os

        os.write(2, b"error: interrupted before anything was done; give the same command again\n")
        os._exit(130)


if __name__ == "__main__":
    run()
