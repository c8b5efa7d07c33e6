"""``python -m mechmem`` is the command ``mechmem``."""

from mechmem.cli import main

if __name__ == "__main__":
    main()
