"""``python -m fusedlstm``: the command line."""

import sys

from fusedlstm.cli import main

if __name__ == "__main__":
    sys.exit(main())
