"""`python -m rayfed`: the same as the command `rayfed`."""

from rayfed.cli import main

if __name__ == "__main__":
    main()
