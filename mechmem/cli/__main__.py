"""``python -m mechmem.cli`` is the command ``mechmem``."""

from mechmem.cli.entry import main

if __name__ == "__main__":
    main()
