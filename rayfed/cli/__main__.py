"""`python -m rayfed.cli`: the same as the command `rayfed`."""

from rayfed.cli import main

if __name__ == "__main__":
    main()
