"""`python -m dlmech` is the command `dlmech`."""
import sys

from dlmech.cli import main

if __name__ == '__main__': sys.exit(main())
