"""`python -m dlmech` is the command `dlmech`."""
import sys


def main() -> int:
    "The command: what `dlmech.cli.main` gives, or 130 if it was stopped while that was still being read."
    try:
        from dlmech.cli import main as command
        return command()
    except KeyboardInterrupt:
        print('dlmech: stopped; what was finished is kept', file=sys.stderr)
        return 130


if __name__ == '__main__': sys.exit(main())
