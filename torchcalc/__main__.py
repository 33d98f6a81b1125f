"""python -m torchcalc"""

import sys

from torchcalc.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
